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
from numpy.typing import NDArray

from sft_atlas.forecast.panel import Panel, hide, nan_mean, split
from sft_atlas.forecast.posterior import UNKNOWN_LEVEL, condition
from sft_atlas.forecast.support import MIN_OTHERS
from sft_atlas.forecast.told import Told, tell_models
from sft_atlas.statistics.clusters import Floats, Ints

KIN_WEIGHT: Final = 2.0
"""Models that a relative counts for. Any weight from 1.25 to 2.5 gave the same regret within 0.02
SD on the released table; families there have one to three models, too few to fit it."""


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What the evidence says about one model before its own runs are looked at."""

    panel: Panel
    model: int
    told: Told
    effect: Floats
    """(setting, dataset, benchmark), units of the panel's scale; NaN where fewer than `MIN_OTHERS`
    other models say something."""
    num_models: Ints
    """(setting, dataset): other models with this very run."""


@dataclass(frozen=True, kw_only=True)
class Beliefs:
    """Gaussian over the choices of one model, in fractions of the range of scores."""

    setting: Ints
    """Number in `Panel.settings` of each choice."""
    dataset: Ints
    mean: Floats
    """Expected weighted score; what is observed is its own."""
    by_benchmark: Floats
    """(choice, benchmark) in the order of the weights: the same, of each benchmark alone."""
    covariance: Floats
    is_observed: NDArray[np.bool_]
    lift_variance: float
    """Of what all choices share, where the base model's scores are known."""
    base: Floats
    """(benchmark,): the base model's score; NaN where none may be used."""


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


def outlook(panel: Panel, model: int) -> Outlook:
    """Look at one model with its runs hidden."""
    visible = hide(panel, models=[model])
    effects = split(visible)
    others = np.isfinite(effects.pooled).any(axis=2).sum(axis=0) >= MIN_OTHERS
    in_setting = np.isfinite(visible.value).any(axis=(2, 3)).sum(axis=0) >= MIN_OTHERS
    effect = kin_mean(effects.pooled, panel.families, model) + effects.special
    effect = np.where(in_setting[:, None, None] & others[:, None], effect, np.nan)
    return Outlook(
        panel=panel,
        model=model,
        told=tell_models(panel, [model]),
        effect=effect,
        num_models=np.isfinite(visible.value).any(axis=3).sum(axis=0).astype(np.int64),
    )


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
    has_level = np.isfinite(view.told.levels.shift[:, used]).all(axis=1, keepdims=True)
    supported = np.asarray(np.isfinite(effect).all(axis=2) & has_level)
    ran = np.isfinite(panel.value[..., used]).all(axis=3).any(axis=0)
    wanted = ran if is_possible is None else is_possible
    allowed = np.asarray(wanted) & np.asarray(supported | shown)
    place = np.argwhere(allowed)
    known: Ints = np.flatnonzero(shown[allowed] & supported[allowed])
    # A run that nobody else made is known by itself, and tells nothing about the rest.
    setting, dataset = place[:, 0], place[:, 1]
    base = panel.base[view.model, used]
    lift = view.told.levels.lift[0][used]
    level = np.where(np.isfinite(base + lift), base + lift, 0.0) + view.told.levels.shift[:, used]
    means = np.nan_to_num(level[setting] + effect[setting, dataset])
    observed = own[setting, dataset]
    covariance = _covariance(view, used, share, setting, dataset)
    after, left = condition(means @ share, covariance, known, observed[known] @ share)
    each = np.empty_like(means)
    for number, benchmark in enumerate(used):
        alone = _covariance(view, np.array([benchmark]), np.ones(1), setting, dataset)
        each[:, number] = condition(means[:, number], alone, known, observed[known, number])[0]
    is_shown = shown[allowed]
    each = np.where(is_shown[:, None], observed, each)
    left = np.where(is_shown[:, None] | is_shown, 0.0, left)
    return Beliefs(
        setting=setting,
        dataset=dataset,
        mean=np.where(is_shown, np.nan_to_num(observed) @ share, after),
        by_benchmark=each * panel.scale[used],
        covariance=left,
        is_observed=is_shown,
        lift_variance=view.told.levels.lift_variance * float(share @ share),
        base=base * panel.scale[used],
    )


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
    told, squared = view.told, share**2
    has_base = np.isfinite(view.panel.base[view.model, used])
    common = float(squared @ np.where(has_base, told.levels.lift_variance, UNKNOWN_LEVEL))
    blocks = told.crossed.covariance[0][:, used][:, :, used]
    same_data = dataset[:, None] == dataset
    same_setting = setting[:, None] == setting
    by_data = np.einsum("dbc,b,c->d", blocks, share, share)[dataset]
    total = float(squared.sum())
    covariance: Floats = (
        common
        + same_data * by_data
        + same_setting * (told.levels.shift_variance * total)
        + (same_data & same_setting) * (told.special_variance * total)
    )
    return covariance


def centred(values: Floats) -> Floats:
    """Values less their mean over datasets; `values` is (..., dataset, benchmark)."""
    moved: Floats = values - nan_mean(values, axis=values.ndim - 2)[..., None, :]
    return moved
