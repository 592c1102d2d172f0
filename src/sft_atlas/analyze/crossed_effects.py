"""Which sources do differences between scores have: model, data, benchmark, or their meeting?

In: final scores of runs on one dataset, of every setting and method. Out: a crossed random effects
model of them (statistics.reml) on one scale for all benchmarks: standard deviations between the
datasets of a model. A *recipe* is one choice of method, samples, schedule and epochs; several
recipes (or seeds) of one model, dataset and benchmark are what tells that meeting apart from noise.
Epochs of one run are not: only the last is used.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

from sft_atlas.statistics.clusters import Floats, Ints, codes
from sft_atlas.statistics.mixed_equations import NotEstimableError
from sft_atlas.statistics.reml import RESIDUAL, RemlFit, fit_reml

MODEL: Final = "model"
DATA: Final = "data"
BENCHMARK: Final = "benchmark"
MODEL_DATA: Final = "model:data"
MODEL_BENCHMARK: Final = "model:benchmark"
DATA_BENCHMARK: Final = "data:benchmark"
ALL_THREE: Final = "model:data:benchmark"
RECIPE_BENCHMARK: Final = "recipe:benchmark"
RECIPE_DATA_BENCHMARK: Final = "recipe:data:benchmark"
RECIPE_MODEL_BENCHMARK: Final = "recipe:model:benchmark"

SOURCES: Final = {
    MODEL: "which model",
    BENCHMARK: "which benchmark",
    MODEL_BENCHMARK: "which model on which benchmark",
    DATA: "which dataset, on all models and benchmarks alike",
    DATA_BENCHMARK: "which dataset on which benchmark, on all models alike",
    MODEL_DATA: "which dataset for which model, on all benchmarks alike",
    ALL_THREE: "which dataset for which model on which benchmark",
    RECIPE_BENCHMARK: "which recipe on which benchmark",
    RECIPE_DATA_BENCHMARK: "which recipe with which dataset on which benchmark",
    RECIPE_MODEL_BENCHMARK: "which recipe with which model on which benchmark",
    RESIDUAL: "what is left: the single run, and noise",
}
"""In words; the order is that of tables."""

OF_DATA: Final = (DATA, DATA_BENCHMARK, MODEL_DATA, ALL_THREE, RECIPE_DATA_BENCHMARK, RESIDUAL)
"""Sources that differ between the datasets of one model: no base model is in them."""

MAX_RECIPE_LEVELS: Final = 1500
"""Products with recipes of more levels are left to the residual: they cost more than they tell."""

_TINY: Final = 1e-12


@dataclass(frozen=True, kw_only=True)
class CrossedEffects:
    """A fit, and the rows that it rests on."""

    rows: pd.DataFrame
    """As given, with `scale` (SD of the benchmark)."""
    values: Floats
    """What was fitted, in SD."""
    factors: dict[str, Ints]
    """Level of each row; products are numbered over all combinations that occur."""
    fit: RemlFit
    num_recipes: int


def fit_crossed(
    rows: pd.DataFrame, outcome: str, *, start: RemlFit | None = None
) -> CrossedEffects:
    """Fit `outcome` (score or gain) over its standard deviation between datasets of a model.

    Benchmarks on which no two datasets differ are left out. Recipes are fixed effects, and random
    ones in their products with benchmarks where there are several. `start` is a fit of other
    outcomes of like rows: its variances are where the search begins.

    Raises `NotEstimableError` where nothing can be told.
    """
    known = rows[rows[outcome].notna()]
    recipe = _joined(known, ["setting", "method"])
    scale = _scales(known, recipe)
    keep = (scale > _TINY).to_numpy()
    known, recipe = known[keep].assign(scale=scale[keep]), recipe[keep]
    if known.empty:
        raise NotEstimableError("no benchmark's scores differ between the datasets of a model")
    values = (known[outcome] / known["scale"]).to_numpy(dtype=np.float64)
    factors = _factors(known, recipe)
    fixed = {
        f"recipe {level}": (recipe == level).astype(np.float64)
        for level in range(1, int(recipe.max()) + 1)
    }
    return CrossedEffects(
        rows=known,
        values=values,
        factors=factors,
        fit=fit_reml(
            values,
            factors,
            fixed,
            start=None if start is None else dict(zip(start.names, start.variances, strict=True)),
        ),
        num_recipes=int(recipe.max()) + 1,
    )


def without_other_effects(found: CrossedEffects, keep: tuple[str, ...]) -> Floats:
    """Return the values less the fixed effects and every random effect but those in `keep`."""
    fit, rest = found.fit, found.values - found.fit.design.fixed @ found.fit.fixed_effects
    for place, name in enumerate(fit.design.names):
        if name not in keep:
            rest = rest - fit.effects[name][fit.design.levels[place]]
    return rest


def _scales(rows: pd.DataFrame, recipe: Ints) -> "pd.Series[float]":
    """Root mean square, by benchmark, of scores less their model's mean over datasets."""
    groups = [rows["model"], rows["benchmark"], pd.Series(recipe, index=rows.index)]
    score = rows["score"].astype(float)
    centred = score - score.groupby(groups).transform("mean")
    scales: pd.Series[float] = np.sqrt((centred**2).groupby(rows["benchmark"]).transform("mean"))
    return scales


def _factors(rows: pd.DataFrame, recipe: Ints) -> dict[str, Ints]:
    products = {
        name: _joined(rows, name.split(":"))
        for name in (
            *(MODEL, DATA, BENCHMARK, MODEL_BENCHMARK, DATA_BENCHMARK, MODEL_DATA),
            ALL_THREE,
        )
    }
    if recipe.max() > 0:
        with_recipe = rows.assign(recipe=recipe)
        for name in (RECIPE_BENCHMARK, RECIPE_DATA_BENCHMARK, RECIPE_MODEL_BENCHMARK):
            levels = _joined(with_recipe, name.split(":"))
            if levels.max() < MAX_RECIPE_LEVELS:
                products[name] = levels
    return products


def _joined(rows: pd.DataFrame, keys: list[str]) -> Ints:
    """Number the combinations of columns that occur, in sorted order."""
    parts = [codes(rows[key]) for key in keys]
    joined = parts[0]
    for part in parts[1:]:
        joined = joined * (int(part.max(initial=0)) + 1) + part
    return np.unique(joined, return_inverse=True)[1].astype(np.int64)
