"""A difference that is not found is no equivalence; both tests keep their size."""

import numpy as np
import pytest
import scipy.stats
from statsmodels.stats.weightstats import DescrStatsW

from sft_atlas.statistics.clusters import two_way_mean
from sft_atlas.statistics.equivalence import equivalence, verdict


def crossed(num_models: int, num_datasets: int) -> tuple[np.ndarray, np.ndarray]:
    models, datasets = np.meshgrid(np.arange(num_models), np.arange(num_datasets), indexing="ij")
    return models.ravel(), datasets.ravel()


@pytest.mark.parametrize("shift", [-0.6, 0.0, 0.3])
def test_independent_rows_agree_with_statsmodels_and_scipy(shift: float) -> None:
    values = np.random.default_rng(0).normal(size=25) + shift
    rows = np.arange(25)
    found = equivalence(values, models=rows, datasets=0 * rows, margin=0.5)
    largest, _, _ = DescrStatsW(values).ttost_mean(-0.5, 0.5)
    assert found.p_equivalence == pytest.approx(largest)
    assert found.p_difference == pytest.approx(scipy.stats.ttest_1samp(values, 0).pvalue)
    inner = scipy.stats.t.interval(0.9, 24, values.mean(), values.std(ddof=1) / 5)
    assert found.inner_interval == pytest.approx(inner)
    outer = scipy.stats.t.interval(0.95, 24, values.mean(), values.std(ddof=1) / 5)
    assert found.interval == pytest.approx(outer)


def test_equivalence_is_the_inner_interval_inside_the_margins() -> None:
    rng = np.random.default_rng(1)
    models, datasets = crossed(5, 6)
    seen = set()
    for _ in range(200):
        values = rng.uniform(-2, 2) + rng.normal(size=5)[models] * rng.uniform(0, 1)
        found = equivalence(
            values + rng.normal(size=30), models=models, datasets=datasets, margin=1.0
        )
        assert found.inner_interval and found.interval
        assert found.p_equivalence is not None and found.p_difference is not None
        low, high = found.inner_interval
        assert (found.p_equivalence <= 0.05) == (low > -1 and high < 1)
        assert (found.p_difference <= 0.05) == (found.interval[0] > 0 or found.interval[1] < 0)
        seen.add(found.verdict)
    assert seen == {"different", "equivalent", "different but small", "cannot tell"}


@pytest.mark.parametrize(
    ("p_difference", "p_equivalence", "expected"),
    [
        (0.05, 0.06, "different"),
        (0.06, 0.05, "equivalent"),
        (0.05, 0.05, "different but small"),
        (0.06, 0.06, "cannot tell"),
        (None, None, "cannot tell"),
    ],
)
def test_verdicts(p_difference: float | None, p_equivalence: float | None, expected: str) -> None:
    assert verdict(p_difference, p_equivalence) == expected


def test_sign_scale_and_order_change_nothing() -> None:
    rng = np.random.default_rng(2)
    models, datasets = crossed(4, 6)
    values = 0.2 + rng.normal(size=4)[models] + rng.normal(size=24)
    one = equivalence(values, models=models, datasets=datasets, margin=0.5)
    order = rng.permutation(24)
    other = equivalence(
        -100 * values[order], models=models[order], datasets=datasets[order], margin=50.0
    )
    assert other.p_equivalence == pytest.approx(one.p_equivalence)
    assert other.p_difference == pytest.approx(one.p_difference)
    assert other.difference == pytest.approx(-100 * one.difference)


def test_pairs_that_all_agree_without_item_errors_are_no_certainty() -> None:
    models, datasets = crossed(3, 4)
    same = np.full(12, 0.1)
    found = equivalence(same, models=models, datasets=datasets, margin=1.0)
    assert found.interval is None and found.p_equivalence is None
    assert found.verdict == "cannot tell"
    errors = np.full(12, 0.05)
    known = equivalence(same, models=models, datasets=datasets, margin=1.0, item_errors=errors)
    assert known.standard_error == pytest.approx(0.05 / np.sqrt(12))
    assert known.verdict == "different but small"


def test_one_pair_gives_a_difference_and_no_test() -> None:
    zero = np.zeros(1, dtype=np.int64)
    found = equivalence(np.array([0.3]), models=zero, datasets=zero, margin=1.0)
    assert (found.difference, found.interval, found.p_difference) == (0.3, None, None)


