"""Say what this machine can do, and what is missing for what.

Heavy libraries are asked in a child process, so that a broken one is a line of the answer and not
its end.
"""

import contextlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from sft_atlas.identity import fingerprint

_TORCH_FACTS: Final = """
import json, torch
cuda = torch.cuda.is_available()
print(json.dumps({
    "version": torch.__version__,
    "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count() * cuda)],
    "bf16": bool(cuda and torch.cuda.is_bf16_supported()),
    "cpu": torch.backends.cpu.get_cpu_capability(),
}))
"""

_GPU_FACTS: Final = Path("/proc/driver/nvidia/gpus")

_LIBRARIES: Final = {
    "transformers": "models and tokenizers",
    "safetensors": "weights",
    "datasets": "hub datasets",
    "pyarrow": "tables",
    "altair": "the report's charts",
}


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at."""

    name: str
    status: Literal["ok", "missing", "limited"]
    found: str
    needed_for: str
    fix: str = ""


@dataclass(frozen=True, kw_only=True)
class Processor:
    """What runs use on this machine: its GPUs, or its processor's cores."""

    kind: Literal["cpu", "gpu"]
    name: str
    """As its maker calls it."""
    model: str
    """Family, model, stepping and cache of a processor, which share a name with others."""
    count: int
    """GPUs, or usable cores."""

    @property
    def key(self) -> str:
        """Tells processors apart; equal ones of two machines are one."""
        return fingerprint([self.kind, self.name, self.model, self.count])


def this_processor() -> Processor:
    """Return what runs would use here, without asking any library."""
    num_gpus = len(list(Path("/dev").glob("nvidia[0-9]*")))
    if num_gpus:
        return Processor(kind="gpu", name=_gpu_name(), model="", count=num_gpus)
    facts = _lines_of(Path("/proc/cpuinfo"))
    details = ("cpu family", "model", "stepping", "cache size")
    return Processor(
        kind="cpu",
        name=facts.get("model name", platform.machine()),
        model=" ".join(facts.get(name, "?") for name in details),
        count=len(os.sched_getaffinity(0)),
    )


def memory_bytes() -> float:
    """Return the memory of this machine."""
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def free_memory_bytes() -> float:
    """Return the memory that programs can have now without swapping."""
    available = _lines_of(Path("/proc/meminfo")).get("MemAvailable")
    if available is not None:
        return 1024.0 * float(available.split()[0])
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES"))


def _gpu_name() -> str:
    for path in sorted(_GPU_FACTS.glob("*/information")):
        return _lines_of(path).get("Model", "GPU")
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    with contextlib.suppress(OSError):
        done = subprocess.run(query, capture_output=True, text=True, check=False)
        if done.returncode == 0 and done.stdout.strip():
            return done.stdout.splitlines()[0].strip()
    return "GPU"


def _lines_of(path: Path) -> dict[str, str]:
    """Read `name: value` lines; the first of a name counts."""
    found: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in path.read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            found.setdefault(name.strip(), value.strip())
    return found


def examine(store: Path) -> list[Check]:
    """Look at the machine, the libraries and the disk where the store is or would be."""
    return [
        _python(),
        _cores(),
        _memory(),
        _torch(),
        *(_library(name, use) for name, use in _LIBRARIES.items()),
        _disk(store),
        _offline(),
    ]


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    return Check(name="python", status="ok", found=version, needed_for="everything")


def _cores() -> Check:
    cores = len(os.sched_getaffinity(0))
    return Check(
        name="cores",
        status="ok",
        found=f"{cores} usable",
        needed_for="one worker each without a GPU",
    )


def _memory() -> Check:
    total = memory_bytes()
    enough = total >= 4 * 2**30
    return Check(
        name="memory",
        status="ok" if enough else "limited",
        found=f"{total / 2**30:.1f} GiB",
        needed_for="about 1 GiB per worker for the miniature world",
        fix="" if enough else "run with --workers 1",
    )


def _torch() -> Check:
    done = subprocess.run(
        [sys.executable, "-c", _TORCH_FACTS], capture_output=True, text=True, check=False
    )
    use = "training, evaluation and measures"
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        return Check(
            name="torch", status="missing", found=last[0], needed_for=use, fix="pip install torch"
        )
    facts = json.loads(done.stdout)
    gpus = ", ".join(facts["gpus"]) or f"no GPU, CPU with {facts['cpu']}"
    bf16 = ", bfloat16" if facts["bf16"] else ""
    return Check(
        name="torch", status="ok", found=f"{facts['version']}, {gpus}{bf16}", needed_for=use
    )


def _library(name: str, use: str) -> Check:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        fix = f"pip install {name}"
        return Check(name=name, status="missing", found="not installed", needed_for=use, fix=fix)
    return Check(name=name, status="ok", found=version, needed_for=use)


def _disk(store: Path) -> Check:
    folder = store.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    return Check(
        name="disk",
        status="ok" if free > 2**30 else "limited",
        found=f"{free / 2**30:.1f} GiB free at {folder}",
        needed_for="weights: `sft-atlas plan` says how much",
        fix="" if free > 2**30 else "free space, or name another disk with --store",
    )


def _offline() -> Check:
    is_offline = os.environ.get("HF_HUB_OFFLINE", "0") not in {"", "0"}
    return Check(
        name="model hub",
        status="limited" if is_offline else "ok",
        found="offline (HF_HUB_OFFLINE is set)" if is_offline else "allowed, not tried",
        needed_for="models and datasets by hub id; not for local folders or the miniature world",
        fix="unset HF_HUB_OFFLINE" if is_offline else "",
    )


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Hold linear algebra to one thread while statistics are computed.

    Their matrices are small: a second thread mostly waits, and on a busy machine the waiting takes
    most of the time. Only libraries that are loaded by now are held.
    """
    import scipy.linalg  # noqa: F401  loads its own copy of BLAS
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1):
        yield
