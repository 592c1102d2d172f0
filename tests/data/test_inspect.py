"""Inspection shows exactly the tokens that training would use, and accounts for every row."""

import json
from collections.abc import Callable
from dataclasses import asdict

from sft_atlas.data.inspect import DroppedRow, inspect_dataset
from sft_atlas.data.subsets import row_order
from sft_atlas.study.spec import DatasetSpec, ModelSpec


def test_examples_are_split_where_supervision_begins(
    make_model: Callable[..., ModelSpec], write_rows: Callable[..., DatasetSpec]
) -> None:
    dataset = write_rows([{"prompt": f"Q{i}", "completion": f"A{i}"} for i in range(9)])
    found = inspect_dataset(
        dataset, make_model(adds_bos=True), template="question-answer", max_tokens=99
    )
    rows = row_order(9, 0)[:3].tolist()
    assert [e.row for e in found.examples] == rows
    assert [e.unsupervised for e in found.examples] == [
        f"<bos>###Question: Q{row}\n###Answer:" for row in rows
    ]
    assert [e.supervised for e in found.examples] == [f" A{row}<eos>" for row in rows]
    assert found.num_measured == found.num_usable == 9
    assert json.loads(json.dumps(asdict(found)))["dataset"] == "demo"


def test_every_row_that_is_not_trained_on_is_named_with_its_reason(
    make_model: Callable[..., ModelSpec], write_rows: Callable[..., DatasetSpec]
) -> None:
    rows = [
        {"prompt": "Q", "completion": "A"},
        {"prompt": "Q" * 90, "completion": "A"},
        {"prompt": "Q", "completion": "A" * 90},
        {"prompt": "Q", "completion": ""},
    ]
    found = inspect_dataset(
        write_rows(rows), make_model(), template="question-answer", max_tokens=60
    )
    assert (found.num_rows, found.num_malformed, found.num_usable) == (4, 1, 3)
    assert (found.num_dropped_truncated, found.num_truncated) == (1, 1)
    assert found.dropped == (
        DroppedRow(where="rows.jsonl:4", reason="completion is empty"),
        DroppedRow(where="row 1", reason="the prompt alone fills max_tokens"),
    )


def test_a_dataset_without_usable_rows_can_still_be_looked_at(
    make_model: Callable[..., ModelSpec], write_rows: Callable[..., DatasetSpec]
) -> None:
    found = inspect_dataset(
        write_rows([b"{"]), make_model(), template="question-answer", max_tokens=60
    )
    assert (found.examples, found.num_malformed, found.token_length_quantiles) == ((), 1, {})
