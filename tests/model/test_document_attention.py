"""Attention within documents is plain attention with a mask, forwards and backwards."""

from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from sft_atlas.model import document_attention
from sft_atlas.model.document_attention import attend, place_documents, plan_buckets

LENGTHS = np.array([3, 9, 1, 8, 2, 40, 3])
STARTS = np.array([0, 3, 12, 13, 30, 50, 32])
NUM_TOKENS = 93
CPU = torch.device("cpu")


def draw(num_heads: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn((NUM_TOKENS, num_heads, 8), generator=generator, dtype=torch.float64)
    return drawn.requires_grad_()


def masked_attention(
    query: Tensor, key: Tensor, value: Tensor, *, window: int | None, cap: float | None
) -> Tensor:
    """The definition: all scores between all tokens, most of them hidden."""
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scores = torch.einsum("qhd,khd->hqk", query, key) * 0.3
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    document, place = torch.full((NUM_TOKENS,), -1), torch.arange(NUM_TOKENS)
    for number, (start, length) in enumerate(zip(STARTS, LENGTHS, strict=True)):
        document[start : start + length] = number
    seen = (document[:, None] == document) & (place[:, None] >= place)
    if window is not None:
        seen &= place[:, None] - place < window
    weights = torch.softmax(scores.masked_fill(~seen, -torch.inf), dim=-1)
    attended = torch.einsum("hqk,khd->qhd", weights, value)
    return attended.masked_fill((document < 0)[:, None, None], 0)


@pytest.mark.parametrize("window", [None, 4, 1, 100])
@pytest.mark.parametrize("cap", [None, 0.5])
@pytest.mark.parametrize("num_key_heads", [4, 2])
def test_it_is_masked_attention_with_its_gradients(
    window: int | None, cap: float | None, num_key_heads: int
) -> None:
    layout = place_documents(STARTS, LENGTHS, 1, NUM_TOKENS, CPU)
    inputs = [draw(4, 0), draw(num_key_heads, 1), draw(num_key_heads, 2)]
    found = attend(layout, *inputs, scale=0.3, window=window, cap=cap, dropout=0.0)
    expected = masked_attention(*inputs, window=window, cap=cap)
    torch.testing.assert_close(found, expected)
    weights = draw(4, 3).detach()
    for own, reference in zip(
        torch.autograd.grad(found, inputs, weights),
        torch.autograd.grad(expected, inputs, weights),
        strict=True,
    ):
        torch.testing.assert_close(own, reference)


@pytest.mark.parametrize("cap", [None, 5.0])
def test_dropout_leaves_a_weight_out_or_makes_up_for_others(cap: float | None) -> None:
    """A document of one token has one weight, 1: half of them become 0 and the others 2."""
    layout = place_documents(np.arange(NUM_TOKENS), np.full(NUM_TOKENS, 1), 1, NUM_TOKENS, CPU)
    query, key, value = (draw(4, seed).detach() for seed in range(3))
    torch.manual_seed(0)
    found = attend(layout, query, key, value, scale=0.3, window=None, cap=cap, dropout=0.5)
    ratios = (found / value).round(decimals=9)
    assert set(ratios.unique().tolist()) == {0.0, 2.0}
    assert 0.8 < float(ratios.mean()) < 1.2


def test_every_token_of_a_document_has_a_slot_of_its_own() -> None:
    layout = place_documents(STARTS, LENGTHS, 1, NUM_TOKENS, CPU)
    lie = np.concatenate(
        [start + np.arange(length) for start, length in zip(STARTS, LENGTHS, strict=True)]
    )
    slots = layout.slot_of_token[lie]
    assert len(slots.unique()) == len(lie)
    assert torch.equal(layout.token_of_slot[slots], torch.from_numpy(lie))
    assert not set(slots.tolist()) & set(layout.blank_slots.tolist())
    num_slots = sum(number * length for number, length in layout.buckets)
    assert len(lie) + len(layout.blank_slots) == num_slots == len(layout.token_of_slot)
    assert len(lie) + len(layout.blank_tokens) == NUM_TOKENS
    edges = set(layout.cumulative.tolist())
    assert edges == {0, NUM_TOKENS, *STARTS.tolist(), *(STARTS + LENGTHS).tolist()}


def test_buckets_cost_as_little_as_any_others() -> None:
    def cost(lengths: list[int], cuts: tuple[int, ...]) -> int:
        edges = [0, *cuts, len(lengths)]
        parts = [lengths[a:b] for a, b in pairwise(edges)]
        return sum(len(part) * part[0] * (part[0] + 64) + 2048 for part in parts)

    rng, numbers = np.random.default_rng(0), []
    for _ in range(30):
        lengths = sorted(rng.integers(1, 200, size=rng.integers(1, 9)).tolist(), reverse=True)
        inner = range(1, len(lengths))
        best = min(
            cost(lengths, cuts) for n in range(len(lengths)) for cuts in combinations(inner, n)
        )
        buckets = plan_buckets(np.array(lengths))
        assert sum(number for number, _ in buckets) == len(lengths)
        cuts = np.cumsum([number for number, _ in buckets])[:-1]
        assert cost(lengths, tuple(cuts.tolist())) == best
        firsts = [0, *cuts.tolist()]
        assert [length for _, length in buckets] == [lengths[first] for first in firsts]
        numbers.append(len(buckets))
    assert len(set(numbers)) > 2, "the plans differ"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a kernel of GPUs")
def test_the_kernel_for_varying_lengths_sees_what_the_buckets_see() -> None:
    device = torch.device("cuda")
    inputs = [draw(4, 0), draw(2, 1), draw(2, 2)]
    for window in (None, 4):
        expected = masked_attention(*inputs, window=window, cap=None)
        found = attend(
            place_documents(STARTS, LENGTHS, 1, NUM_TOKENS, device),
            *(x.to(device, torch.bfloat16) for x in inputs),
            scale=0.3,
            window=window,
            cap=None,
            dropout=0.0,
        )
        lie = place_documents(STARTS, LENGTHS, 1, NUM_TOKENS, CPU).slot_of_token > 0
        torch.testing.assert_close(found[lie].double().cpu(), expected[lie], rtol=0.02, atol=0.02)


def test_on_a_cpu_a_line_has_buckets_of_its_own() -> None:
    """So a run among others is regrouped into the shapes that it has alone."""
    lengths = np.array([9, 3, 9, 3])
    together = place_documents(np.array([0, 9, 12, 21]), lengths, 2, 24, CPU)
    alone = place_documents(np.array([0, 9]), lengths[:2], 1, 12, CPU)
    assert together.buckets == alone.buckets * 2


@pytest.mark.parametrize("mixes", [False, True])
def test_a_kernel_is_used_only_if_it_keeps_documents_apart(
    mixes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The buckets play the kernel, as they are or as if all tokens were of one document."""

    def kernel(layout: document_attention.Layout, *inputs: Tensor | float | None) -> Tensor:
        query, key, value, scale, window = inputs
        if mixes:
            layout = place_documents(np.array([0]), np.array([5]), 1, 5, CPU)
        return attend(layout, query, key, value, scale=scale, window=window, cap=None, dropout=0.0)

    probe = document_attention._kernel_works.__wrapped__
    assert not probe(CPU, torch.bfloat16, 16), "a CPU has none"
    monkeypatch.setattr(document_attention, "_attend_as_they_lie", kernel)
    with torch.no_grad():
        assert probe(CPU, torch.bfloat16, 16) != mixes
