"""A wish has one name: the same wish always the same, another wish always another."""

import dataclasses
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft_atlas.errors import IdentityError
from sft_atlas.identity import added, canonical_json, difference, fingerprint, payload, unhashed
from sft_atlas.study.spec import (
    BenchmarkDefinition,
    BenchmarkSpec,
    CellSpec,
    DataPart,
    DatasetSpec,
    DataSpec,
    LoraSpec,
    MethodSpec,
    ModelSpec,
    ScheduleSpec,
    Source,
    TrajectorySpec,
)

TEXT = st.text(max_size=12)
NUMBER = st.floats(allow_nan=False, allow_infinity=False)
COUNT = st.integers(min_value=0, max_value=10**12)

SOURCES = st.builds(
    Source,
    hub=st.none() | TEXT,
    revision=st.none() | TEXT,
    config=st.none() | TEXT,
    sha256=st.none() | TEXT,
    path=st.none() | st.builds(Path, st.just("/somewhere")),
)
MODELS = st.builds(ModelSpec, source=SOURCES, name=TEXT, family=TEXT)
DATASETS = st.builds(
    DatasetSpec,
    source=SOURCES,
    shape=TEXT,
    fields=st.lists(st.tuples(TEXT, TEXT), max_size=2).map(tuple),
    where=st.lists(st.tuples(TEXT, st.lists(TEXT, max_size=2).map(tuple)), max_size=2).map(tuple),
    drop_answers=st.lists(TEXT, max_size=2).map(tuple),
    num_quarantined=st.none() | COUNT,
    name=TEXT,
)
DATA = st.builds(
    DataSpec,
    parts=st.lists(st.builds(DataPart, dataset=DATASETS, num_samples=COUNT), max_size=3).map(tuple),
    subset_seed=COUNT,
    name=TEXT,
)
LORAS = st.builds(
    LoraSpec,
    rank=COUNT,
    alpha=NUMBER,
    dropout=NUMBER,
    dora=st.booleans(),
    bias=st.sampled_from(["none", "lora_only", "all"]),
)
METHODS = st.builds(
    MethodSpec,
    learning_rate=NUMBER,
    batch_samples=COUNT,
    weight_decay=NUMBER,
    epsilon=NUMBER,
    clip_norm=st.none() | NUMBER,
    lora=st.none() | LORAS,
    name=TEXT,
)
SCHEDULES = st.builds(
    ScheduleSpec,
    kind=st.sampled_from(["constant", "cosine"]),
    warmup_steps=COUNT,
    cooldown_steps=COUNT,
)
TRAJECTORIES = st.builds(
    TrajectorySpec,
    model=MODELS,
    data=DATA,
    method=METHODS,
    schedule=SCHEDULES,
    horizon_epochs=st.none() | COUNT,
    template=TEXT,
    max_tokens=COUNT,
    seed=COUNT,
    precision=st.sampled_from(["float32", "bfloat16"]),
    master_precision=st.sampled_from(["float32", "bfloat16"]),
)

MODEL = ModelSpec(source=Source(hub="a/b", revision="c"), name="m")
TRAJECTORY = TrajectorySpec(
    model=MODEL,
    data=DataSpec(
        parts=(DataPart(dataset=DatasetSpec(source=Source(sha256="0"), name="d"), num_samples=5),),
        name="d",
    ),
    method=MethodSpec(
        learning_rate=1e-5, batch_samples=32, lora=LoraSpec(rank=8, alpha=16.0), name="lora"
    ),
    schedule=ScheduleSpec(kind="cosine"),
    horizon_epochs=3,
    template="question-answer",
    max_tokens=128,
    seed=0,
    precision="float32",
)
BENCHMARK = BenchmarkSpec(
    definition=BenchmarkDefinition(kind="generate", prompt="{q}", metric="exact_match", answer="a"),
    items=Source(sha256="1"),
    few_shot=Source(sha256="2"),
    shots=1,
    limit=10,
    template="question-answer",
    max_tokens=128,
    name="b",
)


