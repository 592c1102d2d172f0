"""Run one arm in processes of its own and say what it took.

A run is one or more commands that start together; wall time is from the start of the first to the
end of the last. Processor time is that of all their processes. Memory is the largest sum of
resident sizes over the processes, looked at ten times a second; pages that processes share count in
each. Bytes are those of the artefacts, or of the whole store.
"""

import contextlib
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import psutil

BENCHMARKS: Final = Path(__file__).parents[1]


class ArmError(Exception):
    """An arm did not run; its last words."""


class Command(NamedTuple):
    """A process of an arm."""

    arguments: Sequence[str]
    num_threads: int


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What a run of an arm took."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    answers: list[dict[str, Any]] = field(default_factory=list)
    """Last line of each command's output, where it is JSON."""
    command_seconds: list[float] = field(default_factory=list)
    """From the start of all to the end of each."""


def python(module: str, request: Path, num_threads: int, *, binary: str | None = None) -> Command:
    """Return the command that runs one of this folder's modules on a request."""
    return Command(
        [binary or sys.executable, "-m", f"training.{module}", str(request)], num_threads
    )


def write_request(path: Path, **content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, default=str))
    return path


def environment(num_threads: int) -> dict[str, str]:
    """Return the environment of an arm's process: no network, threads pinned."""
    paths = [str(BENCHMARKS), os.environ.get("PYTHONPATH", "")]
    threads = {f"{name}_NUM_THREADS": str(num_threads) for name in ("OMP", "MKL", "OPENBLAS")}
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    quiet = {"TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"}
    path = {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    return {**os.environ, **threads, **offline, **quiet, **path}


def run(commands: Sequence[Command], log: Path, *, limit_seconds: float = 3600) -> Usage:
    """Run commands together until all have ended.

    Raises:
        ArmError: with its last words if one fails or takes longer than the limit.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    logs = [log.with_name(f"{log.name}.{number}.log") for number in range(len(commands))]
    started = time.perf_counter()
    processes = [_start(*pair) for pair in zip(commands, logs, strict=True)]
    timer = threading.Timer(limit_seconds, lambda: [_kill(p.pid) for p in processes])
    timer.start()

    def follow(process: subprocess.Popen[bytes]) -> _End:
        assert process.stdout is not None
        with process.stdout as stream:
            output = stream.read()
        _, status, usage = os.wait4(process.pid, 0)
        return _End(status, usage, output, time.perf_counter() - started)

    with _peak([p.pid for p in processes]) as peak, ThreadPoolExecutor(len(processes)) as pool:
        try:
            ends = list(pool.map(follow, processes))
        except KeyboardInterrupt:
            # They have sessions of their own, which Ctrl-C does not reach.
            for process in processes:
                _kill(process.pid)
            raise
        finally:
            timer.cancel()
    seconds = max(end.seconds for end in ends)
    for end, path in zip(ends, logs, strict=True):
        if end.status:
            words = last_words(path, end.output)
            raise ArmError("took too long" if seconds > limit_seconds else words)
    return Usage(
        seconds=seconds,
        cpu_seconds=sum(end.usage.ru_utime + end.usage.ru_stime for end in ends),
        peak_bytes=peak[0],
        answers=[_last_json(end.output) for end in ends],
        command_seconds=[end.seconds for end in ends],
    )


class _End(NamedTuple):
    status: int
    usage: resource.struct_rusage
    output: bytes
    seconds: float


def _start(command: Command, log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as errors:
        return subprocess.Popen(
            command.arguments,
            stdout=subprocess.PIPE,
            stderr=errors,
            stdin=subprocess.DEVNULL,
            env=environment(command.num_threads),
            cwd=BENCHMARKS,
            start_new_session=True,
        )


def _kill(pid: int) -> None:
    # The session is this arm's own, so nothing else is in its group.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, 9)


@contextlib.contextmanager
def _peak(pids: Sequence[int]) -> Iterator[list[int]]:
    peak, is_over = [0], threading.Event()

    def look() -> None:
        while not is_over.wait(0.1):
            total = 0
            for pid in pids:
                with contextlib.suppress(psutil.Error):
                    parent = psutil.Process(pid)
                    for process in [parent, *parent.children(recursive=True)]:
                        with contextlib.suppress(psutil.Error):
                            total += process.memory_info().rss
            peak[0] = max(peak[0], total)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        is_over.set()
        thread.join()


def last_words(log: Path, output: bytes = b"") -> str:
    """Return the last line that says something."""
    lines = [
        *output.decode(errors="replace").splitlines(),
        *log.read_text(errors="replace").splitlines(),
    ]
    said = [line.strip() for line in lines if line.strip()]
    return said[-1][:400] if said else "ended without a word"


def _last_json(output: bytes) -> dict[str, Any]:
    lines = output.decode(errors="replace").strip().splitlines()
    try:
        answer = json.loads(lines[-1])
    except (IndexError, ValueError):
        return {}
    return answer if isinstance(answer, dict) else {}


def num_bytes(folder: Path) -> int:
    """Return the size of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
