"""The coordinator hands out groups, hears of each job alone, and brings back what a worker lost.

The workers here are small processes that speak the protocol and train nothing.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sft_atlas.execute import local
from sft_atlas.execute.local import Event, Outcome, run_tasks
from sft_atlas.execute.placement import Placement
from sft_atlas.execute.schedule import Task
from sft_atlas.store.store import Store, open_store
from sft_atlas.study.spec import ModelSpec, Source
from tiny import build_job

WORKER = """
import json, os, pathlib, signal, sys

def say(kind, **facts):
    print(json.dumps({"kind": kind, **facts}), flush=True)

say("ready")
for line in sys.stdin:
    order = json.loads(line)
    seeds = [job["trajectory"]["seed"] for job in order["jobs"]]
    with pathlib.Path(LOG).open("a") as log:
        log.write(json.dumps([seeds, order["stack_runs"], order["micro_batch_tokens"]]) + "\\n")
    for job, seed in zip(NAMES(order), seeds):
        BEHAVIOUR
"""
NAMES = """
import itertools
from sft_atlas.execute.assignment import ASSIGNMENT
def NAMES(order):
    return [job.fingerprint for job in ASSIGNMENT.validate_python(order).jobs]
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store", create=True)


def run_fake(
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    behaviour: str,
    *,
    num_runs: int = 4,
    num_workers: int = 1,
) -> tuple[Outcome, list[Event], list[Any]]:
    """Run tasks with workers that behave so; returns what they were handed as well."""
    log = store.layout.root / "handed.jsonl"
    script = NAMES + f"LOG = {str(log)!r}\n" + WORKER.replace("BEHAVIOUR", behaviour)

    def spawn(*_: Any) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        return subprocess.Popen([sys.executable, "-c", script], stdin=pipe, stdout=pipe)

    monkeypatch.setattr(local, "_spawn", spawn)
    spec = ModelSpec(name="m", source=Source(sha256="m"))
    tasks = [
        Task(job=build_job(spec, seed=seed), cost=10 - seed, stack_key="k", width=2)
        for seed in range(num_runs)
    ]
    events: list[Event] = []
    placement = Placement(device="cpu", num_workers=num_workers)
    outcome = run_tasks(tasks, store=store, placement=placement, listen=events.append)
    return outcome, events, [json.loads(line) for line in log.read_text().splitlines()]


def kinds(events: list[Event]) -> list[str]:
    return [event.kind for event in events]


def test_a_group_is_handed_over_at_once_and_each_job_ends_for_itself(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    behaviour = 'say("failed" if seed == 1 else "done", job=job, text="", seconds=1.0)'
    outcome, events, handed = run_fake(store, monkeypatch, behaviour)
    assert handed == [[[0, 1, 2, 3], 2, None]]
    assert (outcome.num_done, outcome.num_failed, outcome.num_left) == (3, 1, 0)
    assert kinds(events) == ["started"] * 4 + ["done", "failed", "done", "done"]
    assert len({event.job for event in events}) == 4


def test_workers_share_the_runs(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome, _, handed = run_fake(store, monkeypatch, 'say("done", job=job)', num_workers=2)
    assert outcome.num_done == 4
    assert sorted(len(seeds) for seeds, *_ in handed) == [1, 1, 2]


def test_a_job_that_is_held_comes_back_without_its_group(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "RETRY_HELD_SECONDS", 0.05)
    behaviour = 'say("held" if seed == 2 and len(seeds) > 1 else "done", job=job)'
    outcome, events, handed = run_fake(store, monkeypatch, behaviour)
    assert outcome.num_done == 4
    assert [seeds for seeds, *_ in handed] == [[0, 1, 2, 3], [2]]
    assert kinds(events).count("held") == 1


def test_a_killed_worker_loses_what_it_had_not_ended_and_each_is_tried_alone_in_half_the_memory(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Seed 2 needs more memory than there is while a pass has more than 600 tokens.
    behaviour = """
        if seed == 2 and (order["micro_batch_tokens"] or 2048) > 600:
            os.kill(os.getpid(), signal.SIGKILL)
        say("done", job=job)"""
    outcome, events, handed = run_fake(store, monkeypatch, behaviour)
    assert (outcome.num_done, outcome.num_failed) == (4, 0)
    assert handed == [
        [[0, 1, 2, 3], 2, None],
        [[2], 1, 1024],
        [[2], 1, 512],
        [[3], 1, 1024],
    ]
    lost = [event.text for event in events if event.kind == "lost"]
    assert lost == [
        "its process ended with signal 9, 1 time(s); tried again alone, with at most 1024 tokens "
        "a pass",
        "its process ended with signal 9, 1 time(s); tried again alone, with at most 1024 tokens "
        "a pass",
        "its process ended with signal 9, 2 time(s); tried again alone, with at most 512 tokens "
        "a pass",
    ]


def test_a_job_that_kills_every_worker_is_recorded_and_costs_no_other(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    behaviour = 'os._exit(3) if seed == 0 else say("done", job=job)'
    outcome, events, handed = run_fake(store, monkeypatch, behaviour)
    assert (outcome.num_done, outcome.num_failed) == (3, 1)
    assert all(tokens is None for *_, tokens in handed), "only a kill hints at memory"
    (failed,) = [event for event in events if event.kind == "failed"]
    assert failed.text.startswith("its process ended with exit code 3, 3 time(s)")
    record = store.find(store.layout.failure(failed.job))
    assert record is not None
    assert record.result["kind"] == "killed"
