"""Train the same few jobs in forked processes that may end badly, and compare what they publish."""

import json
import os
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

from sft_atlas.files import sha256_file
from sft_atlas.model.load import BaseModel
from sft_atlas.store.records import Record
from sft_atlas.store.store import open_store
from sft_atlas.study.job import TrainJob
from sft_atlas.study.spec import LoraSpec
from sft_atlas.train.loop import Entrant, train_together
from sft_atlas.train.placement import Observers, TrainPlacement
from tiny import COSINE, build_job, build_rows

LORA: Final = LoraSpec(rank=2, alpha=4.0, dropout=0.3)


@final
@dataclass(frozen=True)
class Wish:
    """What a scenario trains: runs of one method whose seeds count from 0."""

    base: BaseModel
    method: str
    """`full` or `lora`."""
    num_runs: int
    """Trained together in one model."""
    checkpoint_seconds: float

    @property
    def jobs(self) -> list[TrainJob]:
        """Return 9 steps in 3 epochs each, of which the first and the last are kept."""
        return [
            build_job(
                self.base.spec,
                keep_epochs=(1, 3),
                schedule=COSINE,
                lora=LORA if self.method == "lora" else None,
                precision="bfloat16",
                seed=seed,
            )
            for seed in range(self.num_runs)
        ]

    def train(self, root: Path, observers: Observers | None = None) -> None:
        """Train what is missing in a store; raises the first thing that went wrong."""
        ends: list[Record | Exception] = []
        train_together(
            [
                Entrant(job=job, rows=build_rows(), observers=observers or Observers())
                for job in self.jobs
            ],
            store=open_store(root, create=True),
            base=self.base,
            placement=TrainPlacement(
                checkpoint_seconds=self.checkpoint_seconds, stack_runs=self.num_runs
            ),
            on_end=lambda _job, end: ends.append(end),
        )
        for end in ends:
            if isinstance(end, Exception):
                raise end


def fork(do: Callable[[], Any]) -> tuple[int, Any]:
    """Do something in a process of its own; returns its exit status and, as JSON has it, what it
    returned."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            answer = json.dumps(do()).encode()
            with os.fdopen(writing, "wb") as stream:
                stream.write(answer)
            os._exit(0)
        except BaseException:  # noqa: BLE001 - whatever it is, this process ends here
            traceback.print_exc()
        finally:
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        answer = stream.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status, json.loads(answer) if answer else None


def spread(found: Sequence[Any], number: int) -> list[Any]:
    """Return up to so many of a sequence, each from the middle of an equal part of it."""
    number = min(len(found), number)
    return [found[(2 * i + 1) * len(found) // (2 * number)] for i in range(number)]


def digests(root: Path) -> dict[str, str]:
    """SHA-256 of every published file but the records, whose provenance holds times."""
    return {
        str(path.relative_to(root)): sha256_file(path)
        for part in ("cells", "trajectories")
        for path in (root / part).rglob("*")
        if path.is_file() and path.name != "record.json"
    }
