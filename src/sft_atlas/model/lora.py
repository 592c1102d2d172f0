"""Adapt a model with low-rank matrices, and give it back as it was.

In: a model and a LoraSpec. Out: the same model, frozen but for the adapter: low-rank factors of its
linear layers, and on request biases or embeddings, which train in place. Initialisation, scaling
and files are PEFT's: A is Kaiming-uniform with a = sqrt(5), B is zero, and an adapter written here
loads in `peft` with the same logits. Each matrix A is drawn from a generator seeded by (seed,
module name), so it depends on no other layer and no device.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from sft_atlas import files
from sft_atlas.errors import StoreError, StudyError
from sft_atlas.model.lora_linear import LoraLinear as LoraLinear
from sft_atlas.study.spec import LoraSpec
from sft_atlas.weights.adapter import CONFIG_NAME as CONFIG_NAME
from sft_atlas.weights.adapter import LoraFactors as LoraFactors
from sft_atlas.weights.adapter import read_adapter, read_adapter_config
from sft_atlas.weights.names import parse_weight_name
from sft_atlas.weights.tensors import TensorFolder

ALL_LINEAR: Final = "all-linear"
WEIGHTS_NAME: Final = "adapter_model.safetensors"

_PREFIX = "base_model.model."


def add_lora(model: PreTrainedModel, lora: LoraSpec, *, seed: int) -> None:
    """Freeze a model and give its target layers trainable factors; B = 0, so nothing changes yet.

    Biases and embeddings that the Spec names stay where they are and are trained there: what they
    were before has to come from a copy of the base's weights.

    Raises:
        StudyError: if targets, layers or biases select nothing in this model.
    """
    targets = _target_names(model, lora)
    model.requires_grad_(False)
    for name in targets:
        parent, attribute = _parent_of(model, name)
        base = parent.get_submodule(attribute)
        assert isinstance(base, nn.Linear)
        generator = torch.Generator().manual_seed(_layer_seed(seed, name))
        layer = LoraLinear(base, lora, name=name, generator=generator)
        layer.train(model.training)
        setattr(parent, attribute, layer)
    for parameter in _trained_whole(model, lora):
        parameter.requires_grad_(True)


def remove_lora(model: PreTrainedModel) -> None:
    """Put the linear layers back; their weights were never changed, trained biases are kept."""
    for name, layer in _lora_layers(model):
        parent, attribute = _parent_of(model, name)
        setattr(parent, attribute, layer.base)


@contextmanager
def merged(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """Lend the model with plain linear layers that hold the merged weights.

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
    """Replace the adapter by plain linear layers that hold the merged weights, for good."""
    for name, layer in _lora_layers(model):
        layer.base.weight.data = layer.merged_weight()
        parent, attribute = _parent_of(model, name)
        setattr(parent, attribute, layer.base)


def lora_state(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the live adapter under the names that PEFT gives it in files.

    A trained head that is the embedding appears under both names.
    """
    state = {}
    for name, layer in _lora_layers(model):
        state[f"{_PREFIX}{name}.lora_A.weight"] = layer.lora_A.detach()
        state[f"{_PREFIX}{name}.lora_B.weight"] = layer.lora_B.detach()
        if layer.lora_magnitude_vector is not None:
            state[f"{_PREFIX}{name}.lora_magnitude_vector"] = layer.lora_magnitude_vector.detach()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        module, _, attribute = name.rpartition(".")
        if parameter.requires_grad and attribute in ("weight", "bias"):
            if module.endswith(".base"):
                module = f"{module}_layer"
            state[f"{_PREFIX}{module}.{attribute}"] = parameter.detach()
    return state


def save_adapter(folder: Path, model: PreTrainedModel, lora: LoraSpec, *, base_name: str) -> None:
    """Write an adapter in PEFT's format; `base_name` is a hub id or any name of the base model."""
    names = [name for name, _ in _lora_layers(model)]
    config: dict[str, Any] = {
        "base_model_name_or_path": base_name,
        "bias": lora.bias,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "modules_to_save": sorted(_embeddings(model)) if lora.train_embeddings else None,
        "peft_type": "LORA",
        "r": lora.rank,
        "target_modules": _short_targets(model, names),
        "task_type": "CAUSAL_LM",
        "use_dora": lora.dora,
        "use_rslora": lora.rslora,
    }
    if lora.train_embeddings and _is_tied(model):
        config["ensure_weight_tying"] = True
    files.write_json(folder / CONFIG_NAME, config)
    # Cloned: one file does not hold one tensor under two names.
    tensors = {name: tensor.cpu().clone() for name, tensor in lora_state(model).items()}
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
        rslora=config.get("use_rslora", False),
        dora=config.get("use_dora", False),
        bias=config.get("bias", "none"),
        train_embeddings=bool(config.get("modules_to_save")),
    )
    add_lora(model, lora, seed=0)
    stored, live = TensorFolder(folder), lora_state(model)
    if stored.keys() != live.keys():
        raise StoreError(f"{folder}: its adapter has other layers than its configuration names.")
    for name, tensor in live.items():
        tensor.copy_(stored[name])
    for name, tensor in live.items():
        if not torch.equal(tensor.cpu(), stored[name].to("cpu", tensor.dtype)):
            raise StoreError(
                f"{folder}: its adapter holds other values for {name!r} than for the embedding, "
                f"but the model ties both; expected one weight. Train the adapter with "
                f"`ensure_weight_tying`."
            )


