"""Does perplexity go with gain more closely than length or similarity does?

In: the points of `associations`. Out: the difference of two absolute rank correlations on the same
rows, with an interval from one bootstrap that draws models and datasets for both: two correlations
of one grid are not independent, so their two intervals do not answer this.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import pandas as pd

from sft_atlas.analyze.associations import (
    MIN_POINTS,
    VARIANTS,
    correlation,
    correlation_draws,
    gain_sides,
    points_of,
)
from sft_atlas.analyze.data_properties import PERPLEXITY, Predictor
from sft_atlas.analyze.gains import AVERAGE
from sft_atlas.statistics.clusters import MIN_CLUSTERS, percentile_interval

_COLUMNS: Final = (
    *("setting", "method", "variant", "first", "second", "first_estimate", "second_estimate"),
    *("estimate", "low", "high", "num_rows", "num_models", "num_datasets"),
)


def compare_predictors(
    points: pd.DataFrame,
    predictors: Sequence[Predictor],
    *,
    num_resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare answer perplexity with every other main property on the mean over benchmarks.

    Columns: setting, method, variant, first, second, first_estimate, second_estimate (Spearman
    correlations on the rows that have both), estimate (|first| - |second|), low, high (95 %, NaN
    below three models or datasets), num_rows, num_models, num_datasets. Comparisons in which one
    of the two does not vary have no row.
    """
    names = [item.key for item in predictors if item.is_main]
    if PERPLEXITY not in names:
        return pd.DataFrame(columns=list(_COLUMNS))
    means = points[points["benchmark"] == AVERAGE]
    results = []
    for (setting, method), part in means.groupby(["setting", "method"], sort=False):
        for second in names:
            rows = part[part[[PERPLEXITY, second]].notna().all(axis=1)]
            if second == PERPLEXITY or len(rows) < MIN_POINTS:
                continue
            place = {"setting": setting, "method": method, "first": PERPLEXITY, "second": second}
            answers = _compare(rows, second, num_resamples=num_resamples, seed=seed)
            results += [place | answer for answer in answers]
    return pd.DataFrame(results, columns=list(_COLUMNS))


def _compare(
    rows: pd.DataFrame, second: str, *, num_resamples: int, seed: int
) -> list[dict[str, object]]:
    both = [points_of(rows, name) for name in (PERPLEXITY, second)]
    sides = gain_sides(both[0], num_resamples=num_resamples, seed=seed)
    once = np.ones((1, len(rows)))
    facts = {
        "num_rows": len(rows),
        "num_models": int(rows["model"].nunique()),
        "num_datasets": int(rows["data"].nunique()),
    }
    answers: list[dict[str, object]] = []
    for variant in VARIANTS:
        kind = {"variant": variant, "statistic": "spearman"}
        left, right = (float(correlation(data, once, **kind)[0]) for data in both)
        if np.isnan(left) or np.isnan(right):
            continue
        bounds = None
        if min(facts["num_models"], facts["num_datasets"]) >= MIN_CLUSTERS:
            drawn = [np.abs(correlation_draws(data, sides, **kind)) for data in both]
            bounds = percentile_interval(drawn[0] - drawn[1])
        low, high = bounds or (float("nan"), float("nan"))
        answers.append(
            {
                "variant": variant,
                "first_estimate": left,
                "second_estimate": right,
                "estimate": abs(left) - abs(right),
                "low": low,
                "high": high,
                **facts,
            }
        )
    return answers
