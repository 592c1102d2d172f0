"""Tiny random models of every architecture that the project says it trains, features switched on.

A window is shorter than most documents, caps bite, rotary frequencies are really scaled, biases are
not zero and norms not one: a part of an architecture that is left out changes losses and gradients.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from transformers import PreTrainedModel

from sft_atlas.study.spec import ModelSpec, Source
from tiny import build_model, build_tokenizer

_SLIDING: Final[dict[str, Any]] = {
    "sliding_window": 5,
    "layer_types": ["sliding_attention", "full_attention"],
}
_LLAMA_3_1: Final[dict[str, Any]] = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
_GPT2: Final[dict[str, Any]] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
DROPOUTS: Final = (
    "resid_pdrop",
    "embd_pdrop",
    "attn_pdrop",
    "dropout",
    "attention_dropout",
    "hidden_dropout",
    "residual_dropout",
)
"""Of models that were pretrained with dropout of their own."""

_EXPERTS: Final[dict[str, Any]] = {"num_experts": 4, "num_experts_per_tok": 2}


@dataclass(frozen=True, kw_only=True)
class Family:
    """What a model of some family is made of, and what the engine does with it."""

    model_type: str
    settings: dict[str, Any] = field(default_factory=dict)
    packs: bool = True
    """Samples stand end to end; otherwise they are padded."""
    stacks: bool = True
    """Several full runs train in one model; otherwise one after the other."""
    adapts: bool = True
    """LoRA finds linear layers."""
    stacks_lora: bool = True
    """Several LoRA runs train in one model."""


def _family(
    model_type: str,
    *,
    packs: bool = True,
    stacks: bool = True,
    adapts: bool = True,
    stacks_lora: bool = True,
    **settings: Any,
) -> Family:
    return Family(
        model_type=model_type,
        settings=settings,
        packs=packs,
        stacks=stacks,
        adapts=adapts,
        stacks_lora=stacks_lora,
    )


_PADDED: Final[dict[str, Any]] = {"packs": False, "stacks": False, "stacks_lora": False}
"""What cannot be packed trains alone."""

PAPER: Final[dict[str, Family]] = {
    "llama": _family("llama", rope_parameters=_LLAMA_3_1),
    "llama-tied": _family("llama", tie_word_embeddings=True),
    "llama-ungrouped": _family("llama", num_key_value_heads=4),
    "mistral": _family("mistral", sliding_window=5),
    "mistral-full": _family("mistral", sliding_window=None),
    "olmo": _family("olmo", num_key_value_heads=4, clip_qkv=0.5),
    "qwen2": _family("qwen2"),
    "qwen2-tied": _family("qwen2", tie_word_embeddings=True),
    "gemma2": _family(
        "gemma2",
        head_dim=16,
        query_pre_attn_scalar=12,
        attn_logit_softcapping=1.5,
        final_logit_softcapping=2.0,
        attn_implementation="eager",
        **_SLIDING,
    ),
}
"""The architectures of the study's twelve base models, with what its smaller relatives add."""

BEYOND: Final[dict[str, Family]] = {
    "olmo2": _family("olmo2"),
    "olmo2-tied": _family("olmo2", tie_word_embeddings=True),
    "olmo3": _family("olmo3", **_SLIDING),
    "qwen3": _family("qwen3", head_dim=16, tie_word_embeddings=True),
    "gemma": _family("gemma", head_dim=16),
    "gemma3": _family("gemma3_text", head_dim=16, query_pre_attn_scalar=12, **_SLIDING),
    "llama-bias": _family("llama", attention_bias=True, mlp_bias=True),
    "phi3": _family("phi3", sliding_window=5),
    "phi": _family("phi", partial_rotary_factor=0.5, qk_layernorm=True),
    "exaone4": _family("exaone4", **_SLIDING),
    "smollm3": _family("smollm3", no_rope_layers=[1, 0]),
    "seed_oss": _family("seed_oss", head_dim=8, tie_word_embeddings=True),
    "granite": _family(
        "granite",
        embedding_multiplier=2.0,
        logits_scaling=3.0,
        residual_multiplier=0.5,
        attention_multiplier=0.3,
    ),
    "cohere2": _family("cohere2", logit_scale=0.5, **_SLIDING),
    "glm4": _family("glm4", head_dim=8, attention_bias=True),
    "starcoder2": _family("starcoder2", sliding_window=5),
    "gpt2": _family("gpt2", adapts=False, **_GPT2),
    "gpt_neox": _family("gpt_neox"),
    "opt": _family("opt", stacks=False, stacks_lora=False, ffn_dim=48, word_embed_proj_dim=32),
    "olmoe": _family("olmoe", stacks=False, **_EXPERTS),
    "qwen3_moe": _family(
        "qwen3_moe", stacks=False, moe_intermediate_size=16, head_dim=8, **_EXPERTS
    ),
    "bloom": _family("bloom", **_PADDED, n_layer=2, n_head=4),
    "mamba": _family("mamba", **_PADDED, state_size=4, conv_kernel=3, expand=2, time_step_rank=4),
    "lfm2": _family(
        "lfm2", **_PADDED, layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False
    ),
}
"""Other architectures: recent relatives, and parts that the paper's do not have."""

FAMILIES: Final = PAPER | BEYOND


def build_family(name: str, *, seed: int = 0) -> PreTrainedModel:
    """Return a random model of a family in float32 whose vectors are random too."""
    family = FAMILIES[name]
    no_dropout = dict.fromkeys(DROPOUTS, 0.0)
    model = build_model(family.model_type, seed=seed, **no_dropout, **family.settings)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def save_family(folder: Path, name: str) -> ModelSpec:
    """Write a model of a family with its tokenizer to a folder and return its Spec."""
    build_family(name).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return ModelSpec(name=name, source=Source(path=folder))
