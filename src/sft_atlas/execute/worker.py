"""Do one job after another in a process that keeps a base model and tokenizers in memory.

Jobs come as JSON lines on stdin and events leave as JSON lines on stdout; whatever libraries print
goes to stderr. The store is the truth: every result is published there before its event is sent,
and a job is done only under its lease, so a lost event costs nothing.
"""

import errno
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Final, TextIO

import torch

from sft_atlas.errors import (
    DamagedError,
    DivergedError,
    JobError,
    OutOfMemoryError,
)
from sft_atlas.execute.placement import Placement
from sft_atlas.execute.session import Worker, do_job, is_done
from sft_atlas.identity import payload
from sft_atlas.store.outcomes import outcome_folder
from sft_atlas.store.states import job_names
from sft_atlas.store.store import Store, open_store
from sft_atlas.study.job import (
    JOB,
    EvaluateJob,
    Job,
)
from sft_atlas.study.spec import CellSpec
from sft_atlas.train.loop import (
    StopRequested,
    is_out_of_memory,
)

ALREADY_DONE: Final = "was done by another process"


def serve(worker: Worker, lines: TextIO) -> None:
    """Do jobs until the input ends or a stop is asked for."""
    worker.send("ready")
    for line in lines:
        job = JOB.validate_json(line)
        started = time.monotonic()
        with worker.store.lease(job.fingerprint) as mine:
            if not mine:
                worker.send("held", text="another process works on it")
                continue
            facts = _attempt(worker, job)
        worker.send(seconds=round(time.monotonic() - started, 3), **facts)


def _attempt(worker: Worker, job: Job) -> dict[str, str]:
    if is_done(worker.store, job):
        return {"kind": "done", "text": ALREADY_DONE}
    failure = worker.store.find(worker.store.layout.failure(job.fingerprint))
    if failure and failure.provenance["failed"] > worker.started:
        return {"kind": "failed", "text": f"failed in another process: {failure.result['message']}"}
    worker.is_assessing = False
    try:
        do_job(worker, job)
    except StopRequested as stop:
        return {"kind": "held", "text": str(stop)}
    except Exception as error:  # noqa: BLE001 - a failed job is data: it is recorded, and the next one runs
        if isinstance(error, DamagedError):
            worker.store.set_aside(error.folder, only_damaged=True)
        kind = error.kind if isinstance(error, JobError) else _kind(error)
        result = {
            "kind": kind,
            "message": str(error) or type(error).__name__,
            "step": error.step if isinstance(error, DivergedError) else None,
            "trace": traceback.format_exc(),
        }
        worker.store.record_failure(job.fingerprint, payload(job), result)
        return {"kind": "failed", "text": f"{kind}: {result['message']}"}
    worker.store.clear_failure(job.fingerprint)
    if isinstance(job, EvaluateJob):
        _clear_training_failure(worker.store, job.cell)
    return {"kind": "done"}


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
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "disk"
    if is_out_of_memory(error):
        return OutOfMemoryError.kind
    return "error"


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
