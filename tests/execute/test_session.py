"""A worker's jobs: what cannot be scored or measured costs itself alone, and changes no weights."""

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from coordinators import digests
from sft_atlas.execute import session
from sft_atlas.execute.assignment import ASSIGNMENT, Assignment
from sft_atlas.execute.placement import Placement
from sft_atlas.execute.session import Worker
from sft_atlas.execute.tasks import select_tasks
from sft_atlas.execute.worker import serve
from sft_atlas.model.memory import training_memory
from sft_atlas.store.inventory import read_inventory
from sft_atlas.store.outcomes import outcome_folder
from sft_atlas.store.records import Record
from sft_atlas.store.status import Status, read_status
from sft_atlas.store.store import Store, open_store
from sft_atlas.study.job import Job, TrainJob
from sft_atlas.study.loader import load_study
from sft_atlas.study.plan import make_plan
from sft_atlas.study.spec import Source

STUDY = """
study: one
models: [mini-llama]
datasets: [mini-math]
benchmarks: [{name: mini-math, limit: 4}, {name: mini-reasoning-choice, limit: 4}]
max_tokens: 48
precision: float32
methods: {METHOD}
blocks: {single: {data: each, samples: 8, schedule: constant, epochs: 2, keep: every}}
measures:
  {dataset: false, description: false, overlap: false, similarity: [],
   likelihood_items: 4, MEASURES}
"""
OWN = "texts: {name: ours, path: ours.jsonl}"
METHODS = {
    "lora": "lora: {learning_rate: 3.0e-3, batch_samples: 8, rank: 2, alpha: 4}",
    "full": "full: {learning_rate: 3.0e-4, batch_samples: 8}",
}
QUIZ = """
name: quiz
kind: generate
items: {path: quiz.jsonl}
prompt: "{q}"
answer: "{a}"
metric: exact_match
max_new_tokens: 4
"""
ROWS = [f"the {i} of one is {i + 1} , and two is {2 * i} ." for i in range(24)]

Events = list[dict[str, str]]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store", create=True)


