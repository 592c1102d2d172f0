"""A checkpoint is all of a run's state at its step, and what cannot be trusted is passed over."""

import errno
import threading
import time
from pathlib import Path

import pytest
import torch

from sft_atlas.train import checkpoint as module
from sft_atlas.train.checkpoint import (
    Checkpoint,
    CheckpointWriter,
    read_checkpoint,
    remove_leftovers,
    restore,
    state_tensors,
    write_checkpoint,
)
from sft_atlas.train.metrics import StepMetrics

METRICS = [
    StepMetrics(1, 1, 0.1 + 0.2, 1e-300, 1 / 3, 7, 9),
    StepMetrics(2, 1, 2.5, 1.0, 0.1, 8, 9),
]


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


def test_a_run_that_went_back_can_be_resumed_where_it_is(tmp_path: Path) -> None:
    for step in (9, 10, 1, 2, 3):
        write_checkpoint(tmp_path, checkpoint(step))
    read = read_checkpoint(tmp_path, max_step=8)
    assert read is not None
    assert read.step == 3
    assert len(list(tmp_path.iterdir())) == 4


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


Trained = tuple[dict[str, torch.nn.Parameter], torch.optim.AdamW]


def build(*, stacked: bool = False) -> Trained:
    """Return two parameters; those of a stack are views of one run's part of a larger tensor."""
    generator = torch.Generator().manual_seed(0)
    parameters = {}
    for name in ("a", "b"):
        values = torch.rand(4, 5, generator=generator)
        if stacked:
            values = torch.stack([torch.zeros(4, 5), values, torch.zeros(4, 5)])[1]
        parameters[name] = torch.nn.Parameter(values)
    return parameters, torch.optim.AdamW(parameters.values(), lr=0.1, fused=True)


def take_steps(
    parameters: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer, steps: range
) -> None:
    for step in steps:
        for number, parameter in enumerate(parameters.values()):
            parameter.grad = torch.full_like(parameter, float(step + number))
        optimizer.step()


@pytest.mark.parametrize("stacked", [False, True])
def test_a_restored_optimizer_goes_on_bit_for_bit(tmp_path: Path, stacked: bool) -> None:
    whole, first, second = build(), build(stacked=stacked), build()
    take_steps(*whole, range(6))
    take_steps(*first, range(3))
    writer = CheckpointWriter(tmp_path)
    writer.write(Checkpoint(step=3, tensors=state_tensors(*first), metrics=[]))
    take_steps(*first, range(3, 5))  # what is written is what was, whatever comes after
    writer.wait()
    found = read_checkpoint(tmp_path, max_step=3)
    assert found is not None
    restore(found, parameters=second[0], optimizer=second[1])
    take_steps(*second, range(3, 6))
    assert all(torch.equal(whole[0][name], second[0][name]) for name in whole[0])


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """An event without which no checkpoint gets written."""
    opened = threading.Event()

    def write(folder: Path, checkpoint: Checkpoint) -> None:
        assert opened.wait(30)
        write_checkpoint(folder, checkpoint)

    monkeypatch.setattr(module, "write_checkpoint", write)
    return opened


def test_training_goes_on_while_a_checkpoint_is_written(
    tmp_path: Path, gate: threading.Event
) -> None:
    writer = CheckpointWriter(tmp_path)
    assert writer.seconds == 0
    state, metrics = {"weight/a": torch.ones(3)}, list(METRICS)
    writer.write(Checkpoint(step=2, tensors=state, metrics=metrics))
    state["weight/a"] += 1
    metrics.append(METRICS[0])
    assert not list(tmp_path.iterdir())
    assert writer.seconds > 0, "a write under way has taken some time"
    gate.set()
    writer.wait()
    taken = writer.seconds
    time.sleep(0.001)
    assert writer.seconds == taken
    found = read_checkpoint(tmp_path, max_step=2)
    assert found is not None
    assert found.tensors["weight/a"].tolist() == [1, 1, 1]
    assert found.metrics == METRICS


def test_a_second_checkpoint_waits_for_the_first(tmp_path: Path, gate: threading.Event) -> None:
    writer = CheckpointWriter(tmp_path)
    writer.write(checkpoint(1))
    second = threading.Thread(target=lambda: writer.write(checkpoint(2)))
    second.start()
    second.join(0.05)
    assert second.is_alive(), "two copies are in memory"
    gate.set()
    second.join(30)
    writer.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-1", "step-2"]


@pytest.mark.parametrize("surfaces", ["write", "wait"])
def test_a_checkpoint_that_could_not_be_written_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, surfaces: str
) -> None:
    writer = CheckpointWriter(tmp_path)
    writer.write(checkpoint(1))
    writer.wait()

    def fail(path: Path) -> None:
        assert path.stat().st_size > 0, "there is something to clean up"
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(module.files, "sync_file", fail)
        writer.write(checkpoint(2))
        with pytest.raises(OSError, match="Input/output error") as caught:
            writer.wait() if surfaces == "wait" else writer.write(checkpoint(3))
    assert caught.value.errno == errno.EIO
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]
    writer.write(checkpoint(4))
    writer.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-1", "step-4"]


def test_closing_hides_no_other_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_folder: Path, _checkpoint: Checkpoint) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "write_checkpoint", fail)
    writer = CheckpointWriter(tmp_path)
    writer.write(checkpoint(1))
    writer.close()
