"""The head's losses and gradients are cross-entropy's, whatever the chunks, and no logits stay."""

import re

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from sft_atlas.model.head_loss import HeadRule, head_losses

NUM_POSITIONS, HIDDEN, VOCABULARY = 11, 6, 17
RULES = [HeadRule(), HeadRule(scale=0.3), HeadRule(cap=0.8), HeadRule(scale=3.0, cap=1.5)]


def draw(*shape: int, seed: int = 0) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))


class Head(nn.Module):
    """An output head; with `runs`, one for each of two runs."""

    def __init__(self, *, runs: bool = False, bias: bool = True) -> None:
        super().__init__()
        lead = (2,) if runs else ()
        self.weight = draw(*lead, VOCABULARY, HIDDEN, seed=1)
        self.bias = draw(*lead, VOCABULARY, seed=2) if bias else None


def plain_losses(head: Head, rule: HeadRule, states: Tensor, targets: Tensor, sizes: list[int]):
    """The definition, of all logits at once."""
    losses, first = [], 0
    for run, size in enumerate(sizes):
        own = slice(first, first + size)
        weight = head.weight[run] if head.weight.dim() == 3 else head.weight
        bias = head.bias[run] if head.bias is not None and head.bias.dim() == 2 else head.bias
        logits = functional.linear(states[own], weight, bias).float() * rule.scale
        if rule.cap is not None:
            logits = rule.cap * torch.tanh(logits / rule.cap)
        losses.append(functional.cross_entropy(logits, targets[own], reduction="sum"))
        first += size
    return torch.stack(losses)


def inputs() -> tuple[nn.Parameter, Tensor]:
    targets = torch.randint(
        VOCABULARY, (NUM_POSITIONS,), generator=torch.Generator().manual_seed(3)
    )
    return draw(NUM_POSITIONS, HIDDEN), targets


@pytest.mark.parametrize("chunk", [1, 3, 8, 100, None])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("runs", [False, True], ids=["one head", "a head per run"])
def test_losses_and_gradients_are_those_of_cross_entropy(
    chunk: int | None, rule: HeadRule, runs: bool
) -> None:
    head, (states, targets), sizes = Head(runs=runs), inputs(), [7, 4]
    parameters = [states, *head.parameters()]
    losses = head_losses(head, rule, states, targets, sizes, chunk=chunk)
    expected = plain_losses(head, rule, states, targets, sizes)
    torch.testing.assert_close(losses, expected)
    # Runs whose losses count differently, as they do with different numbers of tokens.
    factors = torch.tensor([0.5, -2.0])
    found = torch.autograd.grad(losses, parameters, factors)
    for own, reference in zip(
        found, torch.autograd.grad(expected, parameters, factors), strict=True
    ):
        torch.testing.assert_close(own, reference, rtol=1e-5, atol=1e-5)


def test_a_run_without_positions_loses_nothing_and_changes_nothing() -> None:
    head, (states, targets) = Head(runs=True, bias=False), inputs()
    losses = head_losses(head, HeadRule(), states, targets, [NUM_POSITIONS, 0])
    losses.sum().backward()
    assert losses[1] == 0 and losses[0] > 0
    assert head.weight.grad is not None
    assert not head.weight.grad[1].any() and head.weight.grad[0].any()


def test_a_frozen_head_passes_gradients_on_and_gets_none() -> None:
    head, (states, targets) = Head(), inputs()
    head.requires_grad_(False)
    head_losses(head, HeadRule(), states, targets, [NUM_POSITIONS]).sum().backward()
    expected = torch.autograd.grad(
        plain_losses(head, HeadRule(), states, targets, [NUM_POSITIONS]).sum(), states
    )
    torch.testing.assert_close(states.grad, expected[0])
    assert head.weight.grad is None


def test_autocast_rounds_the_products_and_nothing_else() -> None:
    head, (states, targets), sizes = Head(), inputs(), [NUM_POSITIONS]
    with torch.autocast("cpu", torch.bfloat16):
        losses = head_losses(head, HeadRule(), states, targets, sizes)
        expected = plain_losses(head, HeadRule(), states, targets, sizes)
    torch.testing.assert_close(losses, expected)
    exact = plain_losses(head, HeadRule(), states, targets, sizes)
    assert 0 < abs(losses.item() / exact.item() - 1) < 0.01
    losses.sum().backward()
    reference = torch.autograd.grad(expected.sum(), [states, *head.parameters()])
    for parameter, gradient in zip([states, *head.parameters()], reference, strict=True):
        assert parameter.grad is not None and parameter.grad.dtype == torch.float32
        torch.testing.assert_close(parameter.grad, gradient, rtol=0.02, atol=0.05)


class LargestResult(TorchFunctionMode):
    """Watches how many values the largest tensor holds that is computed."""

    size = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.size = max(self.size, result.numel())
        return result


def test_logits_are_never_there_for_all_positions() -> None:
    head, (states, targets), sizes = Head(), inputs(), [NUM_POSITIONS]
    with LargestResult() as plain:
        plain_losses(head, HeadRule(), states, targets, sizes)
    assert plain.size == NUM_POSITIONS * VOCABULARY
    with LargestResult() as chunked:
        head_losses(head, HeadRule(), states, targets, sizes, chunk=2)
    assert 2 * VOCABULARY <= chunked.size <= VOCABULARY * HIDDEN


def test_a_second_backward_pass_is_refused() -> None:
    head, (states, targets) = Head(), inputs()
    loss = head_losses(head, HeadRule(), states, targets, [NUM_POSITIONS]).sum()
    loss.backward(retain_graph=True)
    message = (
        "head_losses: a second backward pass; expected one, because it scales the gradients in "
        "place. Compute the losses again."
    )
    with pytest.raises(RuntimeError, match=re.escape(message)):
        loss.backward()
