"""What will each choice score for a model on a weighted mix of benchmarks, given all that is known?

In: a panel of outcomes (`forecast.panel`), a model, weights. Out: mean and covariance over choices
(setting x dataset), corrected by the runs of the model that are known. The one decision: the mean
is that of the same dataset on other models, a relative (same family) counting twice; replayed on
the released table this chose better than richer forecasts, which win on accuracy over all pairs.
Covariance, levels and the correction by known runs are those of `forecast`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sft_atlas.forecast.crossed import crossed_effects
from sft_atlas.forecast.levels import Levels, expected_levels
from sft_atlas.forecast.outcomes import QUERY, SETTING, score_range
from sft_atlas.forecast.panel import Effects, Panel, hide, nan_mean, split
from sft_atlas.forecast.posterior import UNKNOWN_LEVEL
from sft_atlas.forecast.support import MIN_OTHERS
from sft_atlas.statistics.clusters import Floats, Ints

NUGGET: Final = 1e-9

KIN_WEIGHT: Final = 2.0
"""Models that a relative counts for. Any weight from 1.25 to 2.5 gave the same regret within 0.02
SD on the released table; families there have one to three models, too few to fit it."""


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What the evidence says about one model before its own runs are looked at."""

    panel: Panel
    model: int
    levels: Levels
    data_covariance: Floats
    """(dataset, benchmark, benchmark), units of the panel's scale."""
    special_variance: float
    """Of a run about the effect of its dataset in all settings."""
    effect: Floats
    """(setting, dataset, benchmark), units of the panel's scale; NaN where fewer than `MIN_OTHERS`
    other models say something."""
    num_models: Ints
    """(setting, dataset): other models with this very run."""
    run_share: float
    """How much of what is special to a run its epochs share, from 0 to 1."""
    error: Floats
    """(setting, dataset, benchmark): standard error of the model's own scores over items, units of
    the panel's scale; 0 where it is not known."""


@dataclass(frozen=True, kw_only=True)
class Beliefs:
    """Gaussian over the choices of one model, in fractions of the range of scores."""

    setting: Ints
    """Number in `Panel.settings` of each choice."""
    dataset: Ints
    mean: Floats
    """Expected weighted score. That of a run that is known lies between what was measured and what
    was expected, the nearer to the first the more items it has: the best of many is lucky."""
    by_benchmark: Floats
    """(choice, benchmark) in the order of the weights: the same, of each benchmark alone."""
    covariance: Floats
    is_observed: NDArray[np.bool_]
    lift_variance: float
    """Of what all choices share, where the base model's scores are known."""
    base: Floats
    """(benchmark,): the base model's score; NaN where none may be used, or where nothing tells how
    far runs lie above it."""


def kin_mean(values: Floats, families: Sequence[str], model: int) -> Floats:
    """Average over other models what is not NaN; relatives count `KIN_WEIGHT` times.

    `values` is (model, ...). A model without a family has no relatives.
    """
    family = families[model]
    weights = np.array(
        [KIN_WEIGHT if family and other == family else 1.0 for other in families], dtype=np.float64
    )
    weights[model] = 0.0
    shaped = weights.reshape(-1, *([1] * (values.ndim - 1))) * np.isfinite(values)
    total = shaped.sum(axis=0)
    summed = (shaped * np.nan_to_num(values)).sum(axis=0)
    mean: Floats = np.where(total > 0, summed / np.maximum(total, 1e-12), np.nan)
    return mean


def outlook(panel: Panel, model: int, *, errors: pd.DataFrame | None = None) -> Outlook:
    """Look at one model with its runs hidden.

    `errors` has the columns of `forecast.outcomes.QUERY` and `error`, fractions of the range.
    """
    visible = hide(panel, models=[model])
    effects = split(visible)
    others = np.isfinite(effects.pooled).any(axis=2).sum(axis=0) >= MIN_OTHERS
    in_setting = np.isfinite(visible.value).any(axis=(2, 3)).sum(axis=0) >= MIN_OTHERS
    effect = kin_mean(effects.pooled, panel.families, model) + effects.special
    effect = np.where(in_setting[:, None, None] & others[:, None], effect, np.nan)
    return Outlook(
        panel=panel,
        model=model,
        levels=expected_levels(visible, effects, [model]),
        data_covariance=crossed_effects(visible, effects, [model]).covariance[0],
        special_variance=_special_variance(effects),
        effect=effect,
        num_models=np.isfinite(visible.value).any(axis=3).sum(axis=0).astype(np.int64),
        run_share=_run_share(panel, effects),
        error=_own_errors(panel, model, errors),
    )


