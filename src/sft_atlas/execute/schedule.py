"""Decide which job a free worker does next: a pure function of the tasks and what became of them.

Prepare jobs go first, since others wait for them. A worker keeps to the base model that it has in
memory while there is work for it; otherwise it takes the model with the most work left. Within a
model the longest job goes first, so that no long job is left for the end; a training run takes with
it others that may train in the same model.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Set
from dataclasses import dataclass
from typing import Final

from sft_atlas.study.job import (
    DescribeJob,
    EvaluateJob,
    GradeJob,
    Job,
    OverlapJob,
    UpdatesJob,
)

_TURNS: Final = 4
"""Runs of a group, as a multiple of those that train at the same time: places that get free are
filled again, so that the model is full most of the time."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A job with what the scheduler needs to know of it."""

    job: Job
    cost: float
    """Expected time in any unit that all tasks share; > 0."""
    needs: frozenset[str] = frozenset()
    """Fingerprints of the jobs that must be done before."""
    stack_key: str | None = None
    """Train jobs with equal keys may train together; None: alone."""
    width: int = 1
    """As many as train together at a time, if there are so many."""
    step_tokens: float = 1.0
    """Mean tokens of an optimizer step; steps of one length need no padding."""


def model_of(job: Job) -> str | None:
    """Return the fingerprint of the base model that a job loads, or None where it loads none."""
    if job.kind == "train":
        return job.trajectory.model.fingerprint
    if isinstance(job, EvaluateJob):
        return job.cell.model.fingerprint
    if isinstance(job, (GradeJob, OverlapJob, DescribeJob, UpdatesJob)):
        return None
    return None if job.model is None else job.model.fingerprint


def choose(
    waiting: Iterable[Task],
    *,
    done: Set[str],
    in_memory: str | None,
    busy_models: Set[str],
    num_workers: int = 1,
) -> tuple[Task, ...]:
    """Return what a free worker does next: one task, or training runs that go together.

    Empty if none can start now.

    Args:
        waiting: tasks that are neither done nor running nor held by somebody else.
        done: fingerprints of finished jobs.
        in_memory: the base model that this worker has loaded.
        busy_models: base models that other workers have loaded.
        num_workers: workers that share the work; no group leaves the others without any.
    """
    ready = [task for task in waiting if task.needs <= done]
    if not ready:
        return ()
    prepare = [task for task in ready if task.job.kind == "prepare"]
    if prepare:
        return (_longest(prepare),)
    by_model: dict[str, list[Task]] = defaultdict(list)
    modelless = []
    for task in ready:
        model = model_of(task.job)
        if model is None:
            modelless.append(task)
        else:
            by_model[model].append(task)
    if not by_model:
        # They leave a GPU idle, so they wait until nothing else can start.
        return (_longest(modelless),)
    if in_memory in by_model:
        chosen = by_model[in_memory]
    else:
        free_models = [model for model in by_model if model not in busy_models] or list(by_model)
        chosen = by_model[max(free_models, key=lambda m: (sum(t.cost for t in by_model[m]), m))]
    # Workers spread over the models first, so that few of them share one model's runs.
    return _with_companions(_longest(chosen), chosen, math.ceil(num_workers / len(by_model)))


def _with_companions(first: Task, ready: Iterable[Task], num_sharing: int) -> tuple[Task, ...]:
    """Return a task with those that train beside it, the longest first."""
    if first.stack_key is None or first.width < 2:
        return (first,)
    alike = [task for task in ready if task.stack_key == first.stack_key]
    most = min(first.width * _TURNS, math.ceil(len(alike) / num_sharing))

    def distance(task: Task) -> tuple[float, float, str]:
        unlike = abs(math.log(task.step_tokens / first.step_tokens))
        return unlike, -task.cost, task.job.fingerprint

    others = sorted((task for task in alike if task is not first), key=distance)
    return (first, *sorted(others[: most - 1], key=_rank, reverse=True))


def blocked(tasks: Iterable[Task], failed: Set[str]) -> set[str]:
    """Return the fingerprints of tasks that can never start because something they need failed."""
    stuck: set[str] = set()
    remaining = [task for task in tasks if task.needs]
    while True:
        new = {
            task.job.fingerprint
            for task in remaining
            if task.job.fingerprint not in stuck and task.needs & (failed | stuck)
        }
        if not new:
            return stuck
        stuck |= new


def _longest(tasks: list[Task]) -> Task:
    return max(tasks, key=_rank)


def _rank(task: Task) -> tuple[float, str]:
    # The fingerprint breaks ties, so that the order never depends on the order of the plan.
    return task.cost, task.job.fingerprint
