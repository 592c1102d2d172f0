"""How could the effect of a dataset be foretold?

In: a panel in which models (or datasets) are hidden. Out: their effects by each candidate, from
plain to rich. The plain ones are there to be beaten: a rich one is used only where back-tests
prefer it. Every candidate for a new model adds the same part that is special to a setting, but
`others`, which is the plain mean of the very same choice.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from sft_atlas.forecast.completion import low_rank
from sft_atlas.forecast.crossed import Foretold
from sft_atlas.forecast.panel import Effects, Panel, nan_mean
from sft_atlas.forecast.regression import group_mean, regress_on_data, regress_on_models
from sft_atlas.statistics.clusters import Floats

OTHERS: Final = "mean on other models"
BLIND: Final = "mean over benchmarks"
CROSSED: Final = "crossed effects"
RIDGE: Final = "ridge"
TREES: Final = "boosted trees"
LOW_RANK: Final = "low rank"
MIXED: Final = "mean of three"
"""Of crossed effects, low rank and ridge."""

AVERAGE_DATA: Final = "an average dataset"
SAME_SKILL: Final = "datasets of the same group"

FOR_MODELS: Final = (OTHERS, BLIND, CROSSED, RIDGE, TREES, LOW_RANK, MIXED)
FOR_DATA: Final = (AVERAGE_DATA, SAME_SKILL, RIDGE, TREES)

PRIOR_PAIRS: Final = 2.0
"""The mean of a group is shrunk as if so many datasets of it had shown nothing."""


def effects_on_models(
    panel: Panel, effects: Effects, models: Sequence[int], crossed: Foretold
) -> dict[str, Floats]:
    """Return effects on hidden models by candidate, (target, setting, dataset, benchmark)."""
    plain = np.broadcast_to(
        nan_mean(effects.effect, axis=0), (len(models), *effects.effect.shape[1:])
    )
    blind = np.broadcast_to(nan_mean(plain, axis=3)[..., None], plain.shape)
    pooled = {
        CROSSED: crossed.mean,
        RIDGE: regress_on_models(panel, effects, models, "ridge"),
        TREES: regress_on_models(panel, effects, models, "trees"),
        LOW_RANK: low_rank(panel, effects, models),
    }
    pooled[MIXED] = (pooled[CROSSED] + pooled[RIDGE] + pooled[LOW_RANK]) / 3
    rich = {name: found[:, None] + effects.special for name, found in pooled.items()}
    return {OTHERS: plain, BLIND: blind} | rich


def effects_of_data(panel: Panel, effects: Effects, datasets: Sequence[int]) -> dict[str, Floats]:
    """Return effects of hidden datasets by candidate, (model, setting, target, benchmark).

    A candidate that has nothing to go by gives NaN. Where groups are known, a dataset without
    others of its group is foretold like an average one.
    """
    targets = list(datasets)
    peers = group_mean(panel, nan_mean(effects.pooled, axis=0)[None])[:, targets]
    groups = np.array(panel.groups, dtype=str)
    seen = np.isfinite(effects.pooled).any(axis=(0, 2))
    size = np.array([((groups == groups[t]) & seen).sum() for t in targets], dtype=np.float64)
    shrunk = peers * (size / (size + PRIOR_PAIRS))[:, None]
    if (groups != "").any():
        shrunk = np.nan_to_num(shrunk)
    pooled = {
        AVERAGE_DATA: np.zeros((1, len(targets), 1)),
        SAME_SKILL: shrunk,
        RIDGE: regress_on_data(panel, effects, targets, "ridge"),
        TREES: regress_on_data(panel, effects, targets, "trees"),
    }
    shape = (panel.value.shape[0], panel.value.shape[1], len(targets), panel.value.shape[3])
    return {name: np.broadcast_to(found[:, None], shape) for name, found in pooled.items()}
