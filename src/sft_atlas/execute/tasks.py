"""Select the tasks of a run from a plan: what is missing, less what failed before, or what the user
names; and say which training runs go together.
"""

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, replace
from typing import Final

from sft_atlas.errors import StudyError
from sft_atlas.execute.placement import Placement
from sft_atlas.execute.schedule import Task, blocked
from sft_atlas.identity import payload
from sft_atlas.store.states import list_names
from sft_atlas.store.store import Store
from sft_atlas.study.cost import CostModel
from sft_atlas.study.job import (
    DescribeJob,
    Job,
    MeasureJob,
    OverlapJob,
    PrepareJob,
    SimilarityJob,
    TrainJob,
    UpdatesJob,
)
from sft_atlas.study.missing import PlannedJob
from sft_atlas.study.plan import JOB_KINDS, Plan
from sft_atlas.study.stacking import stack_key, stack_width, step_cost

FAILED: Final = "failed"
"""The word of `--only` that selects jobs which failed before."""

MIN_PREFIX: Final = 6


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The tasks of a run, and how many were left out because they failed earlier."""

    tasks: tuple[Task, ...]
    num_failed_before: int


def select_tasks(plan: Plan, store: Store, only: Sequence[str] = ()) -> Selection:
    """Return the tasks to do now, with the prepare jobs that they need.

    Args:
        plan: what is missing.
        store: says what failed before.
        only: terms that a job must all match. A term is `failed`, a block, model, dataset, method,
            job kind,
            or the first characters (at least 6) of a cell's fingerprint; a comma in it means "or".
            What a term selects is tried again even if it failed before.

    Raises:
        StudyError: if a term names nothing of the study.
    """
    failed = _failed(plan, store)
    known = {p.job.fingerprint: _task(p) for p in plan.jobs}
    work = {key: task for key, task in known.items() if task.job.kind != "prepare"}
    stuck = work.keys() & (failed | blocked(known.values(), failed))
    if only:
        _check_terms(plan, only)
        words = _words_by_job(plan)
        chosen = [
            key
            for key in work
            if all(_matches(term, words[key], has_failed=key in stuck) for term in only)
        ]
    else:
        chosen = [key for key in work if key not in stuck]
    # A job that waits for answers which nothing chosen will make cannot start.
    chosen = [key for key in chosen if work[key].needs & work.keys() <= set(chosen)]
    needed = {need for key in chosen for need in work[key].needs}
    prepare = [key for key in known if key in needed and key not in work]
    return Selection(
        tasks=tuple(known[key] for key in (*prepare, *chosen)),
        num_failed_before=0 if only else len(stuck),
    )


def with_companions(tasks: Sequence[Task], plan: Plan, placement: Placement) -> tuple[Task, ...]:
    """Say of each training run what it may train with, and how many pay at a time."""
    if placement.stack_runs == 1 or placement.devices_per_run > 1:
        return tuple(tasks)
    costs = _costs_here(plan, placement)
    found = []
    for task in tasks:
        if isinstance(task.job, TrainJob):
            run = task.job.trajectory
            step = step_cost(run, costs)
            width = placement.stack_runs or stack_width(step, pass_tokens=placement.pass_tokens)
            key = stack_key(run) if width > 1 else None
            task = replace(task, stack_key=key, width=width, step_tokens=step.tokens)
        found.append(task)
    return tuple(found)


def _costs_here(plan: Plan, placement: Placement) -> CostModel:
    """Return the plan's cost model, or one of the kind of device that is really here."""
    costs = plan.cost_model()
    if (costs.device.kind == "gpu") == (placement.device == "cuda"):
        return costs
    return CostModel(plan.study, "h100" if placement.device == "cuda" else "cpu-core", plan.known)


def _failed(plan: Plan, store: Store) -> set[str]:
    """Return the jobs that failed as they are now and would fail again.

    A corrected study asks for another job, and what was found damaged has been set aside since.
    """
    names = list_names(store.layout.failures)
    wishes = {p.job.fingerprint: p.job for p in plan.jobs}
    for name in names & wishes.keys():
        record = store.find(store.layout.failure(name))
        if record is None:
            continue
        is_other = record.spec and record.spec != payload(wishes[name])
        if is_other or record.result["kind"] == "damaged":
            names.remove(name)
    return names


def _task(planned: PlannedJob) -> Task:
    return Task(job=planned.job, cost=planned.cost.seconds.likely, needs=planned.needs)


def _check_terms(plan: Plan, only: Sequence[str]) -> None:
    """Refuse a word that names nothing of the study, whether or not work is missing."""
    study = plan.study
    known = {FAILED, *JOB_KINDS} - {"prepare"}
    known |= {m.spec.name for m in study.models} | {d.spec.name for d in study.datasets}
    known |= {block.name for block in study.blocks} | {m.name for m in study.methods}
    known |= {t.trajectory.data.name for t in plan.trajectories}
    cells = [item.cell.fingerprint for item in (*plan.cells, *plan.bases)]
    for option in (option for term in only for option in term.split(",")):
        if option not in known and not _begins_any(option, cells):
            raise StudyError(
                f"--only {option}: names nothing of {study.path}; expected the first 6 or more "
                f"characters of a cell, or one of {', '.join(sorted(known))}."
            )


def _begins_any(option: str, names: Iterable[str]) -> bool:
    return len(option) >= MIN_PREFIX and any(name.startswith(option) for name in names)


def _words_by_job(plan: Plan) -> dict[str, set[str]]:
    blocks = {cell.cell.fingerprint: cell.blocks for cell in plan.cells}
    return {p.job.fingerprint: _words(p.job, blocks) for p in plan.jobs}


def _words(job: Job, blocks: dict[str, tuple[str, ...]]) -> set[str]:
    if isinstance(job, UpdatesJob):
        return {job.kind, job.model.name}
    if isinstance(job, (OverlapJob, DescribeJob)):
        return {job.kind, job.dataset.name}
    if isinstance(job, SimilarityJob):
        return {job.kind, job.dataset.name, *([job.model.name] if job.model else ())}
    if isinstance(job, (PrepareJob, MeasureJob)):
        return {job.kind, job.model.name, job.dataset.name}
    cells = job.cells if isinstance(job, TrainJob) else (job.cell,)
    words: set[str] = {job.kind, cells[0].model.name}
    trajectory = cells[0].trajectory
    if trajectory:
        words |= {trajectory.data.name, trajectory.method.name}
    names = [cell.fingerprint for cell in cells]
    return words.union(names, *(blocks.get(name, ()) for name in names))


def _matches(term: str, words: Set[str], *, has_failed: bool) -> bool:
    options = term.split(",")
    if FAILED in options and has_failed:
        return True
    return any(
        option in words or _begins_any(option, (word for word in words if len(word) == 32))
        for option in options
    )
