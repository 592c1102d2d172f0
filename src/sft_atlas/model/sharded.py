"""Spread the weights of one model over several devices, and gather them again.

In: a model, described to every process by `blueprint`. Out: on each process the same model with a
part of every weight (FSDP2), which gathers a layer's weights while it computes with them; whole
tensors on the first process, and from there back into the parts. Every process calls these
functions, in the same order.

Gradients are sums over the processes, never means: divided by the number of supervised tokens of
the whole step they are what one device would have, whatever share of it each process took.
"""

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedConfig, PreTrainedModel

from sft_atlas.data.batches import Member
from sft_atlas.model.lora import add_lora
from sft_atlas.model.lora_linear import LoraLinear
from sft_atlas.model.training_pass import summed_losses
from sft_atlas.study.spec import LoraSpec

_HALF: Final = MixedPrecisionPolicy(
    param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
)


@final
class ShardedLosses(nn.Module):
    """`summed_losses` as a layer, because weights are gathered where a layer is called: the output
    head's are then there for whoever reads them."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, members: Sequence[Member], *, packed: bool) -> Tensor:
        # A view could not carry the hook that gathers the weights for the way back.
        return summed_losses(self.model, members, packed=packed).clone()


@dataclass(frozen=True, kw_only=True)
class _Blueprint:
    """All of a model but the values of its weights."""

    kind: type[PreTrainedModel]
    config: PreTrainedConfig
    lora: LoraSpec | None
    weights: dict[str, tuple[torch.dtype, bool]]
    """Type, and whether it trains, by name."""
    buffers: dict[str, Tensor]


def blueprint(model: PreTrainedModel, lora: LoraSpec | None) -> bytes:
    """Return what `build_sharded` makes a model from that is like this one, its adapter included.

    The model itself could not be sent: libraries leave functions behind in it that stay here.
    """
    described = _Blueprint(
        kind=type(model),
        config=model.config,
        lora=lora,
        weights={name: (p.dtype, p.requires_grad) for name, p in model.named_parameters()},
        buffers={name: buffer.cpu() for name, buffer in model.named_buffers()},
    )
    return pickle.dumps(described)


def build_sharded(
    description: bytes, mesh: DeviceMesh, *, gathers_half: bool = False
) -> ShardedLosses:
    """Return the model of a `blueprint`, its weights spread over the mesh and not yet set.

    With `gathers_half` the weights of linear layers travel in bfloat16: half the traffic, and the
    same bits where autocast rounds them to it anyway. Masters, gradients between devices and all
    else stay as they are.
    """
    # Made by `blueprint` in the process that started this one, never read from a file.
    described: _Blueprint = pickle.loads(description)
    model = _build_empty(described)
    for layer in _layers(model):
        linear = _linear_layers(layer)
        if gathers_half and linear:
            fully_shard(linear, mesh=mesh, mp_policy=_HALF)
        fully_shard(layer, mesh=mesh)
    losses = ShardedLosses(model)
    fully_shard(losses, mesh=mesh)
    for module in losses.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            # gloo knows sums, and no sums of products.
            module.set_force_sum_reduction_for_comms(True)
    losses.to_empty(device=mesh.device_type)
    for name, buffer in model.named_buffers():
        buffer.copy_(described.buffers[name])
    return losses


def _build_empty(described: _Blueprint) -> PreTrainedModel:
    with torch.device("meta"):
        model = described.kind(described.config)
    if described.lora is not None:
        add_lora(model, described.lora, seed=0)
    parameters = dict(model.named_parameters())
    assert parameters.keys() == described.weights.keys(), "a configuration describes its model"
    for name, (dtype, trains) in described.weights.items():
        parameters[name].data = parameters[name].data.to(dtype)
        parameters[name].requires_grad_(trains)
    return model.train()


def whole(part: Tensor) -> Tensor:
    """Return the whole of a tensor that is spread over devices, on each of them."""
    tensor = part.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def spread(tensor: Tensor | None, like: DTensor) -> DTensor:
    """Return the first process's tensor spread as `like` is; the others give None."""
    shape = torch.empty(like.shape, dtype=like.dtype, device=like.device)
    source = shape if tensor is None else shape.copy_(tensor)
    return distribute_tensor(source, like.device_mesh, like.placements)


def split_ranks(
    lengths: NDArray[np.int64], indices: Sequence[int], num_ranks: int
) -> list[list[int]]:
    """Divide a step's samples so that each process has about as many tokens.

    The longest come first, each to whoever has the fewest tokens so far. A process gets none where
    there are fewer samples than processes.

    >>> split_ranks(np.array([3, 9, 4, 1]), [0, 1, 2, 3], 2)
    [[1], [2, 0, 3]]
    """
    shares: list[list[int]] = [[] for _ in range(num_ranks)]
    tokens = [0] * num_ranks
    for index in sorted(indices, key=lambda i: -int(lengths[i])):
        rank = tokens.index(min(tokens))
        shares[rank].append(index)
        tokens[rank] += int(lengths[index])
    return shares


def _layers(model: PreTrainedModel) -> list[nn.Module]:
    """Return the repeated layers: what is gathered, computed and let go one after the other."""
    # Lists within layers, of experts for example, come behind the list of layers.
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList))
    return list(next(lists, []))


def _linear_layers(layer: nn.Module) -> list[nn.Module]:
    """Return the layers whose weights matrix products alone read, an adapter with its base."""
    # DoRA reads its weights' lengths, in full precision.
    adapted = [module for module in layer.modules() if isinstance(module, LoraLinear)]
    inner = {id(module.base) for module in adapted}
    plain = [m for m in layer.modules() if type(m) is nn.Linear and id(m) not in inner]
    return [*(m for m in adapted if m.lora_magnitude_vector is None), *plain]
