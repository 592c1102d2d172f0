"""How do properties of the data and changes of layers go with gains, in words?

In: the tables that `associations` and `layers` make. Out: Findings. A correlation is worded as one:
what goes with what, in this grid, and never as a cause.
"""

from collections.abc import Hashable, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd

from sft_atlas.analyze.data_properties import PERPLEXITY as PERPLEXITY_KEY
from sft_atlas.analyze.data_properties import Predictor
from sft_atlas.analyze.findings import MAX_P, Finding, interval_text, main_setting, minus
from sft_atlas.analyze.gains import AVERAGE
from sft_atlas.analyze.layers import LayerProfile
from sft_atlas.statistics.clusters import percentile_interval

PERPLEXITY: Final = "Does data that the base model finds likely help more?"
RIVALS: Final = "Which property of the data goes most closely with gain?"
LAYERS: Final = "At which depth does weight change go with gain?"

_VARIANTS: Final = {
    "raw": "over all model and dataset pairs",
    "within_model": "between datasets for the same model",
    "within_data": "between models for the same dataset",
}
_METHOD: Final = (
    "Spearman correlation of log answer perplexity under the base model with the mean gain over "
    "benchmarks, final epoch. Interval: percentiles of a bootstrap that draws models and datasets "
    "independently. p-value: "
    "models and datasets relabelled at random."
)


def disagreement(interval: tuple[float, float], p_value: float) -> str:
    """Say that an interval without 0 is no evidence where relabelling does as well; else ''.

    With three or four models or datasets, resamples differ too little from each other for their
    percentiles to hold 95 %.
    """
    if interval[0] <= 0 <= interval[1] or not p_value > MAX_P:
        return ""
    return (
        " The interval leaves out 0, but models and datasets relabelled at random do as well too "
        "often: the data cannot tell."
    )


def perplexity_findings(
    table: pd.DataFrame, points: pd.DataFrame, gains: pd.DataFrame
) -> list[Finding]:
    """Word the rank correlation of perplexity with mean gain, per method and variant."""
    rows = _of_main(table, gains)
    if rows.empty:
        return []
    rows = rows[(rows["benchmark"] == AVERAGE) & (rows["predictor"] == PERPLEXITY_KEY)]
    rows = rows[(rows["statistic"] == "spearman") & rows["estimate"].notna()]
    if rows.empty:
        return []
    measured = points.loc[points[PERPLEXITY_KEY].notna(), "data"].unique()
    return [
        _perplexity_finding(row, _final_cells(gains, str(row["method"]), measured))
        for row in rows.to_dict("records")
    ]


def rival_findings(
    table: pd.DataFrame,
    points: pd.DataFrame,
    gains: pd.DataFrame,
    predictors: Sequence[Predictor],
) -> list[Finding]:
    """Word whether perplexity goes with gain more closely than length and similarity do."""
    rows = _of_main(table, gains)
    if rows.empty:
        return []
    labels = {item.key: item.label for item in predictors}
    # The properties differ between datasets: there they compete on equal terms.
    rows = rows[rows["variant"] == "within_model"]
    findings = []
    for row in rows.to_dict("records"):
        measured = points.loc[points[str(row["second"])].notna(), "data"].unique()
        cells = _final_cells(gains, str(row["method"]), measured)
        findings.append(_rival_finding(row, labels, cells))
    return findings


def _rival_finding(
    row: dict[Hashable, Any], labels: dict[str, str], cells: tuple[str, ...]
) -> Finding:
    interval = None if np.isnan(row["low"]) else (float(row["low"]), float(row["high"]))
    first, second = labels[str(row["first"])], labels[str(row["second"])]
    if interval is None:
        end = ""
    elif interval[0] <= 0 <= interval[1]:
        end = " The interval covers 0: the data cannot tell which goes more closely with gain."
    else:
        ahead = first if row["estimate"] > 0 else second
        end = f" Here {ahead} goes more closely with gain."
    left, right = (minus(f"{row[f'{side}_estimate']:.2f}") for side in ("first", "second"))
    clusters = f"{row['num_models']} models, {row['num_datasets']} datasets"
    return Finding(
        question=RIVALS,
        statement=(
            f"{row['method']}, between datasets for the same model: {first} {left}, {second} "
            f"{right}; difference in strength {minus(format(row['estimate'], '+.2f'))} "
            f"{interval_text(interval, 'correlation')}.{end}"
        ),
        estimate=float(row["estimate"]),
        interval=interval,
        scale="correlation",
        n=int(row["num_rows"]),
        unit=f"model x dataset pair ({clusters})",
        method=(
            "Difference of absolute Spearman correlations with the mean gain over benchmarks on "
            "the same rows, final epoch, property and gain demeaned by model. Interval: "
            "percentiles of one bootstrap that draws models and datasets for both."
        ),
        rows=cells,
    )


def _of_main(table: pd.DataFrame, gains: pd.DataFrame) -> pd.DataFrame:
    return table if table.empty else table[table["setting"] == main_setting(gains)]


def _final_cells(
    gains: pd.DataFrame, method: str, data: "Sequence[str] | np.ndarray[Any, Any]"
) -> tuple[str, ...]:
    chosen = gains["is_final"] & (gains["setting"] == main_setting(gains))
    chosen &= (gains["method"] == method) & gains["data"].isin(data)
    return tuple(str(cell) for cell in gains.loc[chosen, "cell"].unique())


