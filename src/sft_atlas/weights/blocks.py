"""Read tensors of several files side by side, block by block, in memory that does not grow.

In: groups of stored tensors of one shape, such as a weight before and after. Out: for each block of
rows the same rows of each tensor of the group. Two threads read the next blocks into buffers that
are used again, while the caller computes with this one, and ask the kernel for what comes after
them; so the disk has always something to do, and a pass takes as long as reading does.
"""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Final, NamedTuple, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sft_atlas.errors import StoreError
from sft_atlas.weights.stored import DTYPES, StoredTensor

BLOCK_BYTES: Final = 1 << 20
"""Of one tensor; a row that is longer is a block of its own."""

_NUM_BUFFERS: Final = 4
"""Blocks in memory: one that is computed with, the others on their way."""

_NUM_READERS: Final = 2
_AHEAD_BYTES: Final = 4 << 20
"""Of each file, asked of the kernel before they are read: more than it would fetch by itself."""


@final
class Block(NamedTuple):
    """Some rows of each tensor of a group; valid until the next block is asked for."""

    group: int
    """Index of the group among those given."""
    first_row: int
    tensors: tuple[Tensor, ...]
    """Flat, in the types of the files."""


@final
class _Part(NamedTuple):
    group: int
    first_row: int
    num_weights: int
    first_weight: int
    tensors: tuple[StoredTensor, ...]


def iter_blocks(groups: Sequence[tuple[StoredTensor, ...]]) -> Iterator[Block]:
    """Yield the blocks of all groups in order; a group's tensors have one shape.

    Rows are the first dimension; a tensor of one dimension is cut anywhere, with `first_row` as the
    index of its first weight.

    Raises:
        StoreError: if a file ends before its tensor does.
    """
    parts = [part for index, group in enumerate(groups) for part in _parts(index, group)]
    largest = max((part.num_weights for part in parts), default=0)
    width = max((len(part.tensors) for part in parts), default=0)
    itemsize = max((t.itemsize for group in groups for t in group), default=0)
    buffers = [
        [np.empty(largest * itemsize, dtype=np.uint8) for _ in range(width)]
        for _ in range(_NUM_BUFFERS)
    ]
    with ExitStack() as stack:
        paths = dict.fromkeys(t.path for group in groups for t in group)
        descriptors = {path: _open(path, stack) for path in paths}
        # Left first: no read is under way when the files are closed.
        pool = stack.enter_context(ThreadPoolExecutor(_NUM_READERS))
        ahead: deque[Future[Block]] = deque()
        try:
            for number, part in enumerate(parts):
                buffer = buffers[number % _NUM_BUFFERS]
                ahead.append(pool.submit(_read, part, descriptors, buffer))
                if len(ahead) == _NUM_BUFFERS:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _parts(index: int, group: tuple[StoredTensor, ...]) -> Iterable[_Part]:
    first = group[0]
    row_weights = max(first.num_weights // first.shape[0], 1) if len(first.shape) > 1 else 1
    itemsize = max(tensor.itemsize for tensor in group)
    num_rows = max(BLOCK_BYTES // (row_weights * itemsize), 1)
    for start in range(0, first.num_weights, num_rows * row_weights):
        num_weights = min(num_rows * row_weights, first.num_weights - start)
        yield _Part(index, start // row_weights, num_weights, start, group)


def _open(path: Path, stack: ExitStack) -> int:
    descriptor = os.open(path, os.O_RDONLY)
    stack.callback(os.close, descriptor)
    return descriptor


def _announce(descriptor: int, offset: int) -> None:
    """Have the kernel fetch what will be read soon, where it takes such advice."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, offset, _AHEAD_BYTES, os.POSIX_FADV_WILLNEED)


def _read(part: _Part, descriptors: dict[Path, int], buffers: list[NDArray[np.uint8]]) -> Block:
    tensors = []
    for tensor, buffer in zip(part.tensors, buffers, strict=False):
        num_bytes = part.num_weights * tensor.itemsize
        target = buffer[:num_bytes].data
        offset = tensor.offset + part.first_weight * tensor.itemsize
        descriptor = descriptors[tensor.path]
        _announce(descriptor, offset + num_bytes)
        while target:
            count = os.preadv(descriptor, [target], offset)
            if count == 0:
                raise StoreError(
                    f"{tensor.path}: ends within {tensor.name!r}; expected a file that nobody "
                    f"writes. Download or save it again."
                )
            target, offset = target[count:], offset + count
        tensors.append(torch.from_numpy(buffer[:num_bytes]).view(DTYPES[tensor.dtype]))
    return Block(part.group, part.first_row, tuple(tensors))
