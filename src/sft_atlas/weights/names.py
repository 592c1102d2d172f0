"""Say which layer a weight belongs to and what it does there, for the usual decoder families.

In: a parameter's name as transformers gives it, in a live model or a file. Out: layer and kind.
Llama's names are shared by Mistral, Qwen, Gemma, OLMo, Phi and most others; GPT-2, GPT-NeoX, Bloom,
Falcon, MPT, OPT and mixtures of experts have names of their own. A weight of any other name is
`other`: its change is measured, and no analysis by kind takes it for something that it may not be.
Layers of a vision or audio tower are not the language model's layers, so they have no index.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal, final

Kind = Literal[
    "attention.query",
    "attention.key",
    "attention.value",
    "attention.query_key_value",
    "attention.output",
    "mlp.gate",
    "mlp.up",
    "mlp.gate_up",
    "mlp.down",
    "mlp.router",
    "embedding",
    "head",
    "norm",
    "other",
]

_LAYER: Final = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks)\.(\d+)\.")
_OTHER_STACK: Final = re.compile(r"vision|visual|audio|image|speech|(?:^|\.)mtp\.")

_ATTENTION: Final = re.compile(
    r"^(?:self_attn|attn|attention|self_attention|attn\.attention)\.(\w+)\.weight$"
)
_MLP: Final = re.compile(
    r"^(?:(?:mlp|ffn|feed_forward|block_sparse_moe|shared_mlp)\.)?"
    r"(?:(?:experts|shared_experts?)\.(?:\d+\.)?)?(\w+?)(?:\.weight)?$"
)

_ATTENTION_KINDS: Final[dict[str, Kind]] = {
    "q_proj": "attention.query",
    "k_proj": "attention.key",
    "v_proj": "attention.value",
    "qkv_proj": "attention.query_key_value",
    "query_key_value": "attention.query_key_value",
    "Wqkv": "attention.query_key_value",
    "c_attn": "attention.query_key_value",
    "o_proj": "attention.output",
    "out_proj": "attention.output",
    "dense": "attention.output",
    "c_proj": "attention.output",
}

_MLP_KINDS: Final[dict[str, Kind]] = {
    "gate_proj": "mlp.gate",
    "w1": "mlp.gate",
    "up_proj": "mlp.up",
    "w3": "mlp.up",
    "fc1": "mlp.up",
    "fc_in": "mlp.up",
    "c_fc": "mlp.up",
    "dense_h_to_4h": "mlp.up",
    "gate_up_proj": "mlp.gate_up",
    "down_proj": "mlp.down",
    "w2": "mlp.down",
    "fc2": "mlp.down",
    "fc_out": "mlp.down",
    "c_proj": "mlp.down",
    "dense_4h_to_h": "mlp.down",
    "gate": "mlp.router",
    "router": "mlp.router",
}

_OUTSIDE: Final[dict[str, Kind]] = {
    "embed_tokens.weight": "embedding",
    "wte.weight": "embedding",
    "embed_in.weight": "embedding",
    "word_embeddings.weight": "embedding",
    "embeddings.weight": "embedding",
    "lm_head.weight": "head",
    "embed_out.weight": "head",
}

_NORM: Final = re.compile(r"norm(?:_?(?:\d|f))?$|(?:^|_)ln_?(?:\d|f)$")


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class WeightName:
    """What a parameter's name says."""

    layer: int | None
    """Counted from 0 at the input; None for weights outside the layers."""
    kind: Kind


def parse_weight_name(name: str) -> WeightName:
    """Return layer and kind of a parameter.

    Experts and the shared expert of a layer have the kinds of the dense matrices they stand for.

    >>> parse_weight_name("model.layers.3.mlp.down_proj.weight")
    WeightName(layer=3, kind='mlp.down')
    >>> parse_weight_name("transformer.h.0.attn.c_attn.weight")
    WeightName(layer=0, kind='attention.query_key_value')
    """
    layer = _LAYER.search(name)
    if _OTHER_STACK.search(name if layer is None else name[: layer.start(1)]):
        return WeightName(layer=None, kind="other")
    if layer is None:
        ending = ".".join(name.split(".")[-2:])
        return WeightName(layer=None, kind=_OUTSIDE.get(ending, _kind_of_vector(name)))
    return WeightName(layer=int(layer.group(1)), kind=_kind_inside(name[layer.end() :]))


def layer_position(layer: int, num_layers: int) -> float:
    """Return where a layer's middle lies between input (0) and output (1) of the stack.

    >>> layer_position(0, 2), layer_position(1, 2)
    (0.25, 0.75)
    """
    return (layer + 0.5) / num_layers


def count_layers(names: Iterable[str]) -> int:
    """Return the number of layers of a model whose weights have these names.

    >>> count_layers(["model.norm.weight", "model.layers.3.mlp.down_proj.weight"])
    4
    """
    layers = (parse_weight_name(name).layer for name in names)
    return max((layer + 1 for layer in layers if layer is not None), default=0)


def _kind_inside(name: str) -> Kind:
    """Return what a weight does within its layer."""
    if attention := _ATTENTION.match(name):
        return _ATTENTION_KINDS.get(attention.group(1), _kind_of_vector(name))
    if mlp := _MLP.match(name):
        return _MLP_KINDS.get(mlp.group(1), _kind_of_vector(name))
    return _kind_of_vector(name)


def _kind_of_vector(name: str) -> Kind:
    owner = name.rsplit(".", 2)[-2] if "." in name else name
    return "norm" if _NORM.search(owner) else "other"
