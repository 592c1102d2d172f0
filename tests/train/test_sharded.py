"""A run over several devices takes the steps of one device, and goes on where the other stopped."""

import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file

import sft_atlas
from sft_atlas.errors import JobError
from sft_atlas.files import sha256_file
from sft_atlas.model.load import BaseModel, load_base
from sft_atlas.store.outcomes import outcome_folder
from sft_atlas.store.records import Record
from sft_atlas.store.store import Store, open_store
from sft_atlas.study.job import TrainJob
from sft_atlas.train.loop import (
    Entrant,
    Observers,
    StopRequested,
    TrainPlacement,
    train,
    train_together,
)
from sft_atlas.train.metrics import METRICS_NAME, StepMetrics, read_metrics
from tiny import build_rows, save_base
from train.shard_trainer import PASS_TOKENS, build_sharded_job, kill_other

SCRIPT = Path(__file__).with_name("shard_trainer.py")
SOURCES = Path(sft_atlas.__file__).parents[1]
TWO = TrainPlacement(micro_batch_tokens=PASS_TOKENS, devices_per_run=2)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    loaded = load_base(save_base(tmp_path_factory.mktemp("base")))
    # As a measure of its states does; it leaves functions behind in the model.
    loaded.model(input_ids=torch.tensor([[2, 3]]), output_hidden_states=True)
    with pytest.raises(AttributeError, match="pickle"):
        pickle.dumps(loaded.model)
    return loaded


def stopping(step: int) -> Observers:
    done = 0

    def on_step(number: int, _all: int) -> None:
        nonlocal done
        done = number

    return Observers(on_step=on_step, should_stop=lambda: done == step)


class Spread(NamedTuple):
    """What two processes did, one run after the other; the last one ended them."""

    store: Store
    undisturbed: Path
    """The published files of `full`, before it was trained again from a checkpoint."""
    jobs: dict[str, TrainJob]
    ends: list[tuple[str, Record | Exception]]


