"""How far did training move each weight, by layer and kind of matrix?

In: a cell and the live model that holds its weights. Out: a table with one row per weight, one
`total` row per layer and one for the whole model. A weight that was not trained has a row with
change 0, so that full and LoRA rows stand side by side. A LoRA change is measured from its factors
alone: ||B A||_F^2 = tr((A A^T)(B^T B)).
"""

import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple, final

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from sft_atlas.identity import payload
from sft_atlas.model.load import BaseModel
from sft_atlas.model.lora import LoraFactors, read_factors
from sft_atlas.store.records import Record, check_artifact, make_provenance
from sft_atlas.store.store import Store
from sft_atlas.study.spec import CellSpec
from sft_atlas.weights.names import layer_position, parse_weight_name
from sft_atlas.weights.tensors import iter_pairs

DRIFT_NAME: Final = "drift.parquet"
TOTAL: Final = "total"
"""Kind of the rows that sum a layer, or the model where `layer` is null."""

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
    ]
)


@final
class WeightChange(NamedTuple):
    """How far one weight moved, as squared Frobenius norms."""

    tensor: str
    squared_change: float
    squared_base: float
    num_weights: int


def measure_drift(store: Store, cell: CellSpec, *, base: BaseModel) -> Record:
    """Publish the weight change of a stored cell; `base.model` must hold its weights now, an
    adapter merged.

    Returns the record that is there if it was measured before.
    """
    assert cell.trajectory is not None, "a base model does not drift"
    folder = store.layout.drift(cell.fingerprint)
    if found := store.find(folder):
        return found
    started = time.time()
    if cell.trajectory.method.lora is None:
        changes = list(full_changes(base))
    else:
        changes = list(adapter_changes(base, _verified_factors(store, cell)))
    rows = drift_rows(changes, num_layers=base.model.config.get_text_config().num_hidden_layers)

    def fill(aside: Path) -> dict[str, Any]:
        columns = [list(column) for column in zip(*rows, strict=True)]
        pq.write_table(pa.table(columns, schema=_SCHEMA), aside / DRIFT_NAME, compression="zstd")
        whole = rows[-1]
        return {"frobenius": whole.frobenius, "relative": whole.relative, "rms": whole.rms}

    return store.publish(
        folder,
        schema="drift/1",
        spec=payload(cell),
        fill=fill,
        provenance=lambda: make_provenance(started),
    )


def full_changes(base: BaseModel) -> Iterator[WeightChange]:
    """Compare the live weights with the pristine ones, tied weights once."""
    live = {name: p.detach() for name, p in base.model.named_parameters()}
    for name, before, after in iter_pairs(base.pristine, live):
        change = after.float() - before.to(after.device).float()
        yield WeightChange(name, _squared(change), _squared(before), before.numel())


def adapter_changes(base: BaseModel, factors: dict[str, LoraFactors]) -> Iterator[WeightChange]:
    """Take the change of each adapted weight from its factors; all others have not moved."""
    for name, before in base.pristine.items():
        change = squared_product_norm(factors[name]) if name in factors else 0.0
        yield WeightChange(name, change, _squared(before), before.numel())


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


def drift_rows(changes: Iterable[WeightChange], *, num_layers: int) -> list[DriftRow]:
    """Return a row per weight, then a total per layer, then the total of the model as the last
    row."""
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
    )


def _total(name: str, changes: list[WeightChange]) -> WeightChange:
    return WeightChange(
        tensor=name,
        squared_change=math.fsum(change.squared_change for change in changes),
        squared_base=math.fsum(change.squared_base for change in changes),
        num_weights=sum(change.num_weights for change in changes),
    )


def _squared(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64).item()) ** 2


def _verified_factors(store: Store, cell: CellSpec) -> dict[str, LoraFactors]:
    folder = store.layout.cell(cell.fingerprint)
    record = store.read(folder)
    for name in record.artifacts:
        check_artifact(folder, record, name)
    return read_factors(folder)
