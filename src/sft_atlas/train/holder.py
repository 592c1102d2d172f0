"""Hold the weights of the runs that train: one run in the live model, or several in a stack.

In: runs that come and go, and the samples of a step for each. Out: gradients in the runs' own
parameters, and on demand the live model with one run's weights. A holder knows no optimizer, no
schedule and no checkpoint.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import zip_longest
from typing import Final, Protocol, final

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sft_atlas.data.batches import PackedBatch, split_passes
from sft_atlas.model.dropout import dropout_seeds
from sft_atlas.model.load import BaseModel
from sft_atlas.model.lora import add_lora
from sft_atlas.model.score import computes_in
from sft_atlas.model.stack import Stack, Weights
from sft_atlas.model.training_pass import (
    batch_losses,
    can_pack,
    checkpoint_activations,
    lay_out,
)
from sft_atlas.study.spec import Precision, TrajectorySpec
from sft_atlas.train.placement import TrainPlacement
from sft_atlas.train.run import Run, Step
from sft_atlas.train.state import LocalState, State, clear_gradients

_SEED_STRIDE: Final = 1_000_003
"""Keeps the random streams of two seeds apart for a million steps."""


class Holder(Protocol):
    """Where the weights of training runs are."""

    @property
    def capacity(self) -> int:
        """Runs that can be held together."""

    def begin(self, spec: TrajectorySpec) -> State:
        """Return the state of a new run, its weights as its seed makes them."""

    def hold(self, runs: Sequence[Run]) -> None:
        """Hold these runs, in this order, in place of those held before."""

    def backward(self, steps: Sequence[Step], pass_tokens: int) -> Tensor:
        """Put the gradients of each run's mean loss into its parameters; returns the losses
        (runs,), nats per token."""

    def shown(self, run: Run) -> AbstractContextManager[None]:
        """Lend the live model with one run's weights, its adapter in place, and let it go on."""

    def close(self) -> None:
        """Let go of all that is held beside the live model."""


@final
class LiveHolder:
    """One run, whose weights are those of the live model."""

    capacity = 1

    def __init__(self, base: BaseModel, placement: TrainPlacement) -> None:
        self._base, self._placement = base, placement
        self._packs = placement.pack and can_pack(base.model)
        self._run: Run | None = None

    def begin(self, spec: TrajectorySpec) -> State:
        weights = prepare_live(self._base, spec)
        if self._placement.activation_checkpointing:
            checkpoint_activations(self._base.model)
        return LocalState(spec.method, weights)

    def hold(self, runs: Sequence[Run]) -> None:
        self._run = runs[0] if runs else None

    def backward(self, steps: Sequence[Step], pass_tokens: int) -> Tensor:
        assert self._run is not None, "a run is held"
        run, model = self._run, self._base.model
        clear_gradients(run.state.parameters)
        # For models with dropout of their own.
        torch.manual_seed(random_seed(run.spec, run.step))
        with compiled(model, self._placement.compile):
            return accumulate(model, [run], steps, pass_tokens, packed=self._packs)

    @contextmanager
    def shown(self, run: Run) -> Iterator[None]:
        clear_gradients(run.state.parameters)
        yield

    def close(self) -> None:
        self._run = None


