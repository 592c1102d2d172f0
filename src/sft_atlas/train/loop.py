"""Train one trajectory and publish its kept epochs: the only training loop, for full and LoRA
fine-tuning.

In: a job, its base model and its tokenised samples. Out: a cell per kept epoch and the run's
outcome. The loss of a step is the sum over its supervised tokens divided by their number, whatever
the micro-batches. Master weights are float32; on a GPU a bfloat16 Spec computes its matrix products
in bfloat16. Samples and random numbers of a step are functions of (seed, step), never of what ran
before: so a resumed run and a longer run take the same steps, and whatever an observer does between
two steps changes nothing.
"""

import contextlib
import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, final

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from sft_atlas.data.batches import IGNORED, Batch, TrainingRows, collate, iter_steps, num_steps
from sft_atlas.errors import DivergedError, OutOfMemoryError
from sft_atlas.model.load import BaseModel
from sft_atlas.model.lora import add_lora
from sft_atlas.model.score import computes_in, logits_at
from sft_atlas.store.outcomes import outcome_folder
from sft_atlas.store.records import Record
from sft_atlas.store.store import Store
from sft_atlas.study.job import TrainJob
from sft_atlas.study.passes import MICRO_BATCH_TOKENS
from sft_atlas.study.spec import CellSpec, TrajectorySpec
from sft_atlas.train.checkpoint import (
    Checkpoint,
    read_checkpoint,
    remove_leftovers,
    restore,
    state_tensors,
    write_checkpoint,
)
from sft_atlas.train.metrics import StepMetrics
from sft_atlas.train.publish import plain_model, publish_cell, publish_outcome, stored_weights
from sft_atlas.train.schedule import learning_rate_factor

_SEED_STRIDE: Final = 1_000_003
"""Keeps the random streams of two seeds apart for a million steps."""


class StopRequested(Exception):
    """Say that a run stopped because it was asked to, with its checkpoint written."""


@final
@dataclass(frozen=True, kw_only=True)
class TrainPlacement:
    """What a training process may use; changes no result beyond rounding."""

    micro_batch_tokens: int = MICRO_BATCH_TOKENS["cpu"]
    """Padded tokens in one forward and backward pass; a longer single sample is a pass of its
    own."""
    checkpoint_seconds: float = 60.0
    """A killed run loses at most about this much training."""


@final
@dataclass(frozen=True, kw_only=True)
class Observers:
    """What a caller does while a run goes on."""

    on_epoch: Callable[[CellSpec, PreTrainedModel], None] = lambda _cell, _model: None
    """Called after each kept epoch is published, with the live model holding the stored values, an
    adapter merged, in evaluation mode. After a kill it may be called again for the same cell."""
    on_step: Callable[[int, int], None] = lambda _done, _all: None
    """Called after each optimizer step with the number of steps done and of all."""
    should_stop: Callable[[], bool] = lambda: False
    """Asked after each step; True writes a checkpoint and raises StopRequested."""


@dataclass(kw_only=True)
class _Run:
    job: TrainJob
    store: Store
    base: BaseModel
    rows: TrainingRows
    placement: TrainPlacement
    observers: Observers
    parameters: dict[str, nn.Parameter]
    optimizer: torch.optim.AdamW
    started: float
    metrics: list[StepMetrics] = field(default_factory=list)
    step: int = 0
    """Optimizer steps done."""
    saved_step: int = 0
    saved_at: float = field(default_factory=time.monotonic)
    saving_seconds: float = 0.0
    """How long the last checkpoint took."""

    @property
    def spec(self) -> TrajectorySpec:
        return self.job.trajectory

    @property
    def epoch_steps(self) -> int:
        return num_steps(len(self.rows), self.spec.method.batch_samples)

    @property
    def all_steps(self) -> int:
        return self.epoch_steps * self.job.keep_epochs[-1]


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
    finished = _find_finished(job, store)
    if finished is not None:
        return finished
    devices = [base.model.device] if base.model.device.type == "cuda" else []
    with _out_of_memory_is_named(job), torch.random.fork_rng(devices):
        try:
            return _train(_open_run(job, store, base, rows, placement, observers))
        finally:
            base.reset()


