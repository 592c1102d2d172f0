"""Results in model repositories are read as the hub's client writes them."""

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
from ruamel.yaml import YAML

from sft_atlas.errors import DataError, StudyError
from sft_atlas.evidence.eval_results import read_eval_results
from sft_atlas.evidence.imported import import_results
from sft_atlas.evidence.run_labels import read_run_labels
from sft_atlas.evidence.source import SourceTable


def write(
    folder: Path, repository: str, *entries: EvalResultEntry, name: str = "results.yaml"
) -> None:
    path = folder / repository / ".eval_results" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as stream:
        YAML(typ="safe").dump(eval_result_entries_to_yaml(list(entries)), stream)


def entry(value: Any, benchmark: str = "openai/gsm8k", task: str = "default", **facts: str) -> Any:
    return EvalResultEntry(dataset_id=benchmark, task_id=task, value=value, **facts)


def read(folder: Path, labels: str | None = None) -> SourceTable:
    path = None
    if labels is not None:
        path = folder / "labels.yaml"
        path.write_text(labels)
    return read_eval_results(folder, read_run_labels(path))


def test_repositories_become_rows_and_tasks_columns(tmp_path: Path) -> None:
    write(tmp_path, "org/a", entry(45.25), entry(60, "cais/mmlu", "all", notes="5 shots"))
    write(tmp_path, "org/b", entry(50.5, source_url="https://example.org", date="2026-01-01"))
    table = read(tmp_path)
    assert table.labels["model"].tolist() == ["org/a", "org/b"]
    assert table.values["openai/gsm8k"].tolist() == [45.25, 50.5]
    assert table.values["cais/mmlu/all (5 shots)"].isna().tolist() == [False, True]
    assert {column.scale for column in table.columns} == {0.01}


def test_fractions_are_told_from_percentages(tmp_path: Path) -> None:
    write(tmp_path, "a", entry(0.4525))
    found = import_results("eval-results", tmp_path)
    assert found.tables.scores["score"].tolist() == [0.4525]


def test_a_mixed_column_needs_a_word_from_the_user(tmp_path: Path) -> None:
    write(tmp_path, "a", entry(0.7))
    write(tmp_path, "b", entry(45.0))
    with pytest.raises(DataError, match=r"'openai/gsm8k' is 0\.7 here and 45\.0 in"):
        read(tmp_path)
    labels = "runs: {a: {model: a}, b: {model: b}}\nbenchmarks: {openai/gsm8k: {unit: percent}}\n"
    assert read(tmp_path, labels).columns[0].scale == 0.01


def test_one_repository_is_named_after_its_folder(tmp_path: Path) -> None:
    write(tmp_path, "org/a", entry(45.0))
    table = read_eval_results(tmp_path / "org" / "a", read_run_labels(None))
    assert table.labels["model"].tolist() == ["a"]


def test_the_newest_of_two_results_counts(tmp_path: Path) -> None:
    write(tmp_path, "a", entry(1.5, date="2026-02-01"), name="1.yaml")
    write(tmp_path, "a", entry(2.5, date="2026-01-01"), name="2.yaml")
    table = read(tmp_path)
    assert table.values["openai/gsm8k"].tolist() == [1.5]
    assert table.notes[1] == "results given again, of which the newest counts: 1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dataset: {}\n", ":1: is no list; expected a list of results with dataset and value."),
        (
            "- dataset: {id: x}\n  value: 1\n",
            ":1: [0].dataset.task_id is missing; expected the name of a task in it, such as "
            "default.",
        ),
        (
            "- dataset: {id: x, task_id: y}\n  value: high\n",
            ":2: [0].value: input should be a valid number, got 'high'; expected the score, a "
            "number.",
        ),
        ("- dataset: {id: x, task_id: y}\n  value: .nan\n", ":2: .nan is not a finite number."),
        ("- just text\n", ":1: expected keys and values, got 'just text'."),
    ],
    ids=["no-list", "no-task", "text", "nan", "no-mapping"],
)
def test_files_of_another_form_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a" / ".eval_results" / "x.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises((DataError, StudyError)) as error:
        read(tmp_path)
    assert str(error.value) == f"{path}{message}"


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        read(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}: has no .eval_results/*.yaml; expected a folder with model repositories of "
        f"the hub, such as ORGANISATION/MODEL/.eval_results/gsm8k.yaml."
    )
