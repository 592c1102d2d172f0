"""What does each property of the data go with once the others are held fixed?

In: the tables of a study that has measures of its datasets. Out: partial effects in one regression
of the score at the final epoch on all main properties. A property that goes with scores alone may
only stand in for another; what remains here is its own. The one decision: scores and properties are
centred within model and benchmark, so that the answer is about which dataset, not about which
model, and a base model's score cancels.
"""

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import pandas as pd

from sft_atlas.analyze.associations import POOLED, property_points
from sft_atlas.analyze.data_properties import Predictor, data_properties
from sft_atlas.analyze.dose_curves import benchmark_means, run_scores
from sft_atlas.analyze.findings import (
    MAX_P,
    Finding,
    interval_text,
    main_setting,
    not_estimable,
    plural,
    points,
)
from sft_atlas.analyze.gains import AVERAGE
from sft_atlas.analyze.questions.answered import Answered
from sft_atlas.statistics.clusters import codes
from sft_atlas.statistics.multiplicity import benjamini_yekutieli, holm
from sft_atlas.statistics.partial import Design, partial_effects

if TYPE_CHECKING:
    from sft_atlas.store.tables import Tables

TOGETHER: Final = "Which properties of the data matter beside the others?"

MAX_VIF: Final = 5.0
"""Variance inflation beyond which two properties are said not to be told apart."""

COLUMNS: Final = (
    *("setting", "method", "benchmark", "predictor", "label"),
    *("effect", "low", "high", "partial_correlation", "p_value", "p_adjusted"),
    *("spread", "vif", "r_squared"),
    *("num_rows", "num_models", "num_datasets", "reason"),
)

_NO_PROPERTIES: Final = (
    "the table holds no data properties; measure the datasets under their base models (measure: "
    "dataset), or give them with the imported results"
)


def properties_together(tables: "Tables", *, num_resamples: int = 1000, seed: int = 0) -> Answered:
    """Regress scores on all main properties of the training data at once.

    The properties are log answer perplexity under the base model, log mean length in tokens and
    similarity to the benchmark; the score is that of the final epoch of runs on one dataset.
    Score and properties are centred within model and benchmark. An effect is the change of the
    score for one standard deviation of a property while the others stay. Intervals are percentiles
    of a bootstrap that draws models and datasets independently (Owen 2007; none below three of
    each). p-values come from relabelling datasets and models, whole, in the residuals of the
    regression without the property (Freedman and Lane 1983), by the absolute partial correlation.
    In each setting and method they are adjusted over the properties on the mean over benchmarks and
    on all benchmarks together (Holm 1979), and over properties and single benchmarks (Benjamini and
    Yekutieli 2001). Benchmarks are those that count in the mean. Two properties that rise and fall
    together cannot be told apart: their variance inflation factor says so (above 5 in words).

    Tables:

    `partial_effects`: setting, method, benchmark (empty for the mean over benchmarks, `*` for all
    benchmarks together), predictor, label, effect (fraction of 1 per standard deviation of the
    property within model and benchmark), low, high (95 %), partial_correlation, p_value,
    p_adjusted, spread (that standard deviation, in the property's unit), vif (variance inflation
    factor), r_squared (of all properties together, within model and benchmark), num_rows,
    num_models, num_datasets, reason (why there is no effect, else null).
    """
    rows, predictors, cells = _points(tables)
    if rows.empty or not predictors:
        reason = _NO_PROPERTIES if not predictors else "no run on one dataset has a final score"
        return Answered(
            findings=(_not_estimable(reason),),
            tables={"partial_effects": pd.DataFrame(columns=list(COLUMNS))},
        )
    lines: list[dict[str, Any]] = []
    for (setting, method), part in rows.groupby(["setting", "method"], sort=False):
        for benchmark, chosen in _by_benchmark(part).items():
            place = {"setting": setting, "method": method, "benchmark": benchmark}
            effects = _effects(chosen, predictors, num_resamples=num_resamples, seed=seed)
            lines += [place | line for line in effects]
    table = _with_adjusted(pd.DataFrame(lines, columns=list(COLUMNS)))
    return Answered(findings=_findings(table, rows, cells), tables={"partial_effects": table})


