"""Code and judged benchmarks through the command line: answered, graded, stopped, gone on."""

import json
import os
import shutil
from pathlib import Path

import pytest

import sft_atlas
from coordinators import run_command
from judge_server import JudgeServer
from sft_atlas.sandbox.sandbox import why_unavailable

STUDY = """
study: graded
models: [mini-llama]
datasets: [mini-instruction]
judge:
  model: judge-1
  url: {url}
  key_env: null
  max_attempts: 2
  budget_tokens: {budget}
benchmarks:
  - {{file: talk.yaml}}
  - {{file: duel.yaml, references: duel.jsonl}}
{more}
max_tokens: 128
precision: float32
measures: {{dataset: false, drift: false, description: false, similarity: [], likelihoods: false,
  forgetting: false, representations: false}}
methods:
  full: {{learning_rate: 5.0e-4, batch_samples: 8}}
blocks:
  one: {{data: each, samples: 24, schedule: constant, epochs: 1}}
"""
JUDGED = "max_new_tokens: 8\nitems: {path: NAME.jsonl}\n"
TALK = "name: talk\nkind: judge\nprompt: '{q}'\nfollow_ups: ['{then}']\nmetric: rating\n" + JUDGED
DUEL = "name: duel\nkind: judge\nprompt: '{q}'\nmetric: win_rate\n" + JUDGED
CODE = """
name: code
kind: execute
items: {path: code.jsonl}
prompt: "{q}"
program: "{given}  # {completion}"
tests: "assert f() == 2"
metric: pass_at_1
max_new_tokens: 4
"""


