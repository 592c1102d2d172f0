"""How far did training move each weight, by layer and kind of matrix?

In: a cell and the live model that holds its weights. Out: a table with one row per weight, one
`total` row per layer, one per kind over the layers, and one for the whole model. A weight that was
not trained has a row with change 0, so that full and LoRA rows stand side by side. A LoRA norm is
measured from the factors alone: ||B A||_F^2 = tr((A A^T)(B^T B)). The share of unchanged weights
is always that of the merged weight, because it is what runs; both are rounded to bfloat16 for it,
the precision in which models are stored.
"""

import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple, final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from sft_atlas.errors import DataError
from sft_atlas.identity import payload
from sft_atlas.measure.adapter import verified_factors
from sft_atlas.model.load import BaseModel
from sft_atlas.model.lora import LoraFactors
from sft_atlas.store.records import Record, make_provenance
from sft_atlas.store.store import Store
from sft_atlas.study.measure import DriftMeasure
from sft_atlas.study.spec import CellSpec
from sft_atlas.weights.names import layer_position, parse_weight_name
from sft_atlas.weights.tensors import iter_pairs

DRIFT_NAME: Final = "drift.parquet"
TOTAL: Final = "total"
"""Kind of the rows that sum a layer, and of the model's row, whose layer is null."""

_SCHEMA: Final = pa.schema(
    [
        ("tensor", pa.string()),
        ("layer", pa.int32()),
        ("num_layers", pa.int32()),
        ("position", pa.float64()),
        ("kind", pa.string()),
        ("frobenius", pa.float64()),
        ("relative", pa.float64()),
        ("rms", pa.float64()),
        ("num_weights", pa.int64()),
        ("unchanged_fraction", pa.float64()),
    ]
)


@final
class WeightChange(NamedTuple):
    """How far one weight moved, as squared Frobenius norms and a count."""

    tensor: str
    squared_change: float
    squared_base: float
    num_weights: int
    num_unchanged: int
    """Weights whose bfloat16 value has the bits of the base's; both rounded to nearest even."""


def measure_drift(
    store: Store, cell: CellSpec, measure: DriftMeasure, *, base: BaseModel
) -> Record:
    """Publish the weight change of a stored cell; `base.model` must hold its weights now, an
    adapter merged.

    Returns the record that is there if it was measured before.

    Raises:
        DataError: if a weight is NaN or infinite.
    """
    assert cell.trajectory is not None, "a base model does not drift"
    folder = store.layout.measure(cell.fingerprint, measure.fingerprint)
    if found := store.find(folder):
        return found
    started = time.time()
    lora = cell.trajectory.method.lora
    if lora is None or not lora.is_plain:
        changes = list(full_changes(base))
    else:
        changes = list(adapter_changes(base, verified_factors(store, cell)))
    _check_finite(changes, cell)
    rows = drift_rows(changes, num_layers=base.model.config.get_text_config().num_hidden_layers)

    def fill(aside: Path) -> dict[str, Any]:
        columns = [list(column) for column in zip(*rows, strict=True)]
        pq.write_table(pa.table(columns, schema=_SCHEMA), aside / DRIFT_NAME, compression="zstd")
        whole = rows[-1]
        return {
            "frobenius": whole.frobenius,
            "relative": whole.relative,
            "rms": whole.rms,
            "unchanged_fraction": whole.unchanged_fraction,
            "num_weights": whole.num_weights,
            "num_tensors": len(changes),
        }

    return store.publish(
        folder,
        schema="drift/2",
        spec={"cell": payload(cell), "measure": payload(measure)},
        fill=fill,
        provenance=lambda: make_provenance(started),
    )


def full_changes(base: BaseModel) -> Iterator[WeightChange]:
    """Compare the live weights with the pristine ones, tied weights once."""
    for name, before, after in iter_pairs(base.pristine, _live_weights(base)):
        before = before.to(after.device)
        change = after.float() - before.float()
        yield WeightChange(
            tensor=name,
            squared_change=_squared(change),
            squared_base=_squared(before),
            num_weights=before.numel(),
            num_unchanged=count_unchanged(before, after),
        )


def adapter_changes(base: BaseModel, factors: dict[str, LoraFactors]) -> Iterator[WeightChange]:
    """Take the change of each adapted weight from its factors; all others have not moved."""
    for name, before, after in iter_pairs(base.pristine, _live_weights(base)):
        adapted = name in factors
        yield WeightChange(
            tensor=name,
            squared_change=squared_product_norm(factors[name]) if adapted else 0.0,
            squared_base=_squared(before),
            num_weights=before.numel(),
            num_unchanged=(
                count_unchanged(before.to(after.device), after) if adapted else before.numel()
            ),
        )


