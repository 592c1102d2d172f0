"""What finished runs took corrects the estimate of those that are left."""

import math
import random
from collections.abc import Iterator
from statistics import fmean

import pytest

from sft_atlas.study.assumption import Range
from sft_atlas.study.correction import (
    COMMON_SD,
    GROUP_SD,
    RUN_SD,
    UNCORRECTED,
    ComparedRun,
    Group,
    correction_from,
)

FULL, LORA = ("m1", "full"), ("m1", "lora")


def runs_of(group: Group, ratios: list[float]) -> Iterator[ComparedRun]:
    for ratio in ratios:
        yield ComparedRun(group=group, predicted_seconds=10.0, actual_seconds=10.0 * ratio)


def noisy(ratio: float, num_runs: int, seed: int = 0) -> list[float]:
    rng = random.Random(seed)
    return [ratio * math.exp(rng.gauss(0, 0.05)) for _ in range(num_runs)]


def test_runs_that_take_twice_as_long_correct_the_rest_to_twice() -> None:
    widths = []
    for num_runs in (1, 3, 10, 100):
        factor = correction_from(runs_of(FULL, noisy(2.0, num_runs))).factors[FULL]
        assert factor.low < 2.0 < factor.high
        widths.append(math.log(factor.high / factor.low))
    assert factor.likely == pytest.approx(2.0, rel=0.02)
    assert widths == sorted(widths, reverse=True)
    # No sum of runs makes a group's own speed surer than its runs' spread over their number.
    assert widths[0] > 4 * widths[-1]


def test_one_run_is_pulled_to_the_prediction() -> None:
    (factor,) = correction_from(runs_of(FULL, [2.0])).factors.values()
    prior, run = COMMON_SD**2 + GROUP_SD**2, RUN_SD**2
    assert math.log(factor.likely) == pytest.approx(math.log(2) * prior / (prior + run))
    sd = math.sqrt(prior * run / (prior + run))
    assert math.log(factor.high / factor.likely) == pytest.approx(1.959964 * sd)


def test_a_group_without_runs_is_corrected_by_part() -> None:
    correction = correction_from(runs_of(FULL, noisy(2.0, 20)))
    other = correction.factor(LORA)
    assert other is not None
    assert 1.3 < other.likely < 1.9
    assert other.low < 1.0 < 2.0 < other.high


def test_groups_keep_their_own_ratios() -> None:
    runs = [*runs_of(FULL, noisy(3.0, 30)), *runs_of(LORA, noisy(0.5, 30))]
    factors = correction_from(runs).factors
    assert factors[FULL].likely == pytest.approx(3.0, rel=0.05)
    assert factors[LORA].likely == pytest.approx(0.5, rel=0.05)


def test_runs_that_disagree_are_less_sure() -> None:
    calm, wild = (
        correction_from(runs_of(FULL, ratios)).factors[FULL]
        for ratios in ([2.0, 2.0, 2.0, 2.0], [0.5, 8.0, 1.0, 4.0])
    )
    assert wild.high / wild.low > 2 * calm.high / calm.low


def test_without_runs_nothing_is_corrected() -> None:
    seconds = Range(1.0, 2.0, 5.0)
    assert correction_from([]) == UNCORRECTED
    assert UNCORRECTED.corrected(seconds, FULL) is seconds


def test_intervals_hold_what_is_drawn_from_the_stated_spread() -> None:
    rng = random.Random(1)
    held = []
    for _ in range(400):
        common = rng.gauss(0, COMMON_SD)
        truths = {("m", str(i)): common + rng.gauss(0, GROUP_SD) for i in range(3)}
        runs = [
            run
            for group, truth in list(truths.items())[:2]
            for run in runs_of(group, [math.exp(rng.gauss(truth, RUN_SD)) for _ in range(4)])
        ]
        correction = correction_from(runs)
        for group, truth in truths.items():
            factor = correction.factor(group)
            assert factor is not None
            held.append(factor.low <= math.exp(truth) <= factor.high)
    assert fmean(held) == pytest.approx(0.95, abs=0.02)