def write_texts(folder: Path, rows: Sequence[str]) -> None:
    (folder / "ours.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))


def write_study(folder: Path, measures: str = OWN, *, method: str = "lora") -> Path:
    path = folder / "one.yaml"
    path.write_text(STUDY.replace("MEASURES", measures).replace("METHOD", METHODS[method]))
    return path


def do_missing(study: Path, store: Store, *only: str) -> Events:
    """Do in this process what a worker would be given, and return what it says of each job."""
    plan = make_plan(load_study(study), read_inventory(store))
    return do_jobs([task.job for task in select_tasks(plan, store, only).tasks], store)


def do_jobs(jobs: Sequence[Job], store: Store) -> Events:
    return do_assignments([Assignment(jobs=(job,)) for job in jobs], store)


def do_assignments(
    assignments: Sequence[Assignment], store: Store, worker: Worker | None = None
) -> Events:
    """Return how each job ended, in the order in which that was said."""
    worker = worker or new_worker(store)
    events = worker.events = io.StringIO()
    lines = "".join(ASSIGNMENT.dump_json(one).decode() + "\n" for one in assignments)
    serve(worker, io.StringIO(lines))
    said = [json.loads(line) for line in events.getvalue().splitlines()]
    return [event for event in said if event["kind"] in ("done", "failed", "held")]


def new_worker(store: Store) -> Worker:
    placement = Placement(device="cpu", num_workers=1, memory_bytes=1 << 30)
    return Worker(store=store, placement=placement, events=io.StringIO())


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
    assert all(problem in message for message in messages), messages
    compared = "forgetting of mini-llama: its base model, which cells are compared with, could not"
    assert sum(compared in message for message in messages) == 2
    assert not [task for task in do_missing(study, store) if task["kind"] == "done"]

    write_texts(tmp_path, ROWS)
    assert {event["kind"] for event in do_missing(study, store)} == {"done"}
    assert published(store) | {"forgetting": 3, "representation": 2} == published(store)
    assert not status_of(study, store).failures
    assert not list(store.layout.failures.iterdir()), "a later wish would bring them back"


def test_a_missing_benchmark_file_costs_its_own_scores_and_the_vectors(
    tmp_path: Path, store: Store
) -> None:
    (tmp_path / "quiz.jsonl").write_text('{"q": "1 + 1", "a": "2"}\n' * 5)
    (tmp_path / "quiz.yaml").write_text(QUIZ)
    write_texts(tmp_path, ROWS)
    study = write_study(tmp_path)
    study.write_text(study.read_text().replace("benchmarks: [", "benchmarks: [{file: quiz.yaml}, "))
    plan = make_plan(load_study(study))
    (tmp_path / "quiz.jsonl").write_text('{"q": "1 + 1"}\n' * 5)
    do_jobs([planned.job for planned in plan.jobs], store)
    made = published(store)
    assert (made["cell"], made["scores"], made["forgetting"], made["drift"]) == (2, 6, 3, 2)
    assert "likelihood" not in made
    (failure,) = {failure.message for failure in read_status(plan, store).failures}
    assert "quiz.jsonl" in failure


@pytest.mark.parametrize("method", METHODS)
def test_measuring_changes_no_bit_of_what_is_trained_and_scored(
    tmp_path: Path, method: str
) -> None:
    write_texts(tmp_path, ROWS)
    nothing = "drift: false, likelihoods: false, forgetting: false, representations: false"
    made = []
    for name, measures in (("plain", nothing), ("measured", f"spectrum: every, {OWN}")):
        store = open_store(tmp_path / name, create=True)
        do_missing(write_study(tmp_path, measures, method=method), store)
        made.append(digests(store.layout.root))
    plain, measured = made
    assert sum(name.startswith("measures/") for name in measured) == 2 + 2 + 3 + 3 + 2
    assert sum(name.startswith("cells/") for name in plain) == 2
    assert plain.items() <= measured.items()


def test_what_was_found_damaged_is_made_anew_by_the_next_run(tmp_path: Path, store: Store) -> None:
    write_texts(tmp_path, ROWS)
    study = write_study(tmp_path)
    plan = make_plan(load_study(study))
    (base,) = [planned.job for planned in plan.jobs if planned.job.kind == "evaluate"]
    do_jobs([base], store)
    (stored,) = store.layout.measures.glob("*/*/nll.npy")
    content = bytearray(stored.read_bytes())
    content[-1] ^= 1
    stored.write_bytes(content)
    do_jobs([planned.job for planned in plan.jobs], store)
    (failure,) = {failure.message for failure in read_status(plan, store).failures}
    assert "nll.npy: differs from the digest in its record" in failure
    assert published(store)["cell"] == 2
    assert len(list(store.layout.quarantine.iterdir())) == 1
    assert {event["kind"] for event in do_missing(study, store)} == {"done"}
    assert not status_of(study, store).failures


SEEDS = """
study: many
models: [mini-llama]
datasets: [mini-math]
benchmarks: [{name: mini-math, limit: 2}]
max_tokens: 48
precision: float32
methods: {METHOD}
blocks: {single: {data: each, samples: 8, schedule: constant, epochs: 1}}
seeds: [0, 1, 2]
measures:
  {dataset: false, description: false, overlap: false, similarity: [], drift: false,
   likelihoods: false, forgetting: false, representations: false}
"""


def runs_of(folder: Path, method: str = "lora", name: str = "many") -> list[TrainJob]:
    """Return three runs that differ in their seed alone."""
    path = folder / f"{name}.yaml"
    path.write_text(SEEDS.replace("METHOD", METHODS[method]))
    jobs = [planned.job for planned in make_plan(load_study(path)).jobs]
    return [job for job in jobs if isinstance(job, TrainJob)]


def outcome_of(store: Store, job: TrainJob) -> Record:
    return store.read(outcome_folder(store, job.trajectory.fingerprint, last_epoch=1))


def by_job(events: Events) -> dict[str, str]:
    return {event["job"]: event["kind"] for event in events}


@pytest.mark.parametrize("method", METHODS)
def test_runs_of_a_group_train_in_one_model_and_are_all_scored(
    tmp_path: Path, store: Store, method: str
) -> None:
    jobs = runs_of(tmp_path, method)
    events = do_assignments([Assignment(jobs=tuple(jobs), stack_runs=3)], store)
    assert by_job(events) == {job.fingerprint: "done" for job in jobs}
    assert [outcome_of(store, job).provenance["stack_runs"] for job in jobs] == [3, 3, 3]
    made = published(store)
    assert (made["cell"], made["scores"]) == (3, 3)


def test_a_worker_reads_a_base_model_and_prepares_a_dataset_once(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def counted(name: str) -> None:
        real = getattr(session, name)
        monkeypatch.setattr(
            session, name, lambda *args, **kwargs: (calls.append(name), real(*args, **kwargs))[1]
        )

    for name in ("load_base", "prepare", "load_tokenizer"):
        counted(name)
    worker = new_worker(store)
    jobs, others = runs_of(tmp_path), runs_of(tmp_path, "full", "other")
    for group in (jobs, others):
        do_assignments([Assignment(jobs=tuple(group), stack_runs=2)], store, worker)
    assert sorted(calls) == ["load_base", "load_tokenizer", "prepare"]
    assert published(store)["cell"] == 6


def test_a_run_that_fails_costs_its_group_nothing(tmp_path: Path, store: Store) -> None:
    first, second, third = runs_of(tmp_path, "full")
    # Its second step is not finite.
    method = replace(second.trajectory.method, learning_rate=1e30, batch_samples=4)
    wild = replace(second, trajectory=replace(second.trajectory, method=method))
    events = do_assignments([Assignment(jobs=(first, wild, third), stack_runs=3)], store)
    ends = by_job(events)
    assert ends == {
        first.fingerprint: "done",
        wild.fingerprint: "failed",
        third.fingerprint: "done",
    }
    failure = store.find(store.layout.failure(wild.fingerprint))
    assert failure is not None
    assert failure.result["kind"] == "diverged"
    assert published(store)["scores"] == 2


def test_data_that_cannot_be_prepared_costs_its_own_run_alone(tmp_path: Path, store: Store) -> None:
    first, second, third = runs_of(tmp_path)
    (part,) = second.trajectory.data.parts
    gone = replace(part.dataset, source=Source(path=tmp_path / "gone.jsonl"))
    data = replace(second.trajectory.data, parts=(replace(part, dataset=gone),))
    broken = replace(second, trajectory=replace(second.trajectory, data=data))
    events = do_assignments([Assignment(jobs=(first, broken, third), stack_runs=3)], store)
    assert events[0]["job"] == broken.fingerprint
    assert "gone.jsonl: is not a file" in events[0]["text"]
    assert list(by_job(events).values()) == ["failed", "done", "done"]


def test_a_job_that_another_process_holds_is_left_out_of_the_group(
    tmp_path: Path, store: Store
) -> None:
    jobs = runs_of(tmp_path)
    with store.lease(jobs[1].fingerprint) as mine:
        assert mine
        events = do_assignments([Assignment(jobs=tuple(jobs), stack_runs=3)], store)
    assert by_job(events) == dict(
        zip([job.fingerprint for job in jobs], ["done", "held", "done"], strict=True)
    )
    assert not store.holders()


def test_a_group_takes_no_more_memory_than_it_may(tmp_path: Path, store: Store) -> None:
    jobs = runs_of(tmp_path, "full")
    worker = new_worker(store)
    base = worker.load_base(jobs[0].trajectory.model)
    memory = training_memory(base, None)
    # Room for two runs in passes of 2,048 tokens, and not for three.
    budget = memory.peak(2, pass_tokens=2048, longest=48)
    assert budget < memory.peak(3, pass_tokens=2048, longest=48)
    worker.placement = replace(worker.placement, memory_bytes=budget)
    do_assignments([Assignment(jobs=tuple(jobs), stack_runs=3)], store, worker)
    assert {outcome_of(store, job).provenance["stack_runs"] for job in jobs} == {2}


def test_runs_that_were_asked_to_stop_are_held_not_failed(tmp_path: Path, store: Store) -> None:
    jobs = runs_of(tmp_path)
    worker = new_worker(store)
    worker.should_stop = True
    events = do_assignments([Assignment(jobs=tuple(jobs), stack_runs=3)], store, worker)
    assert list(by_job(events).values()) == ["held"] * 3
    assert not list(store.layout.failures.glob("*"))
