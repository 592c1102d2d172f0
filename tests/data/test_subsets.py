"""Subsets are nested, seeded, and the same for ever."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sft_atlas.data.subsets import row_order, seeded_order


@settings(max_examples=30, deadline=None)
@given(num_rows=st.integers(0, 500), seed=st.integers(0, 2**63))
def test_an_order_names_every_row_once(num_rows: int, seed: int) -> None:
    assert sorted(row_order(num_rows, seed).tolist()) == list(range(num_rows))


def test_the_order_never_changes() -> None:
    # Computed once with this function; a change would silently give stored cells other data.
    assert row_order(10, 0).tolist() == [5, 8, 6, 1, 9, 3, 0, 4, 2, 7]
    assert row_order(10, 1).tolist() == [8, 1, 5, 7, 2, 3, 4, 0, 6, 9]


def test_seed_and_number_of_rows_both_matter() -> None:
    assert row_order(1000, 0).tolist() != row_order(1000, 1).tolist()
    assert row_order(1001, 0)[:1000].tolist() != row_order(1000, 0).tolist()
    assert seeded_order(1000, (0, 1)).tolist() != seeded_order(1000, (1, 0)).tolist()


def test_a_prefix_is_spread_evenly_over_the_rows() -> None:
    # 10,000 draws from 100,000 in ten bins: SD of a bin is about 28.
    counts = np.bincount(row_order(100_000, 3)[:10_000] // 10_000, minlength=10)
    assert abs(counts - 1000).max() < 130
