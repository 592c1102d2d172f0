"""In how many independent ways do models answer to data?

In: profiles of models (standardised scores by dataset and benchmark). Out: the share of their
variance that the first principal components hold, and how many are needed for 90 %. The matrix is
(dataset x benchmark) by models, as in Harada et al. (2025); its columns have mean 0 by
construction, so that nothing more is centred. With k models there are at most k components: how few
are needed says something only against k.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from sft_atlas.statistics.clusters import MIN_CLUSTERS, Floats, percentile_interval

NEEDED_SHARE: Final = 0.9
_TINY: Final = 1e-12


@dataclass(frozen=True, kw_only=True)
class Components:
    """Principal components in falling order; arrays have one entry per component."""

    cumulative: Floats
    """Share of the variance in the first 1, 2, ... components."""
    low: Floats
    high: Floats
    """95 %, over datasets; NaN where nothing was resampled."""
    num_needed: int
    """Components for `NEEDED_SHARE` of the variance."""
    needed_interval: tuple[float, float] | None


def component_shares(
    values: Floats, *, num_resamples: int = 1000, seed: int = 0
) -> Components | None:
    """Decompose profiles of shape (model, dataset, benchmark); None without variation.

    The interval draws datasets with replacement. A drawn set holds fewer different datasets, which
    makes the first components a little too large: the interval leans to fewer components.
    """
    if values.size == 0 or not float((values**2).sum()) > _TINY:
        return None
    # One Gram matrix of models per dataset: a resample is a weighted sum of them.
    grams = np.einsum("mdb,ndb->dmn", values, values)
    cumulative = _cumulative(grams.sum(axis=0)[None])[0]
    low, high = np.full((2, cumulative.size), np.nan)
    needed_interval = None
    num_datasets = values.shape[1]
    if num_datasets >= MIN_CLUSTERS:
        rng = np.random.default_rng([seed, 0xC0])
        weights = rng.multinomial(
            num_datasets, np.full(num_datasets, 1 / num_datasets), size=num_resamples
        )
        draws = _cumulative(np.tensordot(weights.astype(np.float64), grams, axes=1))
        low, high = np.nanquantile(draws, [0.025, 0.975], axis=0)
        needed_interval = percentile_interval(_needed(draws))
    return Components(
        cumulative=cumulative,
        low=low,
        high=high,
        num_needed=int(_needed(cumulative[None])[0]),
        needed_interval=needed_interval,
    )


def _cumulative(grams: Floats) -> Floats:
    """Cumulated eigenvalues over their sum, (matrices, components)."""
    eigenvalues = np.maximum(np.linalg.eigvalsh(grams)[:, ::-1], 0.0)
    total = eigenvalues.sum(axis=1, keepdims=True)
    shares: Floats = np.divide(
        np.cumsum(eigenvalues, axis=1),
        total,
        out=np.full(eigenvalues.shape, np.nan),
        where=total > _TINY,
    )
    return shares


def _needed(cumulative: Floats) -> Floats:
    """Number of components up to `NEEDED_SHARE`; NaN where a resample has no variation."""
    count = (cumulative < NEEDED_SHARE - 1e-9).sum(axis=1) + 1.0
    return np.where(np.isnan(cumulative[:, -1]), np.nan, count)
