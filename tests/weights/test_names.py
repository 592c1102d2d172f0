"""Every weight of the supported families has a layer and a kind; an unknown one is `other`."""

from collections import Counter

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

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


ATTENTION_FUSED = {"attention.query_key_value", "attention.output"}
ATTENTION = {"attention.query", "attention.key", "attention.value", "attention.output"}
MLP = {"mlp.gate", "mlp.up", "mlp.down"}
MLP_OF_TWO = {"mlp.up", "mlp.down"}
EXPERTS = {"mlp.gate_up", "mlp.down", "mlp.router"}


@pytest.mark.parametrize(
    ("family", "kinds"),
    [
        ("gpt2", ATTENTION_FUSED | MLP_OF_TWO),
        ("gpt_bigcode", ATTENTION_FUSED | MLP_OF_TWO),
        ("gpt_neo", ATTENTION | MLP_OF_TWO),
        ("gpt_neox", ATTENTION_FUSED | MLP_OF_TWO),
        ("gptj", ATTENTION | MLP_OF_TWO),
        ("bloom", ATTENTION_FUSED | MLP_OF_TWO),
        ("falcon", ATTENTION_FUSED | MLP_OF_TWO),
        ("mpt", ATTENTION_FUSED | MLP_OF_TWO),
        ("opt", ATTENTION | MLP_OF_TWO),
        ("xglm", ATTENTION | MLP_OF_TWO),
        ("codegen", ATTENTION_FUSED | MLP_OF_TWO),
        ("persimmon", ATTENTION_FUSED | MLP_OF_TWO),
        ("phi", ATTENTION | MLP_OF_TWO),
        ("phi3", ATTENTION_FUSED | {"mlp.gate_up", "mlp.down"}),
        ("glm4", ATTENTION | {"mlp.gate_up", "mlp.down"}),
        ("starcoder2", ATTENTION | MLP_OF_TWO),
        ("stablelm", ATTENTION | MLP),
        ("cohere", ATTENTION | MLP),
        ("gemma", ATTENTION | MLP),
        ("gemma3_text", ATTENTION | MLP),
        ("granite", ATTENTION | MLP),
        ("olmo3", ATTENTION | MLP),
        ("smollm3", ATTENTION | MLP),
        ("internlm3", ATTENTION | MLP),
        ("mixtral", ATTENTION | EXPERTS),
        ("olmoe", ATTENTION | EXPERTS),
        ("gpt_oss", ATTENTION | EXPERTS),
        ("granitemoe", ATTENTION | EXPERTS),
        ("qwen3_moe", ATTENTION | EXPERTS),
    ],
)
def test_every_matrix_inside_a_layer_has_the_layers_index_and_a_kind(
    family: str, kinds: set[str]
) -> None:
    extra = {"attention_types": [[["global"], 3]]} if family == "gpt_neo" else {}
    config = AutoConfig.for_model(family, num_hidden_layers=3, tie_word_embeddings=False, **extra)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    stack = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 3)
    index = {id(p): n for n, layer in enumerate(stack) for p in layer.parameters()}
    found: dict[int, Counter[str]] = {0: Counter(), 1: Counter(), 2: Counter()}
    outside = Counter()
    for name, parameter in model.named_parameters():
        parsed = parse_weight_name(name)
        assert parsed.layer == index.get(id(parameter))
        if parameter.ndim == 1 or name.endswith("bias"):
            assert parsed.kind in {"norm", "other"}
        elif parsed.layer is not None:
            found[parsed.layer][parsed.kind] += 1
        else:
            outside[parsed.kind] += 1
    assert found[0] == found[1] == found[2] == dict.fromkeys(kinds, 1)
    assert outside["embedding"] == outside["head"] == 1


@pytest.mark.parametrize(
    ("name", "layer", "kind"),
    [
        ("model.layers.11.self_attn.q_norm.weight", 11, "norm"),
        ("model.norm.weight", None, "norm"),
        ("model.layers.0.post_feedforward_layernorm.weight", 0, "norm"),
        ("transformer.h.3.attn.c_attn.weight", 3, "attention.query_key_value"),
        ("h.3.attn.c_proj.weight", 3, "attention.output"),
        ("h.3.mlp.c_proj.weight", 3, "mlp.down"),
        ("transformer.h.3.ln_2.bias", 3, "norm"),
        ("model.layers.4.self_attn.qkv_proj.weight", 4, "attention.query_key_value"),
        ("model.layers.4.block_sparse_moe.experts.7.w2.weight", 4, "mlp.down"),
        ("model.layers.4.mlp.experts.gate_up_proj", 4, "mlp.gate_up"),
        ("model.layers.4.mlp.experts.gate_up_proj_bias", 4, "other"),
        ("model.layers.4.mlp.shared_expert.up_proj.weight", 4, "mlp.up"),
        ("model.layers.4.self_attn.kv_b_proj.weight", 4, "other"),
        ("model.layers.4.encoder_attn.q_proj.weight", 4, "other"),
        ("model.vision_tower.encoder.layers.4.self_attn.q_proj.weight", None, "other"),
        ("mtp.layers.0.self_attn.q_proj.weight", None, "other"),
        ("transformer.wpe.weight", None, "other"),
        ("weight", None, "other"),
    ],
)
def test_names_that_are_special(name: str, layer: int | None, kind: str) -> None:
    assert parse_weight_name(name) == WeightName(layer=layer, kind=kind)  # type: ignore[arg-type]


def test_positions_are_symmetric_and_comparable_between_depths() -> None:
    positions = [layer_position(layer, 6) for layer in range(6)]
    assert positions == pytest.approx([1 - p for p in reversed(positions)])
    assert layer_position(1, 3) == layer_position(0, 1) == 0.5
