"""Which epoch is best, does choosing it help where it was not chosen, and may training stop there?

In: a panel of runs over epochs. Out: the choice with its uncertainty, what it brings to models that
had no say, and the first epoch after which nothing more is to be expected. The one decision: the
rival is always to take the last epoch, because that is what one does who looks at nothing.
"""

from typing import Final, NamedTuple

import numpy as np

from sft_atlas.analyze.dose_curves import Panel, limit_of, simultaneous_changes
from sft_atlas.statistics.clusters import Floats, Ints, Mean, two_way_mean, two_way_weights

MARGIN: Final = 0.01
"""A rise of the mean that is worth waiting for: one point."""

_TIE: Final = 1e-12


class Choice(NamedTuple):
    """The best epoch on all runs, and how far it can be trusted; values are fractions of 1."""

    epoch: int
    epoch_low: int
    epoch_high: int
    """Central 95 % of what resampled models and datasets choose."""
    chosen_fraction: float
    """Share of the resamples that choose the same."""
    apparent: float
    """The best epoch less the last, on the scores that chose it; never below 0."""
    validated: Mean | None
    """Epochs chosen without a unit less the last, on that unit; None where none can be left out."""
    judged_on: str
    """What is left out in turn: `models`, `datasets`, `benchmarks`, or nothing."""
    num_left_out: int

    @property
    def optimism(self) -> float | None:
        """How much the scores that choose flatter the choice."""
        return None if self.validated is None else self.apparent - self.validated.estimate


class Stop(NamedTuple):
    """The first epoch after which no later one adds `MARGIN`, as far as the bounds can tell."""

    epoch: int
    """The last where no earlier one can be shown to be enough."""
    most: float | None
    """Upper bound of what any later epoch adds; None at the last epoch, where there is none."""


def choose_epoch(
    panel: Panel, *, by_benchmark: Floats | None = None, num_resamples: int, seed: int = 0
) -> Choice:
    """Choose the epoch with the best mean, the earliest of equal ones.

    Models are left out in turn; of a single model datasets; of a single run the rows of
    `by_benchmark`, its value on each benchmark, (benchmarks, epochs).
    """
    best = _best(panel.values.mean(axis=0))
    weights = two_way_weights(panel.models, panel.datasets, num_resamples=num_resamples, seed=seed)
    # A resample may hold no run where not every model has every dataset.
    weights = weights[weights.sum(axis=1) > 0]
    chosen = _best(weights @ panel.values / weights.sum(axis=1, keepdims=True))
    low, high = np.quantile(chosen, [0.025, 0.975], method="inverted_cdf")
    validated, judged_on, num_left_out = _validate(panel, by_benchmark)
    means = panel.values.mean(axis=0)
    return Choice(
        epoch=int(panel.doses[best]),
        epoch_low=int(panel.doses[low]),
        epoch_high=int(panel.doses[high]),
        chosen_fraction=float((chosen == best).mean()),
        apparent=float(means[best] - means[-1]),
        validated=validated,
        judged_on=judged_on,
        num_left_out=num_left_out,
    )


def stop_rule(panel: Panel, *, margin: float = MARGIN, seed: int = 0) -> Stop | None:
    """Find the first epoch that no later one beats by more than `margin`.

    The upper bounds hold for all pairs of epochs at once, so that looking for the first one that
    passes costs nothing. None where nothing can be resampled, or no score changes.
    """
    last = panel.doses.size - 1
    pairs = [(i, j) for i in range(last) for j in range(i + 1, last + 1)]
    band = simultaneous_changes(panel, pairs, seed=seed)
    if not np.isfinite(band.high).all():
        return None
    most = np.full(last, -np.inf)
    np.maximum.at(most, [i for i, _ in pairs], band.high)
    enough = np.flatnonzero(most <= margin)
    if not enough.size:
        return Stop(int(panel.doses[last]), None)
    return Stop(int(panel.doses[enough[0]]), float(most[enough[0]]))


def _validate(panel: Panel, by_benchmark: Floats | None) -> tuple[Mean | None, str, int]:
    """Judge choices on what they were made without."""
    datasets = panel.datasets
    for name, units in (("models", panel.models), ("datasets", datasets)):
        num_units = np.unique(units).size
        if num_units > 1:
            advantage = _left_out(panel.values, units)
            mean = two_way_mean(
                advantage,
                models=panel.models,
                datasets=datasets,
                degrees="effective",
                limit=limit_of(panel.values),
            )
            return mean, name, int(num_units)
    if by_benchmark is not None and by_benchmark.shape[0] > 1:
        units = np.arange(by_benchmark.shape[0])
        advantage = _left_out(by_benchmark, units)
        mean = two_way_mean(
            advantage, models=units, datasets=0 * units, limit=limit_of(by_benchmark)
        )
        return mean, "benchmarks", int(units.size)
    return None, "", 0


def _left_out(values: Floats, units: Ints) -> Floats:
    """Each row's value at the epoch that the other units choose, less that at the last epoch."""
    advantage = np.empty(values.shape[0])
    for unit in np.unique(units):
        is_out = units == unit
        best = _best(values[~is_out].mean(axis=0))
        advantage[is_out] = values[is_out, best] - values[is_out, -1]
    return advantage


def _best(means: Floats) -> Ints:
    """Index of the largest along the last axis; of values that differ by rounding the first."""
    is_best = means >= means.max(axis=-1, keepdims=True) - _TIE
    first: Ints = is_best.argmax(axis=-1)
    return first
