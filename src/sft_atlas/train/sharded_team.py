"""Let several processes of one machine do the same work at the same time, one per device.

In: orders, each a function of some module and its arguments. Out: what the function returned in the
first process, which is the caller; the others do it too and return nothing, so that collective
operations inside it meet. Between orders the others wait for the next, however long.

A process that fails or dies ends the team with an error that says which one; when the first dies,
the others leave.
"""

import os
import queue
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Concatenate, Final, Generic, NamedTuple, ParamSpec, TypeVar, final

import torch
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from sft_atlas.errors import JobError, OutOfMemoryError
from sft_atlas.train.memory import is_out_of_memory

S = TypeVar("S")
T = TypeVar("T")
P = ParamSpec("P")

_WAIT: Final = timedelta(minutes=10)
"""How long a process waits for the others within an order."""
_GRACE_SECONDS: Final = 5.0
"""How long after a broken connection its cause may take to show, and an end to be made."""

_BACKENDS: Final = {"cpu": "gloo", "cuda": "nccl"}
_READY: Final = "ready"


@final
class _Seat(NamedTuple):
    """The place of a process in its team."""

    rank: int
    """From 0, the first process."""
    num_processes: int
    device_type: str
    num_threads: int
    folder: str
    """Where the processes find each other."""


@final
class _Failure(NamedTuple):
    """What became of a process."""

    text: str
    is_memory: bool = False
    is_consequence: bool = False
    """It only lost touch with another one."""


