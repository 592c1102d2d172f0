"""One cell is shown with what its scores rest on, and against its base model."""

from pathlib import Path

import pytest

from planted_scores import publish_score
from sft_atlas.identity import fingerprint, payload
from sft_atlas.store.cell_view import view_cell
from sft_atlas.store.estimate import estimate, paired_difference
from sft_atlas.store.records import make_provenance
from sft_atlas.store.store import Store, open_store
from sft_atlas.study.spec import CellSpec, ModelSpec, Source

MODEL = ModelSpec(name="one", source=Source(hub="org/one"))
BASE = CellSpec(model=MODEL, trajectory=None, epoch=0).fingerprint
CELL = "c" * 32


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = open_store(tmp_path / "store", create=True)
    trained = {"weights": "model", "trajectory": "t" * 32, "epoch": 1}
    store.publish(
        store.layout.cell(CELL),
        schema="cell/1",
        spec={"model": payload(MODEL), "trajectory": {}, "epoch": 1},
        fill=lambda _: trained,
        provenance=lambda: make_provenance(0.0),
    )
    return store


def test_the_base_cell_is_the_one_that_a_study_names() -> None:
    assert fingerprint({"epoch": 0, "model": payload(MODEL)}) == BASE


def test_nothing_right_has_an_interval(store: Store) -> None:
    publish_score(store, CELL, "quiz", {"score": [0.0] * 20}, standard_error=0.0)
    (row,) = view_cell(store, "cccc").scores
    assert (row["score"], row["standard_error"]) == (0.0, 0.0)
    assert row["interval"] == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert row["gain_reason"] == "the base model is not scored yet"
    assert row["gain"] is row["gain_interval"] is None


def test_a_gain_stands_beside_its_interval(store: Store) -> None:
    ours, base = [1.0, 1.0, 0.0, 1.0] * 5, [1.0, 0.0, 0.0, 0.0] * 5
    publish_score(store, CELL, "quiz", {"score": ours})
    publish_score(store, BASE, "quiz", {"score": base})
    (row,) = view_cell(store, CELL).scores
    expected = paired_difference(ours, base)
    assert (row["gain"], row["gain_interval"]) == (expected.mean, expected.interval)
    assert row["num_paired"] == 20


def test_items_without_a_score_are_counted_by_reason(store: Store) -> None:
    columns = {
        "score": [1.0, None, None, None, 0.0],
        "reason": [None, "no gold", "too long", "no gold", None],
    }
    publish_score(store, CELL, "quiz", columns, num_cut=2, num_truncated=0)
    (row,) = view_cell(store, CELL).scores
    assert row["unscored"] == {"no gold": 2, "too long": 1}
    assert row["flags"] == ["cut off"]


def test_groups_have_their_own_intervals(store: Store) -> None:
    columns = {"score": [1.0, 1.0, 0.0, 0.0, 0.0], "group": ["law", "law", "art", "art", "art"]}
    publish_score(store, CELL, "quiz", columns)
    (row,) = view_cell(store, CELL).scores
    art, law = row["groups"]
    assert (art["group"], art["num_items"], law["score"]) == ("art", 3, 1.0)
    assert (art["score_low"], art["score_high"]) == estimate([0.0] * 3).interval


def test_a_copy_of_the_base_is_seen(store: Store) -> None:
    answers = {
        "score": [0.0] * 30,
        "prediction": [f"guess {i}" for i in range(30)],
        "reference": ["right"] * 30,
    }
    publish_score(store, CELL, "quiz", answers)
    publish_score(store, BASE, "quiz", answers)
    (row,) = view_cell(store, CELL).scores
    assert row["flags"] == [f"identical to {BASE[:12]}"]


def publish_measure(store: Store, name: str, num_texts: int) -> None:
    store.publish(
        store.layout.measure(BASE, name),
        schema="forgetting/1",
        spec={"cell": payload(CellSpec(model=MODEL, trajectory=None, epoch=0)), "measure": {}},
        fill=lambda _: {"num_texts": num_texts},
        provenance=lambda: make_provenance(0.0),
    )


def test_a_base_model_that_was_only_measured_is_shown(store: Store) -> None:
    publish_measure(store, "a" * 32, 7)
    view = view_cell(store, BASE[:8])
    assert view.spec["model"]["source"]["hub"] == "org/one"
    assert (view.scores, view.measures) == ([], {"forgetting": {"num_texts": 7}})


def test_two_measures_of_one_kind_are_told_apart(store: Store) -> None:
    publish_measure(store, "a" * 32, 7)
    publish_measure(store, "b" * 32, 9)
    assert view_cell(store, BASE[:8]).measures == {
        "forgetting aaaaaaaa": {"num_texts": 7},
        "forgetting bbbbbbbb": {"num_texts": 9},
    }