def count_unchanged(before: Tensor, after: Tensor) -> int:
    """Count the elements of two tensors of one shape whose bfloat16 values have the same bits."""
    bits = [tensor.to(torch.bfloat16).view(torch.int16).cpu().numpy() for tensor in (before, after)]
    # numpy counts several times faster than torch.
    return int(np.count_nonzero(bits[0] == bits[1]))


def squared_product_norm(factors: LoraFactors) -> float:
    """Return ||scale B A||_F^2 from two rank x rank matrices, without the dense product.

    A rounding error can make a tiny value negative; it is 0 then.
    """
    up, down = factors.up.double(), factors.down.double()
    # sum(X * Y) = tr(X Y^T), and both are symmetric.
    trace = ((down @ down.T) * (up.T @ up)).sum().item()
    return factors.scale**2 * max(trace, 0.0)


@final
class DriftRow(NamedTuple):
    """One row of the table; the fields are its columns."""

    tensor: str
    layer: int | None
    """Counted from 0; null outside the layers."""
    num_layers: int
    position: float | None
    """Middle of the layer between input (0) and output (1)."""
    kind: str
    frobenius: float
    """||dW||_F."""
    relative: float | None
    """||dW||_F / ||W||_F; null where the base weight is all zero."""
    rms: float
    """||dW||_F / sqrt(number of weights)."""
    num_weights: int
    unchanged_fraction: float
    """Share of weights whose bfloat16 value has the same bits as the base's."""


def drift_rows(changes: Iterable[WeightChange], *, num_layers: int) -> list[DriftRow]:
    """Return a row per weight, then a total per layer, then one per kind over all layers, then the
    total of the model as the last row.

    A total pools its weights: its norm is the root of the summed squares.
    """
    changes = list(changes)
    names = [parse_weight_name(change.tensor) for change in changes]
    rows = [
        _row(change, layer=name.layer, num_layers=num_layers, kind=name.kind)
        for change, name in zip(changes, names, strict=True)
    ]
    for layer in sorted({name.layer for name in names if name.layer is not None}):
        inside = [c for c, name in zip(changes, names, strict=True) if name.layer == layer]
        total = _total(f"layers.{layer}", inside)
        rows.append(_row(total, layer=layer, num_layers=num_layers, kind=TOTAL))
    for kind in sorted({name.kind for name in names if name.layer is not None}):
        alike = [
            c
            for c, name in zip(changes, names, strict=True)
            if name.kind == kind and name.layer is not None
        ]
        total = _total(f"kind.{kind}", alike)
        rows.append(_row(total, layer=None, num_layers=num_layers, kind=kind))
    rows.append(_row(_total("model", changes), layer=None, num_layers=num_layers, kind=TOTAL))
    return rows


def _row(change: WeightChange, *, layer: int | None, num_layers: int, kind: str) -> DriftRow:
    frobenius = math.sqrt(change.squared_change)
    norm = math.sqrt(change.squared_base)
    return DriftRow(
        tensor=change.tensor,
        layer=layer,
        num_layers=num_layers,
        position=None if layer is None else layer_position(layer, num_layers),
        kind=kind,
        frobenius=frobenius,
        relative=frobenius / norm if norm > 0 else None,
        rms=frobenius / math.sqrt(change.num_weights),
        num_weights=change.num_weights,
        unchanged_fraction=change.num_unchanged / change.num_weights,
    )


def _total(name: str, changes: list[WeightChange]) -> WeightChange:
    return WeightChange(
        tensor=name,
        squared_change=math.fsum(change.squared_change for change in changes),
        squared_base=math.fsum(change.squared_base for change in changes),
        num_weights=sum(change.num_weights for change in changes),
        num_unchanged=sum(change.num_unchanged for change in changes),
    )


def _live_weights(base: BaseModel) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in base.model.named_parameters()}


def _check_finite(changes: Iterable[WeightChange], cell: CellSpec) -> None:
    for change in changes:
        if not math.isfinite(change.squared_change + change.squared_base):
            raise DataError(
                f"cell {cell.fingerprint}: its weight {change.tensor!r}, or the base model's, "
                f"holds NaN or infinity; expected finite weights. Train it with a lower learning "
                f"rate."
            )


def _squared(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64).item()) ** 2
