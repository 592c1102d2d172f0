"""Adapt a model with low-rank matrices: W x + (alpha / rank) B A x, with W frozen (Hu et al. 2021).

Initialisation, scaling and files are PEFT's: A is Kaiming-uniform with a = sqrt(5), B is zero, and
an adapter written here loads in `peft` with the same logits. The layers are our own because later
they must stack. Each matrix A is drawn from a generator seeded by (seed, module name), so it
depends on no other layer and no device.
"""

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, final

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from sft_atlas import files
from sft_atlas.errors import StoreError, StudyError
from sft_atlas.study.spec import LoraSpec
from sft_atlas.weights.adapter import CONFIG_NAME as CONFIG_NAME
from sft_atlas.weights.adapter import LoraFactors as LoraFactors
from sft_atlas.weights.adapter import read_adapter, read_adapter_config
from sft_atlas.weights.tensors import TensorFolder

ALL_LINEAR: Final = "all-linear"
WEIGHTS_NAME: Final = "adapter_model.safetensors"

_PREFIX = "base_model.model."


@final
class LoraLinear(nn.Module):
    """A frozen linear layer and its trainable low-rank change; both factors are float32."""

    def __init__(self, base: nn.Linear, lora: LoraSpec, generator: torch.Generator) -> None:
        super().__init__()
        self.base = base
        self.scale = lora.alpha / lora.rank
        self.dropout = lora.dropout
        down = torch.empty(lora.rank, base.in_features)
        nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=generator)
        up = torch.zeros(base.out_features, lora.rank)
        device = base.weight.device
        self.lora_A = nn.Parameter(down.to(device))
        self.lora_B = nn.Parameter(up.to(device))

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.base(x)
        dropped = functional.dropout(x, self.dropout, self.training) if self.dropout else x
        change = functional.linear(functional.linear(dropped, self.lora_A), self.lora_B)
        return torch.add(output, change, alpha=self.scale)

    def merged_weight(self) -> Tensor:
        """Return W + scale B A in the base weight's type."""
        weight = self.base.weight.detach()
        change = self.lora_B.detach() @ self.lora_A.detach()
        return torch.add(weight.float(), change, alpha=self.scale).to(weight.dtype)


def add_lora(model: PreTrainedModel, lora: LoraSpec, *, seed: int) -> None:
    """Freeze a model and give its target layers trainable factors; B = 0, so nothing changes yet.

    Raises:
        StudyError: if the targets select no linear layer of this model.
    """
    targets = _target_names(model, lora)
    model.requires_grad_(False)
    for name in targets:
        parent, attribute = _parent_of(model, name)
        base = parent.get_submodule(attribute)
        assert isinstance(base, nn.Linear)
        generator = torch.Generator().manual_seed(_layer_seed(seed, name))
        layer = LoraLinear(base, lora, generator)
        layer.train(model.training)
        setattr(parent, attribute, layer)


def remove_lora(model: PreTrainedModel) -> None:
    """Put the frozen linear layers back; their weights were never changed."""
    for name, layer in _lora_layers(model):
        parent, attribute = _parent_of(model, name)
        setattr(parent, attribute, layer.base)


