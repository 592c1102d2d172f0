"""What was foretold of hidden models or datasets, and how well?

In: a panel and what to hide. Out: forecasts by every candidate, made from the rest alone, and their
results against the truth. Three schemes: a new model (none of its runs is known), a new dataset
(no model was trained on it), and random holes (a random half of a model's runs is known).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sft_atlas.forecast.candidates import effects_of_data, effects_on_models
from sft_atlas.forecast.crossed import Foretold, crossed_effects
from sft_atlas.forecast.figures import Problems, score_problems
from sft_atlas.forecast.levels import Levels, expected_levels
from sft_atlas.forecast.panel import Effects, Panel, hide, split
from sft_atlas.forecast.posterior import MAX_ENTRIES, Places, condition, joint_covariance
from sft_atlas.statistics.clusters import Floats, Ints


@dataclass(frozen=True, kw_only=True)
class Told:
    """What the visible part of a panel says about models whose runs are hidden."""

    models: tuple[int, ...]
    effects: Mapping[str, Floats]
    """By candidate, (target, setting, dataset, benchmark)."""
    crossed: Foretold
    levels: Levels
    special_variance: float
    """Of a run about its dataset's effect in all settings."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One candidate's forecasts of one hidden model or dataset."""

    problems: Problems
    truth: Floats
    """What was to be forecast, flat: differences between datasets, in units of scale."""
    guess: Floats
    gain: Floats
    """True gains, flat (new dataset: values); NaN where no gain can be formed."""
    gain_guess: Floats
    expected_square: float = 0.0
    """Sum of (truth - guess)^2 that the joint covariance expects; 0 where it was not asked."""


Results = Mapping[str, Result]
"""By candidate."""


def tell_models(panel: Panel, models: Sequence[int]) -> Told:
    """Forecast models from the others."""
    visible = hide(panel, models=models)
    effects = split(visible)
    crossed = crossed_effects(visible, effects, models)
    return Told(
        models=tuple(models),
        effects=effects_on_models(visible, effects, models, crossed),
        crossed=crossed,
        levels=expected_levels(visible, effects, models),
        special_variance=_special_variance(effects),
    )


def new_model_results(panel: Panel, told: Told) -> dict[int, Results]:
    """Compare forecasts of whole models with what came of them."""
    found: dict[int, Results] = {}
    for place, model in enumerate(told.models):
        truth = panel.value[model]
        level = panel.base[model] + told.levels.lift[place] + told.levels.shift
        gain = truth - panel.base[model]
        spread = np.einsum("dbb->db", told.crossed.covariance[place]) + told.special_variance
        results = {}
        for name, effects in told.effects.items():
            guess = effects[place]
            both = np.isfinite(truth) & np.isfinite(guess)
            results[name] = Result(
                problems=score_problems(_by_problem(truth), _by_problem(guess)),
                truth=_centred(truth, guess),
                guess=_centred(guess, truth),
                gain=gain.ravel(),
                gain_guess=(level[:, None] - panel.base[model] + guess).ravel(),
                expected_square=_centred_variance(spread, both),
            )
        found[model] = results
    return found


def hole_results(panel: Panel, told: Told, *, seed: int) -> dict[int, Results]:
    """Compare forecasts of half of a model's runs, drawn at random, when the other half is known.

    A model with fewer than two runs has no result.
    """
    found: dict[int, Results] = {}
    for place, model in enumerate(told.models):
        truth = panel.value[model]
        runs = np.argwhere(np.isfinite(truth).any(axis=2))
        if len(runs) < 2:
            continue
        rng = np.random.default_rng([seed, model, 0x401E])
        known = np.zeros(truth.shape, dtype=np.bool_)
        known[tuple(runs[rng.permutation(len(runs))[: len(runs) // 2]].T)] = True
        results = _conditioned(panel, told, place, known, rng.permutation(truth[:, 0].size))
        if results:
            found[model] = results
    return found


def new_data_results(panel: Panel, datasets: Sequence[int]) -> dict[int, Results]:
    """Hide datasets, forecast them, and compare with what came of them.

    The other datasets of the same model and setting are known: a problem asks where the new one
    stands among them.
    """
    visible = hide(panel, datasets=datasets)
    effects = split(visible)
    candidates = effects_of_data(visible, effects, datasets)
    found: dict[int, Results] = {}
    for place, dataset in enumerate(datasets):
        known = np.isfinite(visible.value).astype(np.float64)
        results = {}
        for name, told in candidates.items():
            guess = np.full(panel.value.shape, np.nan)
            guess[:, :, dataset] = effects.level + told[:, :, place]
            shown = np.where(known > 0, panel.value, guess)
            truth = np.where((known > 0) | np.isfinite(guess), panel.value, np.nan)
            gap = truth[:, :, dataset] - effects.level
            results[name] = Result(
                problems=score_problems(_by_problem(truth), _by_problem(shown), _by_problem(known)),
                truth=gap.ravel(),
                guess=told[:, :, place].ravel(),
                gain=truth[:, :, dataset].ravel(),
                gain_guess=guess[:, :, dataset].ravel(),
            )
        found[dataset] = results
    return found


def prior(panel: Panel, told: Told, place: int, places: Places) -> tuple[Floats, Floats, Floats]:
    """Level of entries (score units of the panel) and the covariances of `joint_covariance`.

    A base score that is not known counts as the mean of the others: nothing but its variance
    enters a comparison.
    """
    model = told.models[place]
    expected = panel.base[model] + told.levels.lift[place]
    has_base = np.isfinite(expected)
    level = np.where(has_base, expected, 0.0) + told.levels.shift
    common, differing = joint_covariance(
        places,
        effects=told.crossed.covariance[place],
        levels=told.levels,
        has_base=has_base.astype(np.float64),
        special_variance=told.special_variance,
    )
    return level[places.setting, places.benchmark], common, differing


def at_measured_level(
    panel: Panel,
    told: Told,
    place: int,
    places: Places,
    mean: Floats,
    known: Ints,
    values: Floats,
) -> Floats:
    """Means of entries, moved to the level of those that are known where no base score tells it.

    `mean` is (entry,) or (entry, candidate). A level of 0 with a wide prior would pull entries that
    are not known a little below those that are.
    """
    expected = panel.base[told.models[place]] + told.levels.lift[place]
    moved = mean.copy()
    for test in np.flatnonzero(~np.isfinite(expected)):
        is_own = places.benchmark == test
        is_shown = is_own[known]
        if is_shown.any():
            moved[is_own] += (values[is_shown] - mean[known[is_shown]]).mean(axis=0)
    return moved


def _conditioned(
    panel: Panel, told: Told, place: int, known: NDArray[np.bool_], order: Ints
) -> dict[str, Result]:
    """Results on the runs that are not known, each candidate's forecast updated by those that
    are.

    `order` is a permutation of problems, of which the first are taken if all are too many.
    """
    model = told.models[place]
    truth = panel.value[model]
    possible = np.isfinite(truth) & np.isfinite(told.levels.shift)[:, None]
    size = possible.sum(axis=1).ravel()[order]
    taken = np.zeros(order.size, dtype=np.bool_)
    taken[order] = np.cumsum(size) <= MAX_ENTRIES
    possible &= taken.reshape(told.levels.shift.shape)[:, None]
    at = np.argwhere(possible)
    is_known: Ints = np.flatnonzero(known[possible])
    places = Places(setting=at[:, 0], dataset=at[:, 1], benchmark=at[:, 2])
    if is_known.size == 0 or is_known.size == len(at):
        return {}
    level, common, differing = prior(panel, told, place, places)
    values = truth[possible]
    names = list(told.effects)
    means = np.stack([level + told.effects[name][place][possible] for name in names], axis=1)
    usable = np.isfinite(means).all(axis=0)
    shown_values = values[is_known][:, None]
    means = at_measured_level(
        panel, told, place, places, np.nan_to_num(means), is_known, shown_values
    )
    updated, _ = condition(means, common + differing, is_known, shown_values)
    shown_known = (known & possible).astype(np.float64)
    hidden = np.ones(len(at), dtype=np.bool_)
    hidden[is_known] = False
    results = {}
    for number, name in enumerate(names):
        if not usable[number]:
            continue
        shown = np.full(truth.shape, np.nan)
        shown[possible] = updated[:, number]
        actual = np.where(possible, truth, np.nan)
        score = score_problems(_by_problem(actual), _by_problem(shown), _by_problem(shown_known))
        results[name] = Result(
            problems=score,
            truth=values[hidden] - level[hidden],
            guess=updated[hidden, number] - level[hidden],
            gain=values[hidden],
            gain_guess=updated[hidden, number],
        )
    return results


def _centred_variance(spread: Floats, both: NDArray[np.bool_]) -> float:
    """Sum of variances of independent values less their mean over datasets.

    Of n values with variances v the squared deviations from their mean add to (1 - 1 / n) sum v.
    """
    count = both.sum(axis=1, keepdims=True)
    return float((np.where(both, spread, 0.0) * (1 - 1 / np.maximum(count, 1))).sum())


def _special_variance(effects: Effects) -> float:
    """Mean square of single effects about the mean over settings, by degrees of freedom."""
    rest = effects.effect - effects.pooled[:, None] - effects.special
    is_there = np.isfinite(rest)
    free = int(is_there.sum() - is_there.any(axis=1).sum())
    left = rest[is_there]
    return float(left @ left) / free if free > 0 else 0.0


def _by_problem(values: Floats) -> Floats:
    """(..., dataset, benchmark) as (problem, dataset)."""
    moved: Floats = np.moveaxis(values, -2, -1).reshape(-1, values.shape[-2])
    return moved


def _centred(values: Floats, like: Floats) -> Floats:
    """Values less their mean over datasets, where both have one, flat."""
    both = np.where(np.isfinite(values) & np.isfinite(like), values, np.nan)
    count = np.maximum(np.isfinite(both).sum(axis=1, keepdims=True), 1)
    mean = np.nansum(both, axis=1, keepdims=True) / count
    flat: Floats = (both - mean).ravel()
    return flat
