"""Train one job over several devices in a process that may kill itself or another of the run.

Run as a script: `shard_trainer.py BASE STORE METHOD DEVICES POINT`. A point is `first:N` (this
process dies behind step N), `other:N` (the last of the others does) or `none:0`. Prints how the run
ended as JSON: `error` with its text, and the ids of the other processes.
"""

import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path

from sft_atlas.model.load import load_base
from sft_atlas.store.store import open_store
from sft_atlas.study.job import TrainJob
from sft_atlas.study.spec import LoraSpec, ModelSpec, Source
from sft_atlas.train.loop import Observers, TrainPlacement, train
from tiny import COSINE, build_job, build_rows

LORA = LoraSpec(rank=3, alpha=4.0, dropout=0.3)
PASS_TOKENS = 40
"""So few that a step takes several passes, and not as many on each device."""


def build_sharded_job(spec: ModelSpec, method: str, *, seed: int = 0) -> TrainJob:
    """Return a job of 6 steps, `full` or `lora`; neither its rank nor its last step of 4 samples
    can be divided evenly."""
    return build_job(
        spec,
        keep_epochs=(1, 2),
        schedule=COSINE,
        lora=LORA if method == "lora" else None,
        seed=seed,
        weight_decay=0.1,
        clip_norm=0.5,
    )


def kill_other() -> None:
    """End the last of this process's children as the kernel or an administrator would."""
    child = max(multiprocessing.active_children(), key=lambda process: process.pid or 0)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)


def main(base: Path, root: Path, method: str, num_devices: int, point: str) -> None:
    kind, number = point.split(":")

    def on_step(done: int, _all: int) -> None:
        if done != int(number):
            return
        if kind == "first":
            children = [process.pid for process in multiprocessing.active_children()]
            print(json.dumps({"error": "", "others": children}), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        kill_other()

    job = build_sharded_job(ModelSpec(name="llama", source=Source(path=base)), method)
    error = ""
    try:
        train(
            job,
            store=open_store(root, create=True),
            base=load_base(job.trajectory.model),
            rows=build_rows(),
            placement=TrainPlacement(
                micro_batch_tokens=PASS_TOKENS, checkpoint_seconds=0, devices_per_run=num_devices
            ),
            observers=Observers(on_step=on_step),
        )
    except RuntimeError as ended:
        error = f"{type(ended).__name__}: {ended}"
    left = [process.pid for process in multiprocessing.active_children()]
    print(json.dumps({"error": error, "others": left}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5])
