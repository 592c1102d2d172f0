"""Train some runs in a fresh process; print the memory that was predicted and what it took.

Arguments: a folder for the model and the store, and JSON with the settings of `main`.
"""

import json
import sys
import tempfile
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from memory_watch import peak_memory
from sft_atlas.data.batches import TrainingRows
from sft_atlas.data.prepared import PreparedRows
from sft_atlas.model.load import BaseModel, load_base
from sft_atlas.model.memory import training_memory
from sft_atlas.store.records import Record
from sft_atlas.store.store import Store, open_store
from sft_atlas.study.job import TrainJob
from sft_atlas.study.spec import LoraSpec, ModelSpec, Source
from sft_atlas.train import checkpoint
from sft_atlas.train.checkpoint import write_checkpoint
from sft_atlas.train.loop import Entrant, train_together
from sft_atlas.train.placement import Observers, TrainPlacement
from tiny import build_job, save_base


def main(
    folder: Path,
    *,
    is_lora: bool,
    num_runs: int,
    length: int,
    batch_samples: int,
    pass_tokens: int,
    num_steps: int = 2,
) -> dict[str, int]:
    """Train a few steps; returns bytes that were predicted, by `peak`'s arithmetic without and with
    the heap, and that were measured, and how many runs trained together.
    """
    spec = ModelSpec(name="m", source=Source(path=folder / "model"))
    store = open_store(folder / "store", create=True)
    lora = LoraSpec(rank=8, alpha=16.0) if is_lora else None
    jobs = [
        build_job(spec, lora=lora, seed=seed, keep_epochs=(1,), batch_samples=batch_samples)
        for seed in range(num_runs)
    ]
    rows = _rows(num_steps * batch_samples, length)
    placement = TrainPlacement(
        micro_batch_tokens=pass_tokens, stack_runs=num_runs, checkpoint_seconds=0.0
    )
    with peak_memory("RssAnon") as rise:
        base = load_base(spec)
        memory = training_memory(base, lora)
        records = _train(base, jobs, rows, store, placement)
    step_tokens = batch_samples * length * num_runs
    held, taken = (
        form.peak(
            num_runs,
            pass_tokens=min(pass_tokens, step_tokens),
            longest=length,
            num_passes=-(-step_tokens // pass_tokens),
        )
        for form in (replace(memory, heap_factor=1.0), memory)
    )
    return {
        "predicted": held,
        "predicted_with_heap": taken,
        "measured": rise[0],
        "num_together": records[0].provenance["stack_runs"],
    }


def _train(
    base: BaseModel,
    jobs: list[TrainJob],
    rows: TrainingRows,
    store: Store,
    placement: TrainPlacement,
) -> list[Record]:
    """Train on a slow disk: the checkpoints of the first step are written until the second is
    taken.
    """
    ends: list[Record | Exception] = []
    is_moved = threading.Event()

    def on_step(done: int, _total: int) -> None:
        if done == 2:
            is_moved.set()

    def write(folder: Path, state: checkpoint.Checkpoint) -> None:
        assert is_moved.wait(600)
        write_checkpoint(folder, state)

    checkpoint.write_checkpoint = write
    observers = Observers(on_step=on_step)
    train_together(
        [Entrant(job=job, rows=rows, observers=observers) for job in jobs],
        store=store,
        base=base,
        placement=placement,
        on_end=lambda _job, end: ends.append(end),
    )
    for end in ends:
        if isinstance(end, Exception):
            raise end
    return [end for end in ends if isinstance(end, Record)]


def _rows(num_samples: int, length: int) -> TrainingRows:
    numbers = np.arange(num_samples)
    part = PreparedRows(
        tokens=np.random.default_rng(0).integers(2, 64, num_samples * length, dtype=np.int32),
        offsets=np.arange(num_samples + 1, dtype=np.int64) * length,
        prompt_lengths=np.full(num_samples, length // 2, dtype=np.int32),
        rows=numbers,
        positions=numbers,
        result={},
    )
    return TrainingRows([part])


def warm_up() -> None:
    """Train a tiny model, so that libraries have allocated what they keep."""
    with tempfile.TemporaryDirectory() as folder:
        spec = save_base(Path(folder) / "model")
        store = open_store(Path(folder) / "store", create=True)
        for lora in (None, LoraSpec(rank=2, alpha=4.0)):
            jobs = [build_job(spec, lora=lora, seed=seed, keep_epochs=(1,)) for seed in range(2)]
            base = load_base(spec)
            training_memory(base, lora)
            _train(base, jobs, _rows(16, 8), store, TrainPlacement(stack_runs=2))


if __name__ == "__main__":
    torch.set_num_threads(1)
    warm_up()
    print(json.dumps(main(Path(sys.argv[1]), **json.loads(sys.argv[2]))))
