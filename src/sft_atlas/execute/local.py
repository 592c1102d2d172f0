"""Run tasks on this machine: one process per core or GPU, jobs over pipes, failures as data.

The coordinator holds no result and imports no torch: it hands out jobs, and workers publish to the
store. A worker that dies is replaced and its jobs tried again from their last checkpoints, each
alone and, where memory may have run out, in smaller passes; a job that another coordinator holds is
asked for again a second later. The first interrupt lets workers write a checkpoint, the second
kills.
"""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Final, Literal

from sft_atlas.errors import JobError
from sft_atlas.execute.assignment import ASSIGNMENT, Assignment
from sft_atlas.execute.placement import Placement
from sft_atlas.execute.schedule import Task, blocked, choose, model_of
from sft_atlas.identity import payload
from sft_atlas.store.store import Store
from sft_atlas.study.passes import MIN_MICRO_BATCH_TOKENS

MAX_LOST: Final = 3
"""A job whose worker dies this often is recorded as `killed`."""

RETRY_HELD_SECONDS: Final = 1.0


@dataclass(frozen=True, kw_only=True)
class Event:
    """What a caller may show of a run."""

    kind: Literal["started", "progress", "done", "failed", "held", "lost", "blocked"]
    job: str
    """Job fingerprint."""
    text: str = ""
    fraction: float = 0.0
    """Share of the job that is done, for `progress`."""
    seconds: float = 0.0
    worker: int = 0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of the tasks of a run."""

    num_done: int
    num_failed: int
    num_blocked: int
    num_left: int
    """Not done because the run was interrupted."""


@dataclass(kw_only=True)
class _Worker:
    number: int
    process: subprocess.Popen[bytes]
    tasks: dict[str, Task] = field(default_factory=dict)
    """What it was handed and has not ended, by job fingerprint."""
    is_ready: bool = False
    in_memory: str | None = None
    buffer: bytes = b""

    @property
    def output(self) -> IO[bytes]:
        assert self.process.stdout is not None
        return self.process.stdout

    def send(self, tasks: Sequence[Task], micro_batch_tokens: int | None) -> None:
        assert self.process.stdin is not None
        self.tasks = {task.job.fingerprint: task for task in tasks}
        assignment = Assignment(
            jobs=tuple(task.job for task in tasks),
            stack_runs=min(tasks[0].width, len(tasks)),
            micro_batch_tokens=micro_batch_tokens,
        )
        with contextlib.suppress(BrokenPipeError):  # a dead worker shows as the end of its output
            self.process.stdin.write(ASSIGNMENT.dump_json(assignment) + b"\n")
            self.process.stdin.flush()

    def close(self) -> None:
        """Let the process end: it leaves when its input does."""
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()


@dataclass(kw_only=True)
class _State:
    waiting: dict[str, Task]
    held_until: dict[str, float] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    lost: dict[str, int] = field(default_factory=dict)
    """How often a job's worker died."""
    killed: dict[str, int] = field(default_factory=dict)
    """How often by signal 9, which is what a machine without memory sends."""
    num_interrupts: int = 0
    num_failed_starts: int = 0
    """Workers in a row that ended before they were ready."""


def run_tasks(
    tasks: Sequence[Task],
    *,
    store: Store,
    placement: Placement,
    listen: Callable[[Event], None],
) -> Outcome:
    """Do all tasks that can be done; returns when none is left or the run was interrupted.

    Raises:
        JobError: if worker processes cannot even start.
    """
    state = _State(waiting={task.job.fingerprint: task for task in tasks})
    known = state.waiting.keys()
    state.waiting = {
        key: replace(task, needs=task.needs & known) for key, task in state.waiting.items()
    }
    num_workers = min(placement.num_workers, len(tasks))
    with _interrupts(state), _workers(num_workers, store, placement) as workers:
        while _has_work(state, workers):
            _assign(state, workers, placement, listen)
            _listen_to(state, workers, store=store, placement=placement, listen=listen)
            if state.num_interrupts > 1:
                break
    stuck = blocked(state.waiting.values(), state.failed)
    for job in sorted(stuck):
        listen(Event(kind="blocked", job=job, text="a job that it needs failed"))
    return Outcome(
        num_done=len(state.done),
        num_failed=len(state.failed),
        num_blocked=len(stuck),
        num_left=len(state.waiting) - len(stuck) + sum(len(w.tasks) for w in workers),
    )


