"""The page of an import says how much was read, what is wrong with it, and what comes next."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from released_form import write_grid
from sft_atlas.cli import app
from sft_atlas.cli.import_page import import_json, import_page
from sft_atlas.evidence.defect import Defect
from sft_atlas.evidence.imported import Imported, import_results

DEFECT = Defect(
    kind="copied row",
    columns=("gsm8k-0shot",),
    rows=(2, 7),
    where="m0 and m1: [1 column]",
    evidence="They agree.",
    effect="Gains are wrong.",
    treatment="exclude gain",
    what_is_done="No gain is formed.",
)


@pytest.fixture
def found(tmp_path: Path) -> Imported:
    path = write_grid(tmp_path / "t.csv")
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line for line in lines if not line.startswith("m2,d3,true")) + "\n")
    return import_results("massive-sft", path)


def page(found: Imported, store: Path) -> str:
    out = io.StringIO()
    Console(file=out, width=200).print(import_page(found, store))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def test_counts_coverage_and_next_commands_are_shown(found: Imported) -> None:
    text = page(replace(found, notes=("one thing",)), Path("store"))
    first, second = text.splitlines()[:2]
    assert first == (
        f"massive-sft: 129 scores of 39 tuned models (39 runs) and 4 base models on 3 benchmarks, "
        f"from {found.origin} (SHA-256 {found.sha256[:12]})."
    )
    assert second == "1 model that the source's own pattern implies is not in it."
    rows = [line.split() for line in text.splitlines()]
    assert ["each-1k-cosine", "full", "4", "5", "1", "20", "0", "60", "of", "60"] in rows
    assert ["each-1k-cosine", "lora", "4", "5", "1", "19", "1", "57", "of", "60"] in rows
    assert "note: one thing" in text
    assert "Report: sft-atlas report massive-sft\n" in text
    assert text.endswith("recommend --model m0 --for gsm8k-0shot --evidence massive-sft")


def test_commands_name_another_store(found: Imported) -> None:
    text = page(replace(found, name="second"), Path("my results"))
    assert "sft-atlas report second --store 'my results'" in text


def test_each_finding_is_told_in_full(found: Imported) -> None:
    text = page(replace(found, defects=(DEFECT,), checks=("all is k/164",)), Path("store"))
    assert "1 finding about the source:" in text
    assert "1. copied row: m0 and m1: [1 column]" in text
    for line in (
        "   Evidence: They agree.",
        "   Effect: Gains are wrong.",
        "   Done (exclude gain): No gain is formed.",
        "   all is k/164",
    ):
        assert line in text.splitlines()


def test_json_has_all_of_it(found: Imported) -> None:
    content = import_json(replace(found, defects=(DEFECT,)))
    json.dumps(content, allow_nan=False)
    assert content["num_missing_cells"] == 1
    assert content["defects"][0]["rows"] == (2, 7)
    assert {row["block"] for row in content["coverage"]} == {"", "each-1k-cosine"}


def test_the_verb_keeps_results_and_refuses_others_under_their_name(tmp_path: Path) -> None:
    store = tmp_path / "store"
    words = ["import", "massive-sft", str(write_grid(tmp_path / "a.csv")), "--store", str(store)]
    done = CliRunner().invoke(app, [*words, "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["num_cells"] == 40
    assert (store / "evidence" / "massive-sft" / "record.json").is_file()
    write_grid(tmp_path / "a.csv", seed=1)
    again = CliRunner().invoke(app, words)
    assert "holds other results" in str(again.exception)
    assert CliRunner().invoke(app, [*words, "--name", "second"]).exit_code == 0
    assert "cannot name a folder" in str(
        CliRunner().invoke(app, [*words, "--name", "../x"]).exception
    )
