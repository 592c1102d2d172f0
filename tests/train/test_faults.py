"""Whatever ends a run, the one that goes on ends with the bytes of an undisturbed one."""

import errno
import gc
import json
import math
import os
import signal
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

import sft_atlas
from sft_atlas.data.batches import TrainingRows, iter_steps
from sft_atlas.errors import DivergedError
from sft_atlas.model.load import BaseModel, load_base
from sft_atlas.store.outcomes import longest_outcome
from sft_atlas.store.store import open_store
from sft_atlas.study.spec import LoraSpec, ModelSpec, Source
from sft_atlas.train.loop import Entrant, train, train_together
from sft_atlas.train.metrics import read_metrics
from sft_atlas.train.placement import Observers, StopRequested, TrainPlacement
from tiny import (
    LORA,
    VOCAB_SIZE,
    build_job,
    build_model,
    build_prepared,
    build_rows,
    build_tokenizer,
    save_base,
)
from train.forked import digests

TRAINER = Path(__file__).with_name("fault_trainer.py")
SOURCES = Path(sft_atlas.__file__).parents[1]

KILLS: dict[str, dict[str, Any]] = {
    "full, checkpoints at every step": {"method": "full", "checkpoint_seconds": 0},
    "lora, checkpoints at every step": {"method": "lora", "checkpoint_seconds": 0},
    "lora, checkpoints at kept epochs only": {"method": "lora", "checkpoint_seconds": 1000},
    "three together, lora": {"method": "lora", "checkpoint_seconds": 0, "num_runs": 3},
    "three together, full": {"method": "full", "checkpoint_seconds": 0, "num_runs": 3},
}
FEW_POINTS = dict(zip(KILLS, (3, 3, 0, 2, 0), strict=True))
MANY_POINTS = dict(zip(KILLS, (35, 35, 10, 10, 10), strict=True))
DISKS: dict[str, dict[str, Any]] = {
    f"{method}, {fault}": {"method": method, "fault": fault, "checkpoint_seconds": 0}
    for method in ("full", "lora")
    for fault in ("full disk", "failing disk")
}
FEW_DISKS = ["full, full disk", "lora, failing disk"]
WORKER: dict[str, Any] = {"method": "full", "checkpoint_seconds": 0, "num_points": 0}
ALL = 10_000

Outcomes = dict[str, list[dict[str, Any]] | None]


