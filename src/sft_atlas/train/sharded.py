"""Train one run over several devices: each process has a part of every weight and of its optimizer
state, and takes its share of the samples of every step.

In: a run, as any holder gets it. Out: the steps, checkpoints and cells that one device would make.
This process alone has the store and shows the model; the others follow its orders, so there is one
loop, however many devices a run has.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import final

import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from sft_atlas.data.batches import Member, TrainingRows, split_passes
from sft_atlas.errors import JobError
from sft_atlas.model.load import BaseModel
from sft_atlas.model.sharded import (
    ShardedLosses,
    blueprint,
    build_sharded,
    split_ranks,
    spread,
    whole,
)
from sft_atlas.model.stack import Weights
from sft_atlas.model.training_pass import can_pack, checkpoint_activations
from sft_atlas.study.spec import TrajectorySpec
from sft_atlas.train.checkpoint import Checkpoint
from sft_atlas.train.holder import add_gradients, prepare_live, random_seed
from sft_atlas.train.placement import TrainPlacement
from sft_atlas.train.run import Run, Step
from sft_atlas.train.sharded_team import Team
from sft_atlas.train.state import LocalState, clear_gradients


@final
@dataclass(frozen=True, kw_only=True)
class _Shares:
    """A step, divided among the processes."""

    passes: list[list[list[int]]]
    """Samples by process and pass."""
    filler: list[int]
    """Samples of a pass without weight, for a process that has fewer passes than another."""
    step: int
    num_supervised: int
    is_packed: bool


@final
@dataclass(kw_only=True, eq=False)
class _Part:
    """What one process has of the run that is held."""

    mesh: DeviceMesh
    given: dict[str, Tensor] = field(default_factory=dict)
    """Whole tensors that the first process alone has, to be spread."""
    spec: TrajectorySpec = field(init=False)
    losses: ShardedLosses = field(init=False)
    state: LocalState = field(init=False)
    rows: TrainingRows = field(init=False)

    @property
    def is_first(self) -> bool:
        return int(self.mesh.get_rank()) == 0

    def spread(self, name: str, like: Tensor) -> Tensor:
        """Return the tensor that is given under a name, spread as a weight is."""
        assert isinstance(like, DTensor), "every weight of a sharded model is spread"
        return spread(self.given.pop(name, None), like)


@final
class ShardedState:
    """A run's weights over all processes of a team."""

    def __init__(self, team: Team[_Part]) -> None:
        self._team = team

    @property
    def parameters(self) -> Weights:
        return self._team.state.state.parameters

    def clip(self) -> Tensor:
        return self._team.do(_clip)

    def move(self, rate: float) -> None:
        self._team.do(_move, rate)

    def tensors(self) -> dict[str, Tensor]:
        return self._team.do(_gather_state)

    def restore(self, checkpoint: Checkpoint) -> None:
        # Counters of steps are no weights: every process gets them as they are.
        small = {name: float(t) for name, t in checkpoint.tensors.items() if not t.dim()}
        self._team.state.given = {n: t for n, t in checkpoint.tensors.items() if n not in small}
        names = list(self._team.state.given)
        self._team.do(_restore, replace(checkpoint, tensors={}, metrics=[]), names, small)


