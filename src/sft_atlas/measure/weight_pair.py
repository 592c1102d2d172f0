"""How far do two models on the disk lie apart, weight by weight?

In: the folder of a base model and that of a tuned one, or of a PEFT adapter. Out: the rows that
`drift` has for a cell. Both are read side by side in blocks, in memory that does not depend on the
models' size, at about the speed of reading. Squares are summed in float32 over 1,024
weights and in float64 over these sums; where a sum leaves the range in which float32 is exact
enough, it is computed again in float64. An adapter's norms come from its factors; what it leaves
unchanged comes from W + scale B A, formed a block of rows at a time, and so does all of DoRA.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from sft_atlas.errors import DataError
from sft_atlas.measure.drift import (
    DriftRow,
    WeightChange,
    count_unchanged,
    drift_rows,
    squared_product_norm,
)
from sft_atlas.weights.adapter import DoraFactors, LoraFactors, is_adapter
from sft_atlas.weights.blocks import Block, iter_blocks
from sft_atlas.weights.names import count_layers, parse_weight_name
from sft_atlas.weights.pairing import WeightPair, pair_folders
from sft_atlas.weights.stored import StoredTensor

_NUM_TOGETHER: Final = 1 << 18
"""Weights that are computed together: few enough to stay in the cache."""

_NUM_SUMMED: Final = 1024
"""Weights whose squares are summed in float32; these sums are summed in float64."""

_EXACT_ENOUGH: Final = (1e-20, 1e30)
"""Sums of squares in which no addend of weight was lost to under- or overflow of float32."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class PairDrift:
    """How far a tuned model moved from its base, and what it took to measure."""

    rows: tuple[DriftRow, ...]
    """One per weight, by layer and name; then the totals, as in `drift_rows`."""
    num_layers: int
    from_adapter: bool
    seconds: float
    bytes_read: int
    notes: tuple[str, ...]
    """What was read in another way than it is stored, as sentences."""


def measure_pair(base_folder: Path, tuned_folder: Path) -> PairDrift:
    """Measure the weight change between two folders of safetensors.

    The files may be sharded in different ways and hold float32, float16 or bfloat16 in any mix. A
    tied head counts once, as the embedding.

    Raises:
        StoreError: if the folders are not two states of one model.
        DataError: if a weight is NaN or infinite.
    """
    started = time.perf_counter()
    pairing = pair_folders(base_folder, tuned_folder, are_equal=are_equal)
    for pair in pairing.pairs:
        _check_factors(pair, tuned_folder)
    groups = [_stored_of(pair) for pair in pairing.pairs]
    sums = [_Sums() for _ in pairing.pairs]
    scratch = _Scratch(torch.empty(_NUM_TOGETHER), torch.empty(_NUM_TOGETHER))
    with _one_thread():
        for block in iter_blocks(groups):
            _add_block(sums[block.group], pairing.pairs[block.group], block, scratch)
    changes = [_change(pair, total) for pair, total in zip(pairing.pairs, sums, strict=True)]
    changes.sort(key=_row_order)
    num_layers = count_layers(change.tensor for change in changes)
    return PairDrift(
        rows=tuple(drift_rows(changes, num_layers=num_layers)),
        num_layers=num_layers,
        from_adapter=is_adapter(tuned_folder),
        seconds=time.perf_counter() - started,
        bytes_read=sum(t.num_weights * t.itemsize for group in groups for t in group),
        notes=pairing.notes,
    )


def are_equal(one: StoredTensor, other: StoredTensor) -> bool:
    """Tell whether two stored tensors hold the same values, whatever their types."""
    if one.shape != other.shape:
        return False
    return all(
        torch.equal(block.tensors[0].float(), block.tensors[1].float())
        for block in iter_blocks([(one, other)])
    )


@final
@dataclass(slots=True)
class _Sums:
    """What was summed of one weight so far."""

    squared_change: float = 0.0
    squared_base: float = 0.0
    num_unchanged: int = 0


@final
class _Scratch(NamedTuple):
    """Memory for float32 values that is used again."""

    base: Tensor
    change: Tensor


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep torch from splitting small operations between threads: one of them is reading."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _stored_of(pair: WeightPair) -> tuple[StoredTensor, ...]:
    return (pair.before, pair.after) if isinstance(pair.after, StoredTensor) else (pair.before,)


