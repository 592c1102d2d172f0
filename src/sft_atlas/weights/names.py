"""Say which layer a weight belongs to and what it does there, for any of the supported families.

The names are those of transformers' Llama, which Mistral, Qwen2, Qwen3, Gemma, Gemma2, OLMo and
OLMo2 share. A weight of any other name is `other`: its change is measured, and no analysis by kind
takes it for something that it may not be.
"""

import re
from dataclasses import dataclass
from typing import Final, Literal, final

Kind = Literal[
    "attention.query",
    "attention.key",
    "attention.value",
    "attention.output",
    "mlp.gate",
    "mlp.up",
    "mlp.down",
    "embedding",
    "head",
    "norm",
    "other",
]

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.(.+)$")

_MATRICES: Final[dict[str, Kind]] = {
    "self_attn.q_proj.weight": "attention.query",
    "self_attn.k_proj.weight": "attention.key",
    "self_attn.v_proj.weight": "attention.value",
    "self_attn.o_proj.weight": "attention.output",
    "mlp.gate_proj.weight": "mlp.gate",
    "mlp.up_proj.weight": "mlp.up",
    "mlp.down_proj.weight": "mlp.down",
}

_OUTSIDE: Final[dict[str, Kind]] = {"embed_tokens.weight": "embedding", "lm_head.weight": "head"}


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class WeightName:
    """What a parameter's name says."""

    layer: int | None
    """Counted from 0 at the input; None for weights outside the layers."""
    kind: Kind


def parse_weight_name(name: str) -> WeightName:
    """Return layer and kind of a parameter.

    >>> parse_weight_name("model.layers.3.mlp.down_proj.weight")
    WeightName(layer=3, kind='mlp.down')
    """
    match = _LAYER.search(name)
    if match is None:
        ending = ".".join(name.split(".")[-2:])
        return WeightName(layer=None, kind=_OUTSIDE.get(ending, _kind_of_vector(name)))
    inside = match.group(2)
    return WeightName(
        layer=int(match.group(1)), kind=_MATRICES.get(inside, _kind_of_vector(inside))
    )


def layer_position(layer: int, num_layers: int) -> float:
    """Return where a layer's middle lies between input (0) and output (1) of the stack.

    >>> layer_position(0, 2), layer_position(1, 2)
    (0.25, 0.75)
    """
    return (layer + 0.5) / num_layers


def _kind_of_vector(name: str) -> Kind:
    owner = name.rsplit(".", 2)[-2] if "." in name else name
    return "norm" if owner.endswith(("norm", "layernorm")) else "other"
