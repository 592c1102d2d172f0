"""A linear layer that learns a low-rank change of its frozen weight.

W x + scale B A x (Hu et al. 2021), and on request DoRA (Liu et al. 2024): every row of W + scale
B A is stretched to a trained length. Formulas, initialisation and what is left out of the gradient
are PEFT's. The layers are our own because several runs' factors stack over one frozen weight, and
because dropout has to know which sample a token is of.
"""

import math
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

from sft_atlas.errors import StudyError
from sft_atlas.model.dropout import dropped, layer_key
from sft_atlas.study.spec import LoraSpec
from sft_atlas.weights.adapter import DoraFactors, LoraFactors


@final
class LoraLinear(nn.Module):
    """A frozen linear layer and its trainable change, in float32.

    `name` is the layer's name in its model: dropout depends on it.
    """

    def __init__(
        self, base: nn.Linear, lora: LoraSpec, *, name: str, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.base = base
        self.name = name
        self.scale = lora.scale
        self.dropout = lora.dropout
        self.layer_key = layer_key(name)
        down = torch.empty(lora.rank, base.in_features)
        nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=generator)
        up = torch.zeros(base.out_features, lora.rank)
        device = base.weight.device
        self.lora_A = nn.Parameter(down.to(device))
        self.lora_B = nn.Parameter(up.to(device))
        self.lora_magnitude_vector: nn.Parameter | None = None
        """DoRA's row lengths, shape (out,)."""
        if lora.dora:
            lengths = torch.linalg.vector_norm(base.weight.detach().float(), dim=1)
            self.lora_magnitude_vector = nn.Parameter(lengths)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.base(x)
        seen = self.dropped(x)
        change = functional.linear(functional.linear(seen, self.lora_A), self.lora_B)
        if self.lora_magnitude_vector is None:
            return torch.add(output, change, alpha=self.scale)
        stretch = self.lora_magnitude_vector / self._lengths()
        if seen is not x:
            product = functional.linear(seen, self.base.weight)
        else:
            product = output if self.base.bias is None else output - self.base.bias
        stretched = output + (stretch - 1) * product + self.scale * stretch * change
        return stretched.to(output.dtype)

    @property
    def weight(self) -> Tensor:
        """Raise StudyError: code that takes the weight, as Mamba's does, passes the adapter by."""
        raise StudyError(
            f"lora.targets: the model's own code takes the weight of {self.name} and passes its "
            f"adapter by; expected layers that are called. Name other `targets`."
        )

    def dropped(self, x: Tensor) -> Tensor:
        """Return what the factors see of x: x itself, or in training what dropout leaves of it."""
        if not (self.training and self.dropout):
            return x
        return dropped(x, rate=self.dropout, layer=self.layer_key)

    def merged_weight(self) -> Tensor:
        """Return the weight of the plain layer that computes the same, in the base weight's
        type."""
        weight = self.base.weight.detach()
        if self.lora_magnitude_vector is None:
            return self._changed_weight().to(weight.dtype)
        factors = LoraFactors(self.lora_B.detach(), self.lora_A.detach(), self.scale)
        return DoraFactors(factors, self.lora_magnitude_vector.detach()).rows(weight).to(weight)

    @torch.no_grad()
    def _lengths(self) -> Tensor:
        """Return ||W + scale B A|| by row: a constant to the gradient (Liu et al. 2024, sec.
        4.3)."""
        with torch.autocast(self.lora_A.device.type, enabled=False):
            lengths: Tensor = torch.linalg.vector_norm(self._changed_weight(), dim=1)
            return lengths

    def _changed_weight(self) -> Tensor:
        change = self.lora_B.detach().float() @ self.lora_A.detach().float()
        return torch.add(self.base.weight.detach().float(), change, alpha=self.scale)
