"""Decide which job a free worker does next: a pure function of the tasks and what became of them.

Prepare jobs go first, since others wait for them. A worker keeps to the base model that it has in
memory while there is work for it; otherwise it takes the model with the most work left. Within a
model the longest job goes first, so that no long job is left for the end.
"""

from collections import defaultdict
from collections.abc import Iterable, Set
from dataclasses import dataclass

from sft_atlas.study.job import (
    DescribeJob,
    EvaluateJob,
    GradeJob,
    Job,
    OverlapJob,
    UpdatesJob,
)


@dataclass(frozen=True, kw_only=True)
class Task:
    """A job with what the scheduler needs to know of it."""

    job: Job
    cost: float
    """Expected time in any unit that all tasks share; > 0."""
    needs: frozenset[str] = frozenset()
    """Fingerprints of the jobs that must be done before."""


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
    waiting: Iterable[Task], *, done: Set[str], in_memory: str | None, busy_models: Set[str]
) -> Task | None:
    """Return the next task for a free worker, or None if none can start now.

    Args:
        waiting: tasks that are neither done nor running nor held by somebody else.
        done: fingerprints of finished jobs.
        in_memory: the base model that this worker has loaded.
        busy_models: base models that other workers have loaded.
    """
    ready = [task for task in waiting if task.needs <= done]
    if not ready:
        return None
    prepare = [task for task in ready if task.job.kind == "prepare"]
    if prepare:
        return _longest(prepare)
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
        return _longest(modelless)
    if in_memory in by_model:
        return _longest(by_model[in_memory])
    free_models = [model for model in by_model if model not in busy_models] or list(by_model)
    chosen = max(free_models, key=lambda m: (sum(task.cost for task in by_model[m]), m))
    return _longest(by_model[chosen])


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
    # The fingerprint breaks ties, so that the order never depends on the order of the plan.
    return max(tasks, key=lambda task: (task.cost, task.job.fingerprint))
