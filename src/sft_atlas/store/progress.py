"""Compare what training was expected to take with what it took, and say what is left of a study.

In: a plan against a store, which knows the finished runs. Out: device seconds by base model and
kind of training. What is predicted is what the plan would say without its correction, so that the
ratio tells how good the prediction is.
"""

from collections import defaultdict
from dataclasses import dataclass

from sft_atlas.study.assumption import NOTHING, Range
from sft_atlas.study.correction import ComparedRun, Group
from sft_atlas.study.plan import Plan
from sft_atlas.study.training_cost import group_of


@dataclass(frozen=True, kw_only=True)
class GroupProgress:
    """The training runs of one base model, full or LoRA; times are of optimizer steps."""

    model: str
    method: str
    """`full` or `lora`."""
    num_timed: int
    """Finished runs whose outcome says how long they took."""
    predicted_seconds: float
    """Of these runs."""
    actual_seconds: float
    factor: Range | None
    """On what is left: actual / predicted, pulled to 1 where runs are few; None before any run."""
    num_left: int
    left_seconds: Range

    @property
    def ratio(self) -> float | None:
        """Actual over predicted seconds; None before any run."""
        return self.actual_seconds / self.predicted_seconds if self.num_timed else None


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How long a study takes, beside how long it should."""

    device: str
    """Whose time is estimated."""
    groups: tuple[GroupProgress, ...]
    left_seconds: Range
    """Device seconds of all jobs that are missing; a run that has begun counts whole."""


def read_progress(plan: Plan) -> Progress:
    """Return the progress of a plan that was made against a store."""
    model = plan.cost_model()
    timed: dict[Group, list[ComparedRun]] = defaultdict(list)
    for run in model.trainings.compared():
        timed[run.group].append(run)
    left: dict[Group, list[Range]] = defaultdict(list)
    total = NOTHING
    for planned in plan.jobs:
        total = total.plus(planned.cost.seconds)
        if planned.job.kind == "train":
            left[group_of(planned.job.trajectory)].append(planned.cost.train)
    groups = dict.fromkeys(group_of(item.trajectory) for item in plan.trajectories)
    return Progress(
        device=plan.device,
        groups=tuple(
            GroupProgress(
                model=group[0],
                method=group[1],
                num_timed=len(timed[group]),
                predicted_seconds=sum(run.predicted_seconds for run in timed[group]),
                actual_seconds=sum(run.actual_seconds for run in timed[group]),
                factor=model.correction.factor(group),
                num_left=len(left[group]),
                left_seconds=_sum(left[group]),
            )
            for group in groups
        ),
        left_seconds=total,
    )


def _sum(ranges: list[Range]) -> Range:
    total = NOTHING
    for item in ranges:
        total = total.plus(item)
    return total
