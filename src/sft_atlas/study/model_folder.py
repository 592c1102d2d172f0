"""Say what shape a base model without a card has: from its folder, or guessed from its size.

Only sizes are read: `config.json`, and the JSON heads of the safetensors files. The shape serves
the cost estimate and nothing else.
"""

import json
from math import prod
from pathlib import Path
from typing import Any

from sft_atlas.catalog.cards import CardSource, ModelCard

_MAX_HEAD_BYTES = 100 << 20


def card_from_folder(folder: Path, name: str) -> ModelCard | None:
    """Return the shape of a transformers folder; None where it is laid out in another way."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
        parameters = sum(_num_weights(path) for path in folder.glob("*.safetensors"))
        num_heads = int(config["num_attention_heads"])
        return ModelCard(
            name=name,
            source=CardSource(),
            family=str(config.get("model_type", "")),
            languages=(),
            parameters=parameters,
            layers=int(config["num_hidden_layers"]),
            hidden_size=int(config["hidden_size"]),
            intermediate_size=int(config["intermediate_size"]),
            num_heads=num_heads,
            num_kv_heads=int(config.get("num_key_value_heads") or num_heads),
            vocab_size=int(config["vocab_size"]),
            head_dim=config.get("head_dim"),
            tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def sized_card(name: str, parameters: int) -> ModelCard:
    """Return a plausible Llama-like shape of a given size.

    Hidden size 128 x layers and 12 x hidden^2 weights in a layer: N = 12 x 128^2 x layers^3.
    """
    layers = max(1, round((parameters / (12 * 128**2)) ** (1 / 3)))
    hidden = 128 * layers
    return ModelCard(
        name=name,
        source=CardSource(),
        family="",
        languages=(),
        parameters=parameters,
        layers=layers,
        hidden_size=hidden,
        intermediate_size=round(8 * hidden / 3),
        num_heads=layers,
        num_kv_heads=layers,
        vocab_size=32_000,
        tied_embeddings=True,
        inferred=("layers", "hidden_size", "intermediate_size", "num_heads", "vocab_size"),
    )


def _num_weights(path: Path) -> int:
    """Count the weights of a safetensors file from its head alone."""
    with path.open("rb") as stream:
        num_bytes = int.from_bytes(stream.read(8), "little")
        if num_bytes > _MAX_HEAD_BYTES:
            raise ValueError(f"{path}: its head is too large for a safetensors file.")
        head: dict[str, Any] = json.loads(stream.read(num_bytes))
    return sum(prod(facts["shape"]) for key, facts in head.items() if key != "__metadata__")
