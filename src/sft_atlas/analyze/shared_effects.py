"""Which effects of a dataset on a benchmark do models share?

In: a crossed random effects model of scores. Out: for every dataset and benchmark what the dataset
does there beyond its mean over benchmarks and the benchmark's over datasets, with its error of
prediction, and how the models' own estimates agree. The one decision: a small p is not enough. The
common variance of all pairs may be too small for one of them, where a single model made a jump;
therefore most models must show the sign, and the effect must do without its strongest model.
"""

from typing import Final

import numpy as np
import pandas as pd
from scipy.special import ndtr

from sft_atlas.analyze.crossed_effects import (
    ALL_THREE,
    DATA_BENCHMARK,
    CrossedEffects,
    without_other_effects,
)
from sft_atlas.statistics.clusters import MIN_CLUSTERS, Floats, Ints, codes
from sft_atlas.statistics.multiplicity import benjamini_hochberg
from sft_atlas.statistics.reml import contrasts

MAX_P: Final = 0.05
MIN_AGREEING: Final = 2 / 3
"""Part of the models whose own estimates must have the sign of the effect."""
MIN_KEPT: Final = 0.5
"""Part of an effect that must be left without the model that shows it most."""

SHARED_COLUMNS: Final = [
    *("data", "benchmark", "effect", "low", "high", "unshrunk", "effect_sd", "effect_se_sd"),
    *("p_value", "p_adjusted", "false_sign_rate", "persists", "num_models", "num_same_sign"),
    *("without_strongest_sd", "strongest_model", "num_rows"),
]

_TINY: Final = 1e-9
_NORMAL: Final = 1.959963984540054


def shared_effects(found: CrossedEffects) -> pd.DataFrame:
    """Return the predicted effect of every dataset on every benchmark, largest first.

    Columns: data, benchmark, effect, low, high (95 %; fraction of 1), unshrunk (mean of the models'
    own estimates, fraction of 1), effect_sd, effect_se_sd (in SD of the benchmark), p_value,
    p_adjusted, false_sign_rate, persists, num_models, num_same_sign,
    without_strongest_sd, strongest_model, num_rows. No rows where there is one model or where pairs
    have no variance of their own to estimate.
    """
    fit, rows = found.fit, found.rows
    if DATA_BENCHMARK not in fit.effects or rows["model"].nunique() < 2:
        return pd.DataFrame(columns=SHARED_COLUMNS)
    levels = fit.design.levels[fit.design.names.index(DATA_BENCHMARK)]
    first = pd.DataFrame({"level": levels, "place": np.arange(levels.size)}).groupby("level")
    places = first["place"].first().to_numpy()
    centring = _centring(codes(rows["data"])[places], codes(rows["benchmark"])[places])
    effects, errors = contrasts(fit, DATA_BENCHMARK, centring)
    ratio = np.divide(effects, errors, out=np.zeros_like(effects), where=errors > _TINY)
    p_values = 2 * ndtr(-np.abs(ratio))
    scale = rows["scale"].to_numpy(dtype=np.float64)[places]
    table = pd.DataFrame(
        {
            "data": rows["data"].to_numpy()[places],
            "benchmark": rows["benchmark"].to_numpy()[places],
            "effect": effects * scale,
            "low": (effects - _NORMAL * errors) * scale,
            "high": (effects + _NORMAL * errors) * scale,
            "effect_sd": effects,
            "effect_se_sd": errors,
            "p_value": p_values,
            "p_adjusted": benjamini_hochberg(p_values),
            "false_sign_rate": p_values / 2,
            "num_rows": first.size().to_numpy(),
        }
    )
    table = table.join(_by_model(found, levels, effects, centring))
    table["unshrunk"] = table["mean_sd"] * scale
    kept = table["without_strongest_sd"] * np.sign(table["effect_sd"])
    table["persists"] = (
        (table["p_adjusted"] <= MAX_P)
        & (table["num_models"] >= MIN_CLUSTERS)
        & (table["num_same_sign"] >= MIN_AGREEING * table["num_models"])
        & (kept >= MIN_KEPT * table["mean_sd"].abs())
    )
    table = table.sort_values("effect_sd", ascending=False, ignore_index=True)
    return table[SHARED_COLUMNS]


def _centring(datasets: Ints, benchmarks: Ints) -> Floats:
    """Return the matrix that takes out the means of datasets and of benchmarks over pairs."""
    means = np.column_stack([np.eye(int(part.max()) + 1)[part] for part in (datasets, benchmarks)])
    return np.eye(datasets.size) - means @ np.linalg.pinv(means)


def _by_model(
    found: CrossedEffects, levels: Ints, effects: Floats, centring: Floats
) -> pd.DataFrame:
    """Say how the models' own estimates of each effect agree, one row per pair.

    A model's own estimate is the mean of what is left of its scores once the fixed effects and all
    random ones are gone, but for those of the pair itself, centred over pairs as effects are.
    """
    own = pd.DataFrame(
        {
            "level": levels,
            "model": found.rows["model"].to_numpy(),
            "rest": without_other_effects(found, (DATA_BENCHMARK, ALL_THREE)),
        }
    )
    means = own.groupby(["level", "model"], as_index=False)["rest"].mean()
    shared = means.groupby("level")["rest"].mean().to_numpy()
    means["rest"] += (centring @ shared - shared)[means["level"]]
    means["towards"] = means["rest"] * np.sign(effects)[means["level"]]
    groups = means.groupby("level")
    strongest = means.loc[groups["towards"].idxmax()].set_index("level")
    size = groups.size()
    left = (groups["rest"].sum() - strongest["rest"]) / (size - 1).where(size > 1)
    return pd.DataFrame(
        {
            "num_models": size,
            "num_same_sign": groups["towards"].agg(lambda part: int((part > 0).sum())),
            "mean_sd": groups["rest"].mean(),
            "without_strongest_sd": left,
            "strongest_model": strongest["model"],
        }
    )
