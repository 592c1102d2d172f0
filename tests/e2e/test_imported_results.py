"""Results of others go from a file to answers, tables and a report, and odd names do no harm."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from released_form import base_row, tuned_row, write_grid, write_released
from sft_atlas.cli import app
from sft_atlas.errors import StoreError, StudyError


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imported")
    table = write_grid(folder / "table.csv")
    done = run("import", "massive-sft", table, "--name", "theirs", "--store", folder / "store")
    assert done.exit_code == 0, done.output
    return folder / "store"


def test_a_name_in_the_store_serves_as_a_study(store: Path, tmp_path: Path) -> None:
    done = run("table", "theirs", "--store", store, "--format", "json")
    rows = json.loads(done.stdout)
    assert {row["data"] for row in rows} == {"base", *(f"d{i}" for i in range(5))}
    page = tmp_path / "page.html"
    done = run("report", "theirs", "--store", store, "--output", page)
    assert done.exit_code == 0, done.output
    text = page.read_text(encoding="utf-8")
    assert "measured by others" in text and ">NaN" not in text


def test_answers_are_the_same_in_every_form(store: Path) -> None:
    found = json.loads(run("answers", "theirs", "--store", store, "--json").stdout)
    certainties = {item["certainty"] for item in found["answers"]}
    assert certainties <= {"clear", "open", "note", "not estimable"} and "clear" in certainties
    document = run("answers", "theirs", "--store", store, "--format", "markdown").stdout
    for item in found["answers"]:
        assert (item["certainty"] == "not estimable") == bool(item["reason"])
        assert f"### {item['question']}" in document
    assert "nan" not in document.lower().split()


def test_what_imported_results_lack_is_said(store: Path) -> None:
    done = run("table", "theirs", "--store", store, "--of", "drift")
    assert isinstance(done.exception, StudyError)
    expected = "theirs: imported results have no table 'drift'; expected scores or cells."
    assert str(done.exception) == expected
    done = run("report", "thiers", "--store", store)
    assert isinstance(done.exception, StoreError) and "theirs" in str(done.exception)


HOSTILE = ("<script>alert(1)</script>", "=HYPERLINK(1)", "日本語モデル", 'a","b|c_d*e')


def test_names_that_are_markup_or_formulas_are_text_everywhere(tmp_path: Path) -> None:
    rows = []
    for i, name in enumerate(HOSTILE):
        rows.append(base_row(name, 20.0 + i, 30.0))
        rows += [
            tuned_row(name, data, 30.0 + i + k, 40.0 - k)
            for k, data in enumerate((*HOSTILE, "plain"))
        ]
    path = write_released(tmp_path / "t.csv", ("gsm8k-0shot", "BoolQ-0shot"), rows)
    store, page = tmp_path / "store", tmp_path / "page.html"
    done = run("import", "massive-sft", path, "--name", "odd", "--store", store)
    assert done.exit_code == 0, done.output
    assert run("report", "odd", "--store", store, "--output", page).exit_code == 0
    text = page.read_text(encoding="utf-8")
    assert "<script>alert" not in text and "日本語モデル" in text
    table = run("table", "odd", "--store", store).stdout
    assert "\n=HYPER" not in table and ",=HYPER" not in table and "'=HYPERLINK(1)" in table
    document = run("answers", "odd", "--store", store, "--format", "markdown").stdout
    assert "<script>" not in document