def _perplexity_finding(row: dict[Hashable, Any], cells: tuple[str, ...]) -> Finding:
    estimate = float(row["estimate"])
    interval = None if np.isnan(row["low"]) else (float(row["low"]), float(row["high"]))
    number = minus(f"{estimate:.2f}")
    if interval is None:
        end = ""  # the missing interval gives its reason itself
    elif interval[0] <= 0 <= interval[1]:
        end = " The interval covers 0: the data cannot tell."
    elif disagreement(interval, row["p_value"]):
        end = disagreement(interval, row["p_value"])
    else:
        end = f" Less perplexing data goes with {'larger' if estimate < 0 else 'smaller'} gains."
    chance = "" if np.isnan(row["p_value"]) else f", p = {row['p_value']:.3f}"
    clusters = f"{row['num_models']} models, {row['num_datasets']} datasets"
    where = _VARIANTS[str(row["variant"])]
    return Finding(
        question=PERPLEXITY,
        statement=(
            f"{row['method']}, {where}: rank correlation {number} "
            f"{interval_text(interval, 'correlation')}{chance}.{end}"
        ),
        estimate=estimate,
        interval=interval,
        scale="correlation",
        n=int(row["num_rows"]),
        unit=f"model x dataset pair ({clusters})",
        method=_METHOD,
        rows=cells,
        p_value=None if np.isnan(row["p_value"]) else float(row["p_value"]),
    )


def layer_findings(
    profile: LayerProfile, gains: pd.DataFrame, means: pd.DataFrame
) -> list[Finding]:
    """Word where along the depth the correlation with the gain is strongest, per method."""
    if profile.table.empty:
        return []
    setting, table = main_setting(gains), profile.table
    rows = table[(table["setting"] == setting) & (table["model"] == AVERAGE)]
    rows = rows[rows["norm"] == "relative"]
    known = rows.groupby("method")["correlation"].transform("count").to_numpy()
    rows = rows[known > 0]
    if not rows.empty and rows["low"].isna().all():
        chosen = means["is_final"] & (means["setting"] == setting)
        return [_untold_layers(rows, tuple(str(cell) for cell in means.loc[chosen, "cell"]))]
    findings = []
    for method, part in rows.groupby("method", sort=False):
        peak = part.iloc[int(np.nanargmax(part["correlation"].abs().to_numpy(dtype=np.float64)))]
        draws = profile.peaks[(setting, str(method))]
        interval = percentile_interval(draws) if draws.size and not np.isnan(peak["low"]) else None
        chosen = means["is_final"] & (means["setting"] == setting) & (means["method"] == method)
        cells = tuple(str(cell) for cell in means.loc[chosen, "cell"])
        findings.append(_layer_finding(part, peak, interval, cells))
    return findings


def _untold_layers(rows: pd.DataFrame, cells: tuple[str, ...]) -> Finding:
    """Say once for all methods that too little was trained to compare depths."""
    changes = []
    for method, part in rows.groupby("method", sort=False):
        bottom, top = part["change"].to_numpy()[[0, -1]]
        changes.append(f"{method} {bottom:.4f} and {top:.4f}")
    first = rows.drop_duplicates("method")
    models, datasets = int(first["num_models"].max()), int(first["num_datasets"].max())
    return Finding(
        question=LAYERS,
        statement=(
            f"Too few models or datasets to tell ({models} and {datasets}; it takes three of "
            f"each). The relative change itself, in the first and the last layer: "
            f"{'; '.join(changes)}."
        ),
        estimate=None,
        interval=None,
        scale="position",
        n=int(first["num_trajectories"].sum()),
        unit=f"trajectory ({models} models, {datasets} datasets)",
        method="No correlation is worded without a band; the charts show it as it is.",
        rows=cells,
    )


def _layer_finding(
    part: pd.DataFrame,
    peak: "pd.Series[float]",
    interval: tuple[float, float] | None,
    cells: tuple[str, ...],
) -> Finding:
    top, bottom = part["change"].to_numpy()[[-1, 0]]
    bounds = None if np.isnan(peak["low"]) else (float(peak["low"]), float(peak["high"]))
    if bounds is None:
        end = "There are too few models or datasets for an interval."
    elif bounds[0] <= 0 <= bounds[1]:
        end = "Its band covers 0: the data cannot tell whether any depth matters."
    elif interval is not None and interval[1] - interval[0] > 0.5:
        end = "Where the peak lies is open: resampling moves it over more than half of the depth."
    else:
        end = (
            f"Resampling keeps the peak within {interval_text(interval, 'position')} of the depth."
        )
    return Finding(
        question=LAYERS,
        statement=(
            f"{peak['method']}: weight change correlates most strongly with the mean gain at "
            f"position {peak['position']:.2f} of the depth "
            f"(r = {minus(format(peak['correlation'], '.2f'))} "
            f"{interval_text(bounds, 'correlation')}). {end} The relative change itself is "
            f"{bottom:.4f} in the first and {top:.4f} in the last layer."
        ),
        estimate=float(peak["position"]),
        interval=interval,
        scale="position",
        n=int(peak["num_trajectories"]),
        unit=f"trajectory ({int(peak['num_models'])} models, {int(peak['num_datasets'])} datasets)",
        method=(
            "Pearson correlation per position of the relative weight change with the mean gain, "
            "both demeaned by model. The band holds at all positions at once, by a bootstrap that "
            "draws models and datasets independently; the interval is that of the position of the "
            "strongest correlation, in either direction."
        ),
        rows=cells,
    )