@final
class Team(Generic[S]):
    """Processes with a state each, on which orders work; call `close` in the end."""

    def __init__(
        self, num_processes: int, device_type: str, make_state: Callable[[DeviceMesh], S]
    ) -> None:
        """Start the other processes; each calls `make_state`, a function of some module.

        Raises:
            JobError: if one does not start.
        """
        self.is_sound = True
        self._folder = tempfile.mkdtemp(prefix="sft-atlas-team-")
        self._members: list[tuple[SpawnProcess, Connection]] = []
        context = get_context("spawn")
        threads = torch.get_num_threads()
        for rank in range(1, num_processes):
            ours, theirs = context.Pipe()
            seat = _Seat(rank, num_processes, device_type, threads, self._folder)
            process = context.Process(target=_follow, args=(seat, theirs, make_state), daemon=True)
            process.start()
            theirs.close()
            self._members.append((process, ours))
        first = _Seat(0, num_processes, device_type, threads, self._folder)
        try:
            self._await_others()
            self.state: S = self._guarded(lambda: make_state(_join(first)))
        except BaseException:
            self.is_sound = False
            self.close()
            raise

    def do(self, work: Callable[Concatenate[S, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Have every process do some work on its state; returns this one's result.

        Raises:
            OutOfMemoryError: if a process ran out of memory.
            JobError: if another process failed or died.
            Exception: what else this process's part raised. Behind any of them the team is of no
                more use.
        """
        assert self.is_sound, "a team that failed does nothing more"

        def order_and_do() -> T:
            for _, member in self._members:
                member.send((work, args, kwargs))
            return work(self.state, *args, **kwargs)

        return self._guarded(order_and_do)

    def close(self) -> None:
        """End the other processes, at once if the team failed."""
        for process, member in self._members:
            if self.is_sound:
                with suppress(OSError):
                    member.send(None)
            else:
                process.kill()
        self.is_sound = False
        if distributed.is_initialized():
            distributed.destroy_process_group()
        for process, member in self._members:
            process.join(timeout=_GRACE_SECONDS)
            process.kill()
            process.join()
            process.close()
            member.close()
        self._members.clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _await_others(self) -> None:
        for rank, (process, member) in enumerate(self._members, start=1):
            connection.wait([member, process.sentinel])
            with suppress(EOFError, OSError):
                if member.poll() and member.recv() == _READY:
                    continue
            process.join(timeout=_GRACE_SECONDS)
            raise self._error(rank, _failure_of(process, member) or _Failure("did not start"))

    def _guarded(self, act: Callable[[], T]) -> T:
        try:
            return act()
        except Exception as error:
            self.is_sound = False
            cause = self._cause(wait=isinstance(error, (OSError, RuntimeError)))
            if cause is None and is_out_of_memory(error):
                cause = (0, _describe(error))
            if cause is None:
                raise
            raise self._error(*cause) from error

    def _cause(self, *, wait: bool) -> tuple[int, _Failure] | None:
        """Return which other process failed first, and how; None if none did."""
        deadline = time.monotonic() + (_GRACE_SECONDS if wait else 0.0)
        found: dict[int, _Failure] = {}
        while True:
            for rank, (process, member) in enumerate(self._members, start=1):
                failure = None if rank in found else _failure_of(process, member)
                if failure is not None:
                    found[rank] = failure
            causes = [item for item in found.items() if not item[1].is_consequence]
            if causes:
                return causes[0]
            if time.monotonic() >= deadline:
                return next(iter(found.items()), None)
            time.sleep(0.05)

    def _error(self, rank: int, failure: _Failure) -> JobError:
        where = f"process {rank} of {len(self._members) + 1}"
        if failure.is_memory:
            return OutOfMemoryError(
                f"{where}: memory ran out ({failure.text}). Use more or larger devices for a run, "
                f"a smaller micro_batch_tokens, LoRA, or a smaller max_tokens."
            )
        return JobError(
            f"{where}: {failure.text}; expected it to train its part of the run. Run again: the "
            f"run goes on from its last checkpoint."
        )


def _failure_of(process: SpawnProcess, member: Connection) -> _Failure | None:
    # Asked first: what a process says comes before its end.
    is_alive = process.is_alive()
    with suppress(EOFError, OSError):
        if member.poll():
            failure: _Failure = member.recv()
            return failure
    if is_alive:
        return None
    code = process.exitcode or 0
    return _Failure(f"died of signal {-code}" if code < 0 else f"ended with status {code}")


def _describe(error: Exception) -> _Failure:
    text = f"{type(error).__name__}: {error}"
    is_lost = isinstance(error, distributed.DistError) or "gloo/transport" in text
    return _Failure(text, is_memory=is_out_of_memory(error), is_consequence=is_lost)


def _join(seat: _Seat) -> DeviceMesh:
    """Meet the others; returns the mesh of all, one device for each process."""
    if seat.device_type == "cuda":
        torch.cuda.set_device(seat.rank)
    meeting = str(Path(seat.folder) / "meeting")
    distributed.init_process_group(
        _BACKENDS[seat.device_type],
        store=distributed.FileStore(meeting, seat.num_processes),  # type: ignore[attr-defined]
        rank=seat.rank,
        world_size=seat.num_processes,
        timeout=_WAIT,
    )
    return init_device_mesh(seat.device_type, (seat.num_processes,))


def _follow(seat: _Seat, first: Connection, make_state: Callable[[DeviceMesh], Any]) -> None:
    """Do what the first process orders, until it says that this was all, or is gone."""
    # Ctrl-C reaches the whole group; only the first process decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(seat.num_threads)
    orders: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(first, orders), daemon=True).start()
    try:
        first.send(_READY)
        state = make_state(_join(seat))
        while (order := orders.get()) is not None:
            if isinstance(order, Exception):
                raise order
            work, args, kwargs = order
            work(state, *args, **kwargs)
    except Exception as error:  # noqa: BLE001 - the first process is told, and raises it
        with suppress(OSError):
            first.send(_describe(error))
        # Whoever waits for this process within the order must see its connections break now.
        os._exit(1)
    distributed.destroy_process_group()


def _read(first: Connection, orders: "queue.SimpleQueue[Any]") -> None:
    while True:
        try:
            orders.put(first.recv())
        except (EOFError, OSError):
            # The first process is gone: whatever this one waits for will never come.
            os._exit(1)
        except Exception as error:  # noqa: BLE001 - an order that cannot be read is an error of its own
            orders.put(error)
