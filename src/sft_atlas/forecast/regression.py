"""Which known facts tell the effect of a dataset?

In: effects that are visible. Out: the effects on one model (or of one dataset) that is hidden, by
ridge regression or boosted trees on facts: what the dataset did to other models, base score,
family, whether the data was made for the benchmark's skill, what its group's other datasets did,
and properties of the data where they were measured. The facts about a training row never use that
row's own model (or dataset): they are what would be known if it were hidden too.
"""

from collections.abc import Sequence
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import Ridge

from sft_atlas.forecast.panel import Effects, Panel, nan_mean, own_skill
from sft_atlas.statistics.clusters import Floats

RIDGE_PENALTY: Final = 30.0
"""On standardised facts; as if so many rows had shown no relation."""

MAX_ROWS: Final = 5000
"""Most rows that a regression is fitted to: of more, a random sample."""

Learner = Literal["ridge", "trees"]


def regress_on_models(
    panel: Panel, effects: Effects, models: Sequence[int], learner: Learner
) -> Floats:
    """Return effects on hidden models, (target, dataset, benchmark)."""
    targets = list(models)
    hidden = np.zeros(effects.pooled.shape, dtype=np.bool_)
    hidden[targets] = True
    return _fit_predict(_facts_of_models(panel, effects), effects.pooled, hidden, learner)[targets]


def regress_on_data(
    panel: Panel, effects: Effects, datasets: Sequence[int], learner: Learner
) -> Floats:
    """Return effects of hidden datasets, (model, target, benchmark)."""
    targets = list(datasets)
    hidden = np.zeros(effects.pooled.shape, dtype=np.bool_)
    hidden[:, targets] = True
    facts = _facts_of_data(panel, effects)
    return _fit_predict(facts, effects.pooled, hidden, learner)[:, targets]


def group_mean(panel: Panel, pooled: Floats) -> Floats:
    """Mean effect of the other datasets of the same group, (model, dataset, benchmark); NaN where a
    group has one dataset.
    """
    groups = np.array(panel.groups, dtype=str)
    result = np.full(pooled.shape, np.nan)
    for place, group in enumerate(groups):
        peers = (groups == group) & (group != "") & (np.arange(groups.size) != place)
        if peers.any():
            result[:, place] = nan_mean(pooled[:, peers], axis=1)
    return result


def _facts_of_models(panel: Panel, effects: Effects) -> Floats:
    """(model, dataset, benchmark, fact), each model's without its own effects."""
    pooled = effects.pooled
    is_there = np.isfinite(pooled)
    total = np.where(is_there, pooled, 0.0)
    count = is_there.sum(axis=0) - is_there
    others = np.where(count > 0, (total.sum(axis=0) - total) / np.maximum(count, 1), 0.0)
    kin = np.zeros_like(pooled)
    families = np.array(panel.families, dtype=str)
    for place, family in enumerate(families):
        peers = (families == family) & (family != "") & (np.arange(families.size) != place)
        if peers.any():
            kin[place] = np.nan_to_num(nan_mean(pooled[peers], axis=0) - others[place])
    own = np.broadcast_to(own_skill(panel), pooled.shape)
    offset = _base_offset(panel)[:, None]
    blind = np.broadcast_to(others.mean(axis=2, keepdims=True), pooled.shape)
    peers_mean = np.nan_to_num(group_mean(panel, others))
    facts = [others, blind, kin, own, offset, others * offset, peers_mean]
    facts = [np.nan_to_num(np.broadcast_to(fact, pooled.shape)) for fact in facts]
    return np.concatenate([np.stack(facts, axis=-1), _known_properties(panel)], axis=-1)


def _facts_of_data(panel: Panel, effects: Effects) -> Floats:
    """(model, dataset, benchmark, fact), each dataset's without its own effects."""
    shape = effects.pooled.shape
    average = np.broadcast_to(nan_mean(effects.pooled, axis=0), shape)
    own = np.broadcast_to(own_skill(panel), shape)
    offset = np.broadcast_to(_base_offset(panel)[:, None], shape)
    peers = np.nan_to_num(group_mean(panel, effects.pooled))
    peers_average = np.nan_to_num(group_mean(panel, average))
    facts = np.stack([own, peers, peers_average, own * offset, peers_average * offset], axis=-1)
    return np.concatenate([facts, _known_properties(panel)], axis=-1)


def _base_offset(panel: Panel) -> Floats:
    """Base score above the mean of the models; 0 where not known."""
    found: Floats = np.nan_to_num(panel.base - nan_mean(panel.base, axis=0))
    return found


def _known_properties(panel: Panel) -> Floats:
    """Properties less their mean; 0 where not measured."""
    values = panel.properties
    found: Floats = np.nan_to_num(values - nan_mean(values, axis=(0, 1, 2)))
    return found


def _fit_predict(
    facts: Floats, effects: Floats, hidden: NDArray[np.bool_], learner: Learner
) -> Floats:
    rows = np.isfinite(effects) & ~hidden
    result = np.full(effects.shape, np.nan)
    if rows.sum() < 2:
        return result
    table = facts.reshape(-1, facts.shape[-1])
    places = np.flatnonzero(rows)
    if places.size > MAX_ROWS:
        places = np.sort(np.random.default_rng(0).choice(places, MAX_ROWS, replace=False))
    train = table[places]
    centre, spread = train.mean(axis=0), train.std(axis=0)
    kept = spread > 1e-9
    if not kept.any():
        return result
    train = (train - centre)[:, kept] / spread[kept]
    wanted = (table[hidden.ravel()] - centre)[:, kept] / spread[kept]
    if learner == "ridge":
        model = Ridge(alpha=RIDGE_PENALTY)
    else:
        model = HistGradientBoostingRegressor(
            max_iter=25,
            learning_rate=0.15,
            max_leaf_nodes=6,
            min_samples_leaf=20,
            max_bins=32,
            early_stopping=False,
            random_state=0,
        )
    result[hidden] = model.fit(train, effects.ravel()[places]).predict(wanted)
    return result