@final
class ShardedHolder:
    """One run over several devices; in steps the live model is in the machine's memory alone."""

    capacity = 1

    def __init__(self, base: BaseModel, placement: TrainPlacement) -> None:
        self._base, self._placement = base, placement
        self._device = base.model.device
        self._is_packed = placement.pack and can_pack(base.model)
        self._team: Team[_Part] | None = None
        self._run: Run | None = None

    def begin(self, spec: TrajectorySpec) -> ShardedState:
        if self._team is not None and not self._team.is_sound:
            self.close()
        if self._team is None:
            num_devices = self._placement.devices_per_run
            self._team = Team(num_devices, self._device.type, _make_part)
        prepare_live(self._base, spec)
        model = self._base.model.cpu()
        self._team.state.given = {name: p.detach() for name, p in model.named_parameters()}
        recomputes = self._placement.activation_checkpointing
        description = blueprint(model, spec.method.lora)
        self._team.do(_open, description, spec, recomputes=recomputes)
        self._base.reset()
        return ShardedState(self._team)

    def hold(self, runs: Sequence[Run]) -> None:
        self._run = runs[0] if runs else None
        if self._run is not None:
            self._sound_team.do(_take_rows, self._run.rows)
        elif self._team is not None and not self._team.is_sound:
            self.close()

    def backward(self, steps: Sequence[Step], pass_tokens: int) -> Tensor:
        """As every holder's; `pass_tokens` are those of one process."""
        assert self._run is not None, "a run is held"
        self._base.model.cpu()
        (step,) = steps
        lengths = self._run.rows.lengths
        shares = [
            split_passes(lengths, share, pass_tokens, packed=self._is_packed)
            for share in split_ranks(lengths, step.indices, self._placement.devices_per_run)
        ]
        divided = _Shares(
            passes=shares,
            filler=[min(step.indices, key=lambda i: int(lengths[i]))],
            step=self._run.step,
            num_supervised=step.num_supervised,
            is_packed=self._is_packed,
        )
        return self._sound_team.do(_backward, divided)

    @contextmanager
    def shown(self, run: Run) -> Iterator[None]:
        weights = self._sound_team.do(_gather_weights)
        self._base.model.to(self._device)
        live = prepare_live(self._base, run.spec)
        try:
            with torch.no_grad():
                for name, parameter in live.items():
                    parameter.copy_(weights.pop(name))
            yield
        finally:
            self._base.reset()

    def close(self) -> None:
        """End the other processes and put the live model back on its device."""
        team, self._team = self._team, None
        if team is not None:
            team.close()
        self._base.model.to(self._device)

    @property
    def _sound_team(self) -> Team[_Part]:
        if self._team is None or not self._team.is_sound:
            raise JobError(
                "training over several devices: the other processes are gone; expected a run that "
                "ended with them. Run again: it goes on from its last checkpoint."
            )
        return self._team


def _make_part(mesh: DeviceMesh) -> _Part:
    return _Part(mesh=mesh)


def _open(part: _Part, description: bytes, spec: TrajectorySpec, *, recomputes: bool) -> None:
    """Make this process's part of a run that begins."""
    is_half = spec.precision == "bfloat16" and part.mesh.device_type == "cuda"
    part.spec = spec
    part.losses = build_sharded(description, part.mesh, gathers_half=is_half)
    if recomputes:
        checkpoint_activations(part.losses.model)
    weights = dict(part.losses.model.named_parameters())
    with torch.no_grad():
        for name, parameter in weights.items():
            parameter.copy_(part.spread(name, parameter))
    trained = {name: p for name, p in weights.items() if p.requires_grad}
    part.state = LocalState(spec.method, trained)


def _take_rows(part: _Part, rows: TrainingRows) -> None:
    part.rows = rows


def _backward(part: _Part, shares: _Shares) -> Tensor:
    """Add up the gradients of this process's share; returns the mean loss (1,) of all shares."""
    rank, model = int(part.mesh.get_rank()), part.losses.model
    own = shares.passes[rank]
    # For models with dropout of their own, whose masks no two processes should share.
    torch.manual_seed(random_seed(part.spec, shares.step) * len(shares.passes) + rank)
    clear_gradients(part.state.parameters)
    total = torch.zeros(1, device=model.device)
    divisors = torch.tensor([shares.num_supervised], device=model.device)
    seeds = [(part.spec.seed, shares.step)]
    # Collective operations meet only if every process makes as many passes.
    for number in range(max(map(len, shares.passes))):
        is_own = number < len(own)
        members = [(part.rows, own[number] if is_own else shares.filler)]
        summed = partial(_weighed, part.losses, members, shares.is_packed, float(is_own))
        total += add_gradients(summed, divisors, seeds, part.spec.precision)
    distributed.all_reduce(total)
    return total


def _weighed(
    losses: ShardedLosses, members: Sequence[Member], is_packed: bool, weight: float
) -> Tensor:
    found: Tensor = losses(members, packed=is_packed)
    return found * weight


def _clip(part: _Part) -> Tensor:
    return whole(part.state.clip())


def _move(part: _Part, rate: float) -> None:
    part.state.move(rate)


def _gather_weights(part: _Part) -> dict[str, Tensor]:
    return _gather(part, part.state.parameters)


def _gather_state(part: _Part) -> dict[str, Tensor]:
    return _gather(part, part.state.tensors())


def _gather(part: _Part, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return whole tensors in the first process's memory, and none in the others'."""
    gathered = {}
    for name, tensor in parts.items():
        # One after the other, so that a device holds no more than one whole tensor.
        found = whole(tensor)
        if part.is_first:
            gathered[name] = found.cpu()
    return gathered


def _restore(
    part: _Part, checkpoint: Checkpoint, names: list[str], small: dict[str, float]
) -> None:
    tensors = {name: torch.tensor(value) for name, value in small.items()}
    for name in names:
        like = part.state.parameters[name.split("/", 1)[1]]
        tensors[name] = part.spread(name, like)
    part.state.restore(replace(checkpoint, tensors=tensors))
