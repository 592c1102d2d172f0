"""Rows and items that are alike are near by every number, whatever order they come in."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from sft_atlas.errors import DataError
from sft_atlas.identity import payload
from sft_atlas.measure import similarity
from sft_atlas.measure.divergence import measure_divergence
from sft_atlas.measure.embed import build_embed
from sft_atlas.measure.similarity import measure_similarity
from sft_atlas.store.records import Record
from sft_atlas.store.store import Store, open_store
from sft_atlas.study.measure import Embedder, SimilaritySpec
from sft_atlas.study.spec import BenchmarkDefinition, BenchmarkItems, DatasetSpec, Source

SPEC = SimilaritySpec(
    dataset=DatasetSpec(name="rows", source=Source(sha256="0" * 64)),
    num_samples=40,
    subset_seed=0,
    benchmark=BenchmarkItems(
        definition=BenchmarkDefinition(
            kind="generate", prompt="{question}", answer="{answer}", metric="exact_match"
        ),
        items=Source(sha256="1" * 64),
        name="sums",
    ),
    embedder=Embedder(kind="words"),
)
EMBED = build_embed(SPEC.embedder)
NAMES = ["Ann", "Bo", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hal"]
GOODS = ["apples", "pencils", "stamps", "marbles", "coins"]


def word_problems(seed: int, number: int = 40) -> list[str]:
    rng = np.random.default_rng(seed)
    return [
        f"{rng.choice(NAMES)} has {rng.integers(3, 99)} {rng.choice(GOODS)} and buys "
        f"{rng.integers(3, 99)} more. How many {rng.choice(GOODS)} does {rng.choice(NAMES)} have?"
        for _ in range(number)
    ]


def programs(seed: int, number: int = 40) -> list[str]:
    rng = np.random.default_rng(seed)
    return [
        f"def f{rng.integers(99)}(values):\n    total = {rng.integers(9)}\n"
        f"    for value in values:\n        total += value ** {rng.integers(2, 9)}\n"
        f"    return total % {rng.integers(2, 99)}"
        for _ in range(number)
    ]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store", create=True)


def compare(store: Store, rows: list[str], items: list[str], seed: int = 0) -> Record:
    return measure_similarity(
        store,
        replace(SPEC, seed=seed),
        rows=list(enumerate(rows)),
        items=[(f"q{i}", text) for i, text in enumerate(items)],
        embed=EMBED,
    )


def test_numbers_follow_from_their_definitions(store: Store) -> None:
    rows, items = word_problems(0), [*word_problems(1, 20), *programs(1, 10)]
    record = compare(store, rows, items)
    x, y = EMBED(sorted(rows)).astype(float), EMBED(sorted(items)).astype(float)
    mean_x, mean_y = x.mean(axis=0), y.mean(axis=0)
    cosines = y @ x.T
    pooled = np.concatenate([x, y])
    all_cosines = (pooled @ pooled.T)[np.triu_indices(70, 1)]
    centre = (mean_x + mean_y) / 2
    x, y = x - centre, y - centre
    centred = (y / np.linalg.norm(y, axis=1)[:, None]) @ (x / np.linalg.norm(x, axis=1)[:, None]).T
    expected = {
        "num_rows": 40,
        "num_items": 30,
        "num_rows_given": 40,
        "num_items_given": 30,
        "dimension": 2048,
        "mean_cosine": mean_x @ mean_y / np.linalg.norm(mean_x) / np.linalg.norm(mean_y),
        "item_coverage": np.mean([max(row) for row in cosines]),
        "row_coverage": np.mean([max(column) for column in cosines.T]),
        "item_coverage_centred": np.mean([max(row) for row in centred]),
        "row_coverage_centred": np.mean([max(column) for column in centred.T]),
        "common_cosine": all_cosines.mean(),
    }
    assert {name: record.result[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    found = measure_divergence(pooled[:40], pooled[40:], seed=0)
    assert record.result["mmd2"] == pytest.approx(found.mmd2, rel=1e-9)
    assert record.result["mmd_p"] == found.p_value
    assert record.result["bandwidth"] == pytest.approx(found.bandwidth)
    assert record.result["num_permutations"] == 1000
    assert (record.schema, record.spec) == ("similarity/1", payload(SPEC))


def test_shared_words_are_counted_by_occurrence(store: Store) -> None:
    rows = ["the red cat sat", "a red cat"]
    items = ["the red cat", "The red dog ran"]
    result = compare(store, rows, items).result
    assert result["vocabulary_jaccard"] == pytest.approx(3 / 7)
    assert result["item_word_coverage"] == pytest.approx(5 / 7)
    assert result["item_bigram_coverage"] == pytest.approx(3 / 5)


def test_the_nearest_of_the_other_side_is_named(store: Store) -> None:
    record = compare(store, [programs(0, 1)[0], *word_problems(0, 2)], [*programs(1, 1), "Yes?"])
    path = store.artifact(store.layout.similarity(SPEC.fingerprint), "nearest.parquet")
    table = {(r["side"], r["text"]): r for r in pq.read_table(path).to_pylist()}
    assert set(table) == {("item", "q0"), ("item", "q1"), *(("row", str(i)) for i in range(3))}
    assert table["item", "q0"]["nearest"] == "0"
    assert table["row", "0"]["nearest"] == "q0"
    cosines = [row["cosine"] for (side, _), row in table.items() if side == "item"]
    assert record.result["item_coverage"] == pytest.approx(np.mean(cosines))


def test_a_set_is_as_near_as_can_be_to_itself(store: Store) -> None:
    texts = word_problems(0)
    result = compare(store, texts, texts).result
    for name in ("mean_cosine", "item_coverage", "row_coverage", "item_coverage_centred"):
        assert result[name] == pytest.approx(1, abs=1e-6)
    for name in ("vocabulary_jaccard", "item_word_coverage", "item_bigram_coverage"):
        assert result[name] == 1
    assert result["mmd2"] < 0
    assert result["mmd_p"] > 0.9


def test_the_near_topic_ranks_above_the_far_one(tmp_path: Path) -> None:
    items = word_problems(1)
    near, far = (
        compare(open_store(tmp_path / name, create=True), rows, items).result
        for name, rows in (("near", word_problems(0)), ("far", programs(0)))
    )
    for name in ("mean_cosine", "item_coverage", "row_coverage", "item_coverage_centred"):
        assert near[name] > far[name] + 0.2
    for name in ("vocabulary_jaccard", "item_word_coverage", "item_bigram_coverage"):
        assert near[name] > far[name] + 0.2
    assert near["mmd2"] < 0.05 < far["mmd2"]
    assert near["mmd_p"] > 0.01
    assert far["mmd_p"] == 1 / 1001


def test_the_order_of_texts_changes_nothing(tmp_path: Path) -> None:
    rows, items = word_problems(0), word_problems(1, 30)
    straight = compare(open_store(tmp_path / "a", create=True), rows, items).result
    moved = compare(open_store(tmp_path / "b", create=True), rows[::-1], items[::-1]).result
    assert moved == straight


def test_large_sides_are_compared_by_their_first_texts(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(similarity, "MAX_TEXTS", 25)
    rows, items = word_problems(0), word_problems(1, 30)
    result = compare(store, rows, items).result
    cut = compare(open_store(tmp_path / "cut", create=True), rows[:25], items[:25]).result
    counts = ("num_rows", "num_rows_given", "num_items", "num_items_given")
    assert [result[name] for name in counts] == [25, 40, 25, 30]
    assert result == cut | {"num_rows_given": 40, "num_items_given": 30}


def test_equal_texts_have_no_centred_cosine(store: Store) -> None:
    result = compare(store, ["same text"] * 3, ["same text"] * 2).result
    assert result["item_coverage"] == pytest.approx(1)
    for name in ("item_coverage_centred", "row_coverage_centred", "bandwidth"):
        assert result[name] is None
    assert (result["mmd2"], result["mmd_p"]) == (0, 1)


@pytest.mark.parametrize(
    ("num_rows", "num_items", "text"),
    [
        (1, 5, "dataset rows: has 1 rows; expected at least 2"),
        (5, 0, "benchmark sums: has 0 items; expected at least 2"),
    ],
)
def test_one_text_has_no_distribution(
    store: Store, num_rows: int, num_items: int, text: str
) -> None:
    with pytest.raises(DataError, match=text):
        compare(store, word_problems(0, num_rows), word_problems(1, num_items))


def test_a_pair_is_compared_once(store: Store) -> None:
    first = compare(store, word_problems(0), word_problems(1))
    assert compare(store, [], []) == first
    assert json.dumps(first.result)
