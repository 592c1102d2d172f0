"""Train trajectories and publish their kept epochs: the only training loop, for full and LoRA
fine-tuning, alone and together.

In: jobs, their base model and their tokenised samples. Out: a cell per kept epoch and each run's
outcome. The loss of a step is the sum over its supervised tokens divided by their number, whatever
the passes. Master weights are float32 unless the Spec says otherwise; on a GPU a bfloat16 Spec
computes its matrix products in bfloat16. Samples and random numbers of a step are functions of
(seed, step), never of what ran before or runs beside: so a resumed run, a longer run and a run in
company take the same steps, and whatever an observer does between two steps changes nothing.
"""

import gc
import math
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import NamedTuple, TypeVar, final

import torch
from torch import Tensor

from sft_atlas.data.batches import TrainingRows
from sft_atlas.errors import DivergedError
from sft_atlas.model.load import BaseModel
from sft_atlas.model.stack import can_stack
from sft_atlas.store.records import Record
from sft_atlas.store.store import Store
from sft_atlas.study.job import TrainJob
from sft_atlas.study.passes import MIN_MICRO_BATCH_TOKENS
from sft_atlas.study.spec import CellSpec
from sft_atlas.train.checkpoint import CheckpointWriter
from sft_atlas.train.holder import Holder, LiveHolder, StackHolder
from sft_atlas.train.memory import is_out_of_memory as is_out_of_memory
from sft_atlas.train.memory import out_of_memory
from sft_atlas.train.metrics import StepMetrics
from sft_atlas.train.placement import Observers as Observers
from sft_atlas.train.placement import StopRequested as StopRequested
from sft_atlas.train.placement import TrainPlacement
from sft_atlas.train.publish import plain_model, publish_cell, publish_outcome, stored_weights
from sft_atlas.train.run import Run, Step, drop_checkpoints, find_finished
from sft_atlas.train.sharded import ShardedHolder

Result = TypeVar("Result")
OnEnd = Callable[[TrainJob, Record | Exception], None]


@final
@dataclass(frozen=True, kw_only=True)
class Entrant:
    """A run that is to be trained beside others."""

    job: TrainJob
    rows: TrainingRows
    observers: Observers = field(default_factory=Observers)


def train(
    job: TrainJob,
    *,
    store: Store,
    base: BaseModel,
    rows: TrainingRows,
    placement: TrainPlacement | None = None,
    observers: Observers | None = None,
) -> Record:
    """Train up to the last kept epoch, from the newest checkpoint if there is one; returns the
    outcome.

    The caller holds the job's lease. The base model is pristine again afterwards, however the run
    ended. A run whose outcome and cells are all published returns at once.

    Raises:
        DivergedError: if a step's loss or gradient is not finite; epochs kept before it stay
        published.
        OutOfMemoryError: if the device or the machine has too little memory.
        StopRequested: if an observer asked for it; a later call goes on from here.
    """
    ends: list[Record | Exception] = []
    entrant = Entrant(job=job, rows=rows, observers=observers or Observers())
    train_together(
        [entrant],
        store=store,
        base=base,
        placement=placement or TrainPlacement(),
        on_end=lambda _job, end: ends.append(end),
    )
    (end,) = ends
    if isinstance(end, Exception):
        raise end
    return end


def train_together(
    entrants: Iterable[Entrant],
    *,
    store: Store,
    base: BaseModel,
    placement: TrainPlacement,
    on_end: OnEnd,
) -> None:
    """Train runs of one base model, at most `placement.stack_runs` at a time.

    Runs enter as places get free, and each ends for itself: `on_end` is told its outcome, or what
    `train` would have raised. Where memory is too short, passes get smaller, then fewer runs train
    at a time; only a run that is alone ends by it. All of them must be alike in what a stack shares
    (`study.stacking.stack_key`). The caller holds every job's lease.
    """
    waiting = iter(entrants)
    first = next(waiting, None)
    if first is None:
        return
    devices = [base.model.device] if base.model.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        try:
            holder = _make_holder(base, first.job, placement)
            group = _Group(
                store=store,
                base=base,
                holder=holder,
                placement=placement,
                pass_tokens=placement.pass_tokens(base.model.device.type),
                on_end=on_end,
                capacity=holder.capacity,
            )
            try:
                group.train(chain([first], waiting))
            finally:
                holder.close()
        finally:
            if placement.activation_checkpointing:
                base.model.activation_checkpointing_disable()
            base.reset()


def _make_holder(base: BaseModel, job: TrainJob, placement: TrainPlacement) -> Holder:
    if placement.devices_per_run > 1:
        return ShardedHolder(base, placement)
    lora = job.trajectory.method.lora
    if placement.stack_runs > 1 and can_stack(base, lora):
        return StackHolder(base, placement)
    return LiveHolder(base, placement)


