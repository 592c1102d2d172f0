"""In which directions did training move each matrix: in a few or in many, in old ones or in new?

In: the matrices of a base model and of a cell, or the cell's low-rank factors. Out: a table with
one row per matrix inside the layers, from the singular values of its change and from the intruder
dimensions of the tuned matrix. Three-dimensional weights (experts) have one row per expert;
embedding and head are left out: their rows are tokens, and they are dear. A LoRA change is never
multiplied out for its spectrum: the singular values of B A are those of R_B R_A^T, the small
triangles of two thin QR decompositions.
"""

import math
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, final

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from sft_atlas.errors import DataError, StoreError
from sft_atlas.identity import payload
from sft_atlas.measure.adapter import verified_factors
from sft_atlas.measure.intruders import EPSILONS, BaseVectors, Intruders, count_intruders
from sft_atlas.model.load import BaseModel
from sft_atlas.model.lora import LoraFactors
from sft_atlas.store.records import Record, make_provenance
from sft_atlas.store.store import Store
from sft_atlas.study.measure import SpectrumMeasure
from sft_atlas.study.spec import CellSpec
from sft_atlas.weights.names import layer_position, parse_weight_name
from sft_atlas.weights.tensors import iter_pairs

SPECTRUM_NAME: Final = "spectrum.parquet"

_DIRECT_SIZE: Final = 512
"""Shorter side up to which singular values are computed directly, in float64."""

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
class Spectrum(NamedTuple):
    """The singular values of a matrix in five numbers; ranks are None for a matrix of zeros."""

    rank_bound: int
    """Largest rank that the change can have: the adapter's, or the shorter side."""
    spectral_norm: float
    """Largest singular value."""
    stable_rank: float | None
    """||.||_F^2 / ||.||_2^2, from 1 to the rank (Rudelson and Vershynin 2007)."""
    effective_rank: float | None
    """exp of the entropy of the singular values over their sum, from 1 to the rank (Roy and
    Vetterli 2007)."""
    nuclear_norm: float
    """Sum of the singular values."""
    top_share: float | None
    """Share of the squared Frobenius norm in the largest singular value: 1 / stable rank."""


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
    is_factored = cell.trajectory.method.lora is not None
    if is_factored:
        factors = verified_factors(store, cell)
        spectra = adapter_spectra(
            base.pristine,
            factors,
            num_vectors=measure.num_vectors,
            vectors=vectors,
            device=base.model.device,
        )
    else:
        live = {name: p.detach() for name, p in base.model.named_parameters()}
        spectra = pair_spectra(
            base.pristine, live, num_vectors=measure.num_vectors, vectors=vectors
        )
    rows = list(spectra)

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
    """Compare two models of one architecture, one matrix in memory at a time; arithmetic is done
    where `after` lies.

    Raises:
        StoreError: if names or shapes differ.
        DataError: if a matrix holds NaN or infinity.
    """
    vectors = vectors or BaseVectors()
    num_layers = _num_layers(before)
    for whole in iter_pairs(before, after):
        for name, old, new in _matrices(whole.name, whole.before, whole.after):
            tuned = new.float()
            base = old.to(tuned.device).float()
            _check_finite(name, base, "of the base model")
            _check_finite(name, tuned, "of the tuned model")
            change = tuned - base
            spectrum = spectrum_of(change, where=name)
            intruders = _intruders(name, base, tuned, spectrum, num_vectors, vectors)
            yield _row(name, base, spectrum, intruders, num_layers)