@pytest.fixture(scope="module")
def spread(base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Spread:
    store = open_store(tmp_path_factory.mktemp("store"), create=True)
    undisturbed = tmp_path_factory.mktemp("undisturbed")
    jobs = {
        "full": build_sharded_job(base.spec, "full"),
        "lora": build_sharded_job(base.spec, "lora"),
        "one, then two": build_sharded_job(base.spec, "full", seed=1),
        "two, then one": build_sharded_job(base.spec, "lora", seed=1),
        "killed, then one": build_sharded_job(base.spec, "full", seed=2),
    }
    with pytest.raises(StopRequested):
        train(
            jobs["one, then two"],
            store=store,
            base=base,
            rows=build_rows(),
            observers=stopping(4),
        )

    def entrants() -> Iterator[Entrant]:
        for name in ("full", "lora", "one, then two"):
            yield Entrant(job=jobs[name], rows=build_rows())
        yield Entrant(job=jobs["two, then one"], rows=build_rows(), observers=stopping(2))
        move_published(store, jobs["full"], undisturbed)
        yield Entrant(job=jobs["full"], rows=build_rows(), observers=stopping(4))
        yield Entrant(job=jobs["full"], rows=build_rows())
        killing = Observers(on_step=lambda done, _: kill_other() if done == 4 else None)
        yield Entrant(job=jobs["killed, then one"], rows=build_rows(), observers=killing)

    names = {job.fingerprint: name for name, job in jobs.items()}
    ends: list[tuple[str, Record | Exception]] = []
    train_together(
        entrants(),
        store=store,
        base=base,
        placement=TWO,
        on_end=lambda job, end: ends.append((names[job.fingerprint], end)),
    )
    for name in ("two, then one", "killed, then one"):
        train(jobs[name], store=store, base=base, rows=build_rows())
    return Spread(store, undisturbed, jobs, ends)


def published(store: Store, job: TrainJob) -> list[Path]:
    cells = [store.layout.cell(cell.fingerprint) for cell in job.cells]
    last = job.keep_epochs[-1]
    return [*cells, outcome_folder(store, job.trajectory.fingerprint, last_epoch=last)]


def move_published(store: Store, job: TrainJob, target: Path) -> None:
    for number, folder in enumerate(published(store, job)):
        shutil.move(folder, target / str(number))


def digests(folders: list[Path]) -> list[dict[str, str]]:
    """SHA-256 of every published file but the records, whose provenance holds times."""
    return [
        {
            str(path.relative_to(folder)): sha256_file(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name != "record.json"
        }
        for folder in folders
    ]


def metrics_of(store: Store, job: TrainJob) -> list[StepMetrics]:
    return read_metrics(published(store, job)[-1] / METRICS_NAME)


def assert_alike(store: Store, other: Store, job: TrainJob) -> None:
    """Losses and gradient norms within 1e-5 relative, weights within 1e-5 of a tensor's norm."""
    found, expected = metrics_of(store, job), metrics_of(other, job)
    assert len(found) == 6
    for step, like in zip(found, expected, strict=True):
        assert step._replace(loss=0, grad_norm=0) == like._replace(loss=0, grad_norm=0)
        assert step.loss == pytest.approx(like.loss, rel=1e-5)
        assert step.grad_norm == pytest.approx(like.grad_norm, rel=1e-5)
    for folder, like_folder in zip(published(store, job)[:-1], published(other, job), strict=False):
        (name,) = [path.name for path in folder.glob("*.safetensors")]
        tensors, like_tensors = load_file(folder / name), load_file(like_folder / name)
        assert tensors.keys() == like_tensors.keys()
        for key, tensor in tensors.items():
            distance = torch.linalg.vector_norm(tensor - like_tensors[key])
            assert distance <= 1e-5 * torch.linalg.vector_norm(like_tensors[key]), key


@pytest.mark.parametrize(
    "name", ["full", "lora", "one, then two", "two, then one", "killed, then one"]
)
def test_two_devices_take_the_steps_of_one(
    name: str, spread: Spread, base: BaseModel, tmp_path: Path
) -> None:
    alone = open_store(tmp_path, create=True)
    train(spread.jobs[name], store=alone, base=base, rows=build_rows())
    assert_alike(spread.store, alone, spread.jobs[name])


def test_each_run_over_two_devices_ended_as_it_was_asked_to(spread: Spread) -> None:
    assert [(name, type(end)) for name, end in spread.ends] == [
        ("full", Record),
        ("lora", Record),
        ("one, then two", Record),
        ("two, then one", StopRequested),
        ("full", StopRequested),
        ("full", Record),
        ("killed, then one", JobError),
    ]


def test_two_devices_that_go_on_publish_the_bytes_of_two_that_never_stopped(
    spread: Spread,
) -> None:
    again = digests(published(spread.store, spread.jobs["full"]))
    assert again == digests(sorted(spread.undisturbed.iterdir()))
    assert all(again)


def test_a_process_that_dies_ends_the_run_and_is_named(spread: Spread) -> None:
    name, end = spread.ends[-1]
    assert name == "killed, then one"
    assert isinstance(end, JobError)
    assert str(end) == (
        "process 1 of 2: died of signal 9; expected it to train its part of the run. Run again: "
        "the run goes on from its last checkpoint."
    )
    assert not multiprocessing.active_children()
    assert not torch.distributed.is_initialized()


def run_script(base: BaseModel, store: Path, *words: str) -> tuple[int, dict[str, object]]:
    done = subprocess.run(
        [sys.executable, SCRIPT, base.folder, store, *words],
        env=os.environ | {"PYTHONPATH": f"{SOURCES}:{SCRIPT.parents[1]}"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout.splitlines()[-1])


def is_alive(pid: object) -> bool:
    try:
        os.kill(int(str(pid)), 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1][:3]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_processes_leave_none_behind_and_resume_to_the_same_bytes(
    base: BaseModel, tmp_path: Path
) -> None:
    killed, other = tmp_path / "killed", tmp_path / "other"
    status, ended = run_script(base, killed, "lora", "3", "first:2")
    assert status == -signal.SIGKILL, ended
    others = ended["others"]
    assert isinstance(others, list)
    assert len(others) == 2
    deadline = time.monotonic() + 30
    while any(map(is_alive, others)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(is_alive, others))
    status, ended = run_script(base, killed, "lora", "3", "other:5")
    assert str(ended["error"]).startswith("JobError: process 2 of 3: died of signal 9;")
    assert ended["others"] == []
    for store in (killed, other):
        assert run_script(base, store, "lora", "3", "none:0") == (0, {"error": "", "others": []})
    job = build_sharded_job(base.spec, "lora")
    found, expected = (digests(published(open_store(s), job)) for s in (killed, other))
    assert found == expected
    alone = open_store(tmp_path / "alone", create=True)
    train(job, store=alone, base=base, rows=build_rows())
    assert_alike(open_store(killed), alone, job)
