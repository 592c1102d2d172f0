"""What does a PEFT adapter change, exactly?

In: a folder with `adapter_config.json` and its safetensors. Out: the low-rank factors by the name
of the weight that they change, with row lengths where it is DoRA, and the weights that the adapter
replaces as a whole (biases and `modules_to_save`). `base_model_name_or_path` is a label and is not
read. Whatever would change the model in a way that these do not tell is refused by its name: a
setting that is not known here is one of them, because a later PEFT may give it a meaning.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, final

import torch
from torch import Tensor

from sft_atlas import files
from sft_atlas.errors import StoreError
from sft_atlas.weights.names import parse_weight_name
from sft_atlas.weights.tensors import TensorFolder

CONFIG_NAME: Final = "adapter_config.json"

_PREFIX: Final = "base_model.model."
_DOWN: Final = ".lora_A.weight"
_UP: Final = ".lora_B.weight"
_LENGTHS: Final = ".lora_magnitude_vector"

_KNOWN_KEYS: Final = frozenset(
    {
        "alpha_pattern",
        "auto_mapping",
        "base_model_name_or_path",
        "bias",
        "ensure_weight_tying",
        "eva_config",
        "exclude_modules",
        "fan_in_fan_out",
        "inference_mode",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "lora_alpha",
        "lora_dropout",
        "megatron_core",
        "modules_to_save",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "r",
        "rank_pattern",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
        "use_dora",
        "use_rslora",
    }
)
"""Settings that the factors and their scale account for, or that change nothing once trained."""

_KEEPS_BASE: Final = ("gaussian", "eva", "orthogonal")
"""Initialisations by name that leave the base weights as they are; PiSSA and others do not."""


@final
class LoraFactors(NamedTuple):
    """The low-rank change of one weight: scale * up @ down."""

    up: Tensor
    """B, shape (out, rank)."""
    down: Tensor
    """A, shape (rank, in)."""
    scale: float


@final
class DoraFactors(NamedTuple):
    """The change of one weight by DoRA (Liu et al. 2024): each row of W + scale * up @ down is
    stretched to a length of its own."""

    low_rank: LoraFactors
    lengths: Tensor
    """Shape (out,)."""

    def rows(self, before: Tensor, first_row: int = 0) -> Tensor:
        """Return the tuned rows, float32 (rows, in), of the base's rows from `first_row` on."""
        before = before.float()
        chosen = slice(first_row, first_row + len(before))
        up, down, scale = self.low_rank
        moved = torch.add(before, up[chosen].to(before) @ down.to(before), alpha=scale)
        stretch = self.lengths[chosen].to(before) / torch.linalg.vector_norm(moved, dim=1)
        rows: Tensor = moved * stretch[:, None]
        return rows


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Adapter:
    """What an adapter does to its base model, by parameter name."""

    factors: dict[str, LoraFactors | DoraFactors]
    replaced: dict[str, str]
    """Weights that the adapter holds as a whole; values are the names in its file."""
    ties_head: bool
    """The output head is the embedding, which `replaced` names alone."""


def is_adapter(folder: Path) -> bool:
    """Tell whether a folder holds an adapter and no whole model."""
    return (folder / CONFIG_NAME).is_file()