@final
class StackHolder:
    """Runs of one base model side by side; the live model is free between steps."""

    def __init__(self, base: BaseModel, placement: TrainPlacement) -> None:
        self._base, self._placement = base, placement
        self.capacity = placement.stack_runs
        self._stack: Stack | None = None
        self._runs: Sequence[Run] = ()

    def begin(self, spec: TrajectorySpec) -> State:
        weights = prepare_live(self._base, spec)
        if self._stack is None:
            self._stack = Stack(self._base.model)
            if self._placement.activation_checkpointing:
                checkpoint_activations(self._stack.model)
        own = {name: nn.Parameter(p.detach().clone()) for name, p in weights.items()}
        self._base.reset()
        return LocalState(spec.method, own)

    def hold(self, runs: Sequence[Run]) -> None:
        assert self._stack is not None, "a run has begun"
        self._runs = runs
        self._stack.hold([run.state.parameters for run in runs])

    def backward(self, steps: Sequence[Step], pass_tokens: int) -> Tensor:
        assert self._stack is not None, "a run has begun"
        self._stack.clear_gradients()
        stack, room = self._stack, pass_tokens // len(steps)
        with compiled(stack.model, self._placement.compile):
            losses = accumulate(stack.model, self._runs, steps, room, packed=True, stack=stack)
        self._stack.share_gradients()
        return losses

    @contextmanager
    def shown(self, run: Run) -> Iterator[None]:
        assert self._stack is not None, "a run has begun"
        self._stack.clear_gradients()
        live = prepare_live(self._base, run.spec)
        try:
            with torch.no_grad():
                for name, parameter in live.items():
                    parameter.copy_(run.state.parameters[name])
            yield
        finally:
            self._base.reset()

    def close(self) -> None:
        self._stack, self._runs = None, ()


def prepare_live(base: BaseModel, spec: TrajectorySpec) -> Weights:
    """Make the live model what a run begins with, ready to train; returns what trains of it."""
    base.reset()
    if spec.method.lora is not None:
        add_lora(base.model, spec.method.lora, seed=spec.seed)
    if spec.master_precision == "bfloat16":
        # Weights alone: what positions are computed from stays exact.
        for parameter in base.model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
    base.model.train()
    return {name: p for name, p in base.model.named_parameters() if p.requires_grad}


@contextmanager
def compiled(model: PreTrainedModel, is_wanted: bool) -> Iterator[None]:
    """Let training passes inside run compiled code, for lengths of any size; scores never do."""
    body = model.base_model
    if not is_wanted:
        yield
        return
    body.compile(dynamic=True)
    try:
        yield
    finally:
        body._compiled_call_impl = None


def accumulate(
    model: PreTrainedModel,
    runs: Sequence[Run],
    steps: Sequence[Step],
    pass_tokens: int,
    *,
    packed: bool,
    stack: Stack | None = None,
) -> Tensor:
    """Add up the gradients of one step of each run, pass by pass; returns the mean losses (runs,).

    `pass_tokens` are one run's.
    """
    passes = [
        split_passes(run.rows.lengths, step.indices, pass_tokens, packed=packed)
        for run, step in zip(runs, steps, strict=True)
    ]
    divisors = torch.tensor([step.num_supervised for step in steps], device=model.device)
    seeds = [(run.spec.seed, run.step) for run in runs]
    total = torch.zeros(len(runs), device=model.device)
    for chosen in zip_longest(*passes, fillvalue=()):
        members = [(run.rows, own) for run, own in zip(runs, chosen, strict=True)]
        batch = lay_out(model, members, packed=packed)
        if stack is not None and isinstance(batch, PackedBatch):
            stack.set_lengths(batch.num_tokens)
        summed = partial(batch_losses, model, batch)
        total += add_gradients(summed, divisors, seeds, runs[0].spec.precision)
    return total


def add_gradients(
    summed_losses: Callable[[], Tensor],
    divisors: Tensor,
    seed_steps: Sequence[tuple[int, int]],
    precision: Precision,
) -> Tensor:
    """Take one pass forward and back: gradients are added to those of the weights.

    `summed_losses` computes the losses (runs,) summed over tokens, `divisors` make means of a step
    of them; returns what they are of each run's mean. `seed_steps` is each run's (seed, step).
    """
    with dropout_seeds(seed_steps):
        with computes_in(precision, divisors.device):
            losses = summed_losses() / divisors
        torch.autograd.backward(losses.sum())
    return losses.detach()


def random_seed(spec: TrajectorySpec, step: int) -> int:
    """Return the seed of what a model itself draws at a step."""
    return spec.seed * _SEED_STRIDE + step
