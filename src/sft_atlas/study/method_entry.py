"""Describe how a study file says what is trained, how fast, and on which schedule.

A part of `schema`, which is the whole file.
"""

from typing import Annotated, Final, Literal

from pydantic import Field, model_validator

from sft_atlas.study.benchmark_entry import Section

Steps = Annotated[int, Field(ge=0, le=10_000_000)]

_LORA_KEYS: Final = (
    *("alpha", "rslora", "dropout", "targets", "layers"),
    *("dora", "bias", "train_embeddings"),
)


class MethodEntry(Section):
    """How weights are trained: AdamW's settings, and LoRA where `rank` is given."""

    learning_rate: float = Field(gt=0, le=10)
    """Peak learning rate."""
    batch_samples: int = Field(ge=1, le=1_000_000)
    """Samples per optimizer step."""
    weight_decay: float = Field(default=0.0, ge=0, le=10)
    """Decoupled weight decay."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of AdamW's first moment."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """Decay of AdamW's second moment."""
    epsilon: float = Field(default=1e-8, gt=0, le=1)
    """Term that keeps AdamW's division finite."""
    clip_norm: float | None = Field(default=1.0, gt=0, le=10**6)
    """Gradient norm above which gradients are scaled down; null never clips."""
    rank: int | None = Field(default=None, ge=1, le=4096)
    """LoRA's rank; left out, every weight is trained."""
    alpha: float | None = Field(default=None, gt=0, le=10**6)
    """LoRA's scale: the adapter's product is multiplied by alpha / rank."""
    rslora: bool = False
    """Multiply by alpha / sqrt(rank) instead, so that high ranks learn as fast; LoRA only."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout in front of the adapter; LoRA only. Masks depend on seed, step, sample, position and
    layer alone."""
    targets: Literal["all-linear"] | tuple[str, ...] | None = None
    """`all-linear` (all but the output head), or last parts of module names; LoRA only."""
    layers: tuple[Annotated[int, Field(ge=0, lt=10_000)], ...] | None = Field(
        default=None, min_length=1
    )
    """Layers to adapt, counted from 0; left out, all of them. LoRA only."""
    dora: bool = False
    """Train the length of each weight row beside its direction (DoRA); LoRA only. A step takes
    longer, runs do not share a model, and vLLM does not load such adapters."""
    bias: Literal["none", "lora_only", "all"] = "none"
    """Biases to train as a whole: those of the adapted layers, or all of the model; LoRA only. A
    model without biases is refused, and vLLM does not load such adapters."""
    train_embeddings: bool = False
    """Train the input embedding and the output head as a whole, as one weight where the model ties
    them; LoRA only. Adapters grow by both, and vLLM does not load them."""

    @model_validator(mode="after")
    def _adapter_is_whole(self) -> "MethodEntry":
        of_lora = {name: getattr(self, name) for name in _LORA_KEYS}
        given = [name for name, value in of_lora.items() if value not in (None, False, 0, "none")]
        if self.rank is None and given:
            verb, them = ("belongs", "it") if len(given) == 1 else ("belong", "them")
            raise ValueError(f"{' and '.join(given)} {verb} to LoRA; add rank, or remove {them}")
        if self.rank is not None and self.alpha is None:
            raise ValueError("rank is given without alpha; add alpha (often twice the rank)")
        return self


class ScheduleEntry(Section):
    """A learning-rate schedule with warm-up or cooldown."""

    kind: Literal["constant", "cosine"]
    """`constant` keeps the peak, so that runs of different lengths share their beginning."""
    warmup_steps: Steps = 0
    """Steps of linear rise at the start."""
    cooldown_steps: Steps = 0
    """Steps of linear fall to 0 at the end; constant only."""

    @model_validator(mode="after")
    def _cools_once(self) -> "ScheduleEntry":
        if self.kind == "cosine" and self.cooldown_steps:
            raise ValueError("a cosine ends at 0 by itself; remove cooldown_steps")
        return self