def read_adapter(folder: Path) -> Adapter:
    """Read an adapter's factors and the names of the weights that it replaces.

    The scale is alpha / r, or alpha / sqrt(r) with `use_rslora` (Kalajdzievski 2023), with r and
    alpha of each module where `rank_pattern` and `alpha_pattern` give one. Where `fan_in_fan_out`
    says that weights are stored as (in, out), as GPT-2's, so is the change.

    Raises:
        StoreError: if the files do not fit each other, or the adapter does more than that.
    """
    config = read_adapter_config(folder)
    _check_config(config, folder / CONFIG_NAME)
    stored = TensorFolder(folder)
    ties_head = bool(config.get("ensure_weight_tying"))
    factors: dict[str, LoraFactors | DoraFactors] = {}
    replaced: dict[str, str] = {}
    for name in stored:
        module = name.removeprefix(_PREFIX).removesuffix(_DOWN)
        if name.endswith(_DOWN):
            factors[f"{module}.weight"] = _read_factors(stored, name, module, config, folder)
        elif name.endswith((_UP, _LENGTHS)):
            if name.removesuffix(_UP).removesuffix(_LENGTHS) + _DOWN not in stored:
                raise _incomplete(folder, name)
        elif "lora_" in name or not name.endswith((".weight", ".bias")):
            raise StoreError(
                f"{folder}: its adapter holds {name!r}; expected lora_A and lora_B of linear "
                f"layers, or whole weights. Merge the adapter into its base model with peft and "
                f"use the merged model."
            )
        else:
            plain = name.removeprefix(_PREFIX).replace(".base_layer.", ".")
            plain = plain.replace(".modules_to_save.", ".")
            if not (ties_head and parse_weight_name(plain).kind == "head"):
                replaced[plain] = name
    if not factors and not replaced:
        raise StoreError(f"{folder}: its adapter changes no weight; expected lora_A and lora_B.")
    return Adapter(factors=factors, replaced=replaced, ties_head=ties_head)


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Return an adapter's configuration.

    Raises:
        StoreError: if it cannot be read.
    """
    path = folder / CONFIG_NAME
    try:
        config = files.read_json(path)
    except (OSError, json.JSONDecodeError) as error:
        raise StoreError(f"{path}: cannot be read ({error}).") from error
    if not isinstance(config, dict):
        raise StoreError(f"{path}: is no JSON object; expected a PEFT configuration.")
    return config


def _read_factors(
    stored: TensorFolder, name: str, module: str, config: Mapping[str, Any], folder: Path
) -> LoraFactors | DoraFactors:
    up_name = name.removesuffix(_DOWN) + _UP
    if up_name not in stored:
        raise _incomplete(folder, name)
    up, down = stored[up_name], stored[name]
    rank = _of_module(config, "rank_pattern", module, config["r"])
    if up.ndim != 2 or down.ndim != 2 or not up.shape[1] == down.shape[0] == rank:
        raise StoreError(
            f"{folder}: the factors of {module!r} have shapes {tuple(up.shape)} and "
            f"{tuple(down.shape)}; expected (out, {rank}) and ({rank}, in), because the rank is "
            f"{rank} in {CONFIG_NAME}. Use the configuration that was saved with the adapter."
        )
    alpha = _of_module(config, "alpha_pattern", module, config["lora_alpha"])
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    if config.get("fan_in_fan_out"):
        return LoraFactors(down.T, up.T, scale)
    factors = LoraFactors(up, down, scale)
    if not config.get("use_dora"):
        return factors
    lengths_name = name.removesuffix(_DOWN) + _LENGTHS
    if lengths_name not in stored:
        raise _incomplete(folder, name)
    return DoraFactors(factors, stored[lengths_name])


def _of_module(config: Mapping[str, Any], key: str, module: str, default: float) -> float:
    # PEFT's rule, so that a file means the same to both: the first pattern that ends the name.
    for pattern, value in (config.get(key) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return float(value)
    return default


def _check_config(config: Mapping[str, Any], path: Path) -> None:
    for key in ("r", "lora_alpha"):
        if not isinstance(config.get(key), (int, float)) or config[key] <= 0:
            raise StoreError(f"{path}: {key} is {config.get(key)!r}; expected a positive number.")
    if config.get("peft_type", "LORA") != "LORA":
        raise _unknown(path, "peft_type", config["peft_type"])
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start not in _KEEPS_BASE:
        raise _unknown(path, "init_lora_weights", start)
    if config.get("use_dora") and config.get("fan_in_fan_out"):
        raise _unknown(path, "use_dora with fan_in_fan_out", True)
    for key, value in config.items():
        if value and key not in _KNOWN_KEYS:
            raise _unknown(path, key, value)


def _unknown(path: Path, key: str, value: object) -> StoreError:
    return StoreError(
        f"{path}: {key} is {value!r}, which changes more than low-rank factors tell; expected "
        f"plain LoRA. Merge the adapter into its base model with peft and use the merged model."
    )


def _incomplete(folder: Path, name: str) -> StoreError:
    return StoreError(
        f"{folder}: its adapter holds {name!r} without its other factor; expected lora_A and "
        f"lora_B of each layer, and with DoRA its lora_magnitude_vector. Save the adapter again."
    )
