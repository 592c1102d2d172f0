"""Answer what tokens that lie end to end see of their own document.

In: queries, keys and values of all tokens, and where each document lies. Out: attention within the
documents. Tokens are regrouped into a few right-padded buckets of documents of like lengths: no
mask is needed, and few scores are computed that nobody asked for. On a GPU that has it, a kernel
for documents of varying lengths takes them as they lie.
"""

import functools
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

_TOKEN_SCORES: Final = 64
"""What one more padded token costs on a CPU beside its attention scores, in scores: measured."""

_BUCKET_SCORES: Final = 2048
"""What one more bucket costs, in the same unit."""


class _Bucket(NamedTuple):
    num_documents: int
    length: int


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """Where the documents of a batch lie, and how their tokens are regrouped."""

    buckets: tuple[_Bucket, ...]
    token_of_slot: Tensor
    """int64 (slots,): bucket after bucket, document after document; 0 in blank slots."""
    slot_of_token: Tensor
    """int64 (tokens,); 0 for tokens that belong to no document."""
    blank_slots: Tensor
    """int64 (blank slots,): right of their documents, up to the bucket's length."""
    blank_tokens: Tensor
    """int64 (blank tokens,): those of no document."""
    cumulative: Tensor
    """int32 (spans + 1,): where documents, and stretches of no document, begin and end."""
    longest: int
    """Tokens of the longest span."""
    masks: dict[tuple[int, int | None], Tensor] = field(default_factory=dict)
    """What each query sees of a bucket of some length through some window; made when needed."""

    def visible(self, length: int, window: int | None) -> Tensor:
        """Return which keys (length, length) the queries of a document see."""
        if (length, window) not in self.masks:
            seen = torch.ones(
                (length, length), dtype=torch.bool, device=self.token_of_slot.device
            ).tril_()
            self.masks[length, window] = seen if window is None else seen.triu_(1 - window)
        return self.masks[length, window]


def place_documents(
    starts: NDArray[np.int64],
    lengths: NDArray[np.int64],
    num_lines: int,
    num_tokens: int,
    device: torch.device,
) -> Layout:
    """Plan the buckets of documents that lie at `starts` among `num_tokens` tokens in all lines.

    On a CPU no bucket holds documents of two lines: a run computes them as it does alone, to the
    last bit.
    """
    lines = starts // (num_tokens // num_lines) if device.type == "cpu" else np.zeros_like(starts)
    order = np.lexsort((-lengths, lines))
    starts, lengths, lines = starts[order], lengths[order], lines[order]
    of_lines = np.split(lengths, np.flatnonzero(np.diff(lines)) + 1)
    buckets = tuple(bucket for own in of_lines for bucket in plan_buckets(own))
    places, is_used, first = [], [], 0
    for number, length in buckets:
        columns = np.arange(length)
        own = slice(first, first + number)
        places.append((starts[own, None] + columns).ravel())
        is_used.append((columns < lengths[own, None]).ravel())
        first += number
    used = np.concatenate(is_used)
    token_of_slot = np.where(used, np.concatenate(places), 0)
    slot_of_token = np.full(num_tokens, -1)
    slot_of_token[token_of_slot[used]] = np.flatnonzero(used)
    blank_tokens = np.flatnonzero(slot_of_token < 0)
    # A stretch of no document is a span of its own: what follows a document and begins none.
    edges = np.unique(np.concatenate([[0], starts, starts + lengths, [num_tokens]]))
    return Layout(
        buckets=buckets,
        token_of_slot=torch.from_numpy(token_of_slot).to(device),
        slot_of_token=torch.from_numpy(np.maximum(slot_of_token, 0)).to(device),
        blank_slots=torch.from_numpy(np.flatnonzero(~used)).to(device),
        blank_tokens=torch.from_numpy(blank_tokens).to(device),
        cumulative=torch.from_numpy(edges.astype(np.int32)).to(device),
        longest=int(np.diff(edges).max()),
    )


def plan_buckets(lengths: NDArray[np.int64]) -> tuple[_Bucket, ...]:
    """Cut documents, longest first, into the buckets that cost least.

    A bucket costs the square of its length per document, and something for itself and its tokens.
    """
    # A cut between documents of one length gains nothing.
    own, firsts = np.unique(-lengths, return_index=True)
    own = -own
    ends = np.append(firsts[1:], len(lengths))
    area = own * own + _TOKEN_SCORES * own
    best, before = np.zeros(len(own) + 1), np.zeros(len(own), dtype=np.int64)
    for last, end in enumerate(ends):
        costs = best[: last + 1] + (end - firsts[: last + 1]) * area[: last + 1]
        before[last] = costs.argmin()
        best[last + 1] = costs[before[last]] + _BUCKET_SCORES
    buckets, last = [], len(own) - 1
    while last >= 0:
        first = int(before[last])
        buckets.append(_Bucket(int(ends[last] - firsts[first]), int(own[first])))
        last = first - 1
    return tuple(reversed(buckets))


