"""A run that was killed, wherever it was, ends with the bytes of a run that was not."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import sft_atlas
from sft_atlas.files import sha256_file
from sft_atlas.model.load import load_base
from sft_atlas.store.store import open_store
from sft_atlas.train.checkpoint import (
    Checkpoint,
    read_checkpoint,
    remove_leftovers,
    restore,
    state_tensors,
    write_checkpoint,
)
from sft_atlas.train.loop import train
from sft_atlas.train.metrics import StepMetrics
from tiny import build_rows, save_base
from train.kill_trainer import build_killed_job

KILLER = Path(__file__).with_name("kill_trainer.py")
SOURCES = Path(sft_atlas.__file__).parents[1]

METRICS = [
    StepMetrics(1, 1, 0.1 + 0.2, 1e-300, 1 / 3, 7, 9),
    StepMetrics(2, 1, 2.5, 1.0, 0.1, 8, 9),
]


SCENARIOS: dict[str, dict[str, Any]] = {
    "full, checkpoints at every step": {
        "lora": False,
        "checkpoint_seconds": 0,
        "points": ["step:1", "rename:1", "rename:2", "step:3", "rename:7", "epoch:1", "step:8"],
    },
    "lora, checkpoints at every step": {
        "lora": True,
        "checkpoint_seconds": 0,
        "points": ["rename:5", "step:4", "rename:6", "epoch:3", "rename:1"],
    },
    "lora, checkpoints at kept epochs only": {
        "lora": True,
        "checkpoint_seconds": 1000,
        "points": ["step:2", "epoch:1", "rename:1", "step:8", "rename:3"],
    },
}


class Killed(NamedTuple):
    """What is left of the runs that were killed."""

    base: Path
    stores: Path
    statuses: dict[str, list[int]]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    base, stores = tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("stores")
    save_base(base)
    done = subprocess.run(
        [sys.executable, KILLER, base, stores, json.dumps(SCENARIOS)],
        env=os.environ | {"PYTHONPATH": f"{SOURCES}:{KILLER.parents[1]}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return Killed(base, stores, json.loads(done.stdout))


@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_and_resumed_equals_uninterrupted(name: str, killed: Killed, tmp_path: Path) -> None:
    scenario = SCENARIOS[name]
    kills = [-signal.SIGKILL] * len(scenario["points"])
    assert killed.statuses[name] == [*kills, 0], "a kill did not happen"

    job = build_killed_job(killed.base, lora=scenario["lora"])
    base = load_base(job.trajectory.model)
    train(job, store=open_store(tmp_path, create=True), base=base, rows=build_rows())
    assert digests(killed.stores / name) == digests(tmp_path)
    assert any(path.name == "metrics.parquet" for path in digests(tmp_path))
    assert not list((killed.stores / name / "working").iterdir())


def digests(store: Path) -> dict[Path, str]:
    """SHA-256 of every published file but the records, whose provenance holds times."""
    return {
        path.relative_to(store): sha256_file(path)
        for part in ("cells", "trajectories")
        for path in (store / part).rglob("*")
        if path.is_file() and path.name != "record.json"
    }


def checkpoint(step: int) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    tensors = {
        "weight/a": torch.rand(3, 4, generator=generator),
        "step/a": torch.tensor(float(step)),
    }
    return Checkpoint(step=step, tensors=tensors, metrics=METRICS)


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    written = checkpoint(5)
    write_checkpoint(tmp_path, written)
    read = read_checkpoint(tmp_path, max_step=5)
    assert read is not None
    assert read.step == 5
    assert read.metrics == METRICS
    assert read.tensors.keys() == written.tensors.keys()
    assert all(torch.equal(read.tensors[name], written.tensors[name]) for name in read.tensors)


def test_the_newest_two_are_kept_and_none_beyond_the_wanted_step_is_used(tmp_path: Path) -> None:
    for step in (2, 9, 10):
        write_checkpoint(tmp_path, checkpoint(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-10", "step-9"]
    newest = read_checkpoint(tmp_path, max_step=100)
    earlier = read_checkpoint(tmp_path, max_step=9)
    assert newest is not None
    assert earlier is not None
    assert (newest.step, earlier.step) == (10, 9)
    assert read_checkpoint(tmp_path, max_step=8) is None


@pytest.mark.parametrize("name", ["state.safetensors", "metrics.parquet", "checkpoint.json"])
@pytest.mark.parametrize("harm", ["flip", "truncate", "remove"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, name: str, harm: str
) -> None:
    write_checkpoint(tmp_path, checkpoint(1))
    write_checkpoint(tmp_path, checkpoint(2))
    path = tmp_path / "step-2" / name
    content = bytearray(path.read_bytes())
    if harm == "flip":
        content[len(content) // 2] ^= 0x10
        path.write_bytes(content)
    elif harm == "truncate":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.unlink()
    with pytest.warns(UserWarning, match="step-2: is damaged .*an older one is used"):
        found = read_checkpoint(tmp_path, max_step=2)
    assert found is not None
    assert found.step == 1


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, checkpoint(1))
    (tmp_path / "tmp-of-the-dead").mkdir()
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]


def test_a_restored_optimizer_goes_on_bit_for_bit() -> None:
    def build() -> tuple[dict[str, torch.nn.Parameter], torch.optim.AdamW]:
        torch.manual_seed(0)
        parameters = {name: torch.nn.Parameter(torch.rand(5)) for name in ("a", "b")}
        return parameters, torch.optim.AdamW(parameters.values(), lr=0.1, fused=True)

    def take_steps(
        parameters: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer, steps: range
    ) -> None:
        for step in steps:
            for number, parameter in enumerate(parameters.values()):
                parameter.grad = torch.full((5,), float(step + number))
            optimizer.step()

    whole, first, second = build(), build(), build()
    take_steps(*whole, range(6))
    take_steps(*first, range(3))
    state = {name: tensor.clone() for name, tensor in state_tensors(*first).items()}
    restore(
        Checkpoint(step=3, tensors=state, metrics=[]), parameters=second[0], optimizer=second[1]
    )
    take_steps(*second, range(3, 6))
    assert all(torch.equal(whole[0][name], second[0][name]) for name in whole[0])
