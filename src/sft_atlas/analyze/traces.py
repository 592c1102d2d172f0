"""What did training leave behind in hidden states and in neutral text, in words?

In: the tables that `dimension_profile` and `forgetting` make. Out: Findings about differences to
the base model; what goes with gain is worded as that and not as a cause.
"""

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from sft_atlas.analyze.dimension_profile import TURN, dimension_rises
from sft_atlas.analyze.findings import (
    TWO_WAY,
    Finding,
    cells_of,
    interval_text,
    main_setting,
    minus,
    plural,
)
from sft_atlas.analyze.forgetting import method_pairs
from sft_atlas.analyze.pairs import mean_difference
from sft_atlas.analyze.relations import disagreement
from sft_atlas.statistics.clusters import Mean, codes, two_way_mean

if TYPE_CHECKING:
    from sft_atlas.store.tables import Tables

DIMENSION: Final = "Do tuned models use more dimensions than their base?"
FORGETTING: Final = "Which method forgets more?"
LOST: Final = "Do models that move further from their base gain more?"

_ESTIMATORS: Final = {"gride": "Gride", "two_nn": "TwoNN"}
_POOLINGS: Final = {
    "sentence": "sentences",
    "last": "last token",
    "mean": "mean over tokens",
}
"""Sentences first where there are more of them than texts, as in Harada et al. 2025."""


def dimension_findings(tables: "Tables", gains: pd.DataFrame) -> list[Finding]:
    """Word the change of the intrinsic dimension in the upper and the lower part of the depth."""
    states = tables.representations
    if states.empty or gains.empty:
        return []
    quantity = next((name for name in _ESTIMATORS if states[name].notna().any()), None)
    if quantity is None:
        return []
    pooling = next(name for name in _POOLINGS if (states["pooling"] == name).any())
    rises = dimension_rises(tables, quantity=quantity, pooling=pooling)
    rises = rises[(rises["setting"] == main_setting(gains)) & rises["upper"].notna()]
    # Both parts of the depth rest on the same cells, unless no cell has both.
    rises = rises[rises["lower"].notna()] if rises["lower"].notna().any() else rises
    where = f"{_ESTIMATORS[quantity]}, {_POOLINGS.get(pooling, pooling)}"
    return [
        _dimension_finding(str(method), rows, where)
        for method, rows in rises.groupby("method", sort=False)
    ]


def _dimension_finding(method: str, rows: pd.DataFrame, where: str) -> Finding:
    upper, lower = (_mean(rows, name) for name in ("upper", "lower"))
    below = f"below it by {_signed(lower.estimate)} {interval_text(lower.interval, 'difference')}"
    if np.isnan(lower.estimate):
        below = "below it no layer could be measured"
    if upper.interval is None:
        end = ""
    elif upper.interval[0] <= 0 <= upper.interval[1]:
        end = " The upper interval covers 0: the data cannot tell the direction."
    else:
        end = f" There the dimension is {'higher' if upper.estimate > 0 else 'lower'} than before."
    return Finding(
        question=DIMENSION,
        statement=(
            f"{method} ({where}): from position {TURN:g} of the depth on, the intrinsic dimension "
            f"changes by {_signed(upper.estimate)} {interval_text(upper.interval, 'difference')} "
            f"against the base model; {below}.{end}"
        ),
        estimate=upper.estimate,
        interval=upper.interval,
        scale="difference",
        n=upper.num_rows,
        unit=_unit(upper, "final cell"),
        method=(
            "Mean over layers of the tuned model's dimension minus its base's, on the same texts; "
            "layers where the states of a cell are too few or too alike to measure are left out. "
            f"{TWO_WAY}"
        ),
        rows=cells_of(rows),
    )


def forgetting_findings(points: pd.DataFrame, gains: pd.DataFrame) -> list[Finding]:
    """Compare LoRA's divergence from the base with full fine-tuning's, on otherwise equal pairs."""
    if points.empty or gains.empty:
        return []
    kinds = gains.drop_duplicates("method").set_index("method")["method_kind"]
    findings = []
    for first in kinds.index[kinds == "full"]:
        for second in kinds.index[kinds == "lora"]:
            pairs = method_pairs(points, first=str(first), second=str(second))
            if not pairs.empty:
                findings.append(_method_finding(pairs, str(first), str(second), points))
    return findings