@settings(max_examples=150)
@given(spec=TRAJECTORIES)
def test_the_spelled_out_fingerprint_of_a_trajectory_is_the_general_one(
    spec: TrajectorySpec,
) -> None:
    assert spec.fingerprint == fingerprint(spec)


@pytest.mark.parametrize(
    "spec",
    [
        replace(TRAJECTORY, template='quo"te\\ \n\t\u2028 \U0001f600 ###Question: é'),
        replace(TRAJECTORY, method=replace(TRAJECTORY.method, learning_rate=1e-300)),
        replace(TRAJECTORY, method=replace(TRAJECTORY.method, learning_rate=0.1 + 0.2)),
        replace(TRAJECTORY, method=replace(TRAJECTORY.method, weight_decay=-0.0)),
        replace(TRAJECTORY, horizon_epochs=None),
    ],
    ids=["odd text", "tiny float", "long float", "minus zero", "no horizon"],
)
def test_odd_texts_and_floats_do_not_part_the_two_fingerprints(spec: TrajectorySpec) -> None:
    assert spec.fingerprint == fingerprint(spec)


@given(model=MODELS)
def test_a_model_is_named_by_its_source_alone(model: ModelSpec) -> None:
    assert model.fingerprint == fingerprint(model) == fingerprint({"source": model.source})


def hashed_changes(value: Any) -> list[tuple[str, Any]]:
    """Every copy of a spec in which one hashed field, at any depth, is another."""
    found: list[tuple[str, Any]] = []
    for field in dataclasses.fields(value):
        if "unhashed" in field.metadata:
            continue
        old = getattr(value, field.name)
        if dataclasses.is_dataclass(old):
            inner = hashed_changes(old)
            found += [
                (f"{field.name}.{where}", replace(value, **{field.name: new}))
                for where, new in inner
            ]
        found.append((field.name, replace(value, **{field.name: another(old)})))
    return found


def another(old: Any) -> Any:
    if isinstance(old, bool):
        return not old
    if isinstance(old, (int, float)):
        return old + 1
    if isinstance(old, str):
        return old + "x"
    return "x" if old in (None, ()) else None


SPECS = {"trajectory": TRAJECTORY, "benchmark": BENCHMARK}


@pytest.mark.parametrize("name", SPECS)
def test_one_changed_field_is_another_wish(name: str) -> None:
    changes = hashed_changes(SPECS[name])
    names = [fingerprint(changed) for _, changed in changes]
    assert len(changes) > 20
    assert fingerprint(SPECS[name]) not in names
    assert len(set(names)) == len(names)


def test_what_is_only_a_label_changes_nothing() -> None:
    source = replace(MODEL.source, path=Path("/elsewhere"))
    model = ModelSpec(source=source, name="renamed", family="f", languages=("en",))
    data = replace(TRAJECTORY.data, name="renamed", kind="all", samples=7)
    method = replace(TRAJECTORY.method, name="renamed")
    moved = replace(TRAJECTORY, model=model, data=data, method=method)
    assert moved.fingerprint == TRAJECTORY.fingerprint
    assert replace(BENCHMARK, name="x", skill="y", language="z").fingerprint == (
        BENCHMARK.fingerprint
    )


def test_epochs_and_base_are_cells_of_their_own() -> None:
    cells = [CellSpec(model=MODEL, trajectory=TRAJECTORY, epoch=epoch) for epoch in (1, 2)]
    base = CellSpec(model=MODEL, trajectory=None, epoch=0)
    assert len({cell.fingerprint for cell in [*cells, base]}) == 3
    renamed = CellSpec(model=replace(MODEL, name="other"), trajectory=None, epoch=0)
    assert renamed.fingerprint == base.fingerprint


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | NUMBER | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@given(value=JSON)
def test_canonical_json_reads_back_as_the_value(value: object) -> None:
    assert json.loads(canonical_json(value)) == value
    assert canonical_json(payload(value)) == canonical_json(value)


@given(value=st.dictionaries(TEXT, JSON, max_size=5), seed=st.randoms())
def test_the_order_of_keys_means_nothing(value: dict[str, Any], seed: Any) -> None:
    keys = list(value)
    seed.shuffle(keys)
    assert fingerprint({key: value[key] for key in keys}) == fingerprint(value)