def meet_faults(folder: Path, scenarios: dict[str, dict[str, Any]]) -> Outcomes:
    """Run scenarios in a process of their own; returns what became of each point of each."""
    base, stores = folder / "base", folder / "stores"
    save_base(base)
    wishes = {name: {"fault": "kill", "num_runs": 1} | s for name, s in scenarios.items()}
    done = subprocess.run(
        [sys.executable, TRAINER, base, stores, json.dumps(wishes)],
        # A process that has started threads for its sums cannot be forked.
        env=os.environ | {"PYTHONPATH": f"{SOURCES}:{TRAINER.parents[1]}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    outcomes: Outcomes = json.loads(done.stdout)
    return outcomes


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    kills = {name: KILLS[name] | {"num_points": n} for name, n in FEW_POINTS.items() if n}
    disks = {name: DISKS[name] | {"num_points": 1} for name in FEW_DISKS}
    worker = {"worker": WORKER | {"fault": "worker on a full disk"}}
    return meet_faults(tmp_path_factory.mktemp("faults"), kills | disks | worker)


def check_kills(found: list[dict[str, Any]] | None, *, num_points: int) -> None:
    assert found is not None
    assert len({tuple(outcome["point"]) for outcome in found}) == num_points
    for outcome in found:
        assert outcome["killed"] in (-signal.SIGKILL, -signal.SIGXFSZ), outcome
        assert outcome["resumed"] == 0, outcome
        assert outcome["num_compared"] > 0
        assert outcome["is_same"], outcome
        assert outcome["left"] == [], "resumable state outlives the run"


def check_disk(found: list[dict[str, Any]] | None, *, number: int) -> None:
    if found is None:
        pytest.skip("on this host no user may mount a disk")
    for outcome in found:
        assert outcome["status"] == 0, outcome
        assert (outcome["error"], outcome["errno"]) == ("OSError", number), outcome
        assert outcome["half"] == [], "a half-written result is visible"
        assert outcome["aside"] == [], "what could not be written takes room"
        assert outcome["num_compared"] > 0
        assert outcome["is_same"], outcome
        assert outcome["left"] == [], "resumable state outlives the run"


@pytest.mark.parametrize("name", [name for name, number in FEW_POINTS.items() if number])
def test_killed_and_resumed_equals_undisturbed(name: str, outcomes: Outcomes) -> None:
    check_kills(outcomes[name], num_points=FEW_POINTS[name])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_at_a_hundred_points_and_resumed_equals_undisturbed(tmp_path: Path) -> None:
    scenarios = {name: s | {"num_points": MANY_POINTS[name]} for name, s in KILLS.items()}
    found = meet_faults(tmp_path, scenarios)
    assert sum(len(points or ()) for points in found.values()) == 100
    for name, number in MANY_POINTS.items():
        check_kills(found[name], num_points=number)
        points = [outcome["point"] for outcome in found[name] or []]
        assert {label.split()[0] for *_, label in points} == {"step", "checkpoint", "publish"}
        assert {thread for thread, *_ in points} == {"MainThread", "checkpoint"}


@pytest.mark.parametrize("name", FEW_DISKS)
def test_a_disk_that_fails_ends_the_run_and_no_more(name: str, outcomes: Outcomes) -> None:
    number = errno.ENOSPC if "full disk" in name else errno.EIO
    check_disk(outcomes[name], number=number)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_disk_that_fails_at_any_write_ends_the_run_and_no_more(tmp_path: Path) -> None:
    found = meet_faults(tmp_path, {name: s | {"num_points": ALL} for name, s in DISKS.items()})
    for name, points in found.items():
        check_disk(points, number=errno.ENOSPC if "full disk" in name else errno.EIO)
        published = {outcome["num_published"] for outcome in points or []}
        assert published >= {0, 1, 2}, "the disk failed before, between and after the cells"


def test_a_worker_says_what_to_do_where_its_disk_is_full(outcomes: Outcomes) -> None:
    found = outcomes["worker"]
    if found is None:
        pytest.skip("on this host no user may mount a disk")
    nearly_full, full, mended = found
    assert nearly_full["ends"] == full["ends"] == ["failed"]
    (failure,) = nearly_full["failures"]
    assert failure["kind"] == "disk"
    expected = (
        "its disk is full or fails ([Errno 28] No space left on device). Free space there or move "
        "the store to another disk, then run again, with --only failed what is recorded as "
        "failed: training goes on from its last checkpoint."
    )
    assert failure["message"].partition(": ")[2] == expected
    assert full["texts"][0].endswith(expected), "what cannot be recorded is told all the same"
    assert full["failures"] == [None]
    assert mended["ends"] == ["done"]
    assert mended["failures"] == [None]
    assert all(mended["cells"])


@pytest.mark.slow
def test_a_worker_without_memory_fails_the_job_that_needs_it_alone(tmp_path: Path) -> None:
    (points,) = meet_faults(
        tmp_path, {"worker": WORKER | {"fault": "worker without memory"}}
    ).values()
    assert points is not None
    (found,) = points
    assert found["ends"] == ["failed", "done"]
    full, adapter = found["failures"]
    assert (full["kind"], adapter) == ("oom", None)
    advice = "Use a device with more memory, LoRA, or a smaller max_tokens."
    assert "memory ran out (" in full["message"]
    assert full["message"].endswith(advice)
    assert found["cells"] == [False, False, True, True]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return load_base(save_base(tmp_path_factory.mktemp("base")))


@pytest.mark.parametrize("name", ["state.safetensors", "metrics.parquet", "checkpoint.json"])
def test_a_flipped_bit_in_a_checkpoint_costs_time_only(
    tmp_path: Path, base: BaseModel, name: str
) -> None:
    job = build_job(base.spec, keep_epochs=(3,))
    whole = open_store(tmp_path / "whole", create=True)
    train(job, store=whole, base=base, rows=build_rows())
    store = open_store(tmp_path / "flipped", create=True)
    steps: list[int] = []
    for last in (4, 6):
        observers = Observers(
            on_step=lambda done, _: steps.append(done), should_stop=lambda n=last: steps[-1:] == [n]
        )
        with pytest.raises(StopRequested):
            train(job, store=store, base=base, rows=build_rows(), observers=observers)
    (newest,) = store.layout.root.glob("working/*/step-6")
    content = bytearray((newest / name).read_bytes())
    content[len(content) // 2] ^= 1
    (newest / name).write_bytes(content)

    steps.clear()
    observers = Observers(on_step=lambda done, _: steps.append(done))
    with pytest.warns(UserWarning, match="step-6: is damaged .*an older one is used"):
        train(job, store=store, base=base, rows=build_rows(), observers=observers)
    assert steps[0] == 5
    assert digests(store.layout.root) == digests(whole.layout.root)
    assert digests(whole.layout.root)


@pytest.mark.parametrize(
    ("end", "stack_runs"), [("finished", 1), ("out of memory", 2), ("stopped", 1)]
)
def test_a_run_that_has_ended_holds_no_memory(
    tmp_path: Path, base: BaseModel, end: str, stack_runs: int
) -> None:
    def fail(done: int, _all: int) -> None:
        if end == "out of memory" and done == 2:
            raise MemoryError

    # Without the collector, which comes when it likes: the next run needs the memory at once.
    optimizers: dict[int, weakref.ref[torch.optim.Optimizer]] = {}
    watch = register_optimizer_step_post_hook(
        lambda optimizer, *_: optimizers.setdefault(id(optimizer), weakref.ref(optimizer)) and None
    )
    observers = Observers(
        on_step=fail, should_stop=lambda: end == "stopped" and len(optimizers) == stack_runs
    )
    gc.disable()
    try:
        train_together(
            [
                Entrant(job=build_job(base.spec, seed=seed), rows=build_rows(), observers=observers)
                for seed in range(stack_runs)
            ],
            store=open_store(tmp_path, create=True),
            base=base,
            placement=TrainPlacement(stack_runs=stack_runs),
            on_end=lambda _job, _end: None,
        )
        assert len(optimizers) >= stack_runs
        assert not [optimizer for optimizer in optimizers.values() if optimizer() is not None]
    finally:
        gc.enable()
        watch.remove()


@pytest.mark.parametrize("lora", [None, LORA])
def test_one_bad_sample_ends_the_run_at_its_step(tmp_path: Path, lora: LoraSpec | None) -> None:
    # A token that one sample alone has, and whose vector is no number.
    model, bad_token, bad_sample = build_model(vocab_size=VOCAB_SIZE + 1), VOCAB_SIZE, 11
    with torch.no_grad():
        model.get_input_embeddings().weight[bad_token] = torch.inf
    model.save_pretrained(tmp_path / "base")
    build_tokenizer().save_pretrained(tmp_path / "base")
    base = load_base(ModelSpec(name="llama", source=Source(path=tmp_path / "base")))
    prepared = build_prepared()
    tokens = prepared.tokens.copy()
    tokens[prepared.offsets[bad_sample]] = bad_token
    bad_rows = TrainingRows([replace(prepared, tokens=tokens)])
    job = build_job(base.spec, lora=lora, batch_samples=4)
    steps = list(iter_steps(bad_rows, batch_samples=4, seed=0, epoch=1))
    (expected,) = [n for n, indices in enumerate(steps, start=1) if bad_sample in indices]
    assert expected > 1

    store = open_store(tmp_path / "store", create=True)
    with pytest.raises(DivergedError, match=rf"step {expected} \(epoch 1\) has loss nan") as caught:
        train(job, store=store, base=base, rows=bad_rows)
    assert caught.value.step == expected
    assert "Kept epochs: none. Lower the learning rate" in str(caught.value)
    (record,) = store.layout.root.glob("trajectories/*/*/record.json")
    result = store.read(record.parent).result
    assert (result["state"], result["diverged_step"]) == ("diverged", expected)
    assert not list(store.layout.root.glob("cells/*"))
    bad = read_metrics(record.with_name("metrics.parquet"))

    sound = train(job, store=store, base=base, rows=build_rows())
    assert sound.result["state"] == "finished", "the model was left as it was poisoned"
    folder = longest_outcome(store, job.trajectory.fingerprint)
    assert folder is not None
    good = read_metrics(folder / "metrics.parquet")
    assert bad[: expected - 1] == good[: expected - 1]
    assert math.isnan(bad[expected - 1].loss)
