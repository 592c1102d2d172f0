"""Do two fine-tunes of one base model move its weights in the same direction?

In: the folders of a base model and of K cells, full models or adapters. Out: the inner products of
all pairs of weight changes, exactly: for the whole model, for each layer and for each kind of
matrix. Weights are read in blocks of rows, so memory does not grow with the models. An adapter is
not multiplied out, unless it is DoRA: <B1 A1, B2 A2> = sum((B1^T B2) * (A1 A2^T)), and with a dense
change D it is sum(B * (D A^T)).
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple, final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import safe_open
from torch import Tensor

from sft_atlas.errors import DataError
from sft_atlas.identity import payload
from sft_atlas.measure.adapter import verified_folder
from sft_atlas.measure.weight_pair import are_equal
from sft_atlas.store.records import Record, make_provenance
from sft_atlas.store.store import Store
from sft_atlas.study.job import UpdatesJob
from sft_atlas.weights.adapter import DoraFactors, LoraFactors, is_adapter
from sft_atlas.weights.names import layer_position, parse_weight_name
from sft_atlas.weights.pairing import WeightPair, pair_folders
from sft_atlas.weights.stored import StoredTensor

UPDATES_NAME: Final = "updates.parquet"

_MAX_BYTES: Final = 256 << 20
_SCHEMA: Final = pa.schema(
    [
        ("cell_a", pa.string()),
        ("cell_b", pa.string()),
        ("scope", pa.string()),
        ("layer", pa.int32()),
        ("position", pa.float64()),
        ("kind", pa.string()),
        ("cosine", pa.float64()),
        ("inner", pa.float64()),
        ("norm_a", pa.float64()),
        ("norm_b", pa.float64()),
    ]
)

Gram = npt.NDArray[np.float64]


@final
class Scope(NamedTuple):
    """Which weights an inner product sums over."""

    name: str
    """`model`, `layer` or `kind`."""
    layer: int | None = None
    kind: str | None = None


@final
class _Stack(NamedTuple):
    """The factors of one weight of several cells side by side, in float64."""

    up: Tensor
    """Scaled B, shape (rows, sum of ranks)."""
    down: Tensor
    """A, shape (sum of ranks, columns)."""
    owners: Tensor
    """Which cell a rank belongs to, shape (sum of ranks,)."""


def measure_updates(
    store: Store, job: UpdatesJob, *, base_folder: Path, max_bytes: int = _MAX_BYTES
) -> Record:
    """Publish the cosines between the weight changes of stored cells of one base model.

    Returns the record that is there if it was measured before.

    Raises:
        StoreError: if a cell is not stored, damaged, or does not fit the base.
        DataError: if a cell holds NaN or infinity.
    """
    folder = store.layout.update(job.fingerprint)
    if found := store.find(folder):
        return found
    started = time.time()
    # In this order whoever asks, so that two runs of one job agree.
    cells = sorted(job.cells, key=lambda cell: cell.fingerprint)
    folders = [verified_folder(store, cell) for cell in cells]
    grams = update_grams(base_folder, folders, max_bytes=max_bytes)

    def fill(aside: Path) -> dict[str, Any]:
        names = [cell.fingerprint for cell in cells]
        pq.write_table(_table(names, grams), aside / UPDATES_NAME, compression="zstd")
        return {
            "num_cells": len(cells),
            "num_factored": sum(is_adapter(path) for path in folders),
            "num_pairs": len(cells) * (len(cells) - 1) // 2,
            "num_layers": sum(scope.name == "layer" for scope in grams),
            "kinds": [scope.kind for scope in grams if scope.name == "kind"],
        }

    return store.publish(
        folder,
        schema="updates/1",
        spec=payload(replace(job, cells=tuple(cells))),
        fill=fill,
        provenance=lambda: make_provenance(started),
    )


def update_grams(
    base_folder: Path, cell_folders: Sequence[Path], *, max_bytes: int = _MAX_BYTES
) -> dict[Scope, Gram]:
    """Return the inner products of all pairs of weight changes, shape (K, K), for each scope: the
    model, its layers in order, and its kinds of weights by name.

    Differences to the base are taken in float32, sums in float64. `max_bytes` bounds what is in
    memory of the weights, however many cells there are, down to one row of a matrix of each.

    Raises:
        StoreError: if a folder holds no state of the base's model.
        DataError: if a change is not finite; tensor and cell are named.
    """
    updates = [
        {pair.name: pair for pair in pair_folders(base_folder, folder, are_equal=are_equal).pairs}
        for folder in cell_folders
    ]
    size = len(updates)
    grams: dict[Scope, Tensor] = {}
    for name in dict.fromkeys(name for update in updates for name in update):
        pairs = {i: update[name] for i, update in enumerate(updates) if name in update}
        gram = torch.zeros(size, size, dtype=torch.float64)
        _add_weight(gram, pairs, max_bytes)
        _check_finite(gram, name, cell_folders)
        parsed = parse_weight_name(name)
        scopes = [Scope("model"), Scope("kind", kind=parsed.kind)]
        if parsed.layer is not None:
            scopes.append(Scope("layer", layer=parsed.layer))
        for scope in scopes:
            grams[scope] = grams[scope] + gram if scope in grams else gram
    rank = ("model", "layer", "kind").index
    order = sorted(grams, key=lambda s: (rank(s.name), s.layer or 0, s.kind or ""))
    # Rounding may differ between the two orders of a pair.
    return {scope: ((grams[scope] + grams[scope].T) / 2).numpy() for scope in order}


def _add_weight(gram: Tensor, pairs: Mapping[int, WeightPair], max_bytes: int) -> None:
    """Add the inner products of several cells' changes of one weight to `gram`.

    A cell whose adapter leaves the weight alone adds nothing.
    """
    shape = next(iter(pairs.values())).before.shape
    factored = {i: p.after for i, p in pairs.items() if isinstance(p.after, LoraFactors)}
    full = {
        i: (p.before, p.after)
        for i, p in pairs.items()
        if isinstance(p.after, (StoredTensor, DoraFactors))
    }
    groups = _groups(factored, shape, max_bytes // 2)
    for i, group in enumerate(groups):
        left = _stack(group)
        _add_factored(gram, left, left)
        for other in groups[i + 1 :]:
            _add_factored(gram, left, _stack(other), is_mirrored=True)
    if not full:
        return
    index = torch.tensor(list(full))
    for i, group in enumerate(groups or [{}]):
        stack = _stack(group) if group else None
        rank = 0 if stack is None else len(stack.owners)
        for block in _blocks(shape, num_cells=len(full), rank=rank, max_bytes=max_bytes // 2):
            dense = _dense(list(full.values()), block)
            if i == 0:
                flat = dense.reshape(len(full), -1)
                gram[index[:, None], index] += flat @ flat.T
            if stack is not None:
                inner = ((dense @ stack.down.T) * stack.up[block[0]]).sum(dim=1)
                cross = inner.new_zeros(len(full), len(gram)).index_add_(1, stack.owners, inner)
                gram[index] += cross
                gram[:, index] += cross.T


def _add_factored(gram: Tensor, left: _Stack, right: _Stack, *, is_mirrored: bool = False) -> None:
    inner = (left.up.T @ right.up) * (left.down @ right.down.T)
    by_left = inner.new_zeros(len(gram), len(right.owners)).index_add_(0, left.owners, inner)
    by_both = torch.zeros_like(gram).index_add_(1, right.owners, by_left)
    gram += by_both
    if is_mirrored:
        gram += by_both.T


def _groups(
    factored: Mapping[int, LoraFactors], shape: tuple[int, ...], max_bytes: int
) -> list[dict[int, LoraFactors]]:
    """Split cells so that two groups' factors, and their products, fit into `max_bytes`."""
    groups: list[dict[int, LoraFactors]] = []
    rank = 0
    for cell, factors in factored.items():
        rank += factors.down.shape[0]
        if not groups or 2 * 8 * rank * (sum(shape) + rank) > max_bytes:
            groups.append({})
            rank = factors.down.shape[0]
        groups[-1][cell] = factors
    return groups


