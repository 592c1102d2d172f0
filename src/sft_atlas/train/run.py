"""Keep one trajectory's state while it trains: weights, optimizer, schedule, order, checkpoints.

Nothing here knows which model computes its gradients, alone or beside other runs.
"""

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, final

from torch import Tensor

from sft_atlas.data.batches import TrainingRows, iter_steps, num_steps
from sft_atlas.store.outcomes import outcome_folder
from sft_atlas.store.records import Record
from sft_atlas.store.store import Store
from sft_atlas.study.job import TrainJob
from sft_atlas.study.spec import CellSpec, TrajectorySpec
from sft_atlas.train.checkpoint import (
    Checkpoint,
    CheckpointWriter,
    read_checkpoint,
    remove_leftovers,
)
from sft_atlas.train.metrics import StepMetrics
from sft_atlas.train.placement import Observers
from sft_atlas.train.schedule import learning_rate_factor
from sft_atlas.train.state import State


@final
class Step(NamedTuple):
    """The samples of one optimizer step."""

    epoch: int
    """Counted from 1."""
    indices: list[int]
    num_supervised: int
    """The divisor of its loss."""


@final
@dataclass(kw_only=True)
class Run:
    """One trajectory on its way."""

    job: TrainJob
    store: Store
    rows: TrainingRows
    observers: Observers
    state: State
    writer: CheckpointWriter
    started: float = field(default_factory=time.time)
    metrics: list[StepMetrics] = field(default_factory=list)
    step: int = 0
    """Optimizer steps done."""
    saved_step: int = 0
    saved_at: float = field(default_factory=time.monotonic)
    train_seconds: float = 0.0
    """Time in optimizer steps, this run's share of those that it took beside others."""
    num_timed_steps: int = 0
    """Steps of this process, to which `train_seconds` belong."""
    num_memory_retries: int = 0
    """Times that a step was taken again, in smaller passes or beside fewer runs, because memory ran
    out."""
    _steps: Iterator[Step] | None = None
    _next: Step | None = None

    @property
    def spec(self) -> TrajectorySpec:
        return self.job.trajectory

    @property
    def epoch_steps(self) -> int:
        return num_steps(len(self.rows), self.spec.method.batch_samples)

    @property
    def all_steps(self) -> int:
        return self.epoch_steps * self.job.keep_epochs[-1]

    def next_step(self) -> Step:
        """Return the samples of the next step, the same until `move`; a run with all its steps
        done has none."""
        if self._steps is None:
            self._steps = _iter_steps(self.job, self.rows, first=self.step)
        if self._next is None:
            self._next = next(self._steps)
        return self._next

    def finished_epoch(self) -> CellSpec | None:
        """Return the cell that the weights are now, if they are to be kept."""
        epoch, behind = divmod(self.step, self.epoch_steps)
        if behind or epoch not in self.job.keep_epochs:
            return None
        return CellSpec(model=self.spec.model, trajectory=self.spec, epoch=epoch)

    def learning_rate(self) -> float:
        """Return the rate of the next step."""
        horizon = self.spec.horizon_epochs
        total_steps = None if horizon is None else horizon * self.epoch_steps
        factor = learning_rate_factor(self.spec.schedule, self.step, total_steps=total_steps)
        return self.spec.method.learning_rate * factor

    def clip(self) -> Tensor:
        """Scale the gradients down to the method's norm; returns their norm before."""
        return self.state.clip()

    def move(self, rate: float) -> None:
        """Take the optimizer's step at this learning rate."""
        self.state.move(rate)
        self._next = None
        self.step += 1
        self.num_timed_steps += 1

    def resume(self) -> None:
        """Go on from the newest checkpoint that is of use, if there is one."""
        folder = self.store.layout.working(self.spec.fingerprint)
        remove_leftovers(folder)
        has = self.store.has
        missing = [c for c in self.job.cells if not has(self.store.layout.cell(c.fingerprint))]
        # A checkpoint beyond an epoch that is still to be published cannot go back to it.
        first_wanted = missing[0].epoch if missing else self.job.keep_epochs[-1]
        checkpoint = read_checkpoint(folder, max_step=first_wanted * self.epoch_steps)
        if checkpoint is not None:
            self.state.restore(checkpoint)
            self.step, self.metrics = checkpoint.step, checkpoint.metrics
            self.saved_step = checkpoint.step

    def save(self) -> None:
        """Have the present state written, while training goes on."""
        if self.saved_step == self.step:
            return
        tensors = self.state.tensors()
        self.writer.write(Checkpoint(step=self.step, tensors=tensors, metrics=list(self.metrics)))
        self.saved_step, self.saved_at = self.step, time.monotonic()

    def save_if_due(self, checkpoint_seconds: float) -> None:
        # Large optimizer states take minutes to write: at most a twentieth of the time is for that.
        if time.monotonic() - self.saved_at >= max(checkpoint_seconds, 20 * self.writer.seconds):
            self.save()


def find_finished(store: Store, job: TrainJob) -> Record | None:
    """Return the outcome of a run that has left all that it is to leave, or None."""
    folder = outcome_folder(store, job.trajectory.fingerprint, last_epoch=job.keep_epochs[-1])
    record = store.find(folder)
    is_complete = all(store.has(store.layout.cell(cell.fingerprint)) for cell in job.cells)
    if record is None or record.result["state"] != "finished":
        if record is not None:
            # It diverged and is tried again; the new outcome takes its place.
            store.set_aside(folder)
        return None
    return record if is_complete else None


def drop_checkpoints(store: Store, job: TrainJob) -> None:
    """Remove the resumable state: a trajectory that has ended needs none."""
    shutil.rmtree(store.layout.working(job.trajectory.fingerprint), ignore_errors=True)


def _iter_steps(job: TrainJob, rows: TrainingRows, *, first: int) -> Iterator[Step]:
    """Yield the steps that are still to be taken, in order.

    It must not know its run: a circle would keep the weights of a run that has ended.
    """
    spec, batch_samples = job.trajectory, job.trajectory.method.batch_samples
    epoch_steps = num_steps(len(rows), batch_samples)
    for epoch in range(first // epoch_steps + 1, job.keep_epochs[-1] + 1):
        steps = iter_steps(rows, batch_samples=batch_samples, seed=spec.seed, epoch=epoch)
        for number, indices in enumerate(steps, start=(epoch - 1) * epoch_steps):
            if number >= first:
                yield Step(epoch, indices, rows.num_supervised(indices))
