"""Say how large a step's learning rate is, as a fraction of the method's peak.

Steps count from 0, as in transformers' `get_cosine_schedule_with_warmup` and
`get_constant_schedule_with_warmup`, whose values these are: with a warm-up the first step has rate
0, and a decay would reach 0 one step after the last.
"""

import math

from sft_atlas.study.spec import ScheduleSpec


def learning_rate_factor(schedule: ScheduleSpec, step: int, *, total_steps: int | None) -> float:
    """Return the factor of one optimizer step, in [0, 1].

    `total_steps` is the horizon in steps; None where `schedule.needs_horizon` is False.

    >>> learning_rate_factor(ScheduleSpec(kind="cosine"), 5, total_steps=10)
    0.5
    """
    if step < schedule.warmup_steps:
        return step / schedule.warmup_steps
    if schedule.kind == "constant" and schedule.cooldown_steps == 0:
        return 1.0
    assert total_steps is not None, "a schedule that ends needs its horizon"
    if schedule.kind == "constant":
        return max(0.0, min(1.0, (total_steps - step) / schedule.cooldown_steps))
    progress = (step - schedule.warmup_steps) / max(1, total_steps - schedule.warmup_steps)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
