"""What goes wrong is named, costs only itself, and is tried again on request."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

import sft_atlas
from coordinators import command, run_command

STUDY = """
study: faulty
models: [mini-llama]
datasets: [DATASETS]
benchmarks: [{name: mini-math, limit: 10}]
max_tokens: 64
precision: float32
methods: {METHODS}
blocks: {single: {data: each, samples: 16, schedule: constant, epochs: 1}}
measures: {description: false, similarity: [], forgetting: false, representations: false}
"""
FULL = "full: {learning_rate: 1.0e-3, batch_samples: 8}"
IDLE = "idle: {learning_rate: 1.0e-30, batch_samples: 8, rank: 2, alpha: 4}"


def write_study(folder: Path, *, datasets: str = "mini-math", methods: str = FULL) -> Path:
    path = folder / "faulty.yaml"
    path.write_text(STUDY.replace("DATASETS", datasets).replace("METHODS", methods))
    return path


def test_a_worker_killed_while_it_starts_is_replaced(tmp_path: Path) -> None:
    study, store = write_study(tmp_path), tmp_path / "store"
    run = subprocess.Popen(command("run", study, "--store", store), stderr=subprocess.PIPE)
    watched = psutil.Process(run.pid)
    while not (workers := watched.children()):
        time.sleep(0.01)
    os.kill(workers[0].pid, signal.SIGKILL)
    _, errors = run.communicate()
    assert run.returncode == 0, errors
    assert sft_atlas.status(study, store=store).blocks[0].done == 1


def test_an_adapter_that_changes_nothing_is_never_scored(tmp_path: Path) -> None:
    study, store = write_study(tmp_path, methods=IDLE), tmp_path / "store"
    assert run_command("run", study, "--store", store).returncode == 1
    status = sft_atlas.status(study, store=store)
    assert status.blocks[0].failed == {"canary": 1}
    assert "equal those of the base model mini-llama in every bit" in status.failures[0].message
    tuned = sft_atlas.table(study, store=store).query("epoch > 0")
    assert tuned["score"].isna().all()
    assert tuned["reason"].str.contains("every bit").all()


@pytest.mark.slow
def test_bad_rows_fail_their_cells_and_no_other(tmp_path: Path) -> None:
    rows = [{"prompt": f"say {i} .", "completion": str(i)} for i in range(20)]
    lines = [json.dumps(row) for row in rows]
    lines[7] = '{"prompt": "cut off'
    (tmp_path / "ours.jsonl").write_text("\n".join(lines))
    study = write_study(tmp_path, datasets="mini-math, {name: ours, path: ours.jsonl}")
    store = tmp_path / "store"
    assert run_command("run", study, "--store", store).returncode == 1
    status = sft_atlas.status(study, store=store)
    single = status.blocks[0]
    assert (single.done, single.failed, single.missing) == (1, {"error": 1}, 0)
    assert "ours.jsonl:8" in status.failures[0].message
    (tmp_path / "ours.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    assert run_command("run", study, "--store", store).returncode == 0


@pytest.mark.slow
def test_two_coordinators_let_a_job_fail_once(tmp_path: Path) -> None:
    study, store = write_study(tmp_path, methods=IDLE), tmp_path / "store"
    words = command("run", study, "--store", store, "--workers", 1)
    runs = [subprocess.Popen(words, stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [run.wait() for run in runs] == [1, 1]
    logs = [log.read_text() for log in (store / "log").glob("*.jsonl")]
    failed = [json.loads(line) for log in logs for line in log.splitlines()]
    failed = [event for event in failed if event["kind"] == "failed"]
    own = [event for event in failed if not event["text"].startswith("failed in another process")]
    assert len(failed) == 2
    assert len(own) == 1, "the failing job ran once"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run", "STUDY", "--store", "/proc/none"), "/proc/none: no store can be made here"),
        (("new", "no/where"), "no/where.yaml: cannot be written"),
        (("report", "STUDY", "--output", "/no/where.html"), "/no/where.html: its folder does not"),
        (("show", "abc"), "is too short; give at least 4 characters"),
        (("run", "STUDY", "--only", "nonsense"), "--only nonsense: names nothing of"),
        (("inspect", "STUDY", "--dataset", "x", "--model", "mini-llama"), "has no dataset 'x'"),
    ],
)
def test_a_user_error_exits_with_2_and_no_traceback(
    tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    study = write_study(tmp_path)
    line = [str(study) if word == "STUDY" else word for word in words]
    store = (
        [] if "--store" in words or words[0] in {"new", "inspect"} else ["--store", tmp_path / "s"]
    )
    done = run_command(*line, *store)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
