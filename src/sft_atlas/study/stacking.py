"""Say which training runs may train together in one model, and how many of them pay.

A step of a small model mostly waits for its operators to be entered, however few tokens they work
on. Runs that are stacked into one model share that wait: the model is passed through once for all
of them. They do not share arithmetic, and the run with the fewest tokens is padded to the one with
the most. So width pays up to the point where a pass is busy; a large model or a long step gains
nothing.
"""

import math
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import Final

from sft_atlas.identity import canonical_json
from sft_atlas.study.cost import CostModel
from sft_atlas.study.spec import TrajectorySpec

MAX_WIDTH: Final = 64
"""Runs in one model at most, whatever they would gain."""

MIN_GAIN: Final = 0.05
"""Time saved below which runs train alone: less than the cost model can tell."""

ENOUGH: Final = 0.9
"""Share of the best gain that a width has to reach: beyond it, width costs memory alone."""

LENGTH_SPREAD: Final = 0.8
"""Standard deviation of samples' lengths over their mean; of a log-normal one whose 95th percentile
is three times its median, 0.8."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepCost:
    """What an optimizer step of a run costs on a device, when the run trains alone."""

    tokens: float
    """Mean tokens of a step, > 0."""
    spread: float
    """Standard deviation of a step's tokens over their mean, >= 0."""
    token_seconds: float
    """Arithmetic of one token."""
    pass_seconds: float
    """Least time of a pass, however few its tokens: what runs of one model share."""
    run_seconds: float = 0.0
    """What each run pays for itself at every step: its optimizer."""
    overlaps: bool = False
    """The device computes while operators are issued (a GPU)."""


def stack_key(run: TrajectorySpec) -> str | None:
    """Return a text that runs share which may train together; None for one that trains alone.

    They have one model, one precision, and the same weights that move: all of them, or plain
    low-rank factors of one kind. Data, learning rate, schedule, length and seed are each run's own.
    """
    lora = run.method.lora
    if lora is not None and not lora.is_plain:
        return None
    moved = "full" if lora is None else canonical_json(lora)
    return f"{run.model.fingerprint}/{run.precision}/{run.master_precision}/{moved}"


def step_cost(run: TrajectorySpec, costs: CostModel) -> StepCost:
    """Estimate a run's step as its device was measured, or as its card lets expect."""
    rates, epoch = costs.trainings.rates(run), costs.trainings.tokens(run)
    batch_samples = min(run.method.batch_samples, run.data.num_samples)
    return StepCost(
        tokens=epoch.num_tokens * batch_samples / run.data.num_samples,
        spread=LENGTH_SPREAD / math.sqrt(batch_samples),
        token_seconds=rates.token,
        pass_seconds=rates.one_pass,
        run_seconds=rates.update,
        overlaps=costs.device.kind == "gpu",
    )


def stacked_seconds(step: StepCost, width: int, *, pass_tokens: int) -> float:
    """Return the time of one step of `width` runs that train together.

    The lines of a pass are as long as its longest; a step of more than `pass_tokens` takes several
    passes, each of which is issued anew.
    """
    tokens = width * step.tokens * padding_factor(step.spread, width)
    issue = math.ceil(tokens / pass_tokens) * step.pass_seconds
    compute = tokens * step.token_seconds
    both = max(compute, issue) if step.overlaps else compute + issue
    return both + width * step.run_seconds


def padding_factor(spread: float, width: int) -> float:
    """Return the expected longest of `width` steps over their mean, lengths taken as normal.

    Blom's approximation of the largest of a normal sample (1958).
    """
    if width == 1:
        return 1.0
    return 1.0 + spread * NormalDist().inv_cdf((width - 0.375) / (width + 0.25))


def stack_gain(step: StepCost, width: int, *, pass_tokens: int) -> float:
    """Return how much more is done in a time by `width` runs together than alone: 1.0 is twice."""
    alone = width * stacked_seconds(step, 1, pass_tokens=pass_tokens)
    return alone / stacked_seconds(step, width, pass_tokens=pass_tokens) - 1


@cache
def stack_width(step: StepCost, *, pass_tokens: int, most: int = MAX_WIDTH) -> int:
    """Return the smallest number of runs with nearly all of the gain; 1 where none pays."""
    gains = [stack_gain(step, width, pass_tokens=pass_tokens) for width in range(1, most + 1)]
    best = max(gains, default=0.0)
    if best < MIN_GAIN:
        return 1
    return 1 + next(i for i, gain in enumerate(gains) if gain >= ENOUGH * best)