def _method_finding(pairs: pd.DataFrame, first: str, second: str, points: pd.DataFrame) -> Finding:
    mean = mean_difference(pairs)
    ratio = _factor(mean.estimate)
    bounds = "(no interval: too few models or datasets)"
    if mean.interval is not None:
        bounds = f"[{_factor(mean.interval[0])}, {_factor(mean.interval[1])}]"
    kept = points.set_index("cell")["agreement_fraction"].astype(float)
    shares = [100 * kept[pairs[f"cell_{side}"]].mean() for side in ("first", "second")]
    if mean.interval is None:
        end = ""
    elif mean.interval[0] <= 0 <= mean.interval[1]:
        end = " The interval covers 1: the data cannot tell which moves further."
    else:
        end = f" {second if mean.estimate > 0 else first} moves further from the base model."
    return Finding(
        question=FORGETTING,
        statement=(
            f"{second} against {first}: {ratio} times the divergence from the base model on "
            f"neutral text {bounds}, over {plural(len(pairs), 'pair')} that differ in nothing "
            f"else. The most likely next token stays the base's for {shares[1]:.1f} % of tokens "
            f"with {second} and {shares[0]:.1f} % with {first}.{end}"
        ),
        estimate=mean.estimate,
        interval=mean.interval,
        scale="difference",
        n=len(pairs),
        unit=_unit(mean, "pair"),
        method=(
            "Difference of ln KL(base || cell) per token, final epochs, paired by model, data, "
            f"seed and every other choice; shown as a factor. {TWO_WAY}"
        ),
        rows=tuple(dict.fromkeys([*pairs["cell_first"], *pairs["cell_second"]])),
    )


def lost_findings(table: pd.DataFrame, points: pd.DataFrame, gains: pd.DataFrame) -> list[Finding]:
    """Word how divergence from the base goes with mean gain, between datasets of a model."""
    if table.empty or gains.empty:
        return []
    setting = main_setting(gains)
    rows = table[(table["setting"] == setting) & (table["variant"] == "within_model")]
    rows = rows[(rows["statistic"] == "spearman") & rows["estimate"].notna()]
    is_final = points["is_final"].astype(bool) & (points["setting"] == setting)
    return [
        _lost_finding(row, cells_of(points[is_final & (points["method"] == row["method"])]))
        for row in rows.to_dict("records")
    ]


def _lost_finding(row: dict[Hashable, Any], cells: tuple[str, ...]) -> Finding:
    interval = None if np.isnan(row["low"]) else (float(row["low"]), float(row["high"]))
    if interval is None:
        end = ""
    elif interval[0] <= 0 <= interval[1]:
        end = " The interval covers 0: the data cannot tell."
    elif disagreement(interval, row["p_value"]):
        end = disagreement(interval, row["p_value"])
    else:
        word = "larger" if row["estimate"] > 0 else "smaller"
        end = f" Moving further from the base goes with {word} gains."
    chance = "" if np.isnan(row["p_value"]) else f", p = {row['p_value']:.3f}"
    clusters = f"{row['num_models']} models, {row['num_datasets']} datasets"
    return Finding(
        question=LOST,
        statement=(
            f"{row['method']}, between datasets for the same model: rank correlation of divergence "
            f"with mean gain {minus(format(row['estimate'], '.2f'))} "
            f"{interval_text(interval, 'correlation')}{chance}.{end}"
        ),
        estimate=float(row["estimate"]),
        interval=interval,
        scale="correlation",
        n=int(row["num_rows"]),
        unit=f"model x dataset pair ({clusters})",
        method=(
            "Spearman correlation of KL(base || cell) per token of neutral text with the mean gain "
            "over benchmarks, final epoch, ln KL and gain demeaned by model. Interval: percentiles "
            "of a bootstrap that draws models and datasets independently. p-value: models and "
            "datasets relabelled at random."
        ),
        rows=cells,
        p_value=None if np.isnan(row["p_value"]) else float(row["p_value"]),
    )


def _mean(rows: pd.DataFrame, column: str) -> Mean:
    return two_way_mean(
        rows[column].to_numpy(dtype=np.float64),
        models=codes(rows["model"]),
        datasets=codes(rows["data"]),
    )


def _signed(value: float) -> str:
    return minus(f"{value:+.2f}")


def _factor(log_ratio: float) -> str:
    """Show a logarithm as the factor it stands for, with three digits."""
    return f"{np.exp(log_ratio):.3g}"


def _unit(mean: Mean, noun: str) -> str:
    clusters = f"{plural(mean.num_models, 'model')}, {plural(mean.num_datasets, 'dataset')}"
    return f"{noun} ({clusters})"