class Known(NamedTuple):
    """What is known before the regressions."""

    rows: pd.DataFrame
    """`associations.property_points`, with scores in the place of gains: what is held fixed takes
    the base model out."""
    predictors: tuple[Predictor, ...]
    """Main properties that at least one dataset has."""
    cells: pd.DataFrame
    """Final cells of runs on one dataset: cell, setting, method, data."""


def _points(tables: "Tables") -> Known:
    """Join the final scores of single-dataset runs with the properties of their data."""
    properties = data_properties(tables.datasets, tables.descriptions, tables.similarities)
    main = tuple(item for item in properties.predictors if item.is_main)
    scores = run_scores(tables)
    if scores.empty or not main:
        return Known(pd.DataFrame(), main, pd.DataFrame())
    scores = scores[scores["in_mean"].astype(bool)]
    names = {"value": "gain", "value_se": "gain_se"}
    means = benchmark_means(scores).rename(columns=names)
    rows = property_points(scores.rename(columns=names), means, properties)
    final = scores[scores["is_final"] & (scores["data_kind"] == "each")]
    return Known(rows, main, final.drop_duplicates("cell")[["cell", "setting", "method", "data"]])


def _by_benchmark(part: pd.DataFrame) -> dict[str, pd.DataFrame]:
    single = part[part["benchmark"] != AVERAGE]
    groups = {str(name): rows for name, rows in part.groupby("benchmark", sort=False)}
    return ({POOLED: single} if not single.empty else {}) | groups


def _effects(
    rows: pd.DataFrame, predictors: Sequence[Predictor], *, num_resamples: int, seed: int
) -> list[dict[str, Any]]:
    """Lines of one regression: the properties that are known for some row, on rows with all."""
    measured = [item for item in predictors if rows[item.key].notna().any()]
    absent = [item for item in predictors if item not in measured]
    known = rows[rows[[item.key for item in measured]].notna().all(axis=1)]
    facts = {
        "num_rows": len(known),
        "num_models": int(known["model"].nunique()),
        "num_datasets": int(known["data"].nunique()),
    }
    lines = [_line(item, facts) | {"reason": "it was not measured here"} for item in absent]
    if known.empty:
        reason = "no dataset has all properties"
        return [*lines, *(_line(item, facts) | {"reason": reason} for item in measured)]
    design = Design(
        y=known["gain"].to_numpy(dtype=np.float64),
        x=known[[item.key for item in measured]].to_numpy(dtype=np.float64),
        models=codes(known["model"]),
        datasets=codes(known["data"]),
        benchmarks=codes(known["benchmark"]),
    )
    found = partial_effects(
        design, num_resamples=num_resamples, num_permutations=num_resamples, seed=seed
    )
    for item, effect in zip(measured, found, strict=True):
        lines.append(_line(item, facts) | effect._asdict())
    return lines


def _line(predictor: Predictor, facts: dict[str, int]) -> dict[str, Any]:
    return {"predictor": predictor.key, "label": predictor.label} | facts


def _with_adjusted(table: pd.DataFrame) -> pd.DataFrame:
    """Adjust the p-values of a setting and method: the two summaries apart from the benchmarks."""
    is_summary = table["benchmark"].isin([AVERAGE, POOLED])
    adjusted = pd.Series(np.nan, index=table.index)
    keys = [table["setting"], table["method"], is_summary]
    for (_, _, summary), rows in table.groupby(keys, sort=False):
        adjust = holm if summary else benjamini_yekutieli
        adjusted[rows.index] = adjust(rows["p_value"].to_numpy(dtype=np.float64))
    return table.assign(p_adjusted=adjusted)