def _has_work(state: _State, workers: list[_Worker]) -> bool:
    if any(worker.tasks for worker in workers):
        return True
    if state.num_interrupts:
        return False
    stuck = blocked(state.waiting.values(), state.failed)
    return bool(state.waiting.keys() - stuck)


def _assign(
    state: _State, workers: list[_Worker], placement: Placement, listen: Callable[[Event], None]
) -> None:
    for worker in workers:
        if not worker.is_ready or worker.tasks or state.num_interrupts:
            continue
        now = time.monotonic()
        tasks = choose(
            [t for key, t in state.waiting.items() if state.held_until.get(key, 0) <= now],
            done=state.done,
            in_memory=worker.in_memory,
            busy_models={w.in_memory for w in workers if w is not worker and w.in_memory},
            num_workers=len(workers),
        )
        if not tasks:
            continue
        worker.in_memory = model_of(tasks[0].job) or worker.in_memory
        worker.send(tasks, _smaller_pass(tasks[0], state, placement))
        for key in worker.tasks:
            del state.waiting[key]
            listen(Event(kind="started", job=key, worker=worker.number))


def _smaller_pass(task: Task, state: _State, placement: Placement) -> int | None:
    """Return half the tokens of a pass for each time that a run was killed; None for never."""
    times = state.killed.get(task.job.fingerprint, 0) if task.job.kind == "train" else 0
    return max(placement.pass_tokens >> times, MIN_MICRO_BATCH_TOKENS) if times else None


def _listen_to(
    state: _State,
    workers: list[_Worker],
    *,
    store: Store,
    placement: Placement,
    listen: Callable[[Event], None],
) -> None:
    with selectors.DefaultSelector() as selector:
        for worker in workers:
            selector.register(worker.output, selectors.EVENT_READ, worker)
        ready = [key.data for key, _ in selector.select(timeout=0.25)]
    for worker in ready:
        chunk = os.read(worker.output.fileno(), 1 << 16)
        if not chunk:
            _replace(worker, state, store=store, placement=placement, listen=listen)
            continue
        *lines, worker.buffer = (worker.buffer + chunk).split(b"\n")
        for line in lines:
            _handle(json.loads(line), worker, state, listen)
    if state.num_interrupts == 1:
        for worker in workers:
            if worker.tasks:
                worker.process.send_signal(signal.SIGTERM)


def _handle(
    message: dict[str, Any], worker: _Worker, state: _State, listen: Callable[[Event], None]
) -> None:
    if message["kind"] == "ready":
        worker.is_ready = True
        state.num_failed_starts = 0
        return
    key = message["job"]
    assert key in worker.tasks, f"a worker spoke of a job that it has not: {message}"
    listen(Event(worker=worker.number, **message))
    if message["kind"] == "progress":
        return
    task = worker.tasks.pop(key)
    if message["kind"] == "done":
        state.done.add(key)
    elif message["kind"] == "failed":
        state.failed.add(key)
    else:
        state.waiting[key] = task
        state.held_until[key] = time.monotonic() + RETRY_HELD_SECONDS


