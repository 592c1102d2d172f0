"""Every weight of the supported families has a layer and a kind; an unknown one is `other`."""

from collections import Counter

import pytest

from sft_atlas.weights.names import WeightName, layer_position, parse_weight_name
from tiny import build_model

MATRICES = {
    "attention.query",
    "attention.key",
    "attention.value",
    "attention.output",
    "mlp.gate",
    "mlp.up",
    "mlp.down",
}


@pytest.mark.parametrize(
    "architecture", ["llama", "mistral", "qwen2", "qwen3", "gemma2", "olmo", "olmo2"]
)
def test_each_layer_of_a_family_has_each_matrix_once(architecture: str) -> None:
    extra = {"tie_word_embeddings": False}
    model = build_model(architecture, **extra)
    names = {name: parse_weight_name(name) for name, _ in model.named_parameters()}
    for layer in (0, 1):
        kinds = Counter(n.kind for n in names.values() if n.layer == layer)
        assert {kind for kind, count in kinds.items() if count == 1} >= MATRICES
    outside = [n.kind for n in names.values() if n.layer is None and n.kind != "norm"]
    assert sorted(outside) == ["embedding", "head"]
    biases = {name for name, n in names.items() if n.kind == "other"}
    assert all(name.endswith("_proj.bias") for name in biases)
    assert bool(biases) == (architecture == "qwen2")


@pytest.mark.parametrize(
    ("name", "layer", "kind"),
    [
        ("model.layers.11.self_attn.q_norm.weight", 11, "norm"),
        ("model.norm.weight", None, "norm"),
        ("model.layers.0.post_feedforward_layernorm.weight", 0, "norm"),
        ("transformer.h.3.attn.c_attn.weight", None, "other"),
        ("model.layers.4.self_attn.qkv_proj.weight", 4, "other"),
        ("weight", None, "other"),
    ],
)
def test_names_that_are_special(name: str, layer: int | None, kind: str) -> None:
    assert parse_weight_name(name) == WeightName(layer=layer, kind=kind)  # type: ignore[arg-type]


def test_positions_are_symmetric_and_comparable_between_depths() -> None:
    positions = [layer_position(layer, 6) for layer in range(6)]
    assert positions == pytest.approx([1 - p for p in reversed(positions)])
    assert layer_position(1, 3) == layer_position(0, 1) == 0.5