def _find_finished(job: TrainJob, store: Store) -> Record | None:
    folder = outcome_folder(store, job.trajectory.fingerprint, last_epoch=job.keep_epochs[-1])
    record = store.find(folder)
    is_complete = all(store.has(store.layout.cell(cell.fingerprint)) for cell in job.cells)
    if record is None or record.result["state"] != "finished":
        if record is not None:
            store.set_aside(
                folder
            )  # it diverged and is tried again; the new outcome takes its place
        return None
    return record if is_complete else None


def _open_run(
    job: TrainJob,
    store: Store,
    base: BaseModel,
    rows: TrainingRows,
    placement: TrainPlacement | None,
    observers: Observers | None,
) -> _Run:
    started = time.time()
    method = job.trajectory.method
    base.reset()
    if method.lora is not None:
        add_lora(base.model, method.lora, seed=job.trajectory.seed)
    base.model.train()
    parameters = {name: p for name, p in base.model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        parameters.values(),
        lr=method.learning_rate,
        betas=(method.beta1, method.beta2),
        eps=method.epsilon,
        weight_decay=method.weight_decay,
        # One kernel for all weights: measured 4x faster than the default on small models, and
        # element by element, so nothing depends on how the work is split.
        fused=True,
    )
    run = _Run(
        job=job,
        store=store,
        base=base,
        rows=rows,
        placement=placement or TrainPlacement(),
        observers=observers or Observers(),
        parameters=parameters,
        optimizer=optimizer,
        started=started,
    )
    _resume(run)
    return run


def _resume(run: _Run) -> None:
    folder = run.store.layout.working(run.spec.fingerprint)
    remove_leftovers(folder)
    missing = [c for c in run.job.cells if not run.store.has(run.store.layout.cell(c.fingerprint))]
    # A checkpoint beyond an epoch that is still to be published cannot go back to it.
    first_wanted = missing[0].epoch if missing else run.job.keep_epochs[-1]
    checkpoint = read_checkpoint(folder, max_step=first_wanted * run.epoch_steps)
    if checkpoint is not None:
        restore(checkpoint, parameters=run.parameters, optimizer=run.optimizer)
        run.step, run.metrics = checkpoint.step, checkpoint.metrics
        run.saved_step = checkpoint.step


