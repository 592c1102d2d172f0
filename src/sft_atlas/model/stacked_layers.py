"""Layers that compute several runs at once: each line of a batch with weights of its own.

In: states (runs, tokens, size), every run's tokens at the start of its line, zeros behind. Out: the
same of each layer's output. On a GPU a product is one batched product over the leading run axis. On
a CPU, where a product of a few hundred rows fills a core by itself, it is one product for each run,
of exactly its own tokens: with the shapes that the run would have alone, so with the same bits.
"""

from collections.abc import Sequence
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from sft_atlas.model.lora_linear import LoraLinear

OWN_WEIGHTS: Final = ("weight", "bias")


@final
class Lines:
    """How many tokens each run has in the present pass; the layers of a stack share one."""

    def __init__(self) -> None:
        self.lengths: Sequence[int] = ()


@final
class StackedLinear(nn.Module):
    """`nn.Linear` with weights (runs, out, in) and, where it has one, a bias (runs, out)."""

    def __init__(self, lines: Lines, layer: nn.Linear) -> None:
        super().__init__()
        self._lines = lines
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight: Tensor
        self.bias: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        return products(x, self.weight, self.bias, self._lines)


@final
class SharedLinear(nn.Module):
    """A frozen linear layer that all runs have in common."""

    def __init__(self, lines: Lines, layer: nn.Linear) -> None:
        super().__init__()
        self._lines = lines
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return products(x, self.weight, self.bias, self._lines)


@final
class StackedLora(nn.Module):
    """`LoraLinear` with factors (runs, rank, in) and (runs, out, rank) over one frozen layer."""

    def __init__(self, lines: Lines, layer: LoraLinear) -> None:
        super().__init__()
        self._lines = lines
        self.base = SharedLinear(lines, layer.base)
        self._layer = [layer]  # in a list, so that its factors are not parameters of this module
        self.lora_A: Tensor
        self.lora_B: Tensor

    def forward(self, x: Tensor) -> Tensor:
        layer = self._layer[0]
        # First as in `LoraLinear`: gradients of x are added up in the reverse order.
        output = self.base(x)
        low = products(layer.dropped(x), self.lora_A, None, self._lines)
        change = products(low, self.lora_B, None, self._lines)
        return torch.add(output, change, alpha=layer.scale)


@final
class StackedConv1D(nn.Module):
    """transformers' `Conv1D`, a linear layer that holds its weight as (in, out)."""

    def __init__(self, lines: Lines, _layer: nn.Module) -> None:
        super().__init__()
        self._lines = lines
        self.weight: Tensor
        self.bias: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return products(x, self.weight.transpose(1, 2), self.bias, self._lines)


@final
class StackedEmbedding(nn.Module):
    """`nn.Embedding`, or Gemma's that scales its rows, with a table (runs, vocabulary, size)."""

    def __init__(self, _lines: Lines, layer: nn.Embedding) -> None:
        super().__init__()
        self.padding_idx = layer.padding_idx
        self.scale: Tensor | None = getattr(layer, "embed_scale", None)
        self.weight: Tensor

    def forward(self, ids: Tensor) -> Tensor:
        num_runs, size, width = self.weight.shape
        first = torch.arange(num_runs, device=ids.device)[:, None] * size
        states = functional.embedding(ids + first, self.weight.view(num_runs * size, width))
        if self.padding_idx is not None:
            # As torch's: the row of the padding token is read and never trained.
            states = torch.where((ids == self.padding_idx)[..., None], states.detach(), states)
        return states if self.scale is None else states * self.scale.to(states.dtype)


@final
class StackedLayerNorm(nn.Module):
    """`nn.LayerNorm` with weights and biases (runs, size)."""

    def __init__(self, lines: Lines, layer: nn.LayerNorm) -> None:
        super().__init__()
        self._lines = lines
        self._shape, self._epsilon = layer.normalized_shape, layer.eps
        self.weight: Tensor
        self.bias: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        own = torch.zeros_like(x)
        tokens = _token_axis(x.shape, self._lines.lengths)
        for run, length in enumerate(self._lines.lengths):
            bias = None if self.bias is None else self.bias[run]
            normed = functional.layer_norm(
                _first(x[run], length, tokens), self._shape, self.weight[run], bias, self._epsilon
            )
            _first(own[run], length, tokens).copy_(normed)
        return own


