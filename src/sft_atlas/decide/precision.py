"""How wide will the interval of each question be, before anything is trained?

In: outcomes of the evidence, weights, and which runs are planned. Out: the expected half-width of
the 95 % interval of each question, for all planned runs and for a part of them. Variances come from
the evidence: how differences between paired runs vary over models, over datasets, and beyond both
(REML). The one decision: a question whose variances the evidence cannot tell has no number, because
one taken from elsewhere would look as sure as one that was measured.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

from sft_atlas.statistics.clusters import Floats, codes, t_quantile
from sft_atlas.statistics.mixed_equations import NotEstimableError
from sft_atlas.statistics.reml import RESIDUAL, fit_reml

DATA: Final = "Which data is best? (difference of two datasets)"
METHODS: Final = "LoRA or full fine-tuning?"
SAMPLES: Final = "Do more samples help?"
EPOCHS: Final = "Do more epochs help?"

COLUMNS: Final = (
    *("question", "planned_pairs", "half_width", "proposed_pairs", "proposed_half_width", "why"),
)

KEYS: Final = ("model", "data", "method_kind", "samples", "schedule", "epoch")


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Variances of a difference between paired runs, in squared fractions."""

    model: float
    data: float
    rest: float
    num_pairs: int


def mixed_outcomes(outcomes: pd.DataFrame, weights: Mapping[str, float]) -> pd.DataFrame:
    """Weighted scores of runs that have all benchmarks; columns `KEYS` and `value`."""
    rows = outcomes[outcomes["benchmark"].isin(list(weights))]
    if rows.empty:
        return pd.DataFrame(columns=[*KEYS, "value"])
    rows = rows.assign(value=rows["value"] * rows["benchmark"].map(dict(weights)))
    groups = rows.groupby(list(KEYS), sort=True)["value"].agg(["sum", "size"])
    complete = groups[groups["size"] >= len(weights)]
    return complete.rename(columns={"sum": "value"}).reset_index()[[*KEYS, "value"]]


def expected_precision(
    evidence: pd.DataFrame, planned: pd.DataFrame, proposed: pd.DataFrame
) -> pd.DataFrame:
    """Return one row per question, columns `COLUMNS`; half-widths are fractions of 1, or NaN.

    `evidence` is from `mixed_outcomes`; `planned` and `proposed` have the columns `KEYS`. A
    half-width is Student's t on the smaller number of clusters (models, datasets) times the
    standard error that the variances imply. Seeds count as one: the evidence rarely has several.
    """
    rows = []
    for question in (DATA, METHODS, SAMPLES, EPOCHS):
        spread = _spread(pairs(evidence, question, with_values=True), question)
        all_of_it, part = (pairs(runs, question) for runs in (planned, proposed))
        why = ""
        if spread is None:
            why = "not known: the evidence has too few such pairs"
        elif all_of_it.empty:
            why = "the study plans no such pair"
        elif _half_width(question, all_of_it, spread) is None:
            why = "one model or dataset alone: nothing can be resampled"
        rows.append(
            {
                "question": question,
                "planned_pairs": len(all_of_it),
                "half_width": None if spread is None else _half_width(question, all_of_it, spread),
                "proposed_pairs": len(part),
                "proposed_half_width": None
                if spread is None
                else _half_width(question, part, spread),
                "why": why,
            }
        )
    numbers = {"half_width": float, "proposed_half_width": float}
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(numbers)


def pairs(runs: pd.DataFrame, question: str, *, with_values: bool = False) -> pd.DataFrame:
    """Pairs of runs that differ in nothing but what is asked: model, data, perhaps difference.

    For `DATA` a row is a run, and its difference the value itself: variances that tell models
    apart hold their levels, and centring within a model would make the rest look smaller.
    """
    empty = pd.DataFrame(columns=["model", "data", "difference"])
    if runs.empty:
        return empty
    frame = runs if with_values else runs.assign(value=0.0)
    if question == DATA:
        setting = ["method_kind", "samples", "schedule", "epoch"]
        last = frame.groupby(["model", "data", *setting[:-1]])["epoch"].transform("max")
        frame = frame[frame["epoch"] == last]
        groups = frame.groupby(["model", *setting])
        several = groups["data"].transform("nunique") > 1
        found = frame.assign(difference=frame["value"])[several]
        # One setting: that with the most runs, so that no dataset counts twice in a model.
        if found.empty:
            return empty
        sizes = found.groupby(setting, sort=True)["value"].transform("size")
        biggest = found[sizes == sizes.max()]
        first = biggest.sort_values(setting)[setting].iloc[0]
        main: pd.DataFrame = found[(found[setting] == first).all(axis=1)]
        return main[["model", "data", "difference"]]
    factor = {METHODS: "method_kind", SAMPLES: "samples", EPOCHS: "epoch"}[question]
    if question != EPOCHS:
        last = frame.groupby([key for key in KEYS if key != "epoch"])["epoch"].transform("max")
        frame = frame[frame["epoch"] == last]
    keys = [key for key in KEYS if key != factor]
    ordered = frame.sort_values([*keys, factor])
    groups = ordered.groupby(keys, sort=True)
    ends = groups["value"].agg(["first", "last"])
    ends = ends[groups[factor].nunique() > 1].reset_index()
    ends = ends.assign(difference=ends["last"] - ends["first"])
    # Several settings of one model and dataset are one pair: they share all that varies.
    found = ends.groupby(["model", "data"], sort=True)["difference"].mean().reset_index()
    return found if len(found) else empty


def _spread(found: pd.DataFrame, question: str) -> Spread | None:
    """Variances of differences, by REML; where models and datasets cannot be told apart from the
    rest, all of it is the rest.
    """
    values: Floats = found["difference"].to_numpy(dtype=np.float64)
    if values.size < 4:
        return None
    factors = {"model": codes(found["model"]), "data": codes(found["data"])}
    try:
        fit = fit_reml(values, factors)
    except NotEstimableError:
        # Levels of models are no part of the difference of two datasets.
        by_model = found["difference"].groupby(found["model"].to_numpy())
        apart = values - np.asarray(by_model.transform("mean")) if question == DATA else values
        free = values.size - (by_model.ngroups if question == DATA else 1)
        if free < 1:
            return None
        rest = float(((apart - apart.mean()) ** 2).sum()) / free
        return Spread(model=0.0, data=0.0, rest=rest, num_pairs=values.size)
    parts = dict(zip(fit.names, fit.variances.tolist(), strict=True))
    return Spread(
        model=parts.get("model", 0.0),
        data=parts.get("data", 0.0),
        rest=parts[RESIDUAL],
        num_pairs=values.size,
    )


def _half_width(question: str, found: pd.DataFrame, spread: Spread) -> float | None:
    """Expected half-width of the mean difference; None where it cannot be formed.

    The difference of two datasets is one of means over models: the datasets are the question there,
    not a sample, and each mean rests on the models that trained on it.
    """
    if found.empty:
        return None
    by_model, by_data = (found.groupby(name).size() for name in ("model", "data"))
    if len(by_model) < 2 and len(by_data) < 2:
        return None
    if question == DATA:
        num = float(by_data.median())
        if num < 2 or len(by_data) < 2:
            return None
        return t_quantile(int(num)) * math.sqrt(2 * spread.rest / num)
    size = len(found)
    variance = spread.rest / size
    variance += spread.model * float((by_model**2).sum()) / size**2
    variance += spread.data * float((by_data**2).sum()) / size**2
    fewest = min(count for count in (len(by_model), len(by_data)) if count > 1)
    return t_quantile(fewest) * math.sqrt(variance)