def _run_share(panel: Panel, effects: Effects) -> float:
    """Mean product of what is special to two epochs of one run, by its mean square; 0 where no run
    kept two.
    """
    rest = effects.effect - effects.pooled[:, None] - effects.special
    runs = _run_numbers(panel)
    products = squares = 0.0
    for number in np.unique(runs):
        part = rest[:, runs == number]
        there = np.isfinite(part)
        count = there.sum(axis=1)
        filled = np.where(there, part, 0.0)
        square = (filled**2).sum(axis=1)
        several = count > 1
        # Mean over pairs of different epochs, and over the same epochs alone.
        pairs = (filled.sum(axis=1) ** 2 - square)[several] / (count * (count - 1))[several]
        products += float(pairs.sum())
        squares += float((square[several] / count[several]).sum())
    return min(max(products / squares, 0.0), 1.0) if squares > 0 else 0.0


def _special_variance(effects: Effects) -> float:
    """Mean square of effects of single runs about the mean over settings, by what is free."""
    rest = effects.effect - effects.pooled[:, None] - effects.special
    there = np.isfinite(rest)
    free = int(there.sum() - there.any(axis=1).sum())
    left = rest[there]
    return float(left @ left) / free if free > 0 else 0.0


def _run_numbers(panel: Panel) -> Ints:
    """Number of the method, size and schedule of each setting, whatever the epoch."""
    runs = [setting[:-1] for setting in panel.settings]
    names = sorted(set(runs), key=str)
    return np.array([names.index(run) for run in runs], dtype=np.int64)


def score_errors(scores: pd.DataFrame) -> pd.DataFrame:
    """Standard error of each score over items, as a fraction of the range; `QUERY` and `error`.

    Seeds are averaged as if they were one run; scores without an error are left out.
    """
    rows = scores[scores["standard_error"].notna() & (scores["method"] != "base")]
    _, width = score_range(rows["metric"])
    found = rows[list(QUERY)].assign(error=rows["standard_error"].astype(float) / width)
    return found.groupby(list(QUERY), sort=True)["error"].mean().reset_index()


def _own_errors(panel: Panel, model: int, errors: pd.DataFrame | None) -> Floats:
    found = np.zeros(panel.value.shape[1:])
    if errors is None:
        return found
    settings = {setting: place for place, setting in enumerate(panel.settings)}
    datasets = {name: place for place, name in enumerate(panel.datasets)}
    tests = {name: place for place, name in enumerate(panel.benchmarks)}
    own = errors[errors["model"] == panel.models[model]]
    for row in own[[*SETTING, "data", "benchmark", "error"]].itertuples(index=False, name=None):
        *setting, data, test, error = row
        if tuple(setting) in settings and data in datasets and test in tests:
            number = tests[test]
            place = settings[tuple(setting)], datasets[data], number
            found[place] = error / panel.scale[number]
    return found


