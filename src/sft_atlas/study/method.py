"""Say how weights are moved: what is trained, by which optimizer settings, on which schedule.

A part of `spec`: what decides the numbers and nothing else.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from sft_atlas.identity import added, canonical_json, unhashed

TrainedBiases = Literal["none", "lora_only", "all"]


@dataclass(frozen=True, kw_only=True)
class LoraSpec:
    """Low-rank adaptation (Hu et al. 2021): W + scale B A."""

    rank: int
    alpha: float
    dropout: float = 0.0
    targets: tuple[str, ...] = ("all-linear",)
    """Last parts of module names, or `all-linear`: every linear layer but the output head."""
    layers: tuple[int, ...] = added(())
    """Layers to adapt, counted from 0; empty: all."""
    rslora: bool = added(False)
    """Scale by alpha / sqrt(rank) (Kalajdzievski 2023)."""
    dora: bool = added(False)
    """Train the length of each row of W + scale B A as well (Liu et al. 2024)."""
    bias: TrainedBiases = added("none")
    """Biases that are trained as a whole: of the adapted layers, or all of the model."""
    train_embeddings: bool = added(False)
    """Train the input embedding and the output head as a whole, as one weight where they are."""

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    @property
    def is_plain(self) -> bool:
        """Tell whether low-rank factors are all that is trained."""
        return not (self.dora or self.train_embeddings) and self.bias == "none"


@dataclass(frozen=True, kw_only=True)
class MethodSpec:
    """How weights move: AdamW's settings, and the adapter if only that is trained."""

    learning_rate: float
    batch_samples: int
    """Samples per optimizer step, however they are split into micro-batches."""
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    clip_norm: float | None = 1.0
    """Global gradient norm above which gradients are scaled down; None never clips."""
    lora: LoraSpec | None = None
    """None trains every weight."""
    name: str = unhashed()

    @cached_property
    def canonical(self) -> str:
        return canonical_json(self)


@dataclass(frozen=True, kw_only=True)
class ScheduleSpec:
    """The learning rate over steps, as a fraction of the method's peak."""

    kind: Literal["constant", "cosine"]
    warmup_steps: int = 0
    """Steps of linear rise from 0; in steps, so that it never depends on the horizon."""
    cooldown_steps: int = 0
    """Steps of linear fall to 0 at the end of a constant schedule."""

    @property
    def needs_horizon(self) -> bool:
        """Tell whether early steps or any kept epoch depend on how long the run will be."""
        return self.kind == "cosine" or self.cooldown_steps > 0

    @cached_property
    def canonical(self) -> str:
        return canonical_json(self)
