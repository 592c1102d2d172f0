"""The list of runs: worth per hour, within the budget, until the decision is stable."""

from itertools import pairwise

import numpy as np
import pytest

from sft_atlas.decide.next_cells import Candidates, next_cells


def _candidates(
    mean: list[float], spread: list[float], hours: list[float] | None = None
) -> Candidates:
    return Candidates(
        mean=np.array(mean),
        covariance=np.diag(np.array(spread) ** 2),
        runs=tuple((place,) for place in range(len(mean))),
        gpu_hours=np.array(hours or [1.0] * len(mean)),
    )


def test_what_is_known_or_hopeless_is_not_run() -> None:
    one = _candidates([0.5, 0.49, 0.48, 0.0], [0.0, 0.05, 0.05, 0.05])
    found = next_cells([one])
    assert {step.run for step in found.steps} == {1, 2}
    assert found.stopped.startswith("the decision is stable")
    assert found.regret_after[0] < found.regret_before[0] / 4


def test_regret_falls_with_every_run() -> None:
    found = next_cells([_candidates([0.5] * 6, [0.05] * 6)])
    left = [found.regret_before[0], *[step.regret for step in found.steps]]
    assert all(later <= before + 1e-9 for before, later in pairwise(left))


def test_the_budget_is_kept() -> None:
    one = _candidates([0.5] * 6, [0.05] * 6, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    found = next_cells([one], budget_gpu_hours=5.5)
    assert 0 < sum(step.gpu_hours for step in found.steps) <= 5.5
    assert found.stopped.startswith("the budget is spent")


def test_the_cheaper_of_two_equal_runs_comes_first() -> None:
    found = next_cells([_candidates([0.5, 0.4, 0.4], [0.0, 0.1, 0.1], [1.0, 3.0, 1.0])])
    assert found.steps[0].run == 2


def test_the_model_with_more_to_gain_comes_first() -> None:
    sure, open_ = _candidates([0.5, 0.2], [0.01, 0.01]), _candidates([0.5, 0.5], [0.1, 0.1])
    assert next_cells([sure, open_]).steps[0].model == 1


def test_without_models_there_is_nothing_to_do() -> None:
    found = next_cells([])
    assert found.steps == ()
    assert found.stopped == "no run is left"


@pytest.mark.parametrize("unit", [1.0, 60.0])
def test_the_list_does_not_depend_on_the_unit_of_cost(unit: float) -> None:
    one = _candidates([0.5, 0.45, 0.5], [0.02, 0.1, 0.05], [1.0 * unit, 2.0 * unit, 1.5 * unit])
    found = next_cells([one], budget_gpu_hours=3.0 * unit)
    assert found.steps
    assert [step.run for step in found.steps] == [
        step.run
        for step in next_cells(
            [_candidates([0.5, 0.45, 0.5], [0.02, 0.1, 0.05], [1.0, 2.0, 1.5])],
            budget_gpu_hours=3.0,
        ).steps
    ]
