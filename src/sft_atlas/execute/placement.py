"""Say where and how fast jobs run; nothing here is ever hashed or changes what is learned."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, Self

from sft_atlas.judge.endpoint import Endpoint
from sft_atlas.study.passes import MICRO_BATCH_TOKENS

MIN_PASS_TOKENS: Final = 256
"""Fewer tokens in a pass save hardly any memory."""


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
    """Memory of each process that its training may fill. None: a share of what is free."""
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


def detect_placement(num_workers: int | None = None) -> Placement:
    """Return one worker per GPU where there are any, else one per usable core."""
    num_gpus = len(list(Path("/dev").glob("nvidia[0-9]*")))
    if num_gpus:
        return Placement(device="cuda", num_workers=min(num_workers or num_gpus, num_gpus))
    return Placement(device="cpu", num_workers=num_workers or len(os.sched_getaffinity(0)))
