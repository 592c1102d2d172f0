"""Hold several runs of one base model in one model whose layers compute them side by side.

In: each run's trainable weights by name. Out: a model whose batch axis is the run axis, to be given
to the training pass. A run's weights stay its own `nn.Parameter`s: they become views into the
stacked tensors, and so do their gradients. Runs come and go by `hold`, which copies; everything
that a run has beside its weights (optimizer, schedule, order) never notices.

Layers without twins here, or an architecture whose code mixes its batch, cannot be stacked;
`can_stack` tries each kind of model out, once.
"""

import copy
from collections.abc import Sequence
from typing import Any, Final, final

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sft_atlas.data.batches import Member, TrainingRows, pack
from sft_atlas.data.prepared import PreparedRows
from sft_atlas.identity import canonical_json
from sft_atlas.model.load import BaseModel
from sft_atlas.model.lora import add_lora
from sft_atlas.model.lora_linear import LoraLinear
from sft_atlas.model.stacked_layers import (
    OWN_WEIGHTS,
    Lines,
    SharedLinear,
    StackedConv1D,
    StackedEmbedding,
    StackedLayerNorm,
    StackedLinear,
    StackedLora,
    StackedNorm,
)
from sft_atlas.model.training_pass import batch_losses, can_pack, lay_out
from sft_atlas.study.spec import LoraSpec

_TRIED: dict[tuple[Any, ...], bool] = {}

Weights = dict[str, nn.Parameter]
"""Trainable weights of a run, by the names that they have in the model."""

_TWINS: Final[dict[type[nn.Module], Any]] = {
    nn.Linear: StackedLinear,
    nn.Embedding: StackedEmbedding,
    nn.LayerNorm: StackedLayerNorm,
    Conv1D: StackedConv1D,
    LoraLinear: StackedLora,
}


@final
class Stack:
    """A model whose line k computes with the weights of run k."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Take a live model's structure; what is frozen in it is shared, what trains is not.

        Raises:
            NotImplementedError: if a layer with trainable weights has no twin.
        """
        names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
        # Shared frozen weights keep their storage; the live model may come to train them later.
        frozen = {
            id(p): nn.Parameter(p.detach(), requires_grad=False)
            for p in model.parameters()
            if not p.requires_grad
        }
        kept = {id(p): p for p in model.parameters() if p.requires_grad}
        self._lines = Lines()
        self._places: dict[str, list[tuple[nn.Module, str]]] = {}
        self._stacked: dict[str, nn.Parameter] = {}
        self._runs: Sequence[Weights] = ()
        self.model: PreTrainedModel = copy.deepcopy(model, {**frozen, **kept})
        for name, layer in list(self.model.named_modules()):
            if _is_whole(layer, self.model, name):
                self._replace(name, layer, names)

    def hold(self, runs: Sequence[Weights]) -> None:
        """Take the weights of these runs, in this order, in place of those held before.

        Nothing is kept of those before, their gradients neither. Where memory runs out on the way,
        every run still has its weights.
        """
        self.clear_gradients()
        self._runs = runs
        for name, places in self._places.items():
            # One tensor after another, so that never two copies of all weights are in memory.
            stacked = None
            if runs:
                stacked = nn.Parameter(torch.stack([run[name].detach() for run in runs]))
                self._stacked[name] = stacked
                for number, run in enumerate(runs):
                    run[name].data = stacked.detach()[number]
            else:
                self._stacked.pop(name, None)
            for twin, attribute in places:
                setattr(twin, attribute, stacked)

    def set_lengths(self, lengths: Sequence[int]) -> None:
        """Say how many tokens each run has in the next pass."""
        self._lines.lengths = tuple(lengths)

    def clear_gradients(self) -> None:
        for stacked in self._stacked.values():
            stacked.grad = None
        for run in self._runs:
            for parameter in run.values():
                parameter.grad = None

    def share_gradients(self) -> None:
        """Give each run's weights their gradients, as views."""
        for name, stacked in self._stacked.items():
            if stacked.grad is not None:
                for number, run in enumerate(self._runs):
                    run[name].grad = stacked.grad[number]

    def _replace(self, name: str, layer: nn.Module, names: dict[int, str]) -> None:
        own = {
            key: names[id(p)]
            for key, p in layer.named_parameters(recurse=True, remove_duplicate=False)
            if id(p) in names
        }
        parent, _, attribute = name.rpartition(".")
        owner = self.model.get_submodule(parent)
        if not own:
            if type(layer) is nn.Linear:
                setattr(owner, attribute, SharedLinear(self._lines, layer))
            return
        kind = nn.Embedding if isinstance(layer, nn.Embedding) else type(layer)
        make = _TWINS.get(kind, StackedNorm if _is_norm(layer) else None)
        if make is None or not own.keys() <= {*OWN_WEIGHTS, "lora_A", "lora_B"}:
            raise NotImplementedError(
                f"{type(self.model).__name__}: {name} ({type(layer).__name__}) has trainable "
                f"weights {sorted(own)} and no stacked twin"
            )
        twin = make(self._lines, layer)
        setattr(owner, attribute, twin)
        for key, full_name in own.items():
            self._places.setdefault(full_name, []).append((twin, key))


