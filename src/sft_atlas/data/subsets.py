"""Say which rows a subset has: a prefix of one seeded order, so that 1,000 rows lie inside 20,000.

The order depends on the number of rows and the seed alone, so all models see the same subset. It sorts raw
PCG64 words: NumPy promises that a bit generator's stream never changes, but not `Generator.permutation`
(NEP 19), and an order that moved with a NumPy release would give old cells other data.
"""

import numpy as np
from numpy.typing import NDArray


def row_order(num_rows: int, seed: int) -> NDArray[np.int64]:
    """Return row indices in seeded order, shape (num_rows,).

    >>> row_order(5, 0).tolist() == row_order(5, 0).tolist()
    True
    """
    return seeded_order(num_rows, (seed,))


def seeded_order(length: int, seeds: tuple[int, ...]) -> NDArray[np.int64]:
    """Return a permutation of range(length) that non-negative seeds and the length decide."""
    generator = np.random.PCG64(np.random.SeedSequence([*seeds, length]))
    # A stable sort settles equal words, which are possible but not expected, by index.
    return np.argsort(generator.random_raw(length), kind="stable").astype(np.int64)
