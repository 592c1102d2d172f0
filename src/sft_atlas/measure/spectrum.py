"""In which directions did training move each matrix: in a few or in many, in old ones or in new?

In: the matrices of a base model and of a cell, or the cell's low-rank factors. Out: a table with
one row per matrix inside the layers, from the singular values of its change and from the intruder
dimensions of the tuned matrix. Three-dimensional weights (experts) have one row per expert;
embedding and head are left out: their rows are tokens, and they are dear.
"""

import statistics
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, final

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import safe_open
from torch import Tensor

from sft_atlas.errors import StoreError
from sft_atlas.identity import payload
from sft_atlas.measure.adapter import verified_factors
from sft_atlas.measure.intruders import EPSILONS, BaseVectors, Intruders, count_intruders
from sft_atlas.measure.singular_values import Spectrum, check_finite
from sft_atlas.measure.singular_values import spectrum_of as spectrum_of
from sft_atlas.measure.weight_pair import are_equal
from sft_atlas.model.load import BaseModel
from sft_atlas.model.lora import LoraFactors
from sft_atlas.store.records import Record, make_provenance
from sft_atlas.store.store import Store
from sft_atlas.study.measure import SpectrumMeasure
from sft_atlas.study.spec import CellSpec
from sft_atlas.weights.adapter import DoraFactors
from sft_atlas.weights.names import count_layers, layer_position, parse_weight_name
from sft_atlas.weights.pairing import WeightPair, pair_folders
from sft_atlas.weights.stored import StoredTensor
from sft_atlas.weights.tensors import iter_pairs

SPECTRUM_NAME: Final = "spectrum.parquet"

_SCHEMA: Final = pa.schema(
    [
        ("tensor", pa.string()),
        ("layer", pa.int32()),
        ("num_layers", pa.int32()),
        ("position", pa.float64()),
        ("kind", pa.string()),
        ("rows", pa.int64()),
        ("columns", pa.int64()),
        ("rank_bound", pa.int64()),
        ("spectral_norm", pa.float64()),
        ("stable_rank", pa.float64()),
        ("effective_rank", pa.float64()),
        ("nuclear_norm", pa.float64()),
        ("top_share", pa.float64()),
        ("num_vectors", pa.int64()),
        ("intruders_03", pa.int64()),
        ("intruders_05", pa.int64()),
        ("intruders_06", pa.int64()),
        ("intruders_08", pa.int64()),
    ]
)


@final
class SpectrumRow(NamedTuple):
    """One row of the table; the fields are its columns."""

    tensor: str
    """Name of the weight; `name[e]` for expert e of a three-dimensional one."""
    layer: int
    """Counted from 0."""
    num_layers: int
    position: float
    """Middle of the layer between input (0) and output (1)."""
    kind: str
    rows: int
    columns: int
    rank_bound: int
    spectral_norm: float
    stable_rank: float | None
    effective_rank: float | None
    nuclear_norm: float
    top_share: float | None
    num_vectors: int
    """Leading vectors of the tuned matrix that were compared with the base's."""
    intruders_03: int | None
    intruders_05: int | None
    intruders_06: int | None
    intruders_08: int | None


def measure_spectrum(
    store: Store,
    cell: CellSpec,
    measure: SpectrumMeasure,
    *,
    base: BaseModel,
    vectors: BaseVectors | None = None,
) -> Record:
    """Publish the spectra of a stored cell's weight changes; `base.model` must hold its weights
    now, an adapter merged.

    `vectors` keeps the base's singular vectors between calls; by default they are kept in the
    store's cache. Returns the record that is there if it was measured before.
    """
    assert cell.trajectory is not None, "a base model did not change"
    folder = store.layout.measure(cell.fingerprint, measure.fingerprint)
    if found := store.find(folder):
        return found
    started = time.time()
    if vectors is None:
        vectors = BaseVectors(vectors_folder(store, cell), max_bytes=0)
    is_factored = _is_factored(cell)
    rows = list(_cell_spectra(store, cell, measure.num_vectors, base=base, vectors=vectors))

    def fill(aside: Path) -> dict[str, Any]:
        table = pa.Table.from_pylist([row._asdict() for row in rows], schema=_SCHEMA)
        pq.write_table(table, aside / SPECTRUM_NAME, compression="zstd")
        return {"is_factored": is_factored, "top_vectors": measure.num_vectors, **_sums(rows)}

    return store.publish(
        folder,
        schema="spectrum/1",
        spec={"cell": payload(cell), "measure": payload(measure)},
        fill=fill,
        provenance=lambda: make_provenance(started),
    )


