"""Run scenarios of faults in forks of one process that has loaded everything once.

Run as a script: `fault_trainer.py BASE STORES SCENARIOS`, where the last is JSON by name: `fault`,
`method`, `num_runs`, `checkpoint_seconds` and `num_points`. Prints JSON by scenario: what became of
each point.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd  # noqa: F401 - pyarrow imports it when a table is made; once is enough
import torch

from sft_atlas.model.load import BaseModel, load_base
from sft_atlas.study.spec import ModelSpec, Source
from sft_atlas.train.checkpoint import CheckpointWriter
from train.disk_trainer import fail_and_mend, fill_and_mend
from train.forked import Wish
from train.kill_trainer import kill_and_resume
from train.worker_trainer import fill_disk, fill_memory

FAULTS = {
    "kill": kill_and_resume,
    "full disk": fill_and_mend,
    "failing disk": fail_and_mend,
    "worker on a full disk": fill_disk,
    "worker without memory": fill_memory,
}


def run_scenario(
    base: BaseModel, root: Path, scenario: dict[str, Any]
) -> list[dict[str, Any]] | None:
    """Let training meet one fault at each of its points; returns what became of it."""
    wish = Wish(
        base=base,
        method=scenario["method"],
        num_runs=scenario["num_runs"],
        checkpoint_seconds=scenario["checkpoint_seconds"],
    )
    return FAULTS[scenario["fault"]](wish, root, scenario["num_points"])


def main(folder: Path, root: Path, scenarios: dict[str, dict[str, Any]]) -> None:
    """Run every scenario and print what became of its points."""
    # A checkpoint at every step, however long one takes: so that a point is the same each time.
    CheckpointWriter.seconds = property(lambda _: 0.0)
    base = load_base(ModelSpec(name="llama", source=Source(path=folder)))
    base.model(torch.zeros(1, 1, dtype=torch.int64))  # imports what every child would import
    outcomes = {name: run_scenario(base, root / name, s) for name, s in scenarios.items()}
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
