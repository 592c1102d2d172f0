"""Say where and how fast jobs run; nothing here is ever hashed or changes what is learned."""

import contextlib
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, Self

from sft_atlas.errors import StudyError
from sft_atlas.judge.endpoint import Endpoint
from sft_atlas.study.passes import MICRO_BATCH_TOKENS


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The processes of one machine and what each may use."""

    device: Literal["cpu", "cuda"]
    num_workers: int
    """One process per core or per GPU by default."""
    num_threads: int = 1
    """Threads of each process. On small models one process per core beats one process with two
    threads by about 3x, and results are bitwise equal only at a fixed number of threads."""
    checkpoint_seconds: float = 60.0
    """A killed run loses at most this much training."""
    micro_batch_tokens: int | None = None
    """Tokens in one forward and backward pass; an optimizer step may take several. None: as many as
    are fast on the device."""
    stack_runs: int | None = None
    """Most runs that train together in one model. None: as many as pay by the cost of their steps,
    and fit into memory."""
    memory_bytes: int | None = None
    """Memory of each process that its training may fill, base model included. None: most of what
    the device has free."""
    devices_per_run: int = 1
    activation_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them."""
    compile: bool = False

    judge: Endpoint | None = None
    """Where the judge of open answers is reached, and what it may cost."""

    @property
    def pass_tokens(self) -> int:
        """Tokens in one forward and backward pass where memory suffices."""
        return self.micro_batch_tokens or MICRO_BATCH_TOKENS[self.device]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """Return what `to_json` wrote."""
        judge = content["judge"]
        return cls(**content | {"judge": None if judge is None else Endpoint(**judge)})


@dataclass(frozen=True, kw_only=True)
class TrainingWishes:
    """What a user may ask of how training runs are placed; None leaves it to this machine."""

    stack: int | None = None
    """Most training runs in one model at a time; 1: each alone. None: as many as pay."""
    memory_gib: float | None = None
    """Memory of each process that its training may fill. None: a share of what is free."""
    devices_per_run: int = 1
    """GPUs that one training run is spread over."""
    activation_checkpointing: bool = False
    """Compute activations again in the backward pass: slower, in far less memory."""
    compile: bool = False
    """Compile models before they are trained."""


_FREE_FRACTION: Final = 0.8
"""Part of free memory that training may fill; the rest is for scores, measures and libraries."""

NO_WISHES: Final = TrainingWishes()


def place_workers(num_workers: int | None, wishes: TrainingWishes) -> Placement:
    """Return the placement of a run on this machine."""
    found = detect_placement(num_workers, devices_per_run=wishes.devices_per_run)
    memory_bytes = None
    if wishes.memory_gib is not None:
        memory_bytes = int(wishes.memory_gib * 2**30)
    elif found.device == "cpu":
        # Now, while no worker has taken any.
        memory_bytes = share_of_memory(found.num_workers * wishes.devices_per_run)
    return replace(
        found,
        stack_runs=wishes.stack,
        memory_bytes=memory_bytes,
        devices_per_run=wishes.devices_per_run,
        activation_checkpointing=wishes.activation_checkpointing,
        compile=wishes.compile,
    )


def detect_placement(num_workers: int | None = None, *, devices_per_run: int = 1) -> Placement:
    """Return one worker per GPU, or per group of GPUs, where there are any, else one per usable
    core.

    Raises:
        StudyError: if a run is to be spread over more devices than there are.
    """
    num_gpus = len(list(Path("/dev").glob("nvidia[0-9]*")))
    num_devices = num_gpus or len(os.sched_getaffinity(0))
    num_places = num_devices // devices_per_run
    if num_places == 0:
        raise StudyError(
            f"--devices-per-run {devices_per_run}: this machine has {num_devices} "
            f"{'GPUs' if num_gpus else 'usable cores'}; expected at most as many. Lower it."
        )
    if num_gpus:
        return Placement(device="cuda", num_workers=min(num_workers or num_places, num_places))
    return Placement(device="cpu", num_workers=num_workers or num_places)


def share_of_memory(num_workers: int) -> int:
    """Return what training may fill in each of some processes of this machine or container."""
    found = [_available_in(Path("/proc/meminfo"))]
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):  # no control groups, or no limit: `max`
        limit = int((group / "memory.max").read_text())
        found.append(max(0, limit - int((group / "memory.current").read_text())))
    return int(min(found) * _FREE_FRACTION / num_workers)


def _available_in(path: Path) -> int:
    lines = path.read_text().splitlines()
    (kibibytes,) = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(kibibytes) << 10