def _cell_spectra(
    store: Store, cell: CellSpec, num_vectors: int, *, base: BaseModel, vectors: BaseVectors
) -> Iterator[SpectrumRow]:
    assert cell.trajectory is not None, "a base model did not change"
    if not _is_factored(cell):
        live = {name: p.detach() for name, p in base.model.named_parameters()}
        return pair_spectra(base.pristine, live, num_vectors=num_vectors, vectors=vectors)
    return adapter_spectra(
        base.pristine,
        verified_factors(store, cell),
        num_vectors=num_vectors,
        vectors=vectors,
        device=base.model.device,
    )


def _is_factored(cell: CellSpec) -> bool:
    assert cell.trajectory is not None, "a base model did not change"
    lora = cell.trajectory.method.lora
    return lora is not None and lora.is_plain


def vectors_folder(store: Store, cell: CellSpec) -> Path:
    """Return where the singular vectors of a cell's base model are cached; it can be deleted."""
    return store.layout.root / "cache" / "vectors" / cell.model.fingerprint


def pair_spectra(
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    *,
    num_vectors: int = 10,
    vectors: BaseVectors | None = None,
) -> Iterator[SpectrumRow]:
    """Compare two models of one architecture; arithmetic is done where `after` lies.

    Raises:
        StoreError: if names or shapes differ.
        DataError: if a matrix holds NaN or infinity.
    """
    weights = (
        (name, old.to(new.device), new)
        for name, old, new in iter_pairs(before, after)
        if parse_weight_name(name).layer is not None
    )
    return _spectra(weights, count_layers(before), num_vectors, vectors or BaseVectors())