def _stack(group: Mapping[int, LoraFactors]) -> _Stack:
    ups = [factors.up.double() * factors.scale for factors in group.values()]
    downs = [factors.down.double() for factors in group.values()]
    ranks = torch.tensor([down.shape[0] for down in downs])
    owners = torch.tensor(list(group)).repeat_interleave(ranks)
    return _Stack(torch.cat(ups, dim=1), torch.cat(downs), owners)


def _blocks(
    shape: tuple[int, ...], *, num_cells: int, rank: int, max_bytes: int
) -> Iterator[tuple[slice, ...]]:
    """Cut a tensor into blocks of rows, a three-dimensional one matrix by matrix."""
    if not shape:
        yield ()
        return
    if len(shape) > 2:
        inside = {"num_cells": num_cells, "rank": rank, "max_bytes": max_bytes}
        for i in range(shape[0]):
            for block in _blocks(shape[1:], **inside):
                yield slice(i, i + 1), *block
        return
    width = shape[1] if len(shape) == 2 else 1
    # Float64 changes of all cells and their products with factors, and float32 of one cell and
    # the base on the way.
    row_bytes = 8 * num_cells * (width + 2 * rank) + 16 * width
    num_rows = max(1, max_bytes // row_bytes)
    for start in range(0, shape[0], num_rows):
        yield (slice(start, min(start + num_rows, shape[0])),)


def _dense(
    pairs: Sequence[tuple[StoredTensor, StoredTensor | DoraFactors]], block: tuple[slice, ...]
) -> Tensor:
    """Return one block of several cells' changes in float64, cells first."""
    before = _read(pairs[0][0], block)
    changes = torch.empty(len(pairs), *before.shape, dtype=torch.float64)
    for change, (_, after) in zip(changes, pairs, strict=True):
        if isinstance(after, DoraFactors):
            change.copy_(after.rows(before, block[0].start) - before)
        else:
            change.copy_(_read(after, block) - before)
    return changes


def _read(stored: StoredTensor, block: tuple[slice, ...]) -> Tensor:
    # Opened anew for each block: the pages that it touched leave memory with it.
    with safe_open(stored.path, framework="pt") as tensors:
        part: Tensor = (
            tensors.get_slice(stored.name)[block] if block else tensors.get_tensor(stored.name)
        )
        return part.float()


def _check_finite(gram: Tensor, name: str, folders: Sequence[Path]) -> None:
    for folder, square in zip(folders, gram.diagonal().tolist(), strict=True):
        if not np.isfinite(square):
            raise DataError(
                f"{folder}: the change of {name!r} holds NaN or infinity; expected finite weights. "
                f"Look at the run's loss curve, and leave this cell out or train it again."
            )


def _table(cells: Sequence[str], grams: Mapping[Scope, Gram]) -> pa.Table:
    """Return one row per scope and pair of cells; the cosine is null where a cell did not move."""
    first, second = np.triu_indices(len(cells), k=1)
    num_layers = sum(scope.name == "layer" for scope in grams)
    names = np.array(cells, dtype=object)
    parts = []
    for scope, gram in grams.items():
        norms = np.sqrt(gram.diagonal())
        inner, scale = gram[first, second], norms[first] * norms[second]
        cosine = np.divide(inner, scale, out=np.zeros_like(inner), where=scale > 0)
        position = None if scope.layer is None else layer_position(scope.layer, num_layers)
        columns: dict[str, Any] = {
            "cell_a": names[first],
            "cell_b": names[second],
            "scope": [scope.name] * len(first),
            "layer": [scope.layer] * len(first),
            "position": [position] * len(first),
            "kind": [scope.kind] * len(first),
            "cosine": pa.array(cosine.clip(-1, 1), mask=scale == 0),
            "inner": inner,
            "norm_a": norms[first],
            "norm_b": norms[second],
        }
        parts.append(pa.table(columns, schema=_SCHEMA))
    return pa.concat_tables(parts).combine_chunks()
