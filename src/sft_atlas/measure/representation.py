"""What do a model's hidden states of fixed texts look like, layer by layer, and how far are they
from the base model's?

In: a text set and a live model. Out: a row per layer and pooling with intrinsic dimensions, number
of groups, and likeness to the base; a row per scale of Gride's scan; a row per size of the TwoNN
subsampling curve. A base model's record keeps its states too, which its cells are compared with:
in float32, because residual streams of some models exceed the range of float16. Texts whose states
are equal are one point to all but the comparison with the base, which needs texts in pairs.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sft_atlas.data.texts import Text, encode_text_set, load_texts, texts_sha256
from sft_atlas.errors import DataError, StoreError
from sft_atlas.identity import payload
from sft_atlas.measure.alignment import debiased_cka, procrustes_distance
from sft_atlas.measure.clusters import CLUSTER_NEIGHBOURS, SIGNIFICANCE, find_clusters
from sft_atlas.measure.dimension import (
    MIN_POINTS,
    MLE_NEIGHBOURS,
    Estimate,
    GrideScale,
    find_distinct,
    find_plateau,
    gride_scan,
    local_mle,
    scan_depth,
    subsample_curve,
    two_nn,
)
from sft_atlas.measure.neighbours import Neighbours, find_neighbours, principal_coordinates
from sft_atlas.model.states import POOLINGS, pooled_states
from sft_atlas.store.records import Record, check_artifact, make_provenance
from sft_atlas.store.store import Store
from sft_atlas.study.measure import RepresentationMeasure
from sft_atlas.study.spec import CellSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

REPRESENTATION_NAME: Final = "representation.parquet"
SCAN_NAME: Final = "scan.parquet"
SUBSAMPLES_NAME: Final = "subsamples.parquet"
STATES_NAME: Final = "states.npy"
"""Of a base model alone: float32 (layers + 1, poolings, texts, dimension)."""

VARIANT: Final = {
    "two_nn": "maximum likelihood",
    "mle": f"{MLE_NEIGHBOURS} neighbours, inverse of the mean inverse",
    "gride": "n2 = 2 n1, at the plateau of the scan",
    "cka": "linear, debiased",
    "procrustes": "1 - nuclear norm of the centred, normalised cross product",
    "clusters": f"advanced density peaks, {CLUSTER_NEIGHBOURS} neighbours, Z {SIGNIFICANCE}",
}

Points = np.ndarray[Any, Any]

_WHERE: Final = [
    ("layer", pa.int32()),
    ("num_layers", pa.int32()),
    ("position", pa.float64()),
    ("pooling", pa.string()),
]
_FLOATS: Final = (
    ["two_nn", "two_nn_low", "two_nn_high", "mle", "gride", "gride_low", "gride_high"],
    ["cka", "procrustes"],
)
_SCHEMA: Final = pa.schema(
    [
        *_WHERE,
        ("num_points", pa.int64()),
        ("num_duplicates", pa.int64()),
        ("dimension", pa.int32()),
        *((name, pa.float64()) for name in _FLOATS[0]),
        ("gride_n1", pa.int32()),
        *((name, pa.float64()) for name in _FLOATS[1]),
        ("num_clusters", pa.int32()),
        ("within_dimension", pa.float64()),
        ("reason", pa.string()),
    ]
)
_PLACE: Final = [_WHERE[0], *_WHERE[2:]]
_ESTIMATE: Final = [(name, pa.float64()) for name in ("gride", "gride_low", "gride_high")]
_SCAN_SCHEMA: Final = pa.schema(
    [*_PLACE, ("n1", pa.int32()), ("n2", pa.int32()), *_ESTIMATE, ("num_points", pa.int64())]
)
_SUBSAMPLE_SCHEMA: Final = pa.schema(
    [
        *_PLACE,
        ("num_points", pa.int64()),
        *((name, pa.float64()) for name in ("two_nn", "two_nn_low", "two_nn_high")),
    ]
)


@final
class Shape(NamedTuple):
    """What is known of one layer's states; estimates are None where `reason` says why."""

    num_points: int
    """Different ones."""
    num_duplicates: int
    two_nn: Estimate | None
    mle: float | None
    scan: list[GrideScale]
    curve: list[tuple[int, Estimate]]
    num_clusters: int | None
    within_dimension: float | None
    """Gride's plateau within groups, weighted by their points; groups below `MIN_POINTS` are left
    out."""
    reason: str | None