@contextmanager
def merged(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """Lend the model with plain linear layers that hold W + scale B A.

    At the end the adapter is active again over the same base weights, bit for bit: they are set
    aside, not computed back. A model without an adapter is lent as it is.
    """
    layers = _lora_layers(model)
    originals = [layer.base.weight.data for _, layer in layers]
    try:
        for name, layer in layers:
            layer.base.weight.data = layer.merged_weight()
            parent, attribute = _parent_of(model, name)
            setattr(parent, attribute, layer.base)
        yield model
    finally:
        for (name, layer), original in zip(layers, originals, strict=True):
            layer.base.weight.data = original
            parent, attribute = _parent_of(model, name)
            setattr(parent, attribute, layer)


def merge(model: PreTrainedModel) -> None:
    """Replace the adapter by plain linear layers that hold W + scale B A, for good."""
    for name, layer in _lora_layers(model):
        layer.base.weight.data = layer.merged_weight()
        parent, attribute = _parent_of(model, name)
        setattr(parent, attribute, layer.base)


def lora_state(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the live factors under the names that PEFT gives them in files."""
    state = {}
    for name, layer in _lora_layers(model):
        state[f"{_PREFIX}{name}.lora_A.weight"] = layer.lora_A.detach()
        state[f"{_PREFIX}{name}.lora_B.weight"] = layer.lora_B.detach()
    return state


def save_adapter(folder: Path, model: PreTrainedModel, lora: LoraSpec, *, base_name: str) -> None:
    """Write an adapter in PEFT's format; `base_name` is a hub id or any name of the base model."""
    names = [name for name, _ in _lora_layers(model)]
    config = {
        "base_model_name_or_path": base_name,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": lora.rank,
        "target_modules": _short_targets(model, names),
        "task_type": "CAUSAL_LM",
        "use_rslora": False,
    }
    files.write_json(folder / CONFIG_NAME, config)
    tensors = {name: tensor.cpu().contiguous() for name, tensor in lora_state(model).items()}
    save_file(tensors, folder / WEIGHTS_NAME, metadata={"format": "pt"})


def load_adapter(folder: Path, model: PreTrainedModel) -> None:
    """Give a model the adapter that `save_adapter` wrote.

    Raises:
        StoreError: if the files do not fit each other or this model.
    """
    config = read_adapter_config(folder)
    lora = LoraSpec(
        rank=config["r"],
        alpha=config["lora_alpha"],
        dropout=config["lora_dropout"],
        targets=tuple(config["target_modules"]),
    )
    add_lora(model, lora, seed=0)
    stored, live = TensorFolder(folder), lora_state(model)
    if stored.keys() != live.keys():
        raise StoreError(f"{folder}: its adapter has other layers than its configuration names.")
    for name, tensor in live.items():
        tensor.copy_(stored[name])


def read_factors(folder: Path) -> dict[str, LoraFactors]:
    """Read an adapter's factors by the parameter name of the weight that they change.

    Raises:
        StoreError: if the adapter changes the model by more than low-rank factors.
    """
    adapter = read_adapter(folder)
    if adapter.replaced:
        raise StoreError(
            f"{folder}: its adapter replaces {len(adapter.replaced)} weights as a whole, such as "
            f"{min(adapter.replaced)!r}; expected low-rank factors alone. Train it without "
            f"`modules_to_save` and `bias`."
        )
    return adapter.factors


def _target_names(model: PreTrainedModel, lora: LoraSpec) -> list[str]:
    head = model.get_output_embeddings()
    linear = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    if lora.targets == (ALL_LINEAR,):
        names = list(linear)
    else:
        names = [name for name in linear if any(_matches(name, target) for target in lora.targets)]
    if not names:
        last_parts = sorted({name.rsplit(".", 1)[-1] for name in linear})
        raise StudyError(
            f"lora.targets: {list(lora.targets)} selects no layer of {type(model).__name__}; "
            f"expected {ALL_LINEAR!r} or some of {last_parts}."
        )
    return names


def _matches(name: str, target: str) -> bool:
    # PEFT's rule, so that a file means the same to both.
    return name == target or name.endswith(f".{target}")


def _short_targets(model: PreTrainedModel, names: list[str]) -> list[str]:
    """Return last parts of names where they select exactly these layers, else the names."""
    last_parts = sorted({name.rsplit(".", 1)[-1] for name in names})
    selected = [
        name
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, LoraLinear))
        and any(_matches(name, p) for p in last_parts)
    ]
    return last_parts if set(selected) == set(names) else sorted(names)


def _lora_layers(model: PreTrainedModel) -> list[tuple[str, LoraLinear]]:
    return [(n, module) for n, module in model.named_modules() if isinstance(module, LoraLinear)]


def _parent_of(model: PreTrainedModel, name: str) -> tuple[nn.Module, str]:
    parent, _, attribute = name.rpartition(".")
    return model.get_submodule(parent), attribute


def _layer_seed(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"lora/{seed}/{name}".encode()).digest()[:8], "big") >> 1
