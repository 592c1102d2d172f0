"""Which inputs of an adapter does dropout zero, wherever a sample lies?

In: seed and step of each run, and for every token its sample and its position within that sample.
Out: masks that are functions of these, of the layer's name and of the column, and of nothing else:
the same bits on every device, in every layout, micro-batch and company. A generator could not
promise that, because it gives out numbers in the order in which they are asked for.

One 64-bit hash decides about four columns by 16 bits each, so rates are multiples of 1/65,536.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, final

import torch
from torch import Tensor

from sft_atlas.errors import StudyError

_LEVELS: Final = 1 << 16
_PER_WORD: Final = 4
"""Columns that one hash decides about."""

_MULTIPLIER: Final = 0xD6E8FEB86659FD93 - (1 << 64)
"""Of degski's 64-bit finaliser, as a signed number."""

_START: Final = 0x9E3779B97F4A7C15 - (1 << 64)
"""Where counting begins, because 0 hashes to 0: the golden ratio's bits."""


@final
@dataclass(eq=False)
class _Lent:
    """What the layers of a pass are told."""

    seed_steps: Sequence[tuple[int, int]]
    tokens: tuple[Tensor, Tensor] | None = None
    """Samples and positions."""
    keys: Tensor | None = None
    """Computed for the first layer that asks: most runs have no dropout."""


_lent: list[_Lent] = []
"""The innermost last. It is no context variable because autograd recomputes checkpointed layers in
threads of its own."""


def token_keys(seed_steps: Sequence[tuple[int, int]], samples: Tensor, positions: Tensor) -> Tensor:
    """Return a key per token, int64 (lines, tokens), on the device of `samples`.

    `seed_steps` holds (seed, step) of each line's run, or one pair for all lines. `samples` and
    `positions`, int64 (lines, tokens), are the index of a token's sample among its run's samples,
    and its place within that sample. Padding may hold anything.
    """
    runs = torch.tensor(seed_steps, dtype=torch.int64, device=samples.device)
    keys = _mixed(runs[:, 0, None] + _START)
    for part in (runs[:, 1, None], samples, positions):
        keys = _mixed(keys ^ part)
    return keys


@contextmanager
def dropout_seeds(seed_steps: Sequence[tuple[int, int]]) -> Iterator[None]:
    """Say of which (seed, step) each run of the model is while passes are made inside.

    The backward pass belongs inside as well where it recomputes layers.
    """
    _lent.append(_Lent(seed_steps))
    try:
        yield
    finally:
        _lent.pop()


def place_tokens(samples: Tensor, positions: Tensor) -> None:
    """Say where the tokens of the next forward pass lie, as for `token_keys`; it holds until the
    next call, and without `dropout_seeds` around it does nothing."""
    if _lent:
        _lent[-1].tokens, _lent[-1].keys = (samples, positions), None


def layer_key(name: str) -> int:
    """Return a layer's part of the hash: 63 bits of the SHA-256 of its name in the model."""
    digest = hashlib.sha256(f"dropout/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def dropped(x: Tensor, *, rate: float, layer: int) -> Tensor:
    """Return x (..., columns) with a share `rate`, in [0, 1), of its values zeroed, and the others
    divided by the share that stays.

    The leading axes of x are those of the pass, or one axis with all its tokens in their order.

    Raises:
        RuntimeError: if nobody said which tokens x holds.
        StudyError: if x does not hold every token once, in order.
    """
    threshold = min(round(rate * _LEVELS), _LEVELS - 1)
    levels = _levels(_keys_for(x), x.shape[-1], layer=layer)
    return x.masked_fill(levels < threshold - _LEVELS // 2, 0) * (_LEVELS / (_LEVELS - threshold))


def _levels(keys: Tensor, num_columns: int, *, layer: int) -> Tensor:
    """Return int16 (*keys.shape, num_columns), each of its values as likely as the others."""
    num_words = -(-num_columns // _PER_WORD)
    columns = torch.arange(num_words, dtype=torch.int64, device=keys.device)
    rows = _mixed(keys ^ layer)
    words = _mixed(rows[..., None] ^ _mixed(columns + _START))
    return words.view(torch.int16)[..., :num_columns]


def _mixed(words: Tensor) -> Tensor:
    """Hash int64 words in place, one to one: degski's finaliser, x ^= x >> 32 and a product, twice.

    It is made of shifts by half a word alone, so each is an operation on the halves, and the sign
    is in no one's way.
    """
    low, high = _halves(words)
    low ^= high
    for _ in range(2):
        words *= _MULTIPLIER
        low ^= high
    return words


def _halves(words: Tensor) -> tuple[Tensor, Tensor]:
    # Words lie with their low half first in memory, on every machine that torch runs on.
    halves = words.unsqueeze(-1).view(torch.int32)
    return halves[..., 0], halves[..., 1]


def _keys_for(x: Tensor) -> Tensor:
    lent = _lent[-1] if _lent else None
    if lent is None or lent.tokens is None:
        raise RuntimeError(
            "dropout: an adapter with dropout is trained, but nobody said which samples the pass "
            "holds; expected `dropout_seeds` around it and `place_tokens` before it. Call both, or "
            "model.eval()."
        )
    if lent.keys is None:
        lent.keys = token_keys(lent.seed_steps, *(part.to(x.device) for part in lent.tokens))
    if x.shape[:-1] == lent.keys.shape:
        return lent.keys
    if x.dim() == 2 and len(x) == lent.keys.numel():
        return lent.keys.flatten()
    raise StudyError(
        f"dropout: a layer sees tokens in the layout {tuple(x.shape[:-1])}, but the pass holds "
        f"{tuple(lent.keys.shape)}; expected each token once and in order. Train layers that see "
        f"chosen tokens alone, as experts do, without dropout, or name other targets."
    )