def read_factors(folder: Path) -> dict[str, LoraFactors]:
    """Read an adapter's factors by the parameter name of the weight that they change.

    Raises:
        StoreError: if the adapter changes the model by more than low-rank factors.
    """
    adapter = read_adapter(folder)
    factors = {n: f for n, f in adapter.factors.items() if isinstance(f, LoraFactors)}
    if stretched := adapter.factors.keys() - factors.keys():
        raise StoreError(
            f"{folder}: its adapter is DoRA: it stretches the rows of {len(stretched)} weights, "
            f"such as {min(stretched)!r}; expected low-rank factors alone. Train it without `dora`."
        )
    if adapter.replaced:
        raise StoreError(
            f"{folder}: its adapter replaces {len(adapter.replaced)} weights as a whole, such as "
            f"{min(adapter.replaced)!r}; expected low-rank factors alone. Train it without "
            f"`train_embeddings` and `bias`."
        )
    return factors


def plain_name(name: str) -> str:
    """Return the name that a weight of the live model has when it carries no adapter."""
    return name.replace(".base.", ".")


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
    return _in_layers(names, lora, type(model).__name__) if lora.layers else names


def _in_layers(names: list[str], lora: LoraSpec, where: str) -> list[str]:
    numbers = {name: parse_weight_name(f"{name}.weight").layer for name in names}
    known = sorted({number for number in numbers.values() if number is not None})
    if unknown := set(lora.layers) - set(known):
        there = f"{known[0]} to {known[-1]}" if known else "none"
        raise StudyError(
            f"lora.layers: {where} has no layer {min(unknown)} to adapt; it has {there}. Name "
            f"layers of this model, counted from 0."
        )
    return [name for name in names if numbers[name] in lora.layers]


def _trained_whole(model: PreTrainedModel, lora: LoraSpec) -> list[nn.Parameter]:
    """Return the biases and embeddings that are trained in place; PEFT's choice of both."""
    biases: list[nn.Parameter] = []
    if lora.bias == "lora_only":
        biases = [
            layer.base.bias for _, layer in _lora_layers(model) if layer.base.bias is not None
        ]
    elif lora.bias == "all":
        biases = [p for name, p in model.named_parameters() if name.endswith(".bias")]
    if lora.bias != "none" and not biases:
        raise StudyError(
            f"lora.bias: {lora.bias!r} selects no bias of {type(model).__name__}, so it would "
            f"change nothing; expected a model with biases there. Leave bias out for this model."
        )
    if not lora.train_embeddings:
        return biases
    return biases + [p for module in _embeddings(model).values() for p in module.parameters()]


def _embeddings(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Return the input embedding and the output head by name."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    return {name: module for name, module in model.named_modules() if module in ends}


def _is_tied(model: PreTrainedModel) -> bool:
    return model.get_input_embeddings().weight is model.get_output_embeddings().weight


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
