"""How a number was rounded tells what it is a mean over."""

import numpy as np
import pandas as pd
import pytest

from sft_atlas.evidence.denominators import (
    Written,
    chance_of_items,
    find_groups,
    fits_items,
    written,
)
from sft_atlas.evidence.source import Column


def read(texts: list[str | None], *, scale: float = 0.01, metric: str = "accuracy") -> Written:
    column = Column(name="c", benchmark="c", skill="", language="en", metric=metric, scale=scale)
    found = pd.Series(texts, dtype="string")
    return written(column, found, pd.to_numeric(found).astype("float64"))


def group_means(rng: np.random.Generator, num_groups: int, count: int) -> list[str]:
    return [str(float(np.round(rng.uniform(0, 100, num_groups), 2).mean())) for _ in range(count)]


@pytest.mark.parametrize("num_items", [3, 164, 257, 805, 1319, 3610])
def test_every_rounded_share_of_items_fits_them(num_items: int) -> None:
    shares = [100 * k / num_items for k in range(num_items + 1)]
    for decimals in (1, 2, 3):
        assert fits_items(read([str(round(v, decimals)) for v in shares]), num_items).all()
    assert fits_items(read([str(v / 100) for v in shares], scale=1.0), num_items).all()


def test_shares_that_were_cut_and_not_rounded_fit_too() -> None:
    numbers = read([f"{np.floor(10000 * k / 1319) / 100:.2f}" for k in range(1, 1319)])
    assert fits_items(numbers, 1319).all()


def test_as_many_random_numbers_fit_as_the_chance_says() -> None:
    rng = np.random.default_rng(0)
    numbers = read([f"{value:.2f}" for value in rng.uniform(0, 100, 20_000)])
    for num_items in (164, 805, 1319, 3610):
        share = fits_items(numbers, num_items).mean()
        assert share == pytest.approx(chance_of_items(numbers, num_items), abs=0.01)


def test_decimals_are_the_columns_and_blanks_are_left_out() -> None:
    numbers = read(["12.5", None, "3.25", "7"])
    assert numbers.decimals.tolist() == [2, 2, 2]
    assert numbers.rows.tolist() == [0, 2, 3]


def test_a_short_number_among_unrounded_ones_is_exact() -> None:
    numbers = read(["0.5", "0.3333333333333333", "0.6666666666666666"], scale=1.0)
    assert (numbers.steps == 0).all()
    assert fits_items(numbers, 6).all()
    assert not fits_items(numbers, 3)[0]


@pytest.mark.parametrize("num_groups", [57, 67, 181, 997])
def test_the_number_of_groups_is_found(num_groups: int) -> None:
    found = find_groups(read(group_means(np.random.default_rng(1), num_groups, 40)))
    assert [group.num_groups for group in found] == [num_groups]
    assert found[0].is_fit.all()


def test_two_numbers_of_groups_are_told_apart() -> None:
    rng = np.random.default_rng(2)
    found = find_groups(read([*group_means(rng, 57, 20), *group_means(rng, 181, 60)]))
    assert [group.num_groups for group in found] == [181, 57]
    assert found[0].is_fit[20:].all() and found[1].is_fit[:20].all()


def test_random_numbers_are_means_over_no_number_of_groups() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        assert find_groups(read([str(value) for value in rng.uniform(0, 100, 200)])) == ()


def test_rounded_numbers_show_no_groups() -> None:
    rng = np.random.default_rng(4)
    texts = [f"{float(value):.2f}" for value in group_means(rng, 57, 50)]
    assert find_groups(read(texts)) == ()
