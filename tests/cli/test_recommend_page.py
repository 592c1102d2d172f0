"""Recommendations and proposals at the command line: words, JSON and refusals."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

import sft_atlas
from decide.planted import effects, planted
from planted_grid import Labels, grid_tables
from released_form import write_grid
from sft_atlas.cli import app, recommend_page
from sft_atlas.decide.proposal import planned_runs, propose
from sft_atlas.decide.recommend import recommend
from sft_atlas.store.tables import Tables


def text(page: object) -> str:
    out = io.StringIO()
    Console(file=out, width=200).print(page)
    return out.getvalue()


@pytest.fixture(scope="module")
def tables() -> Tables:
    return planted(effects(5, 3, seed=1), noise=0.02, hidden=(0, 1, 2, 3, 4))


def test_the_page_says_what_to_train_and_what_would_change_it(tables: Tables) -> None:
    found = recommend(tables, model="m7", weights={"b0": 2, "b1": 1}, sources=("table",))
    page = text(recommend_page.recommendation_page(found))
    assert page.startswith("m7 for b0 67 %, b1 33 %: train on ")
    assert "points over the base model" in page
    assert "What would change the answer" in page
    assert "weight of b0 67 % \N{RIGHTWARDS ARROW}" in page
    assert "evidence: table; 7 other models" in page
    assert "nan" not in page


def test_json_holds_no_nan_and_plain_numbers(tables: Tables) -> None:
    found = recommend(tables, model="somebody", weights={"b0": 1})
    content = recommend_page.recommendation_json(found)
    again = json.loads(json.dumps(content, allow_nan=False))
    assert again["choices"][0]["gain"] is None
    assert again["choices"][0]["rank"] == 1
    assert again["is_new_model"] is True
    assert again["why_no_gain"]


def test_without_evidence_the_page_gives_the_reason() -> None:
    lonely = grid_tables(np.full((1, 3, 1), 0.5), np.full((1, 1), 0.3))
    page = text(
        recommend_page.recommendation_page(recommend(lonely, model="m0", weights={"b0": 1}))
    )
    assert "no recommendation: the evidence has runs" in page


def test_names_with_markup_are_printed_as_they_are() -> None:
    plain = planted(effects(4, 1), hidden=(0, 1, 2, 3))
    changed = {
        name: getattr(plain, name).replace({"data": {"d0": "[red]d0[/red]"}})
        for name in ("cells", "scores")
    }
    found = recommend(Tables(**{**vars(plain), **changed}), model="m7", weights={"b0": 1})
    assert "[red]d0[/red]" in text(recommend_page.recommendation_page(found))


def test_a_proposal_lists_runs_and_the_intervals_that_questions_will_have(tmp_path: Path) -> None:
    plan = sft_atlas.plan(sft_atlas.new("mine", folder=tmp_path))
    runs = planned_runs(plan)
    names = {f"d{n}": name for n, name in enumerate(sorted(runs["data"].unique()))}
    shape = (6, len(names), 2, 2)
    scores = np.random.default_rng(0).uniform(0.3, 0.6, shape)
    labels = Labels(
        methods=("full", "lora"),
        samples=int(runs["samples"].iloc[0]),
        schedule=str(runs["schedule"].iloc[0]),
        epochs=(int(runs["epochs"].iloc[0][-1]),),
    )
    known = grid_tables(scores, np.full((6, 2), 0.3), labels)
    renamed = {name: getattr(known, name).replace({"data": names}) for name in ("cells", "scores")}
    evidence = Tables(**{**vars(known), **renamed})
    found = propose(runs, evidence, weights={"b0": 1}, budget_gpu_hours=1.0)
    page = text(recommend_page.proposal_page(found))
    assert "For b0 100 %, within 1 GPU-hours" in page
    assert "Expected 95 % interval of each question, before anything is trained" in page
    assert "LoRA or full fine-tuning?" in page
    json.dumps(recommend_page.proposal_json(found), allow_nan=False)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recommend")
    path = write_grid(folder / "t.csv")
    sft_atlas.import_results("massive-sft", path, store=folder / "store", name="theirs")
    return folder / "store"


def test_everything_imported_speaks_unless_evidence_is_named(store: Path) -> None:
    run = CliRunner().invoke(
        app, ["recommend", "--model", "m0", "--for", "gsm8k-0shot", "--store", str(store), "--json"]
    )
    assert run.exit_code == 0, run.output
    content = json.loads(run.stdout)
    assert content["sources"] == ["theirs"]
    assert content["weights"] == {"gsm8k-0shot": 1.0}


def test_a_store_without_evidence_is_refused(tmp_path: Path) -> None:
    with pytest.raises(sft_atlas.Error, match="holds no imported results, and no study was named"):
        sft_atlas.recommend("m0", {"gsm8k": 1}, store=tmp_path)


def test_budget_and_weights_go_together(tmp_path: Path) -> None:
    study = sft_atlas.new("mine", folder=tmp_path)
    run = CliRunner().invoke(app, ["plan", str(study), "--budget", "20gpuh"])
    assert run.exit_code == 2
    assert "--budget and --for are given together" in run.output


def test_a_full_disk_refuses_the_plan_and_not_the_proposal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sft_atlas.execute.disk.free_bytes", lambda _: 0)
    study, store = sft_atlas.new("mine", folder=tmp_path), tmp_path / "store"
    with pytest.raises(sft_atlas.Error, match=r"are free; expected room for all of it"):
        sft_atlas.plan(study, store=store)
    found = sft_atlas.next_cells(study, {"mini-math": 1}, budget_gpu_hours=3.0, store=store)
    assert found.planned_gpu_hours > 0


def test_a_plan_within_a_budget_without_evidence_says_why(tmp_path: Path) -> None:
    study, store = sft_atlas.new("mine", folder=tmp_path), tmp_path / "store"
    words = ["plan", str(study), "--store", str(store), "--budget", "1gpuh", "--for", "mini-math"]
    run = CliRunner().invoke(app, words)
    assert run.exit_code == 0, run.output
    assert "no proposal: the evidence has runs of 0 model(s); it takes at least 2." in run.stdout
    with pytest.raises(sft_atlas.Error, match="benchmark 'gsm8k': not in the evidence"):
        sft_atlas.next_cells(study, {"gsm8k": 1}, budget_gpu_hours=3.0, store=store)