def measure_representation(
    store: Store,
    cell: CellSpec,
    measure: RepresentationMeasure,
    *,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
) -> Record:
    """Publish what a cell's hidden states look like; `model` holds the cell's weights now.

    Returns the record that is there if it was measured before. Too few texts for an estimator give
    null with a reason.

    Raises:
        StoreError: if the cell's base model was not measured, or on other texts.
        DataError: if the texts cannot be read, or a state is not finite.
    """
    folder = store.layout.measure(cell.fingerprint, measure.fingerprint)
    if found := store.find(folder):
        return found
    started = time.time()
    texts = load_texts(measure.texts, tokenizer)
    encoded = encode_text_set(tokenizer, texts, max_tokens=measure.max_tokens)
    facts = {
        "num_texts": len(texts),
        "num_tokens": sum(len(text.ids) - 1 for text in encoded),
        "num_cut": sum(text.is_cut for text in encoded),
        "texts_sha256": texts_sha256(texts),
    }
    base = None if cell.trajectory is None else _base_states(store, cell, measure, facts)
    states = _states(cell, model, texts, [text.ids for text in encoded])

    def fill(aside: Path) -> dict[str, Any]:
        rows, scales, curves = profile_states(states, base=base, seed=measure.seed)
        _write(aside / REPRESENTATION_NAME, rows, _SCHEMA)
        _write(aside / SCAN_NAME, scales, _SCAN_SCHEMA)
        _write(aside / SUBSAMPLES_NAME, curves, _SUBSAMPLE_SCHEMA)
        if cell.trajectory is None:
            np.save(aside / STATES_NAME, states)
        shape = {"num_layers": states.shape[0] - 1, "dimension": states.shape[3]}
        return {**facts, **shape, "poolings": list(POOLINGS), "variant": VARIANT}

    return store.publish(
        folder,
        schema="representation/1",
        spec={"cell": payload(cell), "measure": payload(measure)},
        fill=fill,
        provenance=lambda: make_provenance(started),
    )


