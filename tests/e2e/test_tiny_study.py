"""A study file goes in; models, scores, a table and a report come out, whoever is killed on the
way.
"""

import json
import shlex
import signal
import subprocess
import textwrap
import time
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

import sft_atlas
from coordinators import command, digests, jobs_done, run_command, run_with_kills
from sft_atlas.cli import app

STUDY = """
study: tiny
models: [mini-llama, mini-seed]
datasets: [mini-math, mini-instruction]
benchmarks: [{name: mini-math, limit: 20}, {name: mini-reasoning-choice, limit: 20}]
max_tokens: 64
precision: float32
methods:
  full: {learning_rate: 5.0e-4, batch_samples: 8}
  lora: {learning_rate: 3.0e-3, batch_samples: 8, rank: 4, alpha: 8}
blocks:
  single: {data: each, samples: 40, schedule: constant, epochs: 3, keep: [1, 3]}
  merged: {data: all, samples: 20, schedule: cosine, methods: [full], epochs: 2, keep: last}
measures: {likelihood_items: 5, updates: true, texts: {name: mini-texts, limit: 34}}
"""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(STUDY)
    return path


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A study that ran through, and its store; read only."""
    folder = tmp_path_factory.mktemp("undisturbed")
    path = folder / "tiny.yaml"
    path.write_text(STUDY)
    done = run_command("run", path, "--store", folder / "store")
    assert done.returncode == 0, done.stderr
    return path, folder / "store"


def test_everything_planned_is_done(undisturbed: tuple[Path, Path]) -> None:
    study, store = undisturbed
    status = sft_atlas.status(study, store=store)
    planned = {block.block: (block.planned, block.done) for block in status.blocks}
    assert planned == {"single": (16, 16), "merged": (2, 2), "base": (2, 2)}
    assert not status.failures


def test_every_score_has_items_and_every_gain_is_paired(undisturbed: tuple[Path, Path]) -> None:
    study, store = undisturbed
    table = sft_atlas.table(study, store=store)
    assert len(table) == (18 + 2) * 2
    assert (table["num_scored"] == table["num_items"]).all()
    tuned = table[table["epoch"] > 0]
    assert (tuned["num_paired"] == 20).all()
    expected = tuned["score"] - tuned["base_score"]
    pd.testing.assert_series_equal(tuned["gain"], expected, check_names=False)
    assert tuned["gain"].abs().sum() > 0


def test_measures_are_there_for_each_cell_and_dataset(undisturbed: tuple[Path, Path]) -> None:
    study, store = undisturbed
    tables = sft_atlas.tables(study, store=store)
    assert tables.drift["cell"].nunique() == 18
    assert set(zip(tables.datasets["model"], tables.datasets["data"], strict=True)) == {
        (model, data)
        for model in ("mini-llama", "mini-seed")
        for data in ("mini-math", "mini-instruction")
    }
    assert (tables.datasets["answer_nll"] > 0).all()
    assert set(tables.descriptions["data"]) == {"mini-math", "mini-instruction"}
    assert len(tables.similarities) == 2 * 2
    assert tables.vectors is not None
    assert len(tables.vectors.cells) == 18 + 2 and not tables.vectors.missing
    assert tables.forgetting["cell"].nunique() == 18
    assert (tables.forgetting["kl_per_token"] > 0).all()
    last = 2 * (2 * 2 + 1)
    assert tables.representations["cell"].nunique() == last + 2
    assert tables.updates.query("scope == 'model'").shape[0] == 2 * 5 * 4 // 2
    assert tables.curves["trajectory"].nunique() == 10


def test_running_again_does_nothing(undisturbed: tuple[Path, Path]) -> None:
    study, store = undisturbed
    before = digests(store)
    done = run_command("run", study, "--store", store, "--json")
    assert json.loads(done.stdout)["num_done"] == 0
    assert digests(store) == before


def test_a_longer_study_shares_what_is_there(
    undisturbed: tuple[Path, Path], tmp_path: Path
) -> None:
    _, store = undisturbed
    longer = tmp_path / "longer.yaml"
    longer.write_text(STUDY.replace("epochs: 3, keep: [1, 3]", "epochs: 4, keep: [1, 3]"))
    assert not [job for job in sft_atlas.plan(longer, store=store).jobs if job.job.kind == "train"]


def test_killed_six_times_equals_undisturbed(
    undisturbed: tuple[Path, Path], tmp_path: Path
) -> None:
    study, reference = undisturbed
    store = tmp_path / "store"
    # Workers need about 3 seconds to start; later moments hit their work.
    num_killed = run_with_kills(study, store, num_kills=6, seed=20261121, seconds=(2.5, 6.0))
    assert num_killed >= 3, "the faults that this test is about did not happen"
    assert digests(store) == digests(reference)
    pd.testing.assert_frame_equal(
        sft_atlas.table(study, store=store), sft_atlas.table(study, store=reference)
    )


def test_two_coordinators_share_the_work(undisturbed: tuple[Path, Path], tmp_path: Path) -> None:
    study, reference = undisturbed
    store = tmp_path / "store"
    words = command("run", study, "--store", store, "--workers", 1)
    runs = [subprocess.Popen(words, stderr=subprocess.PIPE) for _ in range(2)]
    for run in runs:
        _, errors = run.communicate()
        assert run.returncode == 0, errors
    assert digests(store) == digests(reference)
    planned = sft_atlas.plan(study).jobs
    wanted = {job.job.fingerprint for job in planned if job.job.kind != "prepare"}
    ran = [job for job in jobs_done(store) if job in wanted]
    assert sorted(ran) == sorted(wanted), "each job ran exactly once"


@pytest.mark.slow
def test_a_diverging_method_is_recorded_and_the_rest_goes_on(tmp_path: Path) -> None:
    study, store = tmp_path / "hot.yaml", tmp_path / "store"
    text = STUDY.replace("learning_rate: 3.0e-3", "learning_rate: 10.0, weight_decay: 10.0")
    text = text.replace("models: [mini-llama, mini-seed]", "models: [mini-llama]")
    # At this rate nothing finite can be measured of the first epoch either.
    unmeasured = "measures: {likelihoods: false, forgetting: false, representations: false}"
    study.write_text(text[: text.index("measures:")] + unmeasured)
    done = run_command("run", study, "--store", store)
    status = sft_atlas.status(study, store=store)
    single = next(block for block in status.blocks if block.block == "single")
    assert done.returncode == 1, done.stderr
    assert single.failed == {"diverged": 2}
    assert single.done == 6, "epoch 1 came before the divergence and is kept"
    assert "expected finite numbers" in status.failures[0].message
    again = run_command("run", study, "--store", store, "--json")
    assert again.returncode == 1
    assert json.loads(again.stdout) | {"seconds": 0} == {
        "num_done": 0,
        "num_failed": 0,
        "num_blocked": 0,
        "num_left": 0,
        "num_failed_before": 2,
        "set_aside": [],
        "seconds": 0,
        "is_complete": False,
    }
    shown = json.loads(run_command("status", study, "--store", store, "--json").stdout)
    retry = shlex.split(shown["failures"][0]["retry"])
    retried = run_command(*retry[1:], "--json")
    assert json.loads(retried.stdout)["num_failed"] == 1


def test_an_interrupt_stops_cleanly_and_the_next_run_goes_on(study: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    run = subprocess.Popen(
        command("run", study, "--store", store), stderr=subprocess.PIPE, text=True
    )
    while not list((store / "trajectories").glob("*/*/record.json")):
        assert run.poll() is None, "the run ended before it could be interrupted"
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate(timeout=30)
    assert run.returncode == 1, errors
    assert not sft_atlas.status(study, store=store).running
    assert not list((store / "tmp").iterdir())
    assert run_command("run", study, "--store", store).returncode == 0


def test_damage_is_found_and_made_anew(undisturbed: tuple[Path, Path], tmp_path: Path) -> None:
    study, reference = undisturbed
    store = tmp_path / "store"
    subprocess.run(["cp", "-r", str(reference), str(store)], check=True)
    items = sorted(store.glob("scores/*/*/items.parquet"))[3]
    content = bytearray(items.read_bytes())
    content[len(content) // 2] ^= 4
    items.write_bytes(content)
    done = run_command("run", study, "--store", store, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["set_aside"] == [str(items.parent)]
    assert digests(store) == digests(reference)


def test_every_page_of_the_command_line_prints(
    undisturbed: tuple[Path, Path], tmp_path: Path
) -> None:
    study, store = undisturbed
    cell = sft_atlas.table(study, store=store)["cell"].iloc[-1]
    words = [
        ("plan", study),
        ("status", study, "--store", store),
        ("show", cell[:10], "--store", store),
        ("inspect", study, "--dataset", "mini-math", "--model", "mini-llama"),
        ("doctor",),
        ("run", study, "--store", store, "--dry-run"),
    ]
    runner = CliRunner()
    for line in words:
        shown = runner.invoke(app, [str(word) for word in line])
        assert shown.exit_code == 0, shown.output
        assert shown.stdout or line[0] == "run"
        json.loads(runner.invoke(app, [*map(str, line), "--json"]).stdout)
    output = tmp_path / "table.parquet"
    for kind in ("csv", "json", "markdown", "latex", "parquet"):
        words_of_kind = ["table", study, "--store", store, "--format", kind]
        to_file = ["--output", output] if kind == "parquet" else []
        written = runner.invoke(app, [str(word) for word in words_of_kind + to_file])
        assert written.exit_code == 0, written.output
        assert written.stdout or kind == "parquet"
    assert len(pd.read_parquet(output)) == 40
    page = sft_atlas.report(study, store=store, output=tmp_path / "report.html")
    assert "<script" in page.read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("datasets:", "datasetz:"), "did you mean"),
        (("mini-llama, mini-seed", "mini-lama"), "did you mean mini-llama"),
        (("epochs: 3", "epochs: three"), "tiny.yaml:12"),
    ],
)
def test_a_wrong_study_exits_with_2_and_says_where(
    tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    study = tmp_path / "tiny.yaml"
    study.write_text(textwrap.dedent(STUDY.replace(*change)))
    done = run_command("plan", study)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