def beliefs(
    view: Outlook,
    weights: Floats,
    *,
    is_possible: NDArray[np.bool_] | None = None,
    use_own: bool = True,
) -> Beliefs:
    """Form what is believed of a mix; `weights` is (benchmark,) over the panel's benchmarks.

    `is_possible` (setting, dataset) restricts the choices; without it, all that some model ran.
    With `use_own` false the model's own runs are not looked at.
    """
    panel = view.panel
    used = np.flatnonzero(weights)
    share = weights[used] * panel.scale[used]
    effect = view.effect[..., used]
    own = panel.value[view.model][..., used]
    shown: NDArray[np.bool_] = np.asarray(np.isfinite(own).all(axis=2) & use_own)
    has_shift = np.isfinite(view.levels.shift[:, used]).all(axis=1, keepdims=True)
    supported = np.asarray(np.isfinite(effect).all(axis=2) & has_shift)
    ran = np.isfinite(panel.value[..., used]).all(axis=3).any(axis=0)
    wanted = ran if is_possible is None else is_possible
    allowed = np.asarray(wanted) & np.asarray(supported | shown)
    place = np.argwhere(allowed)
    known: Ints = np.flatnonzero(shown[allowed] & supported[allowed])
    # A run that nobody else made is known by itself, and tells nothing about the rest.
    setting, dataset = place[:, 0], place[:, 1]
    observed = own[setting, dataset]
    expected = panel.base[view.model, used] + view.levels.lift[0][used]
    relative = np.nan_to_num(view.levels.shift[setting][:, used] + effect[setting, dataset])
    # Where no base score tells the level, the model's own runs do; without any it is open.
    measured = np.nan_to_num(nan_mean(observed[known] - relative[known], axis=0))
    means = np.where(np.isfinite(expected), expected, measured) + relative
    has_level = np.isfinite(expected) | np.isfinite(observed[known]).any(axis=0)
    base = np.where(has_level, panel.base[view.model, used], np.nan)
    covariance = _covariance(view, used, share, setting, dataset)
    noise = view.error[..., used][setting, dataset][known] ** 2
    after, left = _learn(
        means @ share, covariance, known, observed[known] @ share, noise @ share**2
    )
    each = np.empty_like(means)
    for number, benchmark in enumerate(used):
        alone = _covariance(view, np.array([benchmark]), np.ones(1), setting, dataset)
        each[:, number] = _learn(
            means[:, number], alone, known, observed[known, number], noise[:, number]
        )[0]
    is_shown = shown[allowed]
    # What only this model was trained with has no forecast: it stands as it was measured.
    alone_here = np.setdiff1d(np.flatnonzero(is_shown), known)
    each[alone_here], after[alone_here] = observed[alone_here], observed[alone_here] @ share
    own_noise = view.error[..., used][setting, dataset][alone_here] ** 2 @ share**2
    left[alone_here], left[:, alone_here] = 0.0, 0.0
    left[alone_here, alone_here] = own_noise
    return Beliefs(
        setting=setting,
        dataset=dataset,
        mean=after,
        by_benchmark=each * panel.scale[used],
        covariance=left,
        is_observed=is_shown,
        lift_variance=view.levels.lift_variance * float(share @ share),
        base=base * panel.scale[used],
    )


def _learn(
    mean: Floats, covariance: Floats, known: Ints, values: Floats, noise: Floats
) -> tuple[Floats, Floats]:
    """Condition a Gaussian on some of its entries, measured with independent errors of variance
    `noise`.
    """
    if known.size == 0:
        return mean.copy(), covariance.copy()
    inner = covariance[np.ix_(known, known)]
    nugget = NUGGET * max(float(np.trace(inner)) / known.size, 1e-12)
    gain = np.linalg.solve(inner + np.diag(noise + nugget), covariance[known]).T
    left = covariance - gain @ covariance[known]
    return mean + gain @ (values - mean[known]), (left + left.T) / 2


def with_known_level(found: Beliefs) -> Floats:
    """Covariance as it will be once the base model is scored.

    Where nothing tells a model's level, one run would seem to teach nothing about the others.
    """
    shared = float(found.covariance.min()) if found.covariance.size else 0.0
    known: Floats = found.covariance - max(shared - found.lift_variance, 0.0)
    return known


def _covariance(view: Outlook, used: Ints, share: Floats, setting: Ints, dataset: Ints) -> Floats:
    """Covariance of a mix over choices, before any run of the model is known.

    What `forecast.posterior.joint_covariance` says of single benchmarks, summed with the weights.
    """
    levels, squared = view.levels, share**2
    has_base = np.isfinite(view.panel.base[view.model, used] + levels.lift[0][used])
    common = float(squared @ np.where(has_base, levels.lift_variance, UNKNOWN_LEVEL))
    blocks = view.data_covariance[:, used][:, :, used]
    same_data = dataset[:, None] == dataset
    same_setting = (setting[:, None] == setting).astype(np.float64)
    runs = _run_numbers(view.panel)[setting]
    alike = view.run_share * (runs[:, None] == runs) + (1 - view.run_share) * same_setting
    by_data = np.einsum("dbc,b,c->d", blocks, share, share)[dataset]
    total = float(squared.sum())
    covariance: Floats = (
        common
        + same_data * by_data
        + alike * (levels.shift_variance * total)
        + (same_data * alike) * (view.special_variance * total)
    )
    return covariance


def centred(values: Floats) -> Floats:
    """Values less their mean over datasets; `values` is (..., dataset, benchmark)."""
    moved: Floats = values - nan_mean(values, axis=values.ndim - 2)[..., None, :]
    return moved
