"""How much does fine-tuning lift a model at all, whatever the data?

In: levels (what an average dataset reaches) by model, setting and benchmark, and base scores. Out:
the expected level of models whose runs are hidden, and how far it may be off. The ranking of
datasets does not need it, the gain does. The lift falls with the base score: a base that fails a
format gains by learning it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from sft_atlas.forecast.panel import Effects, Panel, nan_mean
from sft_atlas.statistics.clusters import Floats

SLOPE_PENALTY: Final = 5.0
"""The slope of lift on base score is shrunk as if base scores differed by so much less."""

NUM_SWEEPS: Final = 12


@dataclass(frozen=True, kw_only=True)
class Levels:
    """What is expected of models whose runs are hidden, in units of the panel's scale."""

    lift: Floats
    """(target, benchmark): level of the average setting less base; NaN without a base score."""
    shift: Floats
    """(setting, benchmark): what a setting adds for an average model; NaN where nobody ran it."""
    lift_variance: float
    """Of a model's lift about its expectation."""
    shift_variance: float
    """Of model x setting x benchmark about lift + shift."""


def expected_levels(panel: Panel, effects: Effects, models: Sequence[int]) -> Levels:
    """Expect levels of the target models from those of the others."""
    level = effects.level
    shift = np.zeros(level.shape[1:])
    for _ in range(NUM_SWEEPS):
        mean = nan_mean(level - shift, axis=1)
        shift = np.nan_to_num(nan_mean(level - mean[:, None], axis=0))
        shift -= shift.mean(axis=0)
    rest = level - mean[:, None] - shift
    shift = np.where(np.isfinite(level).any(axis=0), shift, np.nan)
    targets = list(models)
    lift = mean - panel.base
    centre, base_centre = nan_mean(lift, axis=0), nan_mean(_where_known(panel.base, lift), axis=0)
    offset, extra = panel.base - base_centre, lift - centre
    known = np.isfinite(offset) & np.isfinite(extra)
    slope = float((offset * extra)[known].sum() / ((offset[known] ** 2).sum() + SLOPE_PENALTY))
    missed = (extra - slope * offset)[known]
    num_free = max(int(known.sum()) - level.shape[2] - 1, 1)
    return Levels(
        lift=(centre + slope * offset)[targets],
        shift=shift,
        lift_variance=float(missed @ missed) / num_free if missed.size else 1.0,
        shift_variance=_variance(rest, level),
    )


def _where_known(base: Floats, lift: Floats) -> Floats:
    found: Floats = np.where(np.isfinite(lift), base, np.nan)
    return found


def _variance(rest: Floats, level: Floats) -> float:
    """Mean square of what is left, by the degrees of freedom that are left."""
    is_there = np.isfinite(level)
    used = is_there.any(axis=1).sum() + is_there.any(axis=0).sum() - level.shape[2]
    free = int(is_there.sum() - used)
    left = rest[is_there]
    return float(left @ left) / free if free > 0 else 0.0