@final
class StackedNorm(nn.Module):
    """A norm that multiplies by one weight per feature, whatever else its own code does."""

    def __init__(self, lines: Lines, norm: nn.Module) -> None:
        super().__init__()
        self._lines = lines
        del norm.weight
        self._norm = [norm]  # in a list: the tensor that it is lent is not a parameter
        self.weight: Tensor

    def forward(self, x: Tensor) -> Tensor:
        norm = self._norm[0]
        spread: Tensor = _SpreadWeight.apply(self.weight, x.shape, self._lines.lengths)  # type: ignore[no-untyped-call]
        norm.weight = spread
        scaled: Tensor = norm(x)
        norm.weight = None  # type: ignore[assignment]
        return scaled


def multiplies_by_run(device: torch.device) -> bool:
    """Tell whether a device is better given one product for each run than a batched one."""
    return device.type == "cpu"


def products(x: Tensor, weight: Tensor, bias: Tensor | None, lines: Lines) -> Tensor:
    """Multiply each run's states (runs, tokens, in) with its weight (runs, out, in) or with one
    weight (out, in) of all; returns (runs, tokens, out)."""
    if multiplies_by_run(x.device):
        result: Tensor = _LineProducts.apply(x, weight, bias, lines.lengths)  # type: ignore[no-untyped-call]
        return result
    if weight.dim() == 2:
        return functional.linear(x, weight, bias)
    if bias is None:
        return torch.bmm(x, weight.transpose(1, 2))
    return torch.baddbmm(bias[:, None], x, weight.transpose(1, 2))


class _LineProducts(torch.autograd.Function):
    """One product for each run, of its own tokens."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, lengths: Sequence[int]
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.lengths, ctx.bias_dim = lengths, 0 if bias is None else bias.dim()
        output = x.new_empty(*x.shape[:2], weight.shape[-2])
        for run, length in enumerate(lengths):
            own, into = x[run, :length], output[run, :length]
            transposed = _of(weight, run, 2).t()
            if bias is None:
                torch.mm(own, transposed, out=into)
            else:
                torch.addmm(_of(bias, run, 1), own, transposed, out=into)
            output[run, length:] = 0
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        of_x = torch.empty_like(x) if needs_x else None
        of_weight = torch.zeros_like(weight) if needs_weight else None
        of_bias = None
        if needs_bias:
            shape = weight.shape[:-1] if ctx.bias_dim == 2 else weight.shape[-2:-1]
            of_bias = weight.new_zeros(shape)
        for run, length in enumerate(ctx.lengths):
            own = gradient[run, :length]
            if of_x is not None:
                torch.mm(own, _of(weight, run, 2), out=of_x[run, :length])
                of_x[run, length:] = 0
            if of_weight is not None:
                assert weight.dim() == 3, "a layer that runs have in common is frozen"
                torch.mm(own.t(), x[run, :length], out=of_weight[run])
            if of_bias is not None:
                torch.sum(own, 0, out=of_bias[run])
        return of_x, of_weight, of_bias, None


class _SpreadWeight(torch.autograd.Function):
    """Lend a weight (runs, size) to every token of its run; its gradient sums the run's own."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, shape: torch.Size, lengths: Sequence[int]) -> Tensor:
        ctx.lengths = lengths
        middle = (1,) * (len(shape) - 2)
        return weight.view(len(weight), *middle, weight.shape[1]).expand(shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        sums = []
        # What padding adds is zero, but it moves the rounding.
        tokens = _token_axis(gradient.shape, ctx.lengths)
        for run, length in enumerate(ctx.lengths):
            own = _first(gradient[run], length, tokens)
            sums.append(own.unsqueeze(0).sum(tuple(range(own.dim()))))
        return torch.stack(sums), None, None


def _of(tensor: Tensor, run: int, own_dim: int) -> Tensor:
    return tensor[run] if tensor.dim() > own_dim else tensor


def _token_axis(shape: Sequence[int], lengths: Sequence[int]) -> int | None:
    """Return which axis of (runs, tokens, ..., size) or (runs, heads, tokens, size) is the tokens';
    None if heads and tokens are equally many."""
    axes = [axis for axis in range(1, len(shape) - 1) if shape[axis] == max(lengths)]
    return axes[0] if len(axes) == 1 else None


def _first(own: Tensor, length: int, tokens: int | None) -> Tensor:
    """Return the first tokens of one run's states, or all where they cannot be told apart."""
    return own if tokens is None else own.narrow(tokens - 1, 0, length)
