"""Datasets are read with every row accounted for: used, filtered, or malformed with its place."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sft_atlas.data.sources import count_quarantined, iter_rows, load_examples, read_examples
from sft_atlas.errors import DataError
from sft_atlas.files import sha256_file
from sft_atlas.study.spec import DatasetSpec, Source

GOOD = {"question": "Q", "answer": "A"}
EMPTY = {"question": "Q", "answer": ""}

Write = Callable[..., DatasetSpec]


def test_malformed_rows_fail_with_place_reason_and_total(write_rows: Write) -> None:
    dataset = write_rows([GOOD, EMPTY, b"{", {"question": "Q"}])
    with pytest.raises(DataError) as caught:
        load_examples(dataset)
    assert str(caught.value) == (
        "dataset demo: 3 of 4 rows malformed; expected none:\n"
        "  rows.jsonl:2: answer is empty\n"
        "  rows.jsonl:3: is not JSON (Expecting property name enclosed in double quotes: "
        "line 2 column 1 (char 2))\n"
        "  rows.jsonl:4: unknown shape (columns: question); known are messages, conversations, "
        "instruction, prompt-completion, prompt-response, question-answer\n"
        "Correct the file, or set `on_bad_rows: quarantine` to go on without them."
    )


def test_only_the_first_20_malformed_rows_are_listed(write_rows: Write) -> None:
    with pytest.raises(DataError) as caught:
        load_examples(write_rows([EMPTY] * 1025))
    lines = str(caught.value).splitlines()
    assert lines[0] == "dataset demo: 1,025 of 1,025 rows malformed; expected none:"
    assert lines[20] == "  rows.jsonl:20: answer is empty"
    assert lines[21] == "  and 1,005 more"


def test_quarantine_goes_on_and_keeps_the_rejects(write_rows: Write) -> None:
    dataset = write_rows([GOOD, EMPTY, b"{", GOOD], on_bad_rows="quarantine")
    loaded = load_examples(dataset)
    assert loaded.indices == [0, 3]
    assert [(r.where, r.row) for r in loaded.rejects] == [
        ("rows.jsonl:2", EMPTY),
        ("rows.jsonl:3", "{"),
    ]
    assert loaded.num_rows == 4
    assert count_quarantined(dataset) == 2


def test_filters_drop_rows_before_they_can_be_malformed(write_rows: Write) -> None:
    rows = [
        {**GOOD, "task": "a"},
        {**GOOD, "task": "b"},
        {**EMPTY, "task": "c"},
        {"question": "Q", "answer": "none", "task": 7},
        {**EMPTY, "task": "a"},
        GOOD,
    ]
    dataset = write_rows(rows, where=(("task", ("a", "7")),), drop_answers=("none", ""))
    loaded = load_examples(dataset)
    assert (loaded.indices, loaded.num_filtered, loaded.rejects) == ([0], 5, [])


def test_a_dataset_without_a_usable_row_is_an_error(write_rows: Write) -> None:
    with pytest.raises(
        DataError, match=r"demo: none of 1 rows is usable \(1 filtered, 0 malformed\)"
    ):
        load_examples(write_rows([GOOD], drop_answers=("A",)))


def test_reading_without_judging_collects_what_fail_would_refuse(write_rows: Write) -> None:
    loaded = read_examples(write_rows([EMPTY, GOOD]))
    assert (len(loaded.examples), len(loaded.rejects)) == (1, 1)


def test_rows_of_any_shape_can_be_read_one_by_one(write_rows: Write) -> None:
    source = write_rows([{"x": [1]}, {"y": None}]).source
    assert list(iter_rows(source)) == [("rows.jsonl:1", {"x": [1]}), ("rows.jsonl:2", {"y": None})]


def test_reading_one_by_one_stops_at_a_bad_line(write_rows: Write) -> None:
    source = write_rows([{"x": 1}, b"7"]).source
    with pytest.raises(
        DataError, match=r"rows\.jsonl:2: is a JSON int, not an object; expected one"
    ):
        list(iter_rows(source))


def test_a_file_that_changed_since_its_digest_was_taken_is_refused(write_rows: Write) -> None:
    path = write_rows([GOOD]).source.path
    assert path is not None
    source = Source(path=path, sha256=sha256_file(path))
    assert len(list(iter_rows(source))) == 1
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(DataError, match="changed since the study was read"):
        list(iter_rows(source))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a file; expected a data file"):
        list(iter_rows(Source(path=tmp_path / "absent.jsonl")))


def test_the_hub_library_reads_a_dataset_repository(write_rows: Write, tmp_path: Path) -> None:
    write_rows([GOOD, {**GOOD, "answer": "B"}], name="train.jsonl")
    rows: list[tuple[str, dict[str, Any]]] = list(iter_rows(Source(hub=str(tmp_path))))
    assert [row for _, row in rows] == [GOOD, {**GOOD, "answer": "B"}]
    assert rows[1][0] == f"{tmp_path}/train[1]"


@pytest.mark.parametrize("file", [None, "rows.jsonl"])
def test_a_hub_that_cannot_be_reached_is_a_user_error(file: str | None) -> None:
    source = Source(hub="nobody/nothing", revision="0" * 40, file=file)
    with pytest.raises(DataError, match=f"nobody/nothing at {'0' * 40}: cannot be loaded"):
        list(iter_rows(source))
