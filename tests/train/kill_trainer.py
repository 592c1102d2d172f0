"""Train jobs again and again in forked processes that kill themselves, then once to the end.

Run as a script: `kill_trainer.py BASE STORES SCENARIOS`, where the last is JSON by name: `lora`,
`checkpoint_seconds` and `points`. A point is `step:N`, `epoch:N` or `rename:N` (just before the
N-th rename of that process, of whatever file).
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

import pandas as pd  # noqa: F401 - pyarrow imports it when a table is made; once is enough

from sft_atlas.model.load import load_base
from sft_atlas.store.store import open_store
from sft_atlas.study.job import TrainJob
from sft_atlas.study.spec import LoraSpec, ModelSpec, Source
from sft_atlas.train.loop import Observers, TrainPlacement, train
from tiny import COSINE, build_job, build_model, build_rows


def build_killed_job(base: Path, *, lora: bool) -> TrainJob:
    """Return the job that the test also trains without a kill."""
    spec = ModelSpec(name="llama", source=Source(path=base))
    adapter = LoraSpec(rank=2, alpha=4.0, dropout=0.3) if lora else None
    return build_job(spec, keep_epochs=(1, 3), schedule=COSINE, lora=adapter, precision="bfloat16")


def die() -> None:
    """End this process as the kernel or an administrator would."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_rename(number: int) -> None:
    """Arrange for the process to die just before one of its renames."""
    seen = 0

    def look(event: str, _arguments: object) -> None:
        nonlocal seen
        if event == "os.rename":
            seen += 1
            if seen == number:
                die()

    sys.addaudithook(look)


def run_and_die(base: Path, root: Path, scenario: dict[str, Any]) -> list[int]:
    """Run a job once per point, dying there, and once more to its end; returns exit statuses."""
    job = build_killed_job(base, lora=scenario["lora"])
    statuses = []
    for point in [*scenario["points"], "none:0"]:
        child = os.fork()
        if not child:
            train_until(point, job, root, checkpoint_seconds=scenario["checkpoint_seconds"])
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    return statuses


def train_until(point: str, job: TrainJob, root: Path, *, checkpoint_seconds: float) -> NoReturn:
    """Train in this process until it dies at the point or is done."""
    kind, number = point.split(":")
    if kind == "rename":
        die_at_rename(int(number))
    try:
        train(
            job,
            store=open_store(root, create=True),
            base=load_base(job.trajectory.model),
            rows=build_rows(),
            placement=TrainPlacement(checkpoint_seconds=checkpoint_seconds),
            observers=Observers(
                on_step=lambda done, _: die() if point == f"step:{done}" else None,
                on_epoch=lambda cell, _: die() if point == f"epoch:{cell.epoch}" else None,
            ),
        )
        os._exit(0)
    finally:
        os._exit(1)


def main(base: Path, root: Path, scenarios: dict[str, dict[str, Any]]) -> None:
    """Run every scenario in a store of its own and print the exit statuses as JSON."""
    build_model()  # imports what every child would import
    statuses = {name: run_and_die(base, root / name, s) for name, s in scenarios.items()}
    print(json.dumps(statuses))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
