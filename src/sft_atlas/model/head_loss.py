"""Answer how much a model's states lose on their targets, without keeping the logits.

In: states at the supervised positions, the output head, the targets. Out: summed cross-entropies
with their gradients. Logits are made for a few hundred positions at a time and turned into the
gradients of states and head at once; the backward pass only scales those. So memory does not grow
with vocabulary times tokens, and a chunk of logits stays in a processor's cache.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

LOGIT_BYTES: Final = {"cpu": 1 << 22, "cuda": 1 << 28}
"""Float32 logits of one chunk."""


@final
@dataclass(frozen=True, kw_only=True)
class HeadRule:
    """What an architecture does to the product of states and head before it calls it logits."""

    scale: float = 1.0
    """Cohere multiplies, Granite divides."""
    cap: float | None = None
    """Gemma 2: logits become cap * tanh(logits / cap)."""

    def logits(self, products: Tensor) -> Tensor:
        """Return the logits as float32."""
        logits = products.float()
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap

    def slopes_(self, gradient: Tensor, logits: Tensor) -> Tensor:
        """Turn the gradient of the logits into that of the products, in place."""
        if self.cap is not None:
            gradient.mul_(1 - (logits / self.cap).square_())
        return gradient if self.scale == 1.0 else gradient.mul_(self.scale)


def head_rule(model: PreTrainedModel) -> HeadRule:
    """Return the rule that a model's configuration names.

    Whether its code does just that is tried out by `packed.can_pack`.
    """
    config = model.config.get_text_config()
    factor = getattr(config, "logit_scale", None) or 1.0
    divisor = getattr(config, "logits_scaling", None) or 1.0
    return HeadRule(scale=factor / divisor, cap=getattr(config, "final_logit_softcapping", None))


def head_losses(
    head: nn.Module,
    rule: HeadRule,
    states: Tensor,
    targets: Tensor,
    sizes: Sequence[int],
    *,
    chunk: int | None = None,
) -> Tensor:
    """Return the cross-entropy of each run, float32 (runs,), summed over its positions, nats.

    `states` (positions, hidden) and `targets` (positions,) stand run after run, `sizes` of them for
    each. The head's weight is (vocabulary, hidden), or (runs, vocabulary, hidden) if each run has
    its own. `chunk` positions are computed at a time; by default as many as suit the device. The
    losses have first derivatives alone, to be asked for once.
    """
    weight, bias = head.weight, getattr(head, "bias", None)
    assert isinstance(weight, Tensor), "an output head is a linear layer"
    if chunk is None:
        limit = LOGIT_BYTES.get(states.device.type, LOGIT_BYTES["cuda"])
        chunk = max(1, limit // (4 * weight.shape[-2]))
    losses: Tensor = _HeadLosses.apply(  # type: ignore[no-untyped-call]
        states, weight, bias, targets, rule, list(_chunks(sizes, chunk)), len(sizes)
    )
    return losses


def _chunks(sizes: Sequence[int], chunk: int) -> Iterator[tuple[int, slice]]:
    """Yield the run and the positions of each chunk."""
    first = 0
    for run, size in enumerate(sizes):
        for begin in range(first, first + size, chunk):
            yield run, slice(begin, min(begin + chunk, first + size))
        first += size


class _HeadLosses(torch.autograd.Function):
    """Computes all gradients along with the losses, those of the weights run by run."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        rule: HeadRule,
        chunks: list[tuple[int, slice]],
        num_runs: int,
    ) -> Tensor:
        device = states.device
        is_mixed = torch.is_autocast_enabled(device.type)
        kind = torch.get_autocast_dtype(device.type) if is_mixed else weight.dtype
        needs = ctx.needs_input_grad
        own = weight.shape[-2:]
        of_states = torch.empty_like(states) if needs[0] else None
        of_weight = weight.new_zeros(num_runs, *own) if needs[1] else None
        of_bias = weight.new_zeros(num_runs, own[0]) if needs[2] else None
        losses = torch.zeros(num_runs, device=device)
        inputs, factor = states.to(kind), weight.to(kind)
        with torch.autocast(device.type, enabled=False):
            for run, at in chunks:
                matrix = factor if factor.dim() == 2 else factor[run]
                offset = bias if bias is None or bias.dim() == 1 else bias[run]
                products = functional.linear(
                    inputs[at], matrix, None if offset is None else offset.to(kind)
                )
                loss, gradient = _loss_and_gradient(products, targets[at], rule)
                losses[run] += loss
                gradient = gradient.to(kind)
                if of_states is not None:
                    of_states[at] = gradient @ matrix
                if of_weight is not None and kind == of_weight.dtype:
                    of_weight[run].addmm_(gradient.t(), inputs[at])
                elif of_weight is not None:
                    of_weight[run].add_(gradient.t() @ inputs[at])
                if of_bias is not None:
                    of_bias[run].add_(gradient.sum(0))
        ctx.gradients = (of_states, of_weight, of_bias)
        ctx.chunks, ctx.is_shared = chunks, weight.dim() == 2
        return losses

    @staticmethod
    def backward(ctx: Any, factors: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError(
                "head_losses: a second backward pass; expected one, because it scales the "
                "gradients in place. Compute the losses again."
            )
        of_states, of_weight, of_bias = ctx.gradients
        ctx.gradients = None
        if of_states is not None:
            for run, at in ctx.chunks:
                of_states[at].mul_(factors[run])
        if of_weight is not None:
            of_weight.mul_(factors[:, None, None])
        if of_bias is not None:
            of_bias.mul_(factors[:, None])
        if ctx.is_shared:
            of_weight, of_bias = (_summed(of_runs) for of_runs in (of_weight, of_bias))
        return of_states, of_weight, of_bias, None, None, None, None


def _loss_and_gradient(products: Tensor, targets: Tensor, rule: HeadRule) -> tuple[Tensor, Tensor]:
    """Return the summed loss and its gradient in the products (positions, vocabulary), float32."""
    logits = rule.logits(products)
    positions = torch.arange(len(targets), device=targets.device)
    log_probabilities = torch.log_softmax(logits, dim=-1)
    loss = -log_probabilities[positions, targets].sum()
    gradient = log_probabilities.exp_()
    gradient[positions, targets] -= 1
    return loss, rule.slopes_(gradient, logits)


def _summed(of_runs: Tensor | None) -> Tensor | None:
    if of_runs is None or len(of_runs) == 1:
        return None if of_runs is None else of_runs[0]
    return of_runs.sum(0)
