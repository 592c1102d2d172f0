"""A description counts what was planted, and compares datasets of any size fairly."""

import zlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from sft_atlas.data.shapes import Example, Turn
from sft_atlas.data.texts import Text, texts_sha256
from sft_atlas.errors import DataError
from sft_atlas.identity import payload
from sft_atlas.measure.description import describe_dataset
from sft_atlas.store.records import Record
from sft_atlas.store.store import Store, open_store
from sft_atlas.study.job import DescribeJob
from sft_atlas.study.spec import DatasetSpec, Source

JOB = DescribeJob(
    dataset=DatasetSpec(name="texts", source=Source(sha256="0" * 64)), num_samples=4, subset_seed=0
)
STORY = "the river below the old town carries more water in late spring than in any other month"
ROWS = [
    ("Where is the river?", f"{STORY}."),
    ("Where IS the river?", f"{STORY.title()}"),
    ("Where is the  river?", f"{STORY}."),
    ("川はどこですか。", "旧市街の下にあります。"),
]


def build_examples(rows: list[tuple[str, str]]) -> list[Example]:
    return [
        Example(prompt=prompt, answer=answer, turns=(Turn("user", prompt),))
        for prompt, answer in rows
    ]


def random_texts(num_rows: int, vocabulary: int, seed: int = 0) -> list[tuple[str, str]]:
    rng = np.random.default_rng(seed)
    words = [f"w{i}" for i in range(vocabulary)]
    return [
        (" ".join(rng.choice(words, 20)), " ".join(rng.choice(words, 30))) for _ in range(num_rows)
    ]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store", create=True)


def describe(store: Store, rows: list[tuple[str, str]]) -> Record:
    return describe_dataset(store, JOB, examples=build_examples(rows))


def test_lengths_are_those_of_prompts_and_answers(store: Store) -> None:
    record = describe(store, ROWS)
    result = record.result
    assert (record.schema, record.spec) == ("description/1", payload(JOB))
    assert result["num_rows"] == 4
    prompt_bytes = [len(prompt.encode()) for prompt, _ in ROWS]
    assert result["prompt_bytes_mean"] == np.mean(prompt_bytes)
    assert result["prompt_bytes_95"] == pytest.approx(np.quantile(prompt_bytes, 0.95))
    # Seven and ten characters, of which two are a word.
    assert result["prompt_words_mean"] == (4 + 4 + 4 + 4) / 4
    assert result["answer_words_mean"] == (17 + 17 + 17 + 5) / 4
    assert result["answer_words_50"] == 17
    assert result["num_words"] == 16 + 56
    assert result["num_bytes"] == sum(len((p + a).encode()) for p, a in ROWS)


def test_duplicates_are_told_by_kind(store: Store) -> None:
    result = describe(store, ROWS).result
    # A missing full stop makes a row another text, and leaves its words.
    assert result["exact_duplicate_fraction"] == 0.25
    assert result["prompt_duplicate_fraction"] == 0.5
    assert result["near_duplicate_fraction"] == 0.5
    path = store.artifact(store.layout.description(JOB.fingerprint), "rows.parquet")
    table = pq.read_table(path).to_pydict()
    assert table["equal_group"] == [0, 1, 0, 3]
    assert table["equal_prompt_group"] == [0, 0, 0, 3]
    assert table["near_group"] == [0, 0, 0, 3]
    assert table["language"] == ["en", "en", "en", "ja"]
    assert table["row"] == [0, 1, 2, 3]


def test_languages_are_shares_of_rows_most_frequent_first(store: Store) -> None:
    languages = describe(store, ROWS).result["languages"]
    assert list(languages.items()) == [("en", 0.75), ("ja", 0.25)]


def test_distinct_ngrams_of_one_piece(store: Store) -> None:
    result = describe(store, [("a b a", "b a"), ("a", "b")]).result
    assert result["distinct_piece_words"] == 7
    # Rows: a b a b a, a b.
    assert result["distinct_1"] == pytest.approx(2 / 7)
    assert result["distinct_2"] == pytest.approx(2 / 5)
    assert result["distinct_3"] == pytest.approx(2 / 3)


def test_distinct_ngrams_equal_a_count_by_sets(store: Store) -> None:
    rows = random_texts(450, 500)
    result = describe(store, rows).result
    words = [f"{prompt} {answer}".split() for prompt, answer in rows]
    for n in (1, 2, 3):
        shares = []
        for piece in (words[:200], words[200:400]):  # 50 words a row: 10,000 words a piece
            grams = [tuple(row[i : i + n]) for row in piece for i in range(51 - n)]
            shares.append(len(set(grams)) / len(grams))
        assert result[f"distinct_{n}"] == pytest.approx(np.mean(shares), rel=1e-12)


def test_diversity_does_not_grow_with_the_number_of_rows(tmp_path: Path) -> None:
    small, large = (
        describe(open_store(tmp_path / str(n), create=True), random_texts(n, 500, seed=n)).result
        for n in (250, 650)
    )
    for name in ("distinct_1", "distinct_2", "distinct_3", "embedding_spread"):
        assert small[name] == pytest.approx(large[name], rel=0.02)


def test_a_varied_dataset_is_more_diverse_by_every_measure(tmp_path: Path) -> None:
    plain, varied = (
        describe(open_store(tmp_path / str(v), create=True), random_texts(300, v)).result
        for v in (20, 2000)
    )
    for name in ("distinct_1", "distinct_2", "distinct_3", "embedding_spread"):
        assert varied[name] > plain[name]
    assert varied["compression_ratio"] < plain["compression_ratio"]


def test_compression_sees_copies_that_are_far_apart(store: Store) -> None:
    rows = random_texts(400, 5000)
    result = describe(store, [*rows, *rows]).result
    content = "\n".join(f"{p}\n{a}" for p, a in [*rows, *rows]).encode()
    assert len(content) == result["compression_piece_bytes"]
    # The copy costs next to nothing, beyond zlib's window of 32 KiB too.
    assert result["compression_ratio"] > 1.7 * len(content) / len(zlib.compress(content, 9))


def test_a_single_row_has_no_spread(store: Store) -> None:
    result = describe(store, [("?", "!")]).result
    assert result["embedding_spread"] is None
    assert result["distinct_1"] is None
    assert result["num_words"] == 0
    assert result["languages"] == {"und": 1.0}


def test_no_row_is_an_error(store: Store) -> None:
    with pytest.raises(DataError) as error:
        describe(store, [])
    assert str(error.value) == (
        "dataset texts: has no row to describe; expected at least one. Leave it out."
    )


def test_a_dataset_is_described_once_and_named_by_its_texts(store: Store) -> None:
    first = describe(store, ROWS)
    assert describe(store, []) == first
    texts = [Text("", "", prompt, answer) for prompt, answer in ROWS]
    assert first.result["texts_sha256"] == texts_sha256(texts)