def _is_whole(layer: nn.Module, model: nn.Module, name: str) -> bool:
    """Tell whether a module is replaced as one: it has weights of its own and no such parent."""
    parent = model.get_submodule(name.rpartition(".")[0]) if name else model
    if isinstance(parent, (LoraLinear, StackedLora)):
        return False
    return isinstance(layer, LoraLinear) or any(True for _ in layer.parameters(recurse=False))


def _is_norm(layer: nn.Module) -> bool:
    own = dict(layer.named_parameters())
    return own.keys() == {"weight"} and own["weight"].dim() == 1 and not list(layer.children())


def can_stack(base: BaseModel, lora: LoraSpec | None) -> bool:
    """Tell whether this kind of model computes several runs as it does each alone.

    The model must pack its samples, and have no dropout of its own, whose random numbers would
    depend on the company. The live model is pristine afterwards.
    """
    model = base.model
    if lora is not None and not lora.is_plain:
        return False
    if not can_pack(model):
        return False
    key = (type(model), model.config.to_json_string(), model.device.type, canonical_json(lora))
    if key not in _TRIED:
        try:
            _TRIED[key] = _try_stack(base, lora)
        except torch.OutOfMemoryError:
            # That says nothing about the model.
            return False
        except (NotImplementedError, AttributeError, IndexError, TypeError, RuntimeError):
            # The model's own code mixes its batch, or has weights without a twin.
            _TRIED[key] = False
        finally:
            base.reset()
    return _TRIED[key]


def _try_stack(base: BaseModel, lora: LoraSpec | None) -> bool:
    """Compare losses and gradients of two runs in a stack with those of each alone."""
    base.reset()
    model = base.model
    if _has_dropout(model):
        return False
    if lora is not None:
        add_lora(model, lora, seed=0)
    live = {name: p for name, p in model.named_parameters() if p.requires_grad}
    runs = [_moved(live, seed) for seed in (1, 2)]
    members = [(_sample([1, 2, 3, 4, 5]), [0]), (_sample([3, 2, 1]), [0])]
    stack = Stack(model)
    stack.hold(runs)
    together = _take_pass(stack.model, members, stack)
    stack.share_gradients()
    for run, member, loss in zip(runs, members, together, strict=True):
        for name, parameter in live.items():
            parameter.data.copy_(run[name].data)
            parameter.grad = None
        (alone,) = _take_pass(model, [member])
        if not torch.allclose(alone, loss, rtol=1e-3):
            return False
        for name, parameter in live.items():
            expected, found = parameter.grad, run[name].grad
            if expected is None or found is None:
                if expected is not found:
                    return False
            elif (expected - found).abs().max() > 1e-3 * expected.abs().max() + 1e-9:
                return False
    return True


def _take_pass(
    model: PreTrainedModel, members: Sequence[Member], stack: Stack | None = None
) -> Tensor:
    batch = pack(members).to(model.device)
    if stack is not None:
        stack.set_lengths(batch.num_tokens)
    losses = batch_losses(model, batch)
    torch.autograd.backward(losses.sum())
    return losses.detach()


def _moved(weights: Weights, seed: int) -> Weights:
    """Return copies of weights, each a little elsewhere, so that every one of them matters."""
    moved = {}
    generator = torch.Generator().manual_seed(seed)
    for name, weight in weights.items():
        noise = torch.randn(weight.shape, generator=generator).to(weight)
        moved[name] = nn.Parameter(weight.detach() + 0.01 * noise)
    return moved


def _sample(ids: Sequence[int]) -> TrainingRows:
    """Return one sample whose tokens behind the first are supervised."""
    rows = PreparedRows(
        tokens=np.array(ids, dtype=np.int32),
        offsets=np.array([0, len(ids)], dtype=np.int64),
        prompt_lengths=np.array([1], dtype=np.int32),
        rows=np.zeros(1, dtype=np.int64),
        positions=np.zeros(1, dtype=np.int64),
        result={},
    )
    return TrainingRows([rows])


def _has_dropout(model: PreTrainedModel) -> bool:
    """Tell whether a model computes something else each time while it trains."""
    batch = lay_out(model, [(_sample([1, 2, 3, 4, 5]), [0])], packed=True)
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices):
        model.train()
        first, second = batch_losses(model, batch), batch_losses(model, batch)
        model.eval()
    return not torch.allclose(first, second, rtol=1e-5)