def test_a_margin_of_nothing_is_refused() -> None:
    zero = np.zeros(1, dtype=np.int64)
    with pytest.raises(ValueError) as error:
        equivalence(np.array([0.3]), models=zero, datasets=zero, margin=0.0)
    assert str(error.value) == "equivalence: margin is 0.0; a number above 0 was expected."
    with pytest.raises(ValueError) as error:
        equivalence(np.array([]), models=zero[:0], datasets=zero[:0], margin=1.0)
    assert str(error.value) == (
        "equivalence: no differences were given; at least one was expected."
    )


GRIDS = [(30, 1), (3, 10), (4, 7), (11, 10)]


@pytest.mark.parametrize(("num_models", "num_datasets"), GRIDS)
@pytest.mark.parametrize("model_sd", [0.3, 1.0])
def test_both_tests_keep_their_size_and_intervals_cover(
    num_models: int, num_datasets: int, model_sd: float
) -> None:
    # The truth lies on the margin: the worst case of the equivalence test.
    draws = 1500
    rng = np.random.default_rng([num_models, num_datasets, round(10 * model_sd)])
    models, datasets = crossed(num_models, num_datasets)
    data_sd = 0.7 if num_datasets > 1 else 0.0
    equal = different = covered = 0
    for _ in range(draws):
        noise = model_sd * rng.normal(size=num_models)[models] + rng.normal(size=models.size)
        noise = noise + data_sd * rng.normal(size=num_datasets)[datasets]
        at_margin = equivalence(8 + noise, models=models, datasets=datasets, margin=8.0)
        at_zero = equivalence(noise, models=models, datasets=datasets, margin=8.0)
        assert at_margin.p_equivalence is not None and at_zero.p_difference is not None
        equal += at_margin.p_equivalence <= 0.05
        different += at_zero.p_difference <= 0.05
        assert at_zero.interval is not None
        covered += at_zero.interval[0] <= 0 <= at_zero.interval[1]
    # Three binomial errors of 1,500 draws around 0.07, the largest size that is documented.
    assert max(equal, different) / draws <= 0.09
    assert covered / draws >= 0.91


@pytest.mark.slow
@pytest.mark.parametrize(("num_models", "num_datasets"), [*GRIDS, (5, 5), (20, 20)])
@pytest.mark.parametrize("sds", [(0.3, 0.3), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)], ids=str)
def test_intervals_cover_93_to_99_percent_and_are_never_wider(
    num_models: int, num_datasets: int, sds: tuple[float, float]
) -> None:
    rng = np.random.default_rng([num_models, num_datasets, 9])
    models, datasets = crossed(num_models, num_datasets)
    data_sd = sds[1] if num_datasets > 1 else 0.0
    covered, draws = 0, 4000
    for _ in range(draws):
        values = sds[0] * rng.normal(size=num_models)[models] + rng.normal(size=models.size)
        values = values + data_sd * rng.normal(size=num_datasets)[datasets]
        mean = two_way_mean(values, models=models, datasets=datasets, degrees="effective")
        fewest = two_way_mean(values, models=models, datasets=datasets)
        assert fewest.low <= mean.low <= mean.high <= fewest.high
        covered += mean.low <= 0 <= mean.high
    assert 0.925 <= covered / draws <= 0.99


@pytest.mark.parametrize("num_items", [80, 500])
def test_clusters_of_items_are_resampled_whole(num_items: int) -> None:
    # Items of one passage are right or wrong together, in both models alike.
    rng = np.random.default_rng(num_items)
    passages = np.arange(num_items) // 4
    covered = naive = 0
    for _ in range(400):
        shared = rng.uniform(0, 0.5, size=passages.max() + 1)[passages]
        first = rng.random(num_items) < shared
        second = (
            rng.random(num_items) < shared + 0.1 * rng.integers(0, 5, passages.max() + 1)[passages]
        )
        values = second.astype(float) - first
        found = equivalence(values, models=passages, datasets=0 * passages, margin=0.05)
        assert found.interval is not None
        covered += found.interval[0] <= 0.2 <= found.interval[1]
        margin = 1.96 * values.std(ddof=1) / np.sqrt(num_items)
        naive += abs(values.mean() - 0.2) <= margin
    assert 0.92 <= covered / 400 <= 0.98
    assert naive < covered