def _replace(
    worker: _Worker,
    state: _State,
    *,
    store: Store,
    placement: Placement,
    listen: Callable[[Event], None],
) -> None:
    code = worker.process.wait()
    if not worker.is_ready:
        state.num_failed_starts += 1
    if state.num_failed_starts >= MAX_LOST:
        raise JobError(
            f"worker {worker.number} ended with code {code} before it was ready, as did "
            f"{MAX_LOST - 1} before it; `sft-atlas doctor` says what is missing. {_log_tail(store)}"
        )
    for task in worker.tasks.values():
        _lose(task, code, state, store=store, placement=placement, listen=listen)
    worker.tasks = {}
    worker.close()
    worker.process = _spawn(store, placement, worker.number)
    worker.is_ready, worker.in_memory, worker.buffer = False, None, b""


def _lose(
    task: Task,
    code: int,
    state: _State,
    *,
    store: Store,
    placement: Placement,
    listen: Callable[[Event], None],
) -> None:
    key = task.job.fingerprint
    state.lost[key] = state.lost.get(key, 0) + 1
    reason = f"signal {-code}" if code < 0 else f"exit code {code}"
    text = f"its process ended with {reason}, {state.lost[key]} time(s)"
    if state.lost[key] < MAX_LOST or state.num_interrupts:
        if code == -signal.SIGKILL:
            state.killed[key] = state.killed.get(key, 0) + 1
        # Alone, so that it takes no other with it if it was the cause.
        state.waiting[key] = replace(task, stack_key=None, width=1)
        if pass_tokens := _smaller_pass(task, state, placement):
            text += f"; tried again alone, with at most {pass_tokens} tokens a pass"
        listen(Event(kind="lost", job=key, text=text))
        return
    state.failed.add(key)
    message = (
        f"{text}. Signal 9 often means that memory ran out: use fewer --workers, a smaller "
        f"--stack, LoRA or a smaller max_tokens. {_log_tail(store)}"
    )
    result = {"kind": "killed", "message": message, "step": None, "trace": ""}
    store.record_failure(key, payload(task.job), result)
    listen(Event(kind="failed", job=key, text=message))


@contextlib.contextmanager
def _workers(num_workers: int, store: Store, placement: Placement) -> Iterator[list[_Worker]]:
    workers = [
        _Worker(number=number, process=_spawn(store, placement, number))
        for number in range(num_workers)
    ]
    try:
        yield workers
    finally:
        for worker in workers:
            if worker.tasks or not worker.is_ready:
                worker.process.kill()
            worker.close()
        for worker in workers:
            worker.process.wait()


def worker_environment(placement: Placement, number: int) -> dict[str, str]:
    """Return the environment of one worker process, counted from 0."""
    environment = os.environ | {
        "OMP_NUM_THREADS": str(placement.num_threads),
        "MKL_NUM_THREADS": str(placement.num_threads),
        # Spinning threads of an idle pool would take the core of another worker.
        "OMP_WAIT_POLICY": "passive",
        "TOKENIZERS_PARALLELISM": "false",
        # glibc would map and unmap every activation anew: keeping freed memory made a training step
        # of a small model a fifth faster.
        "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
        "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
    }
    if placement.device == "cuda":
        first = number * placement.devices_per_run
        own = range(first, first + placement.devices_per_run)
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, own))
    return environment


def _spawn(store: Store, placement: Placement, number: int) -> subprocess.Popen[bytes]:
    log = _log_path(store)
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "sft_atlas.execute.worker"]
    arguments = [str(store.layout.root), json.dumps(placement.to_json())]
    with log.open("ab") as errors:
        return subprocess.Popen(
            command + arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=worker_environment(placement, number),
        )


@contextlib.contextmanager
def _interrupts(state: _State) -> Iterator[None]:
    def count(_signal: int, _frame: object) -> None:
        state.num_interrupts += 1

    before = {kind: signal.signal(kind, count) for kind in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def _log_path(store: Store) -> Path:
    return store.layout.log / f"workers-{os.getpid()}.log"


def _log_tail(store: Store) -> str:
    path = _log_path(store)
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    return f"The end of {path}: " + " | ".join(lines[-3:]) if lines else f"{path} is empty."
