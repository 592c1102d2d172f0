"""Vectors are read as they were published, and what has none is named."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from planted_vectors import DIGEST, MEASURE, publish_vector, vectors_of
from sft_atlas.errors import DamagedError, StoreError
from sft_atlas.store.store import Store, open_store
from sft_atlas.store.vectors import VECTORS_NAME, benchmark_likelihoods, load_vectors

FIRST, SECOND, THIRD = ("a" * 32, "b" * 32, "c" * 32)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store", create=True)


def test_vectors_have_a_row_per_cell_in_the_order_asked_for(store: Store) -> None:
    publish_vector(store, FIRST, [-1.5, -2.25], answer=[-0.5, -0.1])
    publish_vector(store, SECOND, [-3.0, -4.0], answer=[-0.3, -0.2])
    vectors = load_vectors(store, [SECOND, FIRST, SECOND], MEASURE)
    assert vectors.cells == (SECOND, FIRST)
    assert vectors.texts == ("text-0", "text-1")
    np.testing.assert_array_equal(vectors.prompt, [[-3.0, -4.0], [-1.5, -2.25]])
    np.testing.assert_array_equal(vectors.answer, [[-0.3, -0.2], [-0.5, -0.1]])
    assert vectors.prompt_tokens.tolist() == [[9, 9], [9, 9]]
    assert vectors.answer_bytes.tolist() == [20, 20]
    assert (vectors.texts_sha256("whole"), vectors.measure) == (DIGEST, MEASURE.fingerprint)
    assert not vectors.missing


def test_a_cell_without_numbers_is_named_and_has_no_row(store: Store) -> None:
    publish_vector(store, FIRST, [-1.0, -2.0])
    publish_vector(store, SECOND, [-1.0, float("-inf")])
    publish_vector(store, THIRD, [None, -1.0])
    vectors = load_vectors(store, [FIRST, SECOND, THIRD, "d" * 32], MEASURE)
    assert vectors.cells == (FIRST,)
    assert vectors.missing == {
        SECOND: "a log-likelihood is missing or not finite",
        THIRD: "a log-likelihood is missing or not finite",
        "d" * 32: "its likelihoods were not measured yet",
    }


def test_a_store_without_any_gives_no_rows(store: Store) -> None:
    vectors = load_vectors(store, [FIRST], MEASURE)
    assert (vectors.cells, vectors.texts, vectors.prompt.shape) == ((), (), (0, 0))
    assert vectors.prompt_bytes.shape == (0,)


def test_cells_that_were_asked_other_questions_are_refused(store: Store) -> None:
    publish_vector(store, FIRST, [-1.0, -2.0])
    publish_vector(store, SECOND, [-1.0, -2.0], ids=["text-0", "text-9"])
    folder = store.layout.measure(SECOND, MEASURE.fingerprint)
    with pytest.raises(StoreError) as error:
        load_vectors(store, [FIRST, SECOND], MEASURE)
    assert str(error.value) == (
        f"{folder}: cell {SECOND} was asked other questions than cell {FIRST}; expected the same "
        f"texts for all cells. Move the folder away and run the study again."
    )


def test_wordings_of_the_same_questions_are_told_apart(store: Store) -> None:
    publish_vector(store, FIRST, [-1.0, -2.0])
    publish_vector(store, SECOND, [-1.0, -2.0], texts_sha256="e" * 64)
    both = load_vectors(store, [FIRST, SECOND], MEASURE)
    assert both.wordings == (DIGEST, "e" * 64)
    assert both.texts_sha256("whole") is None
    alone = both.take([1])
    assert (alone.cells, alone.texts_sha256("prompt")) == ((SECOND,), "e" * 64)
    assert alone.texts_sha256("answer") == both.texts_sha256("answer")
    assert alone.texts_sha256("answer") != "e" * 64


def test_an_altered_table_is_found(store: Store) -> None:
    publish_vector(store, FIRST, [-1.0, -2.0])
    path = store.layout.measure(FIRST, MEASURE.fingerprint) / VECTORS_NAME
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedError, match="differs from the digest in its record"):
        load_vectors(store, [FIRST], MEASURE)


def test_a_benchmark_has_a_perplexity_under_every_base_model() -> None:
    cells = pd.DataFrame(
        {"cell": ["b1", "t1", "b2", "b3"], "model": ["m", "m", "n", "o"], "epoch": [0, 1, 0, 0]}
    ).astype({"epoch": "Int64"})
    prompt = np.log(np.array([[2.0, 4.0, 8.0, 2.0], [1.0] * 4, [4.0] * 4])) * -10
    cut = np.zeros((3, 4), dtype=bool)
    cut[1, 1], cut[2, 3] = True, True  # a tuned model's cut text counts; a base model's does not
    vectors = vectors_of(prompt, prompt / 10, cells=["b1", "t1", "b2"], is_cut=cut)
    vectors = replace(vectors, groups=("quiz", "quiz", "quiz", "exam"))
    table = benchmark_likelihoods(vectors, cells).set_index(["model", "benchmark"])
    assert list(table.index) == [("m", "quiz"), ("n", "quiz"), ("m", "exam"), ("n", "exam")]
    row = table.loc[("m", "quiz")]
    assert row[["num_texts", "num_left_out", "prompt_tokens", "prompt_bytes"]].tolist() == [
        *(3, 0, 30, 300)
    ]
    assert row["prompt_token_perplexity"] == pytest.approx(4.0)  # the geometric mean of 2, 4, 8
    assert row["prompt_token_bits_per_byte"] == pytest.approx(2.0 * 30 / 300)
    assert row["answer_token_perplexity"] == pytest.approx(4.0**0.1)
    assert row["whole_nll"] == pytest.approx(33 * np.log(4.0))
    assert table.loc[("n", "quiz"), "prompt_token_perplexity"] == pytest.approx(4.0)
    exam = table.loc[("m", "exam")]
    assert (exam["num_texts"], exam["num_left_out"]) == (0, 1)
    assert exam[["prompt_token_perplexity", "whole_token_bits_per_byte"]].isna().all()


def test_texts_without_an_answer_have_no_perplexity_of_it() -> None:
    cells = pd.DataFrame({"cell": ["b1"], "model": ["m"], "epoch": [0]})
    (row,) = benchmark_likelihoods(vectors_of(-np.ones((1, 2)), cells=["b1"]), cells).to_dict(
        "records"
    )
    assert row["answer_token_perplexity"] is None and row["answer_tokens"] == 0
    assert row["whole_token_perplexity"] == row["prompt_token_perplexity"] == np.exp(0.1)


def test_without_base_models_there_is_no_table() -> None:
    cells = pd.DataFrame({"cell": ["b1"], "model": ["m"], "epoch": [0]})
    assert benchmark_likelihoods(None, cells).empty
    assert benchmark_likelihoods(vectors_of(-np.ones((1, 2)), cells=["t1"]), cells).empty
