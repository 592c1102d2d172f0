"""What do a model's hidden states of fixed texts look like, layer by layer, and how far are they
from the base model's?

In: a text set and a live model. Out: a row per layer and pooling with intrinsic dimensions, number
of groups, and likeness to the base; a row per scale of Gride's scan; a row per size of the TwoNN
subsampling curve. A base model's record keeps its states too, which its cells are compared with:
in float32, because residual streams of some models exceed the range of float16. A point is a text
or, where texts have several, a sentence as it stands in its text. Points whose states are equal are
one to all but the comparison with the base, which needs them in pairs.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sft_atlas.data.order import frozen_order
from sft_atlas.data.sentences import number_sentences
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
from sft_atlas.model.states import NO_PART, POOLINGS, part_states
from sft_atlas.store.records import Record, check_artifact, make_provenance
from sft_atlas.store.store import Store
from sft_atlas.study.measure import RepresentationMeasure
from sft_atlas.study.spec import CellSpec, base_cell

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

REPRESENTATION_NAME: Final = "representation.parquet"
SCAN_NAME: Final = "scan.parquet"
SUBSAMPLES_NAME: Final = "subsamples.parquet"
STATES_NAME: Final = "states_{pooling}.npy"
"""Of a base model alone: float32 (layers + 1, points, dimension)."""

SENTENCE: Final = "sentence"
"""The pooling whose points are sentences; the others' are texts."""
MAX_SENTENCES: Final = 2_000

VARIANT: Final = {
    "two_nn": "maximum likelihood",
    "mle": f"{MLE_NEIGHBOURS} neighbours, inverse of the mean inverse",
    "gride": "n2 = 2 n1, at the plateau of the scan",
    "cka": "linear, debiased",
    "procrustes": "1 - nuclear norm of the centred, normalised cross product",
    "sentences": f"by marks and lines, at most {MAX_SENTENCES}",
    "clusters": f"advanced density peaks, {CLUSTER_NEIGHBOURS} neighbours, Z {SIGNIFICANCE}",
}

Points = np.ndarray[Any, Any]
States = dict[str, Points]
"""By pooling: (layers + 1, points, dimension)."""

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
    numbers = number_sentences(tokenizer, texts, encoded)
    facts["num_sentences"] = 1 + max(max(text) for text in numbers)
    base = None if cell.trajectory is None else _base_states(store, cell, measure, facts)
    ids = [text.ids for text in encoded]
    states = _states(cell, model, texts, ids, choose_sentences(numbers, seed=measure.seed))

    def fill(aside: Path) -> dict[str, Any]:
        rows, scales, curves = profile_states(states, base=base, seed=measure.seed)
        _write(aside / REPRESENTATION_NAME, rows, _SCHEMA)
        _write(aside / SCAN_NAME, scales, _SCAN_SCHEMA)
        _write(aside / SUBSAMPLES_NAME, curves, _SUBSAMPLE_SCHEMA)
        if cell.trajectory is None:
            for pooling, values in states.items():
                np.save(aside / STATES_NAME.format(pooling=pooling), values)
        num_layers, _, dimension = states[POOLINGS[0]].shape
        shape = {"num_layers": num_layers - 1, "dimension": dimension}
        return {**facts, **shape, "poolings": list(states), "variant": VARIANT}

    return store.publish(
        folder,
        schema="representation/1",
        spec={"cell": payload(cell), "measure": payload(measure)},
        fill=fill,
        provenance=lambda: make_provenance(started),
    )


