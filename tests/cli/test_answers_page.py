"""Answers say how sure they are once, in the report's words, and names in them are no markup."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from planted_grid import grid_tables
from sft_atlas.analyze.analysis import Analysis, analyze
from sft_atlas.cli import app
from sft_atlas.cli.answers_page import answers_json, answers_markdown


@pytest.fixture(scope="module")
def found() -> Analysis:
    tables = grid_tables(np.full((2, 3, 2), 0.5), np.full((2, 2), 0.4))
    return analyze(tables, num_resamples=50, questions=["left_out"])


def test_what_cannot_be_estimated_is_said_once(found: Analysis) -> None:
    document = answers_markdown(found, None, "a_study")
    assert document.startswith("# What a\\_study says\n")
    assert "* **not estimable** no run on all datasets has a partner" in document


def test_json_has_the_same_certainty_and_no_nan(found: Analysis) -> None:
    *_, answer = answers_json(found, None)["answers"]
    assert answer["certainty"] == "not estimable" and answer["estimate"] is None
    json.dumps(answer, allow_nan=False)


def test_text_for_a_terminal_is_not_written_to_a_file(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["answers", "theirs", "--output", str(tmp_path / "a.txt")])
    assert done.exit_code == 2 and "use --format markdown or json" in done.output
