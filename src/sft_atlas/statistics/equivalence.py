"""Is a mean difference there, and is it too small to matter?

In: differences of pairs that share models and datasets, and the margin below which a difference
does not matter. Out: the difference with its interval, and two tests beside each other: that it is
not 0, and that it lies within the margin (two one-sided tests, TOST: Schuirmann 1987). A difference
that is not found is no equivalence: only the second test can say that.

The one decision: both tests use the same clustered error and the same degrees of freedom
(`clusters.two_way_mean`, Satterthwaite's), so that they can never rest on different widths.
"""

import math
from dataclasses import dataclass
from typing import Final, Literal

from scipy.special import stdtr

from sft_atlas.statistics.clusters import Floats, Ints, t_quantile, two_way_mean, within_limit

ALPHA: Final = 0.05

Verdict = Literal["different", "equivalent", "different but small", "cannot tell"]


@dataclass(frozen=True, kw_only=True)
class Equivalence:
    """A mean difference and both tests; None where nothing could be resampled."""

    difference: float
    """In the unit of the values."""
    margin: float
    standard_error: float | None
    degrees_of_freedom: float | None
    interval: tuple[float, float] | None
    """95 %."""
    inner_interval: tuple[float, float] | None
    """90 %: inside the margins exactly where `p_equivalence` is at most 0.05."""
    p_difference: float | None
    """That the mean is 0, two-sided."""
    p_equivalence: float | None
    """That the mean lies outside the margin: the larger of the two one-sided p-values."""
    num_rows: int
    num_models: int
    num_datasets: int

    @property
    def verdict(self) -> Verdict:
        """What the two tests say at 0.05, without regard to other tests."""
        return verdict(self.p_difference, self.p_equivalence)


def verdict(p_difference: float | None, p_equivalence: float | None) -> Verdict:
    """Put the answers of the two tests into a word; p-values may have been adjusted before.

    >>> verdict(0.001, 0.8), verdict(0.3, 0.01), verdict(0.01, 0.02), verdict(0.3, None)
    ('different', 'equivalent', 'different but small', 'cannot tell')
    """
    is_different = p_difference is not None and p_difference <= ALPHA
    is_equivalent = p_equivalence is not None and p_equivalence <= ALPHA
    if is_different and is_equivalent:
        return "different but small"
    if is_different:
        return "different"
    return "equivalent" if is_equivalent else "cannot tell"


def equivalence(
    differences: Floats,
    *,
    models: Ints,
    datasets: Ints,
    margin: float,
    item_errors: Floats | None = None,
    limit: float = math.inf,
) -> Equivalence:
    """Test a mean of differences against 0 and against +-`margin`.

    `differences`, `models`, `datasets` and `item_errors` have one entry per pair; `margin` is in
    their unit. For items instead of grids pass their clusters as `models` and zeros as `datasets`.
    An error of exactly 0 is no certainty: all pairs agree, and there is no item error to tell how
    closely; then there is neither interval nor test. `limit` as in `two_way_mean`.

    Size of both tests at 0.05 (normal effects, 3 x 3 to 11 x 10 clusters): 0.01 to 0.07, the larger
    ones where few models carry the variance.

    Raises:
        ValueError: if there are no differences, or `margin` is not above 0.
    """
    if differences.size == 0:
        raise ValueError("equivalence: no differences were given; at least one was expected.")
    if not margin > 0:
        raise ValueError(f"equivalence: margin is {margin!r}; a number above 0 was expected.")
    mean = two_way_mean(
        differences,
        models=models,
        datasets=datasets,
        item_errors=item_errors,
        degrees="effective",
        limit=limit,
    )
    error, freedom = mean.standard_error, mean.degrees_of_freedom
    facts = {"num_rows": mean.num_rows, "num_models": mean.num_models}
    is_known = math.isfinite(error) and error > _ROUNDING * float(abs(differences).max())
    if not is_known:
        return Equivalence(
            difference=mean.estimate,
            margin=margin,
            standard_error=None,
            degrees_of_freedom=None,
            interval=None,
            inner_interval=None,
            p_difference=None,
            p_equivalence=None,
            num_datasets=mean.num_datasets,
            **facts,
        )
    inner = t_quantile(freedom + 1, 1 - 2 * ALPHA) * error
    nearest = (margin - abs(mean.estimate)) / error
    return Equivalence(
        difference=mean.estimate,
        margin=margin,
        standard_error=error,
        degrees_of_freedom=freedom,
        interval=mean.interval,
        inner_interval=_known(within_limit(mean.estimate - inner, mean.estimate + inner, limit)),
        p_difference=float(2 * stdtr(freedom, -abs(mean.estimate) / error)),
        p_equivalence=float(stdtr(freedom, -nearest)),
        num_datasets=mean.num_datasets,
        **facts,
    )


def _known(interval: tuple[float, float]) -> tuple[float, float] | None:
    return None if math.isnan(interval[0]) else interval


_ROUNDING: Final = 1e-12
