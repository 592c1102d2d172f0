"""Learning rates equal transformers' schedules at every step."""

import pytest
import torch
from transformers import get_constant_schedule_with_warmup, get_cosine_schedule_with_warmup
from transformers.optimization import get_wsd_schedule

from sft_atlas.study.spec import ScheduleSpec
from sft_atlas.train.schedule import learning_rate_factor


def reference(build: object, **steps: int) -> list[float]:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scheduler = build(optimizer, **steps)  # type: ignore[operator]
    rates = []
    for _ in range(40):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def ours(schedule: ScheduleSpec, total_steps: int | None) -> list[float]:
    return [learning_rate_factor(schedule, step, total_steps=total_steps) for step in range(40)]


@pytest.mark.parametrize("warmup", [0, 1, 7])
def test_cosine_with_warmup_equals_transformers(warmup: int) -> None:
    expected = reference(
        get_cosine_schedule_with_warmup, num_warmup_steps=warmup, num_training_steps=40
    )
    assert ours(ScheduleSpec(kind="cosine", warmup_steps=warmup), 40) == pytest.approx(expected)


@pytest.mark.parametrize("warmup", [0, 7])
def test_constant_with_warmup_equals_transformers(warmup: int) -> None:
    expected = reference(get_constant_schedule_with_warmup, num_warmup_steps=warmup)
    assert ours(ScheduleSpec(kind="constant", warmup_steps=warmup), None) == pytest.approx(expected)


def test_cooldown_equals_the_linear_decay_of_transformers() -> None:
    def build(optimizer: torch.optim.Optimizer) -> object:
        return get_wsd_schedule(
            optimizer,
            num_warmup_steps=5,
            num_stable_steps=25,
            num_decay_steps=10,
            decay_type="linear",
        )

    schedule = ScheduleSpec(kind="constant", warmup_steps=5, cooldown_steps=10)
    assert ours(schedule, 40) == pytest.approx(reference(build))


def test_only_a_schedule_that_ends_depends_on_the_horizon() -> None:
    constant = ScheduleSpec(kind="constant", warmup_steps=3)
    assert ours(constant, 10) == ours(constant, 1000) == ours(constant, None)
    cosine = ScheduleSpec(kind="cosine")
    assert ours(cosine, 10) != ours(cosine, 1000)
