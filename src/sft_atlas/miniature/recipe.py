"""Which base models does the miniature world have, and what did each of them read?

In: nothing. Out: the recipes, free of torch, so that cards and plans can name them. Bases differ in
architecture, mixture and language, because a study asks what helps which model; none of them skips
a skill, because a skill at exactly zero could show no loss and hardly a gain.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

VOCAB_SIZE = 512
NUM_HEADS = 4
HEAD_DIM = 16
MAX_TOKENS = 512
"""Positions that a model accepts; it was trained on windows of 128."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class BaseRecipe:
    """Everything that decides what a base model becomes."""

    name: str
    architecture: str
    """`model_type` of transformers."""
    corpus: str
    """Names the random stream of documents."""
    weights: Mapping[str, float]
    """Documents by kind; none below 0.6, so that no skill starts at exactly zero."""
    language_b_fraction: float = 0.2
    hidden_size: int = 64
    num_layers: int = 6
    intermediate_size: int = 128
    num_kv_heads: int = 4
    num_steps: int = 3000
    seed: int = 0
    extra: Mapping[str, object] = field(default_factory=dict)
    """Fields of the architecture's configuration that only it has."""
    note: str = ""


def _weights(**changed: float) -> dict[str, float]:
    balanced = {"copy": 0.7, "knowledge": 1.2, "math": 1.4, "code": 1.0}
    return {**balanced, "comprehension": 1.2, "reasoning": 1.0, "instruction": 1.0, **changed}


RECIPES: tuple[BaseRecipe, ...] = (
    BaseRecipe(
        name="mini-llama",
        architecture="llama",
        corpus="mini-llama",
        weights=_weights(),
        seed=1,
        note="Balanced over the six skills.",
    ),
    BaseRecipe(
        name="mini-seed",
        # Qwen2 computes the same, but transformers 5 gives every qwen2 folder its byte-level
        # tokenizer, whatever the folder holds.
        architecture="seed_oss",
        corpus="mini-qwen2",
        weights=_weights(
            math=2.8, code=2.2, knowledge=0.7, comprehension=0.7, reasoning=0.7, instruction=0.7
        ),
        num_kv_heads=2,
        seed=2,
        extra={
            "head_dim": HEAD_DIM,
            "residual_dropout": 0.0,
            "attention_bias": True,
            "attention_out_bias": False,
        },
        note="Read mostly sums and programs.",
    ),
    BaseRecipe(
        name="mini-gemma3",
        architecture="gemma3_text",
        corpus="mini-gemma3",
        weights=_weights(
            knowledge=2.4, comprehension=2.0, reasoning=1.2, instruction=0.9, math=0.6, code=0.6
        ),
        seed=3,
        extra={"head_dim": HEAD_DIM, "query_pre_attn_scalar": 16},
        note="Read mostly facts and scenes.",
    ),
    BaseRecipe(
        name="mini-olmo2",
        architecture="olmo2",
        corpus="mini-olmo2",
        weights=_weights(),
        language_b_fraction=0.8,
        seed=4,
        note="Balanced, but four documents in five are in language B; a tokenizer of its own.",
    ),
    BaseRecipe(
        name="mini-qwen3",
        architecture="qwen3",
        corpus="mini-qwen3",
        weights=_weights(
            reasoning=2.0, instruction=2.0, knowledge=0.8, math=0.9, code=0.8, comprehension=0.8
        ),
        hidden_size=56,
        num_kv_heads=2,
        seed=5,
        extra={"head_dim": HEAD_DIM},
        note="Narrower; read mostly orders and commands.",
    ),
)