def _train(run: _Run) -> Record:
    if run.step and run.step % run.epoch_steps == 0:
        # Killed between an epoch's checkpoint and the end of what its observer did.
        _finish_epoch(run, run.step // run.epoch_steps)
    while run.step < run.all_steps:
        epoch = run.step // run.epoch_steps + 1
        method = run.spec.method
        steps = iter_steps(
            run.rows, batch_samples=method.batch_samples, seed=run.spec.seed, epoch=epoch
        )
        for number, indices in enumerate(steps, start=(epoch - 1) * run.epoch_steps):
            if number >= run.step:
                _take_step(run, epoch, indices)
                _look_around(run)
        if epoch in run.job.keep_epochs:
            _save(run)
            _finish_epoch(run, epoch)
    return _finish(run)


def _take_step(run: _Run, epoch: int, indices: list[int]) -> None:
    method, model = run.spec.method, run.base.model
    horizon = run.spec.horizon_epochs
    factor = learning_rate_factor(
        run.spec.schedule,
        run.step,
        total_steps=None if horizon is None else horizon * run.epoch_steps,
    )
    run.optimizer.param_groups[0]["lr"] = method.learning_rate * factor
    torch.manual_seed(run.spec.seed * _SEED_STRIDE + run.step)
    num_supervised = run.rows.num_supervised(indices)
    run.optimizer.zero_grad(set_to_none=True)
    loss = torch.zeros((), device=model.device)
    for chosen in _micro_batches(run, indices):
        part = _summed_loss(run, chosen) / num_supervised
        torch.autograd.backward(part)
        loss += part.detach()
    clip_norm = math.inf if method.clip_norm is None else method.clip_norm
    norm = nn.utils.clip_grad_norm_(run.parameters.values(), clip_norm)
    metrics = StepMetrics(
        step=run.step + 1,
        epoch=epoch,
        loss=loss.item(),
        grad_norm=norm.item(),
        learning_rate=method.learning_rate * factor,
        num_supervised_tokens=num_supervised,
        num_tokens=int(run.rows.lengths[indices].sum()),
    )
    run.metrics.append(metrics)
    if not (math.isfinite(metrics.loss) and math.isfinite(metrics.grad_norm)):
        _diverge(run, metrics)
    run.optimizer.step()
    run.step += 1


def _summed_loss(run: _Run, indices: list[int]) -> Tensor:
    """Return the cross-entropy summed over the supervised tokens of some samples, nats."""
    model = run.base.model
    with computes_in(run.spec.precision, model.device):
        logits, targets, _ = supervised_logits(model, collate(run.rows, indices))
    return functional.cross_entropy(logits, targets, reduction="sum")


def supervised_logits(model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits (tokens, vocab), targets and lines of the batch, one per supervised token.

    Token t is predicted at position t - 1. Padding stands right of every token, where causal
    attention does not look, so no mask is needed.
    """
    lines, columns = torch.nonzero(batch.labels[:, 1:] != IGNORED, as_tuple=True)
    targets = batch.labels[lines, columns + 1]
    device = model.device
    logits = logits_at(
        model,
        lines.to(device),
        columns.to(device),
        input_ids=batch.input_ids.to(device),
        use_cache=False,
    )
    return logits, targets.to(device), lines


def _micro_batches(run: _Run, indices: list[int]) -> Iterator[list[int]]:
    """Split a step so that no pass holds more padded tokens than allowed; most steps are one
    pass."""
    limit = run.placement.micro_batch_tokens
    lengths = run.rows.lengths
    if len(indices) * max(lengths[indices]) <= limit:
        yield indices
        return
    chosen: list[int] = []
    for index in sorted(indices, key=lambda i: -int(lengths[i])):
        if chosen and (len(chosen) + 1) * lengths[chosen[0]] > limit:
            yield chosen
            chosen = []
        chosen.append(index)
    yield chosen


def _look_around(run: _Run) -> None:
    run.observers.on_step(run.step, run.all_steps)
    if run.observers.should_stop():
        _save(run)
        raise StopRequested(f"stopped after step {run.step}")
    # Large optimizer states take minutes to write: at most a twentieth of the time goes into that.
    pause = max(run.placement.checkpoint_seconds, 20 * run.saving_seconds)
    if time.monotonic() - run.saved_at >= pause:
        _save(run)


def _save(run: _Run) -> None:
    if run.saved_step == run.step:
        return
    started = time.monotonic()
    tensors = state_tensors(run.parameters, run.optimizer)
    checkpoint = Checkpoint(step=run.step, tensors=tensors, metrics=run.metrics)
    write_checkpoint(run.store.layout.working(run.spec.fingerprint), checkpoint)
    run.saved_step, run.saved_at = run.step, time.monotonic()
    run.saving_seconds = run.saved_at - started


def _finish_epoch(run: _Run, epoch: int) -> None:
    if epoch not in run.job.keep_epochs:
        return
    cell = CellSpec(model=run.spec.model, trajectory=run.spec, epoch=epoch)
    run.optimizer.zero_grad(set_to_none=True)
    with stored_weights(run.base, cell):
        publish_cell(run.store, cell, base=run.base, step=run.step, started=run.started)
        with plain_model(run.base):
            run.observers.on_epoch(cell, run.base.model)
    run.saved_at = time.monotonic()


def _finish(run: _Run) -> Record:
    record = publish_outcome(
        run.store, run.job, base=run.base, metrics=run.metrics, started=run.started
    )
    if not run.job.keep_checkpoint:
        shutil.rmtree(run.store.layout.working(run.spec.fingerprint), ignore_errors=True)
    return record


def _diverge(run: _Run, metrics: StepMetrics) -> None:
    publish_outcome(
        run.store,
        run.job,
        base=run.base,
        metrics=run.metrics,
        started=run.started,
        diverged_step=metrics.step,
    )
    shutil.rmtree(run.store.layout.working(run.spec.fingerprint), ignore_errors=True)
    kept = [epoch for epoch in run.job.keep_epochs if epoch < metrics.epoch]
    raise DivergedError(
        f"trajectory {run.spec.fingerprint[:8]}: step {metrics.step} (epoch {metrics.epoch}) has "
        f"loss {metrics.loss} and gradient norm {metrics.grad_norm}; expected finite numbers. "
        f"Kept epochs: {kept or 'none'}. Lower the learning rate, or add warm-up steps.",
        step=metrics.step,
    )


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether the machine or the device had too little memory, in any of torch's ways."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    # The CPU's allocator has no error type of its own.
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


@contextlib.contextmanager
def _out_of_memory_is_named(job: TrainJob) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"trajectory {job.trajectory.fingerprint[:8]}: memory ran out ({error}). Use a "
            f"device with more memory, LoRA, or a smaller max_tokens."
        ) from error
