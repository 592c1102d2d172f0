"""Results of lm-eval are read as lm-eval writes them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lm_eval.result_schema import EvalResults

from sft_atlas.errors import DataError
from sft_atlas.evidence.imported import Imported, import_results
from sft_atlas.evidence.lm_eval_results import read_lm_eval
from sft_atlas.evidence.run_labels import read_run_labels
from sft_atlas.evidence.source import SourceTable

LABELS = """\
runs:
  org/base: {model: base}
  org/tuned: {model: base, data: alpaca, method: lora, samples: 1000, epoch: 3}
"""


def content(model: str, scores: dict[str, dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """What lm-eval 0.4.13 writes, as far as it is read."""
    tasks = list(scores)
    return {
        "results": {task: {"alias": task, "sample_len": 100} | scores[task] for task in tasks},
        "group_subtasks": {},
        "configs": {},
        "versions": dict.fromkeys(tasks, 1.0),
        "n-shot": dict.fromkeys(tasks, 0),
        "higher_is_better": {},
        "n-samples": {task: {"original": 100, "effective": 100} for task in tasks},
        "config": {"model": "hf"},
        "date": 1.0,
        "model_name": model,
        "model_name_sanitized": model.replace("/", "__"),
    } | changes


def write(folder: Path, found: dict[str, Any], stamp: str = "2026-01-01T00-00-00.0") -> Path:
    path = folder / found["model_name_sanitized"] / f"results_{stamp}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(found))
    return path


def read(folder: Path, labels: str | None = None) -> SourceTable:
    path = None
    if labels is not None:
        path = folder / "labels.yaml"
        path.write_text(labels)
    return read_lm_eval(folder, read_run_labels(path))


def acc(value: float, error: float | str = 0.05) -> dict[str, Any]:
    return {"acc,none": value, "acc_stderr,none": error}


def test_the_fields_that_are_read_are_those_of_lm_eval() -> None:
    known = set(EvalResults.__annotations__)
    used = {"results", "group_subtasks", "versions", "n-shot", "higher_is_better", "n-samples"}
    assert used | {"date"} <= known


def test_models_tasks_errors_and_items_are_read(tmp_path: Path) -> None:
    write(tmp_path, content("org/base", {"quiz": acc(0.4), "gsm8k": acc(0.5, "N/A")}))
    write(tmp_path, content("org/tuned", {"quiz": acc(0.6)}))
    table = read(tmp_path, LABELS)
    assert table.labels["method"].tolist() == ["base", "lora"]
    assert table.values["quiz"].tolist() == [0.4, 0.6]
    assert table.values["gsm8k"].isna().tolist() == [False, True]
    assert table.errors is not None
    assert table.errors["quiz"].tolist() == [0.05, 0.05]
    assert table.errors["gsm8k"].isna().all()
    gsm8k = next(column for column in table.columns if column.name == "gsm8k")
    assert (gsm8k.skill, gsm8k.num_items, gsm8k.scale, gsm8k.in_mean) == ("math", 100, 1.0, True)


def test_gains_have_the_error_that_lm_eval_gives(tmp_path: Path) -> None:
    write(tmp_path, content("org/base", {"quiz": acc(0.4, 0.03)}))
    write(tmp_path, content("org/tuned", {"quiz": acc(0.6, 0.04)}))
    (tmp_path / "labels.yaml").write_text(LABELS)
    found = import_results("lm-eval", tmp_path, labels=tmp_path / "labels.yaml")
    row = found.tables.scores.set_index("method").loc["lora"]
    assert row["gain"] == pytest.approx(0.2)
    assert row["gain_se"] == pytest.approx(0.05)
    assert row["num_items"] == 100


def test_the_first_metric_counts_unless_another_is_named(tmp_path: Path) -> None:
    scores = {"q": {"exact_match,strict": 0.2, "exact_match,flexible": 0.4, "acc,none": 0.1}}
    write(tmp_path, content("org/base", scores))
    in_mean = {column.name: column.in_mean for column in read(tmp_path).columns}
    assert in_mean == {"q": True, "q:exact_match,flexible": False, "q:acc": False}
    labels = LABELS + "benchmarks:\n  q: {metric: 'exact_match,flexible'}\n"
    named = {column.name: column.in_mean for column in read(tmp_path, labels).columns}
    assert named == {"q:exact_match,strict": False, "q": True, "q:acc": False}
    with pytest.raises(DataError) as error:
        read(tmp_path, LABELS + "benchmarks:\n  q: {metric: f1}\n")
    assert str(error.value) == (
        "q: has no metric 'f1'; lm-eval gives exact_match,strict, exact_match,flexible, acc. "
        "Change `metric` in the file of labels."
    )


def test_other_shots_and_versions_are_other_tests(tmp_path: Path) -> None:
    write(tmp_path, content("org/a", {"q": acc(0.1)}))
    write(tmp_path, content("org/b", {"q": acc(0.2)}, **{"n-shot": {"q": 5}}))
    write(tmp_path, content("org/c", {"q": acc(0.3)}, **{"n-shot": {"q": 5}}))
    columns = read(tmp_path).columns
    assert [(c.name, c.in_mean) for c in columns] == [("q-0shot", False), ("q-5shot", True)]
    write(tmp_path, content("org/c", {"q": acc(0.3)}, versions={"q": 2.0}))
    names = {column.name for column in read(tmp_path).columns}
    assert names == {"q-0shot-v1.0", "q-5shot-v1.0", "q-0shot-v2.0"}


def test_subtasks_of_a_scored_group_are_left_out(tmp_path: Path) -> None:
    parts = {"mmlu": acc(0.5), "mmlu_stem": acc(0.4), "anatomy": acc(0.3), "loose": acc(0.2)}
    groups = {"mmlu": ["mmlu_stem"], "mmlu_stem": ["anatomy"], "tag": ["loose"]}
    sizes = {"anatomy": {"original": 135, "effective": 135}}
    found = content("org/base", parts, group_subtasks=groups) | {"n-samples": sizes}
    write(tmp_path, found)
    table = read(tmp_path)
    assert {column.name: column.num_items for column in table.columns} == {
        "mmlu": 135,
        "loose": None,
    }
    assert table.notes[1] == "results of subtasks left out, because their group has a score: 2"


def test_the_newest_of_several_runs_counts(tmp_path: Path) -> None:
    write(tmp_path, content("org/base", {"q": acc(0.2)}, date=2.0), stamp="a")
    write(tmp_path, content("org/base", {"q": acc(0.1)}, date=1.0), stamp="b")
    table = read(tmp_path)
    assert table.values["q"].tolist() == [0.2]
    assert table.notes[1] == "results made again later, of which the newest counts: 1"


def test_what_is_better_when_lower_or_no_fraction_is_left_out(tmp_path: Path) -> None:
    scores = {"wiki": {"ppl,none": 8.5}, "chat": {"bleu,none": 23.0}, "q": acc(0.5)}
    write(tmp_path, content("org/base", scores, higher_is_better={"wiki": {"ppl": False}}))
    table = read(tmp_path)
    assert [column.name for column in table.columns] == ["q"]
    assert table.notes[1] == "columns left out, no fraction of 1: chat"


def test_a_limit_that_differs_between_models_is_kept_per_score(tmp_path: Path) -> None:
    write(tmp_path, content("org/base", {"q": acc(0.5)}))
    limited = {"n-samples": {"q": {"original": 100, "effective": 10}}}
    write(tmp_path, content("org/tuned", {"q": acc(0.5)}) | limited)
    found = import_results("lm-eval", tmp_path)
    assert found.tables.scores["num_items"].tolist() == [100, 10]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON (Expecting property name"),
        ("[]", "has no `results`; expected a results file of lm-eval."),
        ('{"results": {"q": {"acc,none": 1}}}', "has no `model_name`; expected a results file of"),
    ],
    ids=["no-json", "list", "no-name"],
)
def test_files_of_other_programs_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "results_1.json"
    path.write_text(text)
    with pytest.raises(DataError) as error:
        read(tmp_path)
    assert str(error.value).startswith(f"{path}: {message}")


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        read(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}: has no results_*.json; expected the folder that `lm_eval --output_path` "
        f"wrote."
    )


def test_results_without_numbers_are_refused(tmp_path: Path) -> None:
    write(tmp_path, content("org/base", {"q": {"acc,none": float("nan")}}))
    with pytest.raises(DataError, match="has no score; expected at least one"):
        import_results("lm-eval", tmp_path)


@pytest.mark.slow
def test_what_lm_eval_itself_writes_is_read(tmp_path: Path) -> None:
    items = [{"q": f"{n}+1=", "a": str(n % 3 + 2)} for n in range(12)]
    (tmp_path / "quiz.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    task = {
        "task": "quiz",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": str(tmp_path / "quiz.jsonl")},
        "test_split": "train",
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_choice": ["2", "3", "4"],
        "doc_to_target": "{{a}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }
    group = {
        "group": "quizzes",
        "task": ["quiz"],
        "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
        "metadata": {"version": 2},
    }
    for entry in (task, group):
        name = str(entry.get("task") if "group" not in entry else "quizzes")
        (tmp_path / f"{name}.yaml").write_text(json.dumps(entry))
    out = tmp_path / "out"
    words = ["--model", "dummy", "--model_args", "pretrained=org/base", "--tasks", "quizzes"]
    words += ["--include_path", str(tmp_path), "--output_path", str(out), "--limit", "9"]
    command = [sys.executable, "-m", "lm_eval", *words]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"PYTHONPATH": ""})
    found: Imported = import_results("lm-eval", out)
    row = found.tables.scores.iloc[0]
    assert (row["model"], row["benchmark"], row["num_items"]) == ("org/base", "quizzes", 9)
    written = json.loads(next(out.rglob("results_*.json")).read_text())
    assert row["score"] == written["groups"]["quizzes"]["acc,none"]