def attend(
    layout: Layout,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float | None,
    window: int | None,
    cap: float | None,
    dropout: float,
) -> Tensor:
    """Return causal attention within documents (tokens, heads, size); zero for tokens of none.

    `query` is (tokens, heads, size), `key` and `value` may have fewer heads. A query sees the last
    `window` tokens up to its own; scores are capped at `cap` by a hyperbolic tangent.
    """
    if cap is None and not dropout and _has_kernel(query, value):
        return _attend_as_they_lie(layout, query, key, value, scale, window)
    sizes = [number * length for number, length in layout.buckets]
    slots = [torch.split(_regrouped(x, layout), sizes) for x in (query, key, value)]
    attended = []
    for (number, length), *own in zip(layout.buckets, *slots, strict=True):
        q, k, v = (x.view(number, length, *x.shape[1:]).transpose(1, 2) for x in own)
        seen = None if window is None or window >= length else layout.visible(length, window)
        if cap is None:
            result = functional.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=seen,
                dropout_p=dropout,
                is_causal=seen is None,
                scale=scale,
                enable_gqa=q.shape[1] != k.shape[1],
            )
        else:
            visible = layout.visible(length, None) if seen is None else seen
            result = _capped_attention(q, k, v, visible, scale, cap, dropout)
        attended.append(result.transpose(1, 2).flatten(0, 1))
    joined = attended[0] if len(attended) == 1 else torch.cat(attended)
    tokens: Tensor = _Regroup.apply(  # type: ignore[no-untyped-call]
        joined,
        layout.slot_of_token,
        layout.token_of_slot,
        layout.blank_tokens,
        layout.blank_slots,
    )
    return tokens


def _attend_as_they_lie(
    layout: Layout,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float | None,
    window: int | None,
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    result = varlen_attn(
        query,
        key,
        value,
        layout.cumulative,
        layout.cumulative,
        layout.longest,
        layout.longest,
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(result, Tensor), "nothing beside the states was asked for"
    return result


def _capped_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visible: Tensor,
    scale: float | None,
    cap: float,
    dropout: float,
) -> Tensor:
    """Attention (documents, heads, tokens, size) in plain steps: no fused kernel knows a cap."""
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = torch.tanh(query @ key.transpose(2, 3) * (scale / cap)) * cap
    scores = scores.masked_fill(~visible, -torch.inf)
    wide = torch.promote_types(scores.dtype, torch.float32)
    weights = torch.softmax(scores, dim=-1, dtype=wide).to(value.dtype)
    return functional.dropout(weights, dropout) @ value if dropout else weights @ value


def _regrouped(x: Tensor, layout: Layout) -> Tensor:
    slots: Tensor = _Regroup.apply(  # type: ignore[no-untyped-call]
        x,
        layout.token_of_slot,
        layout.slot_of_token,
        layout.blank_slots,
        layout.blank_tokens,
    )
    return slots


class _Regroup(torch.autograd.Function):
    """Put rows where `there` says, zeros at `blank`; `back` and `blank_back` undo it.

    Both directions read whole rows: autograd's own way back would add them up one by one.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, there: Tensor, back: Tensor, blank: Tensor, blank_back: Tensor
    ) -> Tensor:
        ctx.save_for_backward(back, blank_back)
        return _rows(x, there, blank)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return _rows(gradient, *ctx.saved_tensors), None, None, None, None


def _rows(x: Tensor, rows: Tensor, blank: Tensor) -> Tensor:
    chosen = x.index_select(0, rows)
    return chosen.index_fill_(0, blank, 0) if len(blank) else chosen


def _has_kernel(query: Tensor, value: Tensor) -> bool:
    if query.device.type != "cuda" or query.dtype not in (torch.bfloat16, torch.float16):
        return False
    size = query.shape[-1]
    return value.shape[-1] == size and _kernel_works(query.device, query.dtype, size)


@functools.cache
@torch.enable_grad()
def _kernel_works(device: torch.device, dtype: torch.dtype, size: int) -> bool:
    """Try torch's attention for varying lengths on two documents, with its gradients."""
    layout = place_documents(np.array([0, 3]), np.array([3, 2]), 1, 5, device)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn((3, 5, 2, size), generator=generator).to(device, dtype)
    found, expected = drawn.clone().requires_grad_(), drawn.clone().requires_grad_()
    try:
        result = _attend_as_they_lie(layout, found[0], found[1], found[2], None, None)
        torch.autograd.backward(result.square().sum())
    except (ImportError, NotImplementedError, RuntimeError, TypeError, ValueError):
        # An older torch, or a GPU or a head size that the kernel is not made for.
        return False
    q, k, v = (x.transpose(0, 1) for x in expected.unbind())
    alone = [
        functional.scaled_dot_product_attention(q[:, own], k[:, own], v[:, own], is_causal=True)
        for own in (slice(0, 3), slice(3, 5))
    ]
    wanted = torch.cat(alone, dim=1).transpose(0, 1)
    torch.autograd.backward(wanted.square().sum())
    assert found.grad is not None and expected.grad is not None
    # What is wrong by a document is wrong by about 1.
    return torch.allclose(result, wanted, rtol=0.05, atol=0.05) and torch.allclose(
        found.grad, expected.grad, rtol=0.05, atol=0.2
    )
