"""At which weight of which benchmark would another choice be ahead?

In: expected scores by choice and benchmark, and weights. Out: for each benchmark the nearest weight
below and above its own at which the leading choice changes, all other weights keeping their
proportions. It is exact arithmetic on the expected scores, not a simulation.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sft_atlas.statistics.clusters import Floats


def flips(
    by_benchmark: Floats,
    benchmarks: Sequence[str],
    weights: Mapping[str, float],
    names: Sequence[str],
    *,
    leader: int,
    is_possible: NDArray[np.bool_],
) -> pd.DataFrame:
    """Return benchmark, weight (its share), flips_at (share) and becomes (a name).

    `by_benchmark` is (choice, benchmark). A share is the weight divided by the sum of all; 0 and 1
    are its ends. Benchmarks whose weight changes nothing have no row; one benchmark alone has none.
    """
    rows = []
    shares = np.array([weights[name] for name in benchmarks], dtype=np.float64)
    total = by_benchmark @ shares
    for number, benchmark in enumerate(benchmarks):
        share = shares[number]
        if share >= 1:
            continue
        rest = (total - share * by_benchmark[:, number]) / (1 - share)
        # Lead of the leader over each choice at share s: (1 - s) x rest + s x own.
        apart = rest[leader] - rest
        own = by_benchmark[leader, number] - by_benchmark[:, number]
        with np.errstate(divide="ignore", invalid="ignore"):
            at = apart / (apart - own)
        possible = is_possible & np.isfinite(at) & (at >= 0) & (at <= 1)
        possible[leader] = False
        for side in (at < share, at > share):
            there = np.flatnonzero(possible & side)
            if there.size:
                nearest = there[np.argmin(np.abs(at[there] - share))]
                rows.append(
                    {
                        "benchmark": benchmark,
                        "weight": float(share),
                        "flips_at": float(at[nearest]),
                        "becomes": names[nearest],
                    }
                )
    return pd.DataFrame(rows, columns=["benchmark", "weight", "flips_at", "becomes"])
