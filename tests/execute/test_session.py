"""A worker's jobs: what cannot be scored or measured costs itself alone, and changes no weights."""

import io
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from sft_atlas.execute.placement import Placement
from sft_atlas.execute.session import Worker
from sft_atlas.execute.tasks import select_tasks
from sft_atlas.execute.worker import serve
from sft_atlas.store.inventory import read_inventory
from sft_atlas.store.status import Status, read_status
from sft_atlas.store.store import Store, open_store
from sft_atlas.study.job import JOB
from sft_atlas.study.loader import load_study
from sft_atlas.study.plan import make_plan

STUDY = """
study: one
models: [mini-llama]
datasets: [mini-math]
benchmarks: [{name: mini-math, limit: 4}, {name: mini-reasoning-choice, limit: 4}]
max_tokens: 48
precision: float32
methods: {lora: {learning_rate: 3.0e-3, batch_samples: 8, rank: 2, alpha: 4}}
blocks: {single: {data: each, samples: 8, schedule: constant, epochs: 2, keep: every}}
measures:
  {dataset: false, description: false, overlap: false, similarity: [],
   likelihood_items: 4, MEASURES}
"""
OWN = "texts: {name: ours, path: ours.jsonl}"
ROWS = [f"the {i} of one is {i + 1} , and two is {2 * i} ." for i in range(24)]

Events = list[dict[str, str]]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store", create=True)


def write_texts(folder: Path, rows: Sequence[str]) -> None:
    (folder / "ours.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))


def write_study(folder: Path, measures: str = OWN) -> Path:
    path = folder / "one.yaml"
    path.write_text(STUDY.replace("MEASURES", measures))
    return path


def do_missing(study: Path, store: Store, *only: str) -> Events:
    """Do in this process what a worker would be given, and return what it says of each job."""
    tasks = select_tasks(make_plan(load_study(study), read_inventory(store)), store, only).tasks
    placement = Placement(device="cpu", num_workers=1)
    worker = Worker(store=store, placement=placement, events=io.StringIO())
    serve(worker, io.StringIO("".join(JOB.dump_json(t.job).decode() + "\n" for t in tasks)))
    assert isinstance(worker.events, io.StringIO)
    events = [json.loads(line) for line in worker.events.getvalue().splitlines()]
    return [event for event in events if event["kind"] in ("done", "failed")]


def status_of(study: Path, store: Store) -> Status:
    return read_status(make_plan(load_study(study)), store)


def published(store: Store) -> dict[str, int]:
    """Count the records of each schema."""
    counts: dict[str, int] = {}
    for path in sorted(store.layout.root.rglob("record.json")):
        if "failures" not in path.parts:
            schema = json.loads(path.read_text())["schema"].partition("/")[0]
            counts[schema] = counts.get(schema, 0) + 1
    return counts


def test_texts_that_cannot_be_read_cost_neither_training_nor_scores(
    tmp_path: Path, store: Store
) -> None:
    write_texts(tmp_path, ROWS[:1])
    study = write_study(tmp_path)
    events = do_missing(study, store)
    assert [event["kind"] for event in events] == ["done", "failed", "failed"]
    made = published(store)
    assert made["cell"] == 2
    assert made["scores"] == 2 * 3
    assert made["likelihood"] == 3
    assert made["drift"] == 2
    assert "forgetting" not in made
    messages = [failure.message for failure in status_of(study, store).failures]
    problem = "texts ours: is a text set of one item; expected at least 2"
    assert all(problem in message for message in messages)
    compared = "forgetting of mini-llama: its base model, which cells are compared with, could not"
    assert sum(compared in message for message in messages) == 2
    assert not [task for task in do_missing(study, store) if task["kind"] == "done"]

    write_texts(tmp_path, ROWS)
    assert {event["kind"] for event in do_missing(study, store)} == {"done"}
    assert published(store) | {"forgetting": 3, "representation": 2} == published(store)
    assert not status_of(study, store).failures