def adapter_spectra(
    before: Mapping[str, Tensor],
    factors: Mapping[str, LoraFactors],
    *,
    num_vectors: int = 10,
    vectors: BaseVectors | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[SpectrumRow]:
    """Take spectra from an adapter's factors; a matrix without factors has not changed.

    Intruders are those of W + scale B A in float32, as `model.lora.merge` computes it.

    Raises:
        StoreError: if the factors do not fit the base's matrices.
        DataError: if a matrix or a factor holds NaN or infinity.
    """
    if foreign := factors.keys() - before.keys():
        raise StoreError(
            f"adapter: it changes {min(foreign)!r}, which the base model does not have; expected "
            f"an adapter of this base. Name the base that it was trained on."
        )
    weights = (
        (name, old.to(device), factors.get(name))
        for name, old in before.items()
        if parse_weight_name(name).layer is not None
    )
    return _spectra(weights, count_layers(before), num_vectors, vectors or BaseVectors())


def folder_spectra(
    base_folder: Path,
    tuned_folder: Path,
    *,
    num_vectors: int = 10,
    vectors: BaseVectors | None = None,
) -> Iterator[SpectrumRow]:
    """Compare two folders of safetensors, the second a whole model or a PEFT adapter, by layer and
    name; one weight is in memory at a time.

    Raises:
        StoreError: if the folders are not two states of one model.
        DataError: if a matrix or a factor holds NaN or infinity.
    """
    pairs = [
        (layer, pair)
        for pair in pair_folders(base_folder, tuned_folder, are_equal=are_equal).pairs
        if (layer := parse_weight_name(pair.name).layer) is not None
    ]
    pairs.sort(key=lambda item: (item[0], item[1].name))
    weights = (
        (
            pair.name,
            _load(pair.before),
            _after(pair),
        )
        for _, pair in pairs
    )
    num_layers = count_layers(pair.name for _, pair in pairs)
    return _spectra(weights, num_layers, num_vectors, vectors or BaseVectors())


def _after(pair: WeightPair) -> Tensor | LoraFactors | None:
    if isinstance(pair.after, StoredTensor):
        return _load(pair.after)
    if isinstance(pair.after, DoraFactors):
        return pair.after.rows(_load(pair.before))
    return pair.after


def _load(stored: StoredTensor) -> Tensor:
    with safe_open(stored.path, framework="pt") as tensors:
        tensor: Tensor = tensors.get_tensor(stored.name)
        return tensor


def _spectra(
    weights: Iterable[tuple[str, Tensor, Tensor | LoraFactors | None]],
    num_layers: int,
    num_vectors: int,
    vectors: BaseVectors,
) -> Iterator[SpectrumRow]:
    """Yield a row for each matrix of weights before and after; None has not changed."""
    for whole_name, before, after in weights:
        if isinstance(after, LoraFactors):
            _check_shape(whole_name, before, after)
        for name, base, tuned in _matrices(whole_name, before, after):
            check_finite(name, base, "the base model's weight")
            change: Tensor | LoraFactors
            if isinstance(tuned, LoraFactors):
                change = LoraFactors(tuned.up.to(base), tuned.down.to(base), tuned.scale)
                tuned = torch.add(base, change.up @ change.down, alpha=change.scale)
            else:
                check_finite(name, tuned, "the tuned model's weight")
                change = tuned - base
            spectrum = spectrum_of(change, where=name)
            if not bool(base.any()):
                intruders = Intruders(0, None)
            elif spectrum.spectral_norm == 0:
                # Its vectors are the base's own.
                intruders = Intruders(min(num_vectors, *base.shape), (0,) * len(EPSILONS))
            else:
                left = vectors.left(name, base)
                intruders = count_intruders(tuned, left, num_vectors=num_vectors)
            yield _row(name, base, spectrum, intruders, num_layers)


def _row(
    name: str, base: Tensor, spectrum: Spectrum, intruders: Intruders, num_layers: int
) -> SpectrumRow:
    parsed = parse_weight_name(name.partition("[")[0])
    assert parsed.layer is not None, "matrices outside the layers are left out"
    counts = intruders.counts or (None,) * len(EPSILONS)
    return SpectrumRow(
        tensor=name,
        layer=parsed.layer,
        num_layers=num_layers,
        position=layer_position(parsed.layer, num_layers),
        kind=parsed.kind,
        rows=base.shape[0],
        columns=base.shape[1],
        **spectrum._asdict(),
        num_vectors=intruders.num_vectors,
        intruders_03=counts[0],
        intruders_05=counts[1],
        intruders_06=counts[2],
        intruders_08=counts[3],
    )


def _matrices(
    name: str, before: Tensor, after: Tensor | LoraFactors | None
) -> Iterator[tuple[str, Tensor, Tensor | LoraFactors]]:
    """Yield a weight's matrices before and after in float32, an expert's one by one."""
    if before.dim() == 2:
        base = before.float()
        if isinstance(after, LoraFactors):
            yield name, base, after
        else:
            yield name, base, base if after is None else after.float()
    elif before.dim() == 3:
        assert not isinstance(after, LoraFactors), "factors change one matrix"
        for expert in range(before.shape[0]):
            tuned = None if after is None else after[expert]
            yield from _matrices(f"{name}[{expert}]", before[expert], tuned)


def _check_shape(name: str, whole: Tensor, change: LoraFactors) -> None:
    shape = (change.up.shape[0], change.down.shape[1])
    if tuple(whole.shape) != shape or change.up.shape[1] != change.down.shape[0]:
        raise StoreError(
            f"adapter: its change of {name!r} has shape {shape}, the base's weight "
            f"{tuple(whole.shape)}; expected an adapter of this base. Name the base that it was "
            f"trained on."
        )


def _sums(rows: list[SpectrumRow]) -> dict[str, Any]:
    """Sum up the matrices, all together and by kind; medians are over those that changed."""
    by_kind: dict[str, list[SpectrumRow]] = {}
    for row in rows:
        by_kind.setdefault(row.kind, []).append(row)
    return _summary(rows) | {"kinds": {kind: _summary(by_kind[kind]) for kind in sorted(by_kind)}}


def _summary(rows: list[SpectrumRow]) -> dict[str, Any]:
    stable = [row.stable_rank for row in rows if row.stable_rank is not None]
    effective = [row.effective_rank for row in rows if row.effective_rank is not None]
    summary: dict[str, Any] = {
        "num_matrices": len(rows),
        "num_changed": len(stable),
        "stable_rank": statistics.median(stable) if stable else None,
        "effective_rank": statistics.median(effective) if effective else None,
    }
    for name in ("intruders_03", "intruders_05", "intruders_06", "intruders_08"):
        summary[name] = sum(getattr(row, name) or 0 for row in rows)
    return summary
