"""Do one assignment after another in a process that keeps a base model and tokenizers in memory.

Assignments come as JSON lines on stdin and events leave as JSON lines on stdout; whatever libraries
print goes to stderr. The store is the truth: every result is published there before its event is
sent, and a job is done only under its lease, so a lost event costs nothing. Jobs of one assignment
end each for itself.
"""

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from typing import Final, TextIO

import torch

from sft_atlas.errors import (
    DamagedError,
    DivergedError,
    JobError,
    OutOfMemoryError,
)
from sft_atlas.execute.assignment import ASSIGNMENT, Assignment
from sft_atlas.execute.disk import disk_advice, is_disk_error
from sft_atlas.execute.placement import Placement
from sft_atlas.execute.session import Worker, do_job, is_done, open_entrant, train_group
from sft_atlas.identity import payload
from sft_atlas.store.outcomes import outcome_folder
from sft_atlas.store.states import job_names
from sft_atlas.store.store import Store, open_store
from sft_atlas.study.job import EvaluateJob, Job, TrainJob
from sft_atlas.study.spec import CellSpec
from sft_atlas.train.memory import is_out_of_memory
from sft_atlas.train.placement import StopRequested

ALREADY_DONE: Final = "was done by another process"

Facts = dict[str, str]
"""How a job ended: `kind`, and `text` where there is something to say."""


def serve(worker: Worker, lines: TextIO) -> None:
    """Do assignments until the input ends or a stop is asked for."""
    worker.send("ready")
    for line in lines:
        _do(worker, ASSIGNMENT.validate_json(line))


def _do(worker: Worker, assignment: Assignment) -> None:
    """Do the jobs that no other process holds, and say of each how it ended as soon as it has."""
    started = time.monotonic()
    leases: dict[str, ExitStack] = {}

    def end(job: Job, facts: Facts) -> None:
        leases.pop(job.fingerprint).close()
        worker.send(job=job.fingerprint, seconds=round(time.monotonic() - started, 3), **facts)

    jobs: list[Job] = []
    with ExitStack() as held:
        for job in assignment.jobs:
            lease = held.enter_context(ExitStack())
            if not lease.enter_context(worker.store.lease(job.fingerprint)):
                worker.send("held", job=job.fingerprint, text="another process works on it")
                continue
            leases[job.fingerprint] = lease
            known = _known_end(worker, job)
            if known is None:
                jobs.append(job)
            else:
                end(job, known)
        runs = [job for job in jobs if isinstance(job, TrainJob)]
        for job in jobs:
            if not isinstance(job, TrainJob):
                end(job, _attempt(worker, job))
        if runs:
            _train(worker, runs, assignment, end)


def _known_end(worker: Worker, job: Job) -> Facts | None:
    """Return how a job ended in another process while it waited; None if it is to be done."""
    if is_done(worker.store, job):
        return {"kind": "done", "text": ALREADY_DONE}
    failure = worker.store.find(worker.store.layout.failure(job.fingerprint))
    if failure and failure.provenance["failed"] > worker.started:
        return {"kind": "failed", "text": f"failed in another process: {failure.result['message']}"}
    return None


def _attempt(worker: Worker, job: Job) -> Facts:
    try:
        do_job(worker, job)
    except Exception as error:  # noqa: BLE001 - a failed job is data: it is recorded, and the next one runs
        return _failed(worker, job, error)
    return _done(worker, job)


def _train(
    worker: Worker,
    jobs: Sequence[TrainJob],
    assignment: Assignment,
    end: Callable[[Job, Facts], None],
) -> None:
    """Train runs together; whatever goes wrong with one of them is that one's end alone."""
    left = {job.fingerprint: job for job in jobs}

    def on_end(job: TrainJob, error: Exception | None) -> None:
        del left[job.fingerprint]
        end(job, _done(worker, job) if error is None else _failed(worker, job, error))

    entrants = []
    for job in jobs:
        try:
            entrants.append(open_entrant(worker, job))
        except Exception as error:  # noqa: BLE001 - data that cannot be prepared is its own run's
            on_end(job, error)
    if not entrants:
        return
    try:
        lacking = train_group(worker, entrants, assignment, on_end)
    except Exception as error:  # noqa: BLE001 - what all of them need is broken: none can go on
        for job in tuple(left.values()):
            on_end(job, error)
        return
    for job in lacking:
        end(job, _attempt(worker, job))


def _done(worker: Worker, job: Job) -> Facts:
    worker.store.clear_failure(job.fingerprint)
    if isinstance(job, EvaluateJob):
        _clear_training_failure(worker.store, job.cell)
    return {"kind": "done"}


def _failed(worker: Worker, job: Job, error: Exception) -> Facts:
    """Record why a job failed; one that was asked to stop did not fail."""
    if isinstance(error, StopRequested):
        return {"kind": "held", "text": str(error)}
    if isinstance(error, DamagedError):
        worker.store.set_aside(error.folder, only_damaged=True)
    kind = error.kind if isinstance(error, JobError) else _kind(error)
    result = {
        "kind": kind,
        "message": _message(worker.store, kind, error),
        "step": error.step if isinstance(error, DivergedError) else None,
        "trace": "".join(traceback.format_exception(error)),
    }
    # On a full disk the record may not fit either: the coordinator is told all the same, and the
    # next run tries the job again.
    with suppress(OSError) if kind == "disk" else nullcontext():
        worker.store.record_failure(job.fingerprint, payload(job), result)
    return {"kind": "failed", "text": f"{kind}: {result['message']}"}


def _clear_training_failure(store: Store, cell: CellSpec) -> None:
    """Forget that a training run failed by what has been scored or measured now.

    A run that is published is not trained again, so nothing else would.
    """
    if cell.trajectory is None:
        return
    name = job_names(cell)[0]
    failure = store.find(store.layout.failure(name))
    if failure is None:
        return
    last_epoch = failure.spec["keep_epochs"][-1]
    if store.has(outcome_folder(store, cell.trajectory.fingerprint, last_epoch=last_epoch)):
        store.clear_failure(name)


def _kind(error: Exception) -> str:
    if isinstance(error, DamagedError):
        return "damaged"
    if is_disk_error(error):
        return "disk"
    if is_out_of_memory(error):
        return OutOfMemoryError.kind
    return "error"


def _message(store: Store, kind: str, error: Exception) -> str:
    return disk_advice(store, error) if kind == "disk" else str(error) or type(error).__name__


def main() -> None:
    """Start a worker: arguments are the store's folder and a placement as JSON."""
    # Libraries may print; the pipe to the coordinator must carry events only.
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    placement = Placement.from_json(json.loads(sys.argv[2]))
    torch.set_num_threads(placement.num_threads)
    worker = Worker(store=open_store(Path(sys.argv[1])), placement=placement, events=events)

    def stop(_signal: int, _frame: object) -> None:
        worker.should_stop = True

    # Ctrl-C reaches the whole group; only the coordinator decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, stop)
    serve(worker, sys.stdin)


if __name__ == "__main__":
    main()
