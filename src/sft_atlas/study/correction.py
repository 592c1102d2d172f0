"""Correct an estimate by what finished training runs took.

In: predicted and actual seconds of runs. Out: a factor for each base model and kind of training.
The logarithms of actual / predicted are normal around a value of the group, groups around a common
value, and that around 0: so a few runs correct their own group at once, others by part, and no run
at all corrects nothing. Variances of the common value and of groups are stated; that of runs is
estimated, with the stated one as its prior (Gelman & Hill 2007, ch. 12).
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean
from typing import Final

from sft_atlas.study.assumption import Range

COMMON_SD: Final = 0.5
"""Of the logarithm of what all runs have in common: 95 % within a factor of 2.7."""

GROUP_SD: Final = 0.25
"""Of a base model under full training or LoRA, around that: 95 % within a factor of 1.6."""

RUN_SD: Final = 0.1
"""Of a run around its group, before any was seen."""

_RUN_SD_WEIGHT: Final = 3.0
"""Runs that the prior of `RUN_SD` counts as."""

_NORMAL_95: Final = 1.959964

Group = tuple[str, str]
"""Name of a base model, and `full` or `lora`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparedRun:
    """A finished run's predicted and actual seconds in optimizer steps, both > 0."""

    group: Group
    predicted_seconds: float
    actual_seconds: float


@dataclass(frozen=True, kw_only=True)
class Correction:
    """Factors on predicted seconds, with the ends of their 95 % intervals."""

    factors: dict[Group, Range]
    """Of groups with a finished run."""
    other: Range | None
    """Of all other groups; None where no run has finished."""

    def factor(self, group: Group) -> Range | None:
        """Return a group's factor; None where nothing corrects it."""
        return self.factors.get(group, self.other)

    def corrected(self, seconds: Range, group: Group) -> Range:
        """Return a prediction times its factor.

        The interval is the factor's: what runs took says more than the ends of the assumptions.
        """
        factor = self.factor(group)
        return seconds if factor is None else factor.times(seconds.likely)


UNCORRECTED: Final = Correction(factors={}, other=None)
"""Before any run has finished."""


def correction_from(runs: Iterable[ComparedRun]) -> Correction:
    """Return the factors that finished runs imply."""
    ratios: dict[Group, list[float]] = defaultdict(list)
    for run in runs:
        ratios[run.group].append(math.log(run.actual_seconds / run.predicted_seconds))
    if not ratios:
        return UNCORRECTED
    run_variance = _run_variance(list(ratios.values()))
    means = {group: fmean(found) for group, found in ratios.items()}
    # Of a group's mean around the common value.
    spreads = {group: GROUP_SD**2 + run_variance / len(found) for group, found in ratios.items()}
    variance = 1 / (COMMON_SD**-2 + sum(1 / spread for spread in spreads.values()))
    common = variance * sum(means[group] / spreads[group] for group in means)
    factors = {}
    for group, mean in means.items():
        share = GROUP_SD**2 / spreads[group]
        sd = math.sqrt((1 - share) * GROUP_SD**2 + (1 - share) ** 2 * variance)
        factors[group] = _factor(common + share * (mean - common), sd)
    return Correction(factors=factors, other=_factor(common, math.sqrt(variance + GROUP_SD**2)))


def _run_variance(groups: list[list[float]]) -> float:
    squares = sum((ratio - fmean(group)) ** 2 for group in groups for ratio in group)
    freedom = sum(len(group) - 1 for group in groups)
    return (_RUN_SD_WEIGHT * RUN_SD**2 + squares) / (_RUN_SD_WEIGHT + freedom)


def _factor(mean: float, sd: float) -> Range:
    margin = _NORMAL_95 * sd
    return Range(math.exp(mean - margin), math.exp(mean), math.exp(mean + margin))