def _add_block(sums: _Sums, pair: WeightPair, block: Block, scratch: _Scratch) -> None:
    tensors = block.tensors
    if isinstance(pair.after, DoraFactors):
        rows = tensors[0].view(-1, pair.before.shape[1])
        tensors = (tensors[0], pair.after.rows(rows, block.first_row).flatten())
    for start in range(0, len(tensors[0]), _NUM_TOGETHER):
        parts = [tensor[start : start + _NUM_TOGETHER] for tensor in tensors]
        base = scratch.base[: len(parts[0])].copy_(parts[0])
        sums.squared_base += _finite_square(base, pair.before)
        if len(parts) == 2:
            source = pair.after if isinstance(pair.after, StoredTensor) else pair.before
            _add_change(sums, source, parts, base, scratch)
    (before, *_) = block.tensors
    if isinstance(pair.after, LoraFactors):
        merged = before.float() + _rows_of_change(pair.after, pair.before, block)
        sums.num_unchanged += count_unchanged(before, merged)
    elif pair.after is None:
        sums.num_unchanged += len(before)


def _add_change(
    sums: _Sums, source: StoredTensor, parts: list[Tensor], base: Tensor, scratch: _Scratch
) -> None:
    before, after = parts
    num_unchanged = count_unchanged(before, after)
    sums.num_unchanged += num_unchanged
    if num_unchanged == len(before) and before.dtype == after.dtype == torch.bfloat16:
        return
    change = scratch.change[: len(base)].copy_(after).sub_(base)
    sums.squared_change += _finite_square(change, source)


def _finite_square(values: Tensor, source: StoredTensor) -> float:
    """Return the sum of squares.

    Raises:
        DataError: if it is not finite: a value is NaN or infinite.
    """
    low, high = _EXACT_ENOUGH
    array = values.numpy()
    rows = array[: len(array) // _NUM_SUMMED * _NUM_SUMMED].reshape(-1, _NUM_SUMMED)
    rest = array[rows.size :]
    with np.errstate(over="ignore", invalid="ignore"):
        square = float(np.vecdot(rows, rows).sum(dtype=np.float64) + np.dot(rest, rest))
    if not low < square < high and values.any():
        square = values.double().square().sum().item()
    if not math.isfinite(square):
        raise DataError(
            f"{source.path}: {source.name!r} holds NaN or infinity; expected finite weights. Use "
            f"a checkpoint from before the training diverged, or save it again."
        )
    return square


def _rows_of_change(factors: LoraFactors, weight: StoredTensor, block: Block) -> Tensor:
    num_rows = len(block.tensors[0]) // weight.shape[1]
    up = factors.up[block.first_row : block.first_row + num_rows].float()
    return (factors.scale * (up @ factors.down.float())).flatten()


def _check_factors(pair: WeightPair, tuned_folder: Path) -> None:
    if isinstance(pair.after, LoraFactors):
        sum_of_all = squared_product_norm(pair.after)
    elif isinstance(pair.after, DoraFactors):
        sum_of_all = squared_product_norm(pair.after.low_rank) + pair.after.lengths.sum().item()
    else:
        return
    if not math.isfinite(sum_of_all):
        raise DataError(
            f"{tuned_folder}: the factors of {pair.name!r} hold NaN or infinity; expected finite "
            f"weights. Train the adapter with a lower learning rate."
        )


def _change(pair: WeightPair, sums: _Sums) -> WeightChange:
    squared_change = sums.squared_change
    if isinstance(pair.after, LoraFactors):
        squared_change = squared_product_norm(pair.after)
    return WeightChange(
        tensor=pair.name,
        squared_change=squared_change,
        squared_base=sums.squared_base,
        num_weights=pair.before.num_weights,
        num_unchanged=sums.num_unchanged,
    )


def _row_order(change: WeightChange) -> tuple[int, str]:
    """Sort by layer and name, so that no order of shards shows in the result."""
    layer = parse_weight_name(change.tensor).layer
    return (-1 if layer is None else layer, change.tensor)