def profile_states(
    states: Mapping[str, Points], *, base: Mapping[str, Points] | None = None, seed: int = 0
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """Describe states, by pooling (layers + 1, points, dimension), and compare them with a base's.

    Returns the rows of the three tables. `seed` is that of the subsampling curve.
    """
    rows, scales, curves = [], [], []
    num_layers = len(states[POOLINGS[0]]) - 1
    for layer in range(num_layers + 1):
        for pooling, values in states.items():
            what = "sentences" if pooling == SENTENCE else "texts"
            cloud = describe_cloud(values[layer], seed=seed, what=what)
            place = {"layer": layer, "position": layer / num_layers, "pooling": pooling}
            row = place | {"num_layers": num_layers, "dimension": values.shape[2]}
            row |= _cloud_columns(cloud)
            if base is not None:
                row |= _likeness(values[layer], base[pooling][layer], cloud.reason)
            rows.append(row)
            scales += [place | _scale_columns(scale) for scale in cloud.scan]
            curves += [
                place | {"num_points": size} | _named("two_nn", estimate)
                for size, estimate in cloud.curve
            ]
    return rows, scales, curves


def describe_cloud(states: Points, *, seed: int = 0, what: str = "texts") -> Shape:
    """Estimate dimensions and groups of the different ones among states (points, dimension).

    `what` the points are is said in reasons.
    """
    depth = max(scan_depth(len(states)), MLE_NEIGHBOURS, CLUSTER_NEIGHBOURS)
    points, neighbours, num_duplicates = find_distinct(states, depth)
    empty = Shape(len(points), num_duplicates, None, None, [], [], None, None, None)
    if len(points) < MIN_POINTS:
        reason = (
            f"{len(points)} of {len(states)} {what} have different states; the estimators need at "
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
        full = full._replace(reason=f"no group has {MIN_POINTS} {what}")
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


def choose_sentences(numbers: Sequence[Sequence[int]], *, seed: int = 0) -> list[list[int]]:
    """Renumber the sentences of a set's tokens, at most `MAX_SENTENCES` by a seeded choice.

    The others' tokens belong to none; so do all where each text is one sentence, because the mean
    over the text is the same.
    """
    num_sentences = 1 + max(max(text) for text in numbers)
    if num_sentences <= len(numbers):
        return [[NO_PART] * len(text) for text in numbers]
    names = [str(number) for number in range(num_sentences)]
    chosen = frozen_order(names, [None] * num_sentences, seed)[:MAX_SENTENCES]
    places = {number: place for place, number in enumerate(sorted(chosen))}
    return [[places.get(number, NO_PART) for number in text] for text in numbers]


def _states(
    cell: CellSpec,
    model: "PreTrainedModel",
    texts: Sequence[Text],
    ids: Sequence[Sequence[int]],
    sentences: Sequence[Sequence[int]],
) -> States:
    try:
        found = part_states(model, ids, sentences, names=[text.id for text in texts])
    except DataError as error:
        raise DataError(f"{cell.description}, {error}") from error
    states: States = {pooling: found.texts[:, i] for i, pooling in enumerate(POOLINGS)}
    return states | ({SENTENCE: found.parts} if found.parts.shape[1] else {})


def _base_states(
    store: Store, cell: CellSpec, measure: RepresentationMeasure, facts: dict[str, Any]
) -> States:
    """Return the states of a cell's base model, checked against the record's digest."""
    base = base_cell(cell.model)
    folder = store.layout.measure(base.fingerprint, measure.fingerprint)
    record = store.find(folder)
    if record is None:
        raise StoreError(
            f"{cell.description}: the states of {base.description} on texts {measure.texts.name} "
            f"are not in the store; expected them, to compare with. Measure the base model first."
        )
    differing = [name for name, value in facts.items() if record.result.get(name) != value]
    if differing:
        raise StoreError(
            f"{cell.description}: {base.description} was measured on other texts "
            f"({', '.join(differing)} differ); expected the same. Remove {folder} and run again."
        )
    paths = {
        pooling: check_artifact(folder, record, STATES_NAME.format(pooling=pooling))
        for pooling in record.result["poolings"]
    }
    return {pooling: np.load(path, mmap_mode="r") for pooling, path in paths.items()}


def _write(path: Path, rows: Sequence[dict[str, Any]], schema: pa.Schema) -> None:
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), path, compression="zstd")
