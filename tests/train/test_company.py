"""Runs in company that meet short memory, a full disk or a stop: none pays for another."""

import gc
import threading
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sft_atlas.errors import OutOfMemoryError
from sft_atlas.model.load import BaseModel, load_base
from sft_atlas.model.stack import Stack, can_stack
from sft_atlas.store.records import Record
from sft_atlas.store.store import open_store
from sft_atlas.study.job import TrainJob
from sft_atlas.train import holder
from sft_atlas.train.checkpoint import Checkpoint, write_checkpoint
from sft_atlas.train.holder import StackHolder
from sft_atlas.train.loop import train_together
from sft_atlas.train.placement import Observers, StopRequested, TrainPlacement
from sft_atlas.train.state import LocalState
from tiny import save_base
from train.test_together import build_entrants, digests, metrics_of, train_all, train_alone


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return load_base(save_base(tmp_path_factory.mktemp("base")))


class Allocations:
    """Fails, as short memory does, where a test says so; remembers what was still held then."""

    ERROR = "DefaultCPUAllocator: can't allocate memory"

    def __init__(self) -> None:
        self.states: list[weakref.ref[LocalState]] = []
        self.num_alive: list[int] = []

    def watch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        make = LocalState.__init__

        def begin(state: LocalState, *arguments: Any) -> None:
            self.num_alive.append(sum(old() is not None for old in self.states))
            self.states.append(weakref.ref(state))
            make(state, *arguments)

        monkeypatch.setattr(LocalState, "__init__", begin)


def fail_once(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str, is_now: Callable[..., bool]
) -> list[object]:
    """Let a method run out of memory the first time that a condition holds."""
    method = getattr(owner, name)
    failed: list[object] = []

    def limited(*arguments: Any, **settings: Any) -> Any:
        if not failed and is_now(*arguments):
            failed.append(name)
            raise RuntimeError(Allocations.ERROR)
        return method(*arguments, **settings)

    monkeypatch.setattr(owner, name, limited)
    return failed


@pytest.mark.parametrize(
    ("owner", "name", "is_now"),
    [
        (Stack, "hold", lambda _stack, runs: len(runs) == 3),
        (LocalState, "clip", lambda _state: True),
        (LocalState, "move", lambda _state, _rate: True),
        (LocalState, "tensors", lambda _state: True),
        (StackHolder, "begin", lambda holder, _spec: holder._stack is not None),
        (StackHolder, "shown", lambda _holder, _run: True),
    ],
)
def test_memory_that_is_short_in_company_costs_time_only(
    base: BaseModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    name: str,
    is_now: Callable[..., bool],
) -> None:
    entrants = build_entrants(base, None)[:3]
    alone, together = (open_store(tmp_path / folder, create=True) for folder in ("a", "t"))
    train_alone(alone, base, entrants)
    failed = fail_once(monkeypatch, owner, name, is_now)
    ends = train_all(together, base, entrants)
    assert failed
    for entrant in entrants:
        assert isinstance(end := ends[entrant.job.fingerprint], Record), end
        assert metrics_of(together, entrant.job) == metrics_of(alone, entrant.job)
        for cell in entrant.job.cells:
            assert digests(together, cell) == digests(alone, cell)


@pytest.mark.parametrize("stack_runs", [1, 2])
def test_a_run_that_ran_out_of_memory_leaves_it_to_the_next(
    base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stack_runs: int
) -> None:
    entrants = build_entrants(base, None)[:3]
    can_stack(base, None)
    watched = Allocations()
    watched.watch(monkeypatch)
    kept = []

    def run_out(model, runs, *_others, **_settings):  # type: ignore[no-untyped-def]
        kept.append([parameter * 2 for parameter in runs[0].state.parameters.values()])
        raise RuntimeError(Allocations.ERROR)

    monkeypatch.setattr(holder, "accumulate", run_out)
    gc.disable()
    try:
        ends = train_all(open_store(tmp_path, create=True), base, entrants, stack_runs=stack_runs)
    finally:
        gc.enable()
    assert len(ends) == 3
    assert all(isinstance(end, OutOfMemoryError) for end in ends.values())
    assert max(watched.num_alive) == stack_runs - 1


def test_a_checkpoint_that_cannot_be_written_ends_its_run_alone(
    base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entrants = build_entrants(base, None)
    spoiled = entrants[3].job

    def fail(folder: Path, checkpoint: Checkpoint) -> None:
        if folder.name == spoiled.trajectory.fingerprint:
            raise OSError("the disk is full")
        write_checkpoint(folder, checkpoint)

    monkeypatch.setattr("sft_atlas.train.checkpoint.write_checkpoint", fail)
    # Half of the runs are sent back behind their first step, the last one among them.
    calls: list[int] = []

    def is_now(_state: LocalState) -> bool:
        calls.append(1)
        return len(calls) > 4

    failed = fail_once(monkeypatch, LocalState, "clip", is_now)
    ends = train_all(open_store(tmp_path, create=True), base, entrants, stack_runs=4)
    assert failed
    assert str(ends.pop(spoiled.fingerprint)) == "the disk is full"
    assert [type(end) for end in ends.values()] == [Record] * 3


def test_short_memory_says_nothing_about_what_a_model_can(
    base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load_base(save_base(tmp_path / "base", rope_theta=5000.0))  # one that nobody has tried
    with monkeypatch.context() as short:
        run_out = torch.OutOfMemoryError("CUDA out of memory")
        short.setattr(Stack, "hold", lambda *_: (_ for _ in ()).throw(run_out))
        assert not can_stack(base, None)
    assert can_stack(base, None)


def test_nobody_enters_a_group_that_was_asked_to_stop(base: BaseModel, tmp_path: Path) -> None:
    steps: list[int] = []
    observers = Observers(
        on_step=lambda done, _all: steps.append(done), should_stop=lambda: bool(steps)
    )
    entrants = [replace(e, observers=observers) for e in build_entrants(base, None)]
    ends = train_all(open_store(tmp_path, create=True), base, entrants, stack_runs=2)
    assert steps == [1, 1]
    assert [type(end) for end in ends.values()] == [StopRequested] * 4


def test_what_on_end_raises_reaches_the_caller_and_every_writer_is_closed(
    base: BaseModel, tmp_path: Path
) -> None:
    told: list[str] = []

    def on_end(job: TrainJob, _end: Record | Exception) -> None:
        told.append(job.fingerprint)
        raise OSError("nothing can be recorded")

    entrants = build_entrants(base, None)[:3]
    with pytest.raises(OSError, match="nothing can be recorded"):
        train_together(
            entrants,
            store=open_store(tmp_path, create=True),
            base=base,
            placement=TrainPlacement(stack_runs=3, checkpoint_seconds=0.0),
            on_end=on_end,
        )
    assert len(told) == 1
    assert not [t for t in threading.enumerate() if t.name.startswith("checkpoint")]