def test_types_that_python_calls_equal_stay_apart() -> None:
    values: list[object] = [1, 1.0, True, "1", [1], None, "", 0, 0.0, False, -0.0]
    assert len({fingerprint(value) for value in values}) == len(values)


def test_a_tuple_and_a_list_are_the_same_sequence() -> None:
    assert fingerprint((1, (2,))) == fingerprint([1, [2]])


@dataclass(frozen=True)
class Thing:
    value: object
    label: str = unhashed("x")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            {"a": [1.0, math.nan]},
            "value.a[1]: nan has no canonical form; use a finite number.",
        ),
        (-math.inf, "value: -inf has no canonical form; use a finite number."),
        ({1: 2}, "value: key 1 is not a string; name it with a string."),
        (
            Thing(value={"x"}),
            "value.value: set has no canonical form; use None, bool, int, float, str, list, dict "
            "or a frozen dataclass of those.",
        ),
        (
            Path("x"),
            "value: PosixPath has no canonical form; use None, bool, int, float, str, list, dict "
            "or a frozen dataclass of those.",
        ),
    ],
)
def test_what_has_no_canonical_form_is_refused(value: object, message: str) -> None:
    with pytest.raises(IdentityError) as caught:
        canonical_json(value)
    assert str(caught.value) == message


@pytest.mark.parametrize("value", [b"bytes", object(), Thing, len, 1j])
def test_nothing_is_turned_into_text_to_be_hashed(value: object) -> None:
    with pytest.raises(IdentityError):
        fingerprint(value)


def test_a_difference_names_each_field_with_both_values() -> None:
    stored = payload(TRAJECTORY)
    changed = replace(
        TRAJECTORY,
        horizon_epochs=5,
        method=replace(TRAJECTORY.method, learning_rate=2e-5, lora=None),
    )
    assert difference(stored, payload(changed)) == [
        "horizon_epochs 3 -> 5",
        "method.learning_rate 1e-05 -> 2e-05",
        "method.lora {'alpha': 16.0, 'dropout': 0.0, 'rank': 8, 'targets': ['all-linear']} -> None",
    ]


def test_a_difference_names_what_only_one_side_has_and_where_in_a_list() -> None:
    assert difference({"a": [{"b": 1}, 2]}, {"a": [{"b": 3}, 2], "c": 4}) == [
        "a[0].b 1 -> 3",
        "c (absent) -> 4",
    ]
    assert difference({"a": 1}, {}) == ["a 1 -> (absent)"]
    assert difference([1], [1, 2]) == ["value [1] -> [1, 2]"]
    assert difference({"a": [1, 2]}, {"a": [1, 2]}) == []


@given(first=JSON, second=JSON)
def test_a_difference_is_empty_exactly_where_nothing_differs(first: Any, second: Any) -> None:
    assert (difference(first, second) == []) == (fingerprint(first) == fingerprint(second))


def test_a_difference_sees_the_type_of_a_number() -> None:
    assert difference({"a": 1}, {"a": 1.0}) == ["a 1 -> 1.0"]


def test_fingerprints_are_the_same_on_every_machine() -> None:
    # A change here forks every store: raise a version in the spec instead.
    assert fingerprint({"a": 1, "b": 2}) == "43258cff783fe7036d8a43033f830adf"
    assert TRAJECTORY.fingerprint == "82b603b78586cae8f4dba28ddf24fcaa"
    assert replace(TRAJECTORY, version=1).fingerprint == "2acc9a4d4afb68a5abc7ca5e9197dd9a"
    assert BENCHMARK.fingerprint == "bc14a6d2ea1cacd4aa8caf603439e797"


def test_a_field_that_was_added_later_forks_no_old_result() -> None:
    @dataclass(frozen=True)
    class Wish:
        size: int
        color: str = added("grey")

    @dataclass(frozen=True)
    class OldWish:
        size: int

    assert fingerprint(Wish(3)) == fingerprint(OldWish(3))
    assert fingerprint(Wish(3, "red")) != fingerprint(OldWish(3))