class _Taken(NamedTuple):
    """What the gradients of one run's step say."""

    step: Step
    loss: float
    norm: float
    seconds: float
    """This run's share of the time that they took."""


@final
@dataclass(kw_only=True)
class _Group:
    """The runs that train now, step by step."""

    store: Store
    base: BaseModel
    holder: Holder
    placement: TrainPlacement
    pass_tokens: int
    on_end: OnEnd
    capacity: int
    active: list[Run] = field(default_factory=list)
    num_held: int = 0
    """Runs that the holder was last given; never as many where others are active."""
    has_failed: bool = False
    """Something failed since `_let_go`."""
    sent_back: list[Entrant] = field(default_factory=list)
    """Runs that wait for memory; their checkpoints say where they go on."""

    def train(self, waiting: Iterator[Entrant]) -> None:
        try:
            while self._admit(waiting):
                self._hold()
                if self.active:
                    self._take_steps()
                    self._hold()
        finally:
            for run in self.active:
                run.writer.close()

    def _admit(self, waiting: Iterator[Entrant]) -> bool:
        """Let runs enter while there is room; returns False if nobody is there any more."""
        while len(self.active) < self.capacity:
            entrant = self.sent_back.pop(0) if self.sent_back else next(waiting, None)
            if entrant is None:
                break
            entered = _attempt(partial(self._enter, entrant))
            if isinstance(entered, Run):
                self.active.append(entered)
            elif self.active and is_out_of_memory(entered):
                self.capacity = len(self.active)
                self.sent_back.append(entrant)
            else:
                self._tell(entrant.job, entered)
        return bool(self.active)

    def _hold(self) -> None:
        """Have the active runs held, or as many of them as memory has room for."""
        while self.num_held != len(self.active):
            self.num_held = len(self.active)
            self._let_go()
            failure = _attempt(lambda: self.holder.hold(tuple(self.active)))
            if failure is not None:
                self._give_way(failure)

    def _let_go(self) -> None:
        """Free the memory of runs that failed, which an error holds: its traceback's frames hold
        it as well."""
        if self.has_failed:
            gc.collect()
            self.has_failed = False

    def _enter(self, entrant: Entrant) -> Run | Record:
        """Return a run that has steps to take, or its outcome if it has none."""
        job = entrant.job
        finished = find_finished(self.store, job)
        if finished is not None:
            if not job.keep_checkpoint:
                # It may have been killed before it had removed them.
                drop_checkpoints(self.store, job)
            return finished
        if entrant.observers.should_stop():
            raise StopRequested("stopped before its first step")
        run = Run(
            job=job,
            store=self.store,
            rows=entrant.rows,
            observers=entrant.observers,
            state=self.holder.begin(job.trajectory),
            writer=CheckpointWriter(self.store.layout.working(job.trajectory.fingerprint)),
        )
        run.resume()
        cell = run.finished_epoch() if run.step else None
        if cell is not None:
            # Killed between an epoch's checkpoint and the end of what its observer did.
            self._finish_epoch(run, cell)
        return run if run.step < run.all_steps else self._finish(run)

    def _take_steps(self) -> None:
        """Take one optimizer step of every run; those that end, end alone."""
        taken = _attempt(self._compute_gradients)
        if isinstance(taken, Exception):
            self._give_way(taken)
            return
        # Nobody looks at a run before all have moved: a look may take the gradients' memory.
        self._each(self.active, lambda run: self._move(run, taken[id(run)]))
        self._each(self.active, self._look_around)

    def _compute_gradients(self) -> dict[int, _Taken]:
        """Return what each run's gradients say, by the run's `id`."""
        started = time.perf_counter()
        steps = [run.next_step() for run in self.active]
        losses = self._backward(steps)
        norms = torch.stack([run.clip() for run in self.active])
        found = torch.stack([losses.double(), norms.double()]).tolist()
        share = (time.perf_counter() - started) / len(self.active)
        return {
            id(run): _Taken(step, loss, norm, share)
            for run, step, loss, norm in zip(self.active, steps, *found, strict=True)
        }

    def _each(self, runs: list[Run], do: Callable[[Run], Record | None]) -> None:
        """Do something with each run; those that it ends, well or not, leave."""
        for run in runs:
            end = _attempt(partial(do, run))
            if end is not None:
                self._end(run, end)

    def _backward(self, steps: list[Step]) -> Tensor:
        """Compute gradients; where memory runs out, again in smaller passes."""
        while True:
            try:
                return self.holder.backward(steps, self.pass_tokens)
            except (RuntimeError, MemoryError) as error:
                if self.pass_tokens <= MIN_MICRO_BATCH_TOKENS or not is_out_of_memory(error):
                    raise
            # Outside the handler: inside it the traceback still holds the failed pass's tensors.
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            for run in self.active:
                run.num_memory_retries += 1
            self.pass_tokens = max(self.pass_tokens // 2, MIN_MICRO_BATCH_TOKENS)

    def _give_way(self, failure: Exception) -> None:
        """Send half of the runs back if memory is too short for all; else none can go on."""
        self.has_failed = True
        if len(self.active) == 1 or not is_out_of_memory(failure):
            for run in self.active:
                self._end(run, failure)
            return
        self.capacity = len(self.active) // 2
        for run in self.active:
            run.num_memory_retries += 1
        self._each(self.active[self.capacity :], self._send_back)

    def _send_back(self, run: Run) -> None:
        """Keep a run's state on the disk until there is room for it."""
        run.save()
        run.writer.wait()
        self._leave(run)
        self.sent_back.append(Entrant(job=run.job, rows=run.rows, observers=run.observers))

    def _move(self, run: Run, taken: _Taken) -> None:
        """Take the optimizer's step."""
        started, rate, step = time.perf_counter(), run.learning_rate(), taken.step
        metrics = StepMetrics(
            step=run.step + 1,
            epoch=step.epoch,
            loss=taken.loss,
            grad_norm=taken.norm,
            learning_rate=rate,
            num_supervised_tokens=step.num_supervised,
            num_tokens=int(run.rows.lengths[step.indices].sum()),
        )
        run.metrics.append(metrics)
        if not (math.isfinite(taken.loss) and math.isfinite(taken.norm)):
            raise self._diverge(run, metrics)
        run.move(rate)
        run.train_seconds += taken.seconds + time.perf_counter() - started

    def _look_around(self, run: Run) -> Record | None:
        """Do what is due behind a step; returns the run's outcome at its end."""
        run.observers.on_step(run.step, run.all_steps)
        if run.observers.should_stop():
            run.save()
            run.writer.wait()
            raise StopRequested(f"stopped after step {run.step}")
        run.save_if_due(self.placement.checkpoint_seconds)
        cell = run.finished_epoch()
        if cell is not None:
            run.save()
            self._finish_epoch(run, cell)
        return self._finish(run) if run.step == run.all_steps else None

    def _finish_epoch(self, run: Run, cell: CellSpec) -> None:
        with self.holder.shown(run), stored_weights(self.base, cell):
            publish_cell(run.store, cell, base=self.base, step=run.step, started=run.started)
            with plain_model(self.base):
                run.observers.on_epoch(cell, self.base.model)
        run.saved_at = time.monotonic()

    def _finish(self, run: Run) -> Record:
        run.writer.wait()
        record = publish_outcome(run, base=self.base, capacity=self.capacity)
        if not run.job.keep_checkpoint:
            drop_checkpoints(self.store, run.job)
        return record

    def _diverge(self, run: Run, metrics: StepMetrics) -> DivergedError:
        publish_outcome(run, base=self.base, capacity=self.capacity, diverged_step=metrics.step)
        run.writer.wait()
        drop_checkpoints(self.store, run.job)
        kept = [epoch for epoch in run.job.keep_epochs if epoch < metrics.epoch]
        return DivergedError(
            f"trajectory {run.spec.fingerprint[:8]}: step {metrics.step} (epoch {metrics.epoch}) "
            f"has loss {metrics.loss} and gradient norm {metrics.grad_norm}; expected finite "
            f"numbers. Kept epochs: {kept or 'none'}. Lower the learning rate, or add warm-up "
            f"steps.",
            step=metrics.step,
        )

    def _end(self, run: Run, end: Record | Exception) -> None:
        self._leave(run)
        self.has_failed |= isinstance(end, Exception)
        if self.num_held > 1 and is_out_of_memory(end):
            # Beside fewer others it has more room. What it was doing may be half done: it goes on
            # from its last checkpoint.
            self.capacity = max(1, min(self.capacity, self.num_held) - 1)
            self.sent_back.append(Entrant(job=run.job, rows=run.rows, observers=run.observers))
        else:
            self._tell(run.job, end)

    def _leave(self, run: Run) -> None:
        run.writer.close()
        # A list of its own: others may be going through the one before.
        self.active = [other for other in self.active if other is not run]

    def _tell(self, job: TrainJob, end: Record | Exception) -> None:
        if isinstance(end, Exception) and is_out_of_memory(end):
            end = out_of_memory(end, where=f"trajectory {job.trajectory.fingerprint[:8]}")
        self.on_end(job, end)


def _attempt(do: Callable[[], Result]) -> Result | Exception:
    """Do something whose failure ends one run, and not those beside it.

    Whoever keeps an error keeps the frames that it passed; emptied, they keep no tensors.
    """
    try:
        return do()
    except Exception as error:  # noqa: BLE001 - it is told to the caller of the loop
        traceback.clear_frames(error.__traceback__)
        return error
