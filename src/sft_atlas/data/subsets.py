"""Say which rows a subset has: a prefix of one seeded order, so that 1,000 rows lie inside 20,000.

The order depends on the number of rows and the seed alone, so all models see the same subset. It
sorts raw PCG64 words by size. NumPy promises that a bit generator's stream never changes, but
promises no such thing of `Generator.permutation` (NEP 19); an order that moved with a NumPy release
would give old cells other data.
"""

import numpy as np
from numpy.typing import NDArray


def row_order(num_rows: int, seed: int) -> NDArray[np.int64]:
    """Return row indices in seeded order, shape (num_rows,).

    >>> row_order(5, 0).tolist()
    [4, 3, 0, 2, 1]
    """
    return seeded_order(num_rows, (seed,))


def seeded_order(length: int, seeds: tuple[int, ...]) -> NDArray[np.int64]:
    """Return the permutation of range(length) that the non-negative seeds and the length decide."""
    generator = np.random.PCG64(np.random.SeedSequence([*seeds, length]))
    # Equal words are possible, though never expected: a stable sort puts the lower index first.
    return np.argsort(generator.random_raw(length), kind="stable").astype(np.int64, copy=False)