def adapter_spectra(
    before: Mapping[str, Tensor],
    factors: Mapping[str, LoraFactors],
    *,
    num_vectors: int = 10,
    vectors: BaseVectors | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[SpectrumRow]:
    """Take spectra from an adapter's factors; intruders are those of W + scale B A in float32, as
    `model.lora.merge` computes it. A matrix without factors has not changed.

    Raises:
        StoreError: if the factors do not fit the base's matrices.
        DataError: if a matrix or a factor holds NaN or infinity.
    """
    vectors = vectors or BaseVectors()
    num_layers = _num_layers(before)
    if foreign := factors.keys() - before.keys():
        raise StoreError(
            f"adapter: it changes {min(foreign)!r}, which the base model does not have; expected "
            f"an adapter of this base. Name the base that it was trained on."
        )
    for whole_name, whole in before.items():
        change = factors.get(whole_name)
        if change is not None:
            _check_shape(whole_name, whole, change)
        for name, old, _ in _matrices(whole_name, whole, whole):
            base = old.to(device).float()
            _check_finite(name, base, "of the base model")
            if change is None:
                spectrum, tuned = _spectrum([], rank_bound=min(base.shape)), base
            else:
                up, down = change.up.to(base), change.down.to(base)
                spectrum = spectrum_of(LoraFactors(up, down, change.scale), where=name)
                tuned = torch.add(base, up @ down, alpha=change.scale)
            intruders = _intruders(name, base, tuned, spectrum, num_vectors, vectors)
            yield _row(name, base, spectrum, intruders, num_layers)


def spectrum_of(change: Tensor | LoraFactors, *, where: str = "matrix") -> Spectrum:
    """Sum up the singular values of a matrix of any shape, or of scale B A from its factors.

    Values come from float64 arithmetic: directly where the shorter side is at most 512, and above
    that as roots of the eigenvalues of the smaller Gram matrix, which is faster and loses only
    values below 1e-8 of the largest.

    Raises:
        DataError: if it holds NaN or infinity; `where` names it.
    """
    if isinstance(change, LoraFactors):
        _check_finite(where, change.up, "B of the adapter")
        _check_finite(where, change.down, "A of the adapter")
        bound = min(change.up.shape[1], change.up.shape[0], change.down.shape[1])
        return _spectrum(_factored_values(change).tolist(), rank_bound=bound)
    _check_finite(where, change, "of the change")
    if not bool(change.any()):
        return _spectrum([], rank_bound=min(change.shape))
    return _spectrum(_dense_values(change.double()).tolist(), rank_bound=min(change.shape))


def _factored_values(factors: LoraFactors) -> Tensor:
    up = torch.linalg.qr(factors.up.double(), mode="r").R
    down = torch.linalg.qr(factors.down.double().T, mode="r").R
    values: Tensor = torch.linalg.svdvals(up @ down.T)
    return values * abs(factors.scale)


def _dense_values(matrix: Tensor) -> Tensor:
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    values: Tensor
    if tall.shape[1] <= _DIRECT_SIZE:
        values = torch.linalg.svdvals(tall)
    else:
        values = torch.linalg.eigvalsh(tall.T @ tall).clamp(min=0).sqrt().flip(0)
    return values


def _spectrum(values: list[float], *, rank_bound: int) -> Spectrum:
    """Sum up descending singular values; none, or only zeros, is a matrix that did not change."""
    if not values or values[0] == 0:
        return Spectrum(rank_bound, 0.0, None, None, 0.0, None)
    top = values[0]
    # Relative to the largest, so that squares of tiny changes do not vanish.
    relative = [value / top for value in values]
    total = math.fsum(relative)
    stable_rank = math.fsum(value * value for value in relative)
    shares = [value / total for value in relative if value > 0]
    entropy = -math.fsum(share * math.log(share) for share in shares)
    return Spectrum(
        rank_bound=rank_bound,
        spectral_norm=top,
        stable_rank=stable_rank,
        effective_rank=math.exp(entropy),
        nuclear_norm=total * top,
        top_share=1 / stable_rank,
    )


def _intruders(
    name: str,
    base: Tensor,
    tuned: Tensor,
    spectrum: Spectrum,
    num_vectors: int,
    vectors: BaseVectors,
) -> Intruders:
    if spectrum.spectral_norm == 0:
        # Its vectors are the base's own.
        return Intruders(min(num_vectors, *base.shape), (0,) * len(EPSILONS))
    return count_intruders(tuned, vectors.left(name, base), num_vectors=num_vectors)


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


def _matrices(name: str, before: Tensor, after: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield the matrices of a weight inside a layer before and after, an expert's one by one."""
    if parse_weight_name(name).layer is None or before.dim() not in (2, 3):
        return
    if before.dim() == 2:
        yield name, before, after
    else:
        for expert in range(before.shape[0]):
            yield f"{name}[{expert}]", before[expert], after[expert]


def _num_layers(names: Iterable[str]) -> int:
    layers = [parse_weight_name(name).layer for name in names]
    return max((layer + 1 for layer in layers if layer is not None), default=0)


def _check_finite(name: str, tensor: Tensor, what: str) -> None:
    if not bool(torch.isfinite(tensor).all()):
        raise DataError(
            f"{name}: {what} holds NaN or infinity; expected finite weights. Its spectrum would "
            f"mean nothing: look at the run's loss curve, and train the cell again."
        )


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
