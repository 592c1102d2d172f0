"""A model that is spread over devices computes what it computes on one, whatever its architecture.

The mesh here has one device, which gathers and lets go like any: layers, hooks, types and sums are
the same. `tests/train/test_sharded.py` spreads models over several.
"""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from families import BEYOND, FAMILIES, PAPER, build_family
from sft_atlas.model.lora import add_lora
from sft_atlas.model.sharded import (
    ShardedLosses,
    blueprint,
    build_sharded,
    split_ranks,
    spread,
    whole,
)
from sft_atlas.model.training_pass import checkpoint_activations, summed_losses
from sft_atlas.study.spec import LoraSpec
from tiny import LORA, build_rows

INDICES = [3, 1, 4, 15]
MAMBA_LORA = LoraSpec(rank=4, alpha=8.0, targets=("in_proj",))
DORA = LoraSpec(rank=4, alpha=8.0, dora=True)


@pytest.fixture(scope="module")
def mesh() -> Iterator[DeviceMesh]:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def fill(losses: ShardedLosses, model: PreTrainedModel) -> None:
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in losses.model.named_parameters():
            assert isinstance(parameter, DTensor)
            parameter.copy_(spread(own[name].detach(), parameter))


def gradients(model: PreTrainedModel) -> dict[str, Tensor]:
    return {n: whole(p.grad) for n, p in model.named_parameters() if p.grad is not None}


def adapted(name: str, lora: LoraSpec | None) -> PreTrainedModel:
    """Return a model in training mode, an adapter's factors both random."""
    model = build_family(name)
    if lora is not None:
        add_lora(model, lora, seed=0)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if key.endswith("lora_B"):
                    parameter.normal_(std=0.1)
    return model.train()


def assert_same(
    mesh: DeviceMesh,
    name: str,
    lora: LoraSpec | None,
    *,
    half: bool = False,
    recomputes: bool = False,
) -> None:
    model = adapted(name, lora)
    losses = build_sharded(blueprint(model, lora), mesh, gathers_half=half)
    if recomputes:
        checkpoint_activations(losses.model)
    fill(losses, model)
    packed = FAMILIES[name].packs
    members = [(build_rows(), INDICES)]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        expected = summed_losses(model, members, packed=packed)
    expected.sum().backward()
    for _ in range(2):  # the second time with weights that were let go
        losses.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            found = losses(members, packed=packed)
        found.sum().backward()
        assert torch.equal(found, expected)
        wanted = gradients(model)
        assert wanted
        torch.testing.assert_close(gradients(losses.model), wanted, rtol=0, atol=0)


@pytest.mark.parametrize(
    "name",
    [name if i < 2 else pytest.param(name, marks=pytest.mark.slow) for i, name in enumerate(PAPER)],
)
def test_losses_and_gradients_are_those_of_one_device(name: str, mesh: DeviceMesh) -> None:
    assert_same(mesh, name, None)
    assert_same(mesh, name, LORA)


@pytest.mark.slow
# OPT's layers return views; what the warning fears is compared here.
@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")
@pytest.mark.parametrize("name", BEYOND)
def test_losses_and_gradients_of_other_architectures_are_those_of_one_device(
    name: str, mesh: DeviceMesh
) -> None:
    assert_same(mesh, name, None)
    if FAMILIES[name].adapts:
        assert_same(mesh, name, MAMBA_LORA if name == "mamba" else LORA)


@pytest.mark.parametrize("lora", [None, LORA, DORA], ids=["full", "lora", "dora"])
def test_weights_that_travel_in_half_precision_change_no_bit_of_what_autocast_computes(
    lora: LoraSpec | None, mesh: DeviceMesh
) -> None:
    assert_same(mesh, "qwen2", lora, half=True)


def test_recomputed_activations_change_no_bit(mesh: DeviceMesh) -> None:
    assert_same(mesh, "llama", None, recomputes=True)
    assert_same(mesh, "llama", LORA, recomputes=True, half=True)


@given(
    lengths=st.lists(st.integers(1, 500), min_size=1, max_size=40),
    num_ranks=st.integers(1, 9),
)
def test_a_step_is_divided_evenly_and_whole(lengths: list[int], num_ranks: int) -> None:
    indices = list(range(len(lengths)))[::-1]
    shares = split_ranks(np.array(lengths), indices, num_ranks)
    assert len(shares) == num_ranks
    assert sorted(index for share in shares for index in share) == sorted(indices)
    tokens = [sum(lengths[index] for index in share) for share in shares]
    # Whoever has the most had the fewest before the last sample came.
    assert max(tokens) - min(tokens) <= max(lengths)
