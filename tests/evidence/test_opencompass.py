"""Summaries of OpenCompass are read as its summarizer writes them."""

from pathlib import Path

import pytest

from sft_atlas.errors import DataError
from sft_atlas.evidence.imported import import_results
from sft_atlas.evidence.opencompass import read_opencompass
from sft_atlas.evidence.run_labels import read_run_labels
from sft_atlas.evidence.source import SourceTable

SUMMARY = """\
dataset,version,metric,mode,base-hf,tuned-hf
--------- Exam ---------,-,-,-,-,-
mmlu,-,naive_average,gen,50.00,52.50
mmlu-stem,-,naive_average,gen,40.00,41.00
lukaemon_mmlu_anatomy,a1b2c3,accuracy,gen,48.15,-
gsm8k,1d7fe4,accuracy,gen,30.10,35.25
openai_humaneval,8e312c,humaneval_pass@1,gen,12.20,15.85
openai_humaneval,8e312c,humaneval_timeout,gen,3,140
winogrande,-,-,-,-,-
spread,-,standard_deviation,gen,3.1,2.2
"""
LABELS = """\
runs:
  base-hf: {model: base}
  tuned-hf: {model: base, data: alpaca, method: full, samples: 1000, epoch: 3}
"""


def read(folder: Path, text: str = SUMMARY, labels: str = LABELS) -> SourceTable:
    (folder / "summary.csv").write_text(text)
    (folder / "labels.yaml").write_text(labels)
    return read_opencompass(folder / "summary.csv", read_run_labels(folder / "labels.yaml"))


def test_models_become_rows_and_datasets_columns(tmp_path: Path) -> None:
    table = read(tmp_path)
    assert table.labels["method"].tolist() == ["base", "full"]
    assert table.values["gsm8k"].tolist() == [30.1, 35.25]
    assert table.texts["mmlu"].tolist() == ["50.00", "52.50"]
    assert table.values["lukaemon_mmlu_anatomy"].isna().tolist() == [False, True]
    gsm8k = next(column for column in table.columns if column.name == "gsm8k")
    assert (gsm8k.scale, gsm8k.skill, gsm8k.num_items) == (0.01, "math", 1319)


def test_the_parts_of_an_average_do_not_count_beside_it(tmp_path: Path) -> None:
    assert {column.name: column.in_mean for column in read(tmp_path).columns} == {
        "mmlu": True,
        "mmlu-stem": False,
        "lukaemon_mmlu_anatomy": False,
        "gsm8k": True,
        "openai_humaneval": True,
    }


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    assert read(tmp_path).notes == (
        "rows left out, no model has a score: winogrande",
        "rows left out, not of 0 to 100: openai_humaneval:humaneval_timeout, spread",
    )


def test_other_metrics_of_a_dataset_do_not_count(tmp_path: Path) -> None:
    text = SUMMARY + "gsm8k,1d7fe4,extract_rate,gen,90.0,99.0\ngsm8k,1d7fe4,accuracy,ppl,20,21\n"
    columns = {column.name: column.in_mean for column in read(tmp_path, text).columns}
    assert not columns["gsm8k:extract_rate"]
    assert not columns["gsm8k:accuracy"]


def test_gains_come_from_the_labels(tmp_path: Path) -> None:
    read(tmp_path)
    path = tmp_path / "summary.csv"
    found = import_results("opencompass", path, labels=tmp_path / "labels.yaml")
    gains = found.tables.scores.set_index(["method", "benchmark"])["gain"]
    assert gains["full", "gsm8k"] == pytest.approx(0.0515)


def test_labels_leave_models_out_and_name_units(tmp_path: Path) -> None:
    text = "dataset,version,metric,mode,base-hf,draft\nmtbench,x,score,gen,6.5,1.0\n"
    labels = "runs:\n  base-hf: {model: b}\nignore: [draft]\nbenchmarks:\n  mtbench: {unit: rating}"
    table = read(tmp_path, text, labels)
    assert table.labels["model"].tolist() == ["b"]
    assert (table.columns[0].metric, table.columns[0].scale) == ("rating", 1.0)


def test_other_tables_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        read(tmp_path, "model,gsm8k\nx,1\n")
    assert str(error.value) == (
        f"{tmp_path / 'summary.csv'}:1: begins with model, gsm8k; expected the columns dataset, "
        f"version, metric, mode and one for each model, as OpenCompass writes its summary."
    )
    with pytest.raises(DataError, match=r"summary.csv:2: column 'm' holds 'error'; expected a fin"):
        read(tmp_path, "dataset,version,metric,mode,m\ngsm8k,1,accuracy,gen,error\n")


def test_a_summary_without_scores_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_text("dataset,version,metric,mode,m\ngsm8k,-,-,-,-\n")
    with pytest.raises(DataError, match=r"s\.csv: has no score; expected at least one\.$"):
        import_results("opencompass", path)