def _findings(table: pd.DataFrame, rows: pd.DataFrame, cells: pd.DataFrame) -> tuple[Finding, ...]:
    """One Finding per method and property, on all benchmarks together, in the main setting."""
    main = main_setting(rows)
    chosen = table[(table["setting"] == main) & (table["benchmark"] == POOLED)]
    lines = chosen.to_dict("records")
    found = []
    for line in lines:
        known = rows.loc[rows[str(line["predictor"])].notna(), "data"].unique()
        own = cells[(cells["setting"] == main) & (cells["method"] == line["method"])]
        names = tuple(str(cell) for cell in own.loc[own["data"].isin(known), "cell"])
        found.append(_finding(line, _rivals(line, lines), names))
    return tuple(found)


def _rivals(line: dict[Hashable, Any], lines: list[dict[Hashable, Any]]) -> list[str]:
    """Labels of the other properties of the same regression."""
    others = [other for other in lines if other["method"] == line["method"] and other is not line]
    return [str(other["label"]) for other in others]


def _finding(line: dict[Hashable, Any], rivals: list[str], cells: tuple[str, ...]) -> Finding:
    reason = "" if pd.isna(line["reason"]) else str(line["reason"])
    interval = None if pd.isna(line["low"]) else (float(line["low"]), float(line["high"]))
    held = f"with {' and '.join(rivals)} held fixed" if rivals else "alone"
    clusters = f"{plural(line['num_models'], 'model')}, {plural(line['num_datasets'], 'dataset')}"
    if reason:
        text = f"{line['method']}: the effect of {line['label']} is not estimable: {reason}."
    else:
        text = (
            f"{line['method']}, between datasets for the same model, {held}: one standard "
            f"deviation more {line['label']} goes with {points(line['effect'])} points "
            f"{interval_text(interval)}, {_p_text(line)}."
        )
        text += _verdict(line, interval) + _collinear(line)
    return Finding(
        question=TOGETHER,
        statement=text,
        estimate=None if reason else float(line["effect"]),
        interval=interval,
        scale="points",
        n=int(line["num_rows"]),
        unit=f"final score of a run on a benchmark ({clusters})",
        method=(
            "Linear regression of the score on all main properties, centred within model and "
            "benchmark. Interval: percentiles of a bootstrap that draws models and datasets "
            "independently. p-value: residuals relabelled by model and dataset (Freedman and Lane)."
        ),
        rows=cells,
        p_value=None if pd.isna(line["p_value"]) else float(line["p_value"]),
        p_adjusted=None if pd.isna(line["p_adjusted"]) else float(line["p_adjusted"]),
        family=(
            f"{len(rivals) + 1} properties, on the mean and on all benchmarks of a setting and "
            "method (Holm 1979)"
        ),
        reason=reason,
    )


def _p_text(line: dict[Hashable, Any]) -> str:
    if pd.isna(line["p_adjusted"]):
        return "without a test"
    return f"adjusted p = {line['p_adjusted']:.3f}"


def _verdict(line: dict[Hashable, Any], interval: tuple[float, float] | None) -> str:
    if interval is None or pd.isna(line["p_adjusted"]):
        return " Too few models or datasets to tell the direction."
    if interval[0] <= 0 <= interval[1] or line["p_adjusted"] > MAX_P:
        return " The data cannot tell the direction."
    return " More of it goes with " + ("higher" if line["effect"] > 0 else "lower") + " scores."


def _collinear(line: dict[Hashable, Any]) -> str:
    if not line["vif"] > MAX_VIF:
        return ""
    return (
        f" It rises and falls with the others (variance inflation {line['vif']:.1f}): these data "
        "can hardly tell them apart."
    )


def _not_estimable(reason: str) -> Finding:
    return not_estimable(
        TOGETHER,
        reason,
        scale="points",
        unit="final score of a run on a benchmark",
        method="Linear regression of the score on all main properties of the data.",
    )