def profile_states(
    states: Points, *, base: Points | None = None, seed: int = 0
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """Describe states (layers + 1, poolings, texts, dimension), and compare them with a base's.

    Returns the rows of the three tables. `seed` is that of the subsampling curve.
    """
    rows, scales, curves = [], [], []
    num_layers = len(states) - 1
    for layer in range(num_layers + 1):
        for i, pooling in enumerate(POOLINGS):
            cloud = describe_cloud(states[layer, i], seed=seed)
            place = {"layer": layer, "position": layer / num_layers, "pooling": pooling}
            row = place | {"num_layers": num_layers, "dimension": states.shape[3]}
            row |= _cloud_columns(cloud)
            if base is not None:
                row |= _likeness(states[layer, i], base[layer, i], cloud.reason)
            rows.append(row)
            scales += [place | _scale_columns(scale) for scale in cloud.scan]
            curves += [
                place | {"num_points": size} | _named("two_nn", estimate)
                for size, estimate in cloud.curve
            ]
    return rows, scales, curves


def describe_cloud(states: Points, *, seed: int = 0) -> Shape:
    """Estimate dimensions and groups of the different ones among states (texts, dimension)."""
    depth = max(scan_depth(len(states)), MLE_NEIGHBOURS, CLUSTER_NEIGHBOURS)
    points, neighbours, num_duplicates = find_distinct(states, depth)
    empty = Shape(len(points), num_duplicates, None, None, [], [], None, None, None)
    if len(points) < MIN_POINTS:
        reason = (
            f"{len(points)} of {len(states)} texts have different states; the estimators need at "
            f"least {MIN_POINTS}"
        )
        return empty._replace(reason=reason)
    distances = neighbours.distances
    try:
        full = empty._replace(
            two_nn=two_nn(distances),
            mle=local_mle(distances),
            scan=gride_scan(distances[:, : scan_depth(len(points))]),
            curve=subsample_curve(points, seed=seed),
        )
    except DataError as error:
        return empty._replace(reason=str(error))
    num_clusters, within = _groups(points, neighbours, full.scan)
    if within is None:
        full = full._replace(reason=f"no group has {MIN_POINTS} texts")
    return full._replace(num_clusters=num_clusters, within_dimension=within)


def _groups(
    points: Points, neighbours: Neighbours, scan: Sequence[GrideScale]
) -> tuple[int, float | None]:
    """Return the number of groups and the dimension within them."""
    # The second scale: the smallest one that a little noise does not decide.
    labels = find_clusters(neighbours, dimension=scan[1].estimate.value)
    sizes = np.bincount(labels)
    if len(sizes) == 1:
        return 1, find_plateau(scan).estimate.value
    weights, values = [], []
    for group in np.flatnonzero(sizes >= MIN_POINTS):
        inside = points[labels == group]
        distances = find_neighbours(inside, scan_depth(len(inside))).distances
        values.append(find_plateau(gride_scan(distances)).estimate.value)
        weights.append(len(inside))
    return len(sizes), float(np.average(values, weights=weights)) if values else None


def _cloud_columns(cloud: Shape) -> dict[str, Any]:
    columns: dict[str, Any] = {
        "num_points": cloud.num_points,
        "num_duplicates": cloud.num_duplicates,
        "mle": cloud.mle,
        "num_clusters": cloud.num_clusters,
        "within_dimension": cloud.within_dimension,
        "reason": cloud.reason,
    }
    columns |= _named("two_nn", cloud.two_nn)
    plateau = find_plateau(cloud.scan) if cloud.scan else None
    columns |= _named("gride", plateau.estimate if plateau else None)
    return columns | {"gride_n1": plateau.n1 if plateau else None}


def _scale_columns(scale: GrideScale) -> dict[str, Any]:
    columns = {"n1": scale.n1, "n2": scale.n2, "num_points": scale.num_points}
    return columns | _named("gride", scale.estimate)


def _named(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    value, low, high = estimate or (None, None, None)
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def _likeness(states: Points, base: Points, reason: str | None) -> dict[str, Any]:
    """Return CKA and Procrustes distance to the base; null where a side has no spread."""
    # Once for both; neither sees how a side is turned.
    own, other = principal_coordinates(states), principal_coordinates(base)
    try:
        return {
            "cka": debiased_cka(own, other),
            "procrustes": procrustes_distance(own, other),
            "reason": reason,
        }
    except DataError as error:
        reasons = [part for part in (reason, f"no likeness: {error}") if part]
        return {"cka": None, "procrustes": None, "reason": "; ".join(reasons)}


def _states(
    cell: CellSpec, model: "PreTrainedModel", texts: Sequence[Text], ids: Sequence[Sequence[int]]
) -> Points:
    try:
        return pooled_states(model, ids, names=[text.id for text in texts])
    except DataError as error:
        raise DataError(f"{cell.description}, {error}") from error


def _base_states(
    store: Store, cell: CellSpec, measure: RepresentationMeasure, facts: dict[str, Any]
) -> Points:
    """Return the states of a cell's base model, checked against the record's digest."""
    base = CellSpec(model=cell.model, trajectory=None, epoch=0)
    folder = store.layout.measure(base.fingerprint, measure.fingerprint)
    record = store.find(folder)
    if record is None:
        raise StoreError(
            f"{cell.description}: the states of {base.description} on texts {measure.texts.name} "
            f"are not in the store; expected them, to compare with. Measure the base model first."
        )
    differing = [name for name, value in facts.items() if record.result[name] != value]
    if differing:
        raise StoreError(
            f"{cell.description}: {base.description} was measured on other texts "
            f"({', '.join(differing)} differ); expected the same. Remove {folder} and run again."
        )
    states: Points = np.load(check_artifact(folder, record, STATES_NAME), mmap_mode="r")
    return states


def _write(path: Path, rows: Sequence[dict[str, Any]], schema: pa.Schema) -> None:
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), path, compression="zstd")