def write_lines(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_study(folder: Path, url: str, *, budget: str = "null", more: str = "") -> Path:
    talk = [{"id": f"t{i}", "q": f"<t{i}> say {i}", "then": "again"} for i in range(4)]
    duel = [{"id": f"d{i}", "q": f"<d{i}> say {i}", "output": f"it is {i}"} for i in range(3)]
    write_lines(folder / "talk.jsonl", talk)
    write_lines(folder / "duel.jsonl", duel)
    programs = ["def f(): return 2", "def f(): return 3", "import os; os._exit(0)"]
    write_lines(folder / "code.jsonl", [{"q": "f", "given": text} for text in programs])
    (folder / "talk.yaml").write_text(TALK.replace("NAME", "talk"))
    (folder / "duel.yaml").write_text(DUEL.replace("NAME", "duel"))
    (folder / "code.yaml").write_text(CODE)
    path = folder / "graded.yaml"
    path.write_text(STUDY.format(url=url, budget=budget, more=more))
    return path


def reply(text: str) -> str:
    """Rate the second turn lower, and one item not at all; always prefer the first answer."""
    if "Answer A" in text:
        return "The first is better. [[A]]"
    if "<t3>" in text:
        return "I would rather not say."
    return "Rating: [[6]]" if "Second request" in text else "Rating: [[8]]"


def test_judged_answers_are_stored_graded_and_counted(tmp_path: Path) -> None:
    with JudgeServer(reply, {"<t0>": ["429", "500"], "<d1>": ["500"]}) as server:
        study = write_study(tmp_path, server.url)
        done = run_command("run", study, "--store", tmp_path / "store", "--workers", "1")
        assert done.returncode == 0, done.stderr
        assert server.faults == {"429": 1, "500": 2}
        num_asked = len(server.requests)
        again = run_command("run", study, "--store", tmp_path / "store", "--workers", "1")
        assert again.returncode == 0
        assert len(server.requests) == num_asked
    table = sft_atlas.table(study, store=tmp_path / "store")
    talk, duel = (table[table["benchmark"] == name] for name in ("talk", "duel"))
    # What failed was asked again; t3 is never rated, so three of four items have a score.
    assert talk["num_scored"].tolist() == [3, 3]
    assert talk["score"].tolist() == pytest.approx([7.0, 7.0])
    # A judge that always takes the first answer gives each side one of the two orders.
    assert duel["score"].tolist() == [0.5, 0.5]
    assert table["reason"].isna().all()


def test_a_budget_stops_before_it_is_passed_and_a_larger_one_goes_on(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with JudgeServer(reply) as server:
        study = write_study(tmp_path, server.url, budget="3500")
        stopped = run_command("run", study, "--store", store, "--workers", "1")
        assert stopped.returncode == 1
        assert server.billed_tokens <= 3500
        paid = len(server.requests)
        table = sft_atlas.table(study, store=store)
        assert table["score"].isna().any()
        assert table["reason"].str.contains("the next request could pass").any()
        write_study(tmp_path, server.url)
        done = run_command("run", study, "--store", store, "--workers", "1", "--only", "failed")
        assert done.returncode == 0, done.stderr
        assert 0 < paid < 28
        # Two cells, each with four items of two turns and three pairs in both orders: once each.
        assert len(server.requests) == 2 * (4 * 2 + 3 * 2)
    assert sft_atlas.table(study, store=store)["score"].notna().all()


@pytest.mark.skipif(why_unavailable() is not None, reason=f"no sandbox: {why_unavailable()}")
def test_without_a_sandbox_code_is_skipped_and_graded_where_there_is_one(tmp_path: Path) -> None:
    store = tmp_path / "store"
    study = write_study(tmp_path, "http://127.0.0.1:9/v1", more="  - {file: code.yaml}")
    study.write_text(
        study.read_text()
        .replace("  - {file: talk.yaml}\n", "")
        .replace("  - {file: duel.yaml, references: duel.jsonl}\n", "")
    )
    bare = tmp_path / "bin"
    bare.mkdir()
    for name in ("python3", "sh", "env"):
        found = shutil.which(name)
        assert found is not None
        (bare / name).symlink_to(found)
    path = os.environ["PATH"]
    try:
        os.environ["PATH"] = str(bare)
        skipped = run_command("run", study, "--store", store, "--workers", "1")
    finally:
        os.environ["PATH"] = path
    assert skipped.returncode == 1
    reasons = sft_atlas.table(study, store=store)["reason"]
    assert reasons.str.startswith("skipped (no sandbox): ").all()
    done = run_command("run", study, "--store", store, "--workers", "1", "--only", "failed")
    assert done.returncode == 0, done.stderr
    # One program of three is right; the one that leaves without a word is not.
    assert sft_atlas.table(study, store=store)["score"].tolist() == [pytest.approx(1 / 3)] * 2


@pytest.mark.slow
def test_items_are_added_for_all_cells_alike_until_gains_are_sure(tmp_path: Path) -> None:
    study = tmp_path / "sure.yaml"
    study.write_text(
        "study: sure\nmodels: [mini-llama]\ndatasets: [mini-math]\nprecision: float32\n"
        "benchmarks: [{name: mini-reasoning-choice, limit: 20}, {name: mini-math, limit: 10}]\n"
        "measures: {dataset: false, drift: false, overlap: false, description: false,"
        " similarity: [], likelihoods: false, forgetting: false, representations: false}\n"
        "max_tokens: 64\n"
        "methods: {full: {learning_rate: 5.0e-4, batch_samples: 8}}\n"
        "blocks: {one: {data: each, samples: 24, schedule: constant, epochs: 2, keep: every}}\n"
    )
    store = tmp_path / "store"
    result = sft_atlas.run(study, store=store, workers=1, until_se=11.0)
    assert result.is_complete
    table = sft_atlas.table(study, store=store)
    gains = table[table["gain"].notna()]
    assert (gains["gain_se"] <= 0.11).all()
    for _, rows in table.groupby("benchmark"):
        assert rows["num_items"].nunique() == 1
    assert table["num_items"].max() > 20
    # What was added stands in the store: a run without the wish finds nothing to do.
    assert sft_atlas.run(study, store=store, workers=1).num_done == 0
