"""Which jobs a run takes: what is missing, less what failed before, or what the user names."""

from dataclasses import replace
from pathlib import Path

import pytest

from sft_atlas.errors import StudyError
from sft_atlas.execute.placement import (
    Placement,
    TrainingWishes,
    place_workers,
    share_of_memory,
)
from sft_atlas.execute.tasks import Selection, select_tasks, with_companions
from sft_atlas.store.store import Store, open_store
from sft_atlas.study.job import PrepareJob
from sft_atlas.study.loader import load_study
from sft_atlas.study.missing import Inventory
from sft_atlas.study.plan import Plan, make_plan

STUDY = """
study: words
models: [mini-llama, mini-seed]
datasets: [mini-math, mini-code]
benchmarks: [{name: mini-math, limit: 5}]
precision: float32
methods:
  full: {learning_rate: 1.0e-3, batch_samples: 8}
  lora: {learning_rate: 1.0e-3, batch_samples: 8, rank: 2, alpha: 4}
blocks:
  one: {data: each, samples: 10, epochs: 1}
  both: {data: all, samples: 10, epochs: 1, methods: [full]}
"""


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    path = tmp_path / "words.yaml"
    path.write_text(STUDY)
    return make_plan(load_study(path))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store", create=True)


def kinds(selection: Selection) -> dict[str, int]:
    counts: dict[str, int] = {}
    for task in selection.tasks:
        counts[task.job.kind] = counts.get(task.job.kind, 0) + 1
    return counts


def fail(store: Store, job: str) -> None:
    store.record_failure(job, {}, {"kind": "error", "message": "x", "step": None, "trace": ""})


def test_everything_missing_is_taken(plan: Plan, store: Store) -> None:
    found = kinds(select_tasks(plan, store))
    texts = {"overlap": 2, "describe": 2, "similarity": 2}
    assert found == {"prepare": 4, "measure": 4, "train": 10, "evaluate": 2} | texts


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        (["both"], {"prepare": 4, "train": 2}),
        (["mini-seed", "lora"], {"prepare": 2, "train": 2}),
        (["mini-math,mini-code", "mini-llama", "train"], {"prepare": 2, "train": 4}),
        (["evaluate"], {"evaluate": 2}),
        (["failed"], {}),
    ],
)
def test_terms_narrow_and_commas_widen(
    plan: Plan, store: Store, only: list[str], expected: dict[str, int]
) -> None:
    assert kinds(select_tasks(plan, store, only)) == expected


def test_a_cell_is_selected_by_its_first_characters(plan: Plan, store: Store) -> None:
    cell = plan.cells[3].cell
    selection = select_tasks(plan, store, [cell.fingerprint[:8]])
    train = [task.job for task in selection.tasks if task.job.kind == "train"]
    assert [job.trajectory for job in train] == [cell.trajectory]


def test_what_failed_waits_until_it_is_named(plan: Plan, store: Store) -> None:
    job = next(p.job for p in plan.jobs if p.job.kind == "train")
    fail(store, job.fingerprint)
    plain = select_tasks(plan, store)
    assert plain.num_failed_before == 1
    assert job not in [task.job for task in plain.tasks]
    named = select_tasks(plan, store, ["failed"])
    assert job in [task.job for task in named.tasks]
    assert named.num_failed_before == 0


def test_what_needs_a_failed_job_waits_with_it(plan: Plan, store: Store) -> None:
    prepare = next(p.job for p in plan.jobs if isinstance(p.job, PrepareJob))
    fail(store, prepare.fingerprint)
    needing = [p for p in plan.jobs if prepare.fingerprint in p.needs]
    assert select_tasks(plan, store).num_failed_before == len(needing)
    chosen = {task.job.fingerprint for task in select_tasks(plan, store, ["failed"]).tasks}
    assert chosen >= {p.job.fingerprint for p in needing} | {prepare.fingerprint}


def test_a_word_that_names_nothing_is_refused(plan: Plan, store: Store) -> None:
    with pytest.raises(StudyError) as caught:
        select_tasks(plan, store, ["mini-lama"])
    assert str(caught.value) == (
        f"--only mini-lama: names nothing of {plan.study.path}; expected the first 6 or more "
        "characters of a cell, or one of all, both, describe, evaluate, failed, full, grade, lora, "
        "measure, mini-code, mini-llama, mini-math, mini-seed, one, overlap, similarity, train, "
        "updates."
    )


JUDGED = """
study: judged
models: [mini-llama]
datasets: [mini-math]
benchmarks: [{name: mini-math, limit: 5}, {name: mt-bench, limit: 3}]
judge: {model: judge-1, url: http://127.0.0.1:9/v1, key_env: null}
precision: float32
methods: {full: {learning_rate: 1.0e-3, batch_samples: 8}}
blocks: {one: {data: each, samples: 10, epochs: 2, keep: every}}
"""


@pytest.fixture
def judged(tmp_path: Path) -> Path:
    path = tmp_path / "judged.yaml"
    path.write_text(JUDGED)
    return path


def test_a_job_is_taken_once_however_many_wait_for_it(judged: Path, store: Store) -> None:
    plan = make_plan(load_study(judged))
    tasks = select_tasks(plan, store).tasks
    names = [task.job.fingerprint for task in tasks]
    assert sorted(names) == sorted(planned.job.fingerprint for planned in plan.jobs)
    assert kinds(select_tasks(plan, store))["grade"] == 3


def test_what_failed_holds_back_all_that_waits_for_it(judged: Path, store: Store) -> None:
    plan = make_plan(load_study(judged))
    (prepare,) = (p.job for p in plan.jobs if p.job.kind == "prepare")
    fail(store, prepare.fingerprint)
    selection = select_tasks(plan, store)
    # The run waits for its rows, and the grades of its two cells for the run.
    assert {task.job.kind for task in selection.tasks} == {
        *("evaluate", "grade", "overlap", "describe", "similarity"),
    }
    assert kinds(selection)["grade"] == 1
    assert selection.num_failed_before == len({"measure", "train"}) + 2


def test_only_grade_takes_what_is_answered_and_trains_nothing(judged: Path, store: Store) -> None:
    study = load_study(judged)
    assert kinds(select_tasks(make_plan(study), store, ["grade"])) == {}
    talk = next(b for b in study.benchmark_specs if b.is_graded)
    cell = make_plan(study).cells[0].cell
    inventory = Inventory(answers=frozenset([(cell.fingerprint, talk.fingerprint)]))
    assert kinds(select_tasks(make_plan(study, inventory), store, ["grade"])) == {"grade": 1}


def test_small_runs_go_together_and_a_user_may_say_how_many(plan: Plan, store: Store) -> None:
    tasks = select_tasks(plan, store).tasks
    here = Placement(device="cpu", num_workers=1)
    trained = [task for task in with_companions(tasks, plan, here) if task.job.kind == "train"]
    keys = {task.stack_key for task in trained}
    # Two models, each trained in full and by LoRA; 8 samples of a tiny model are a short step.
    assert len(keys) == 4
    assert None not in keys
    assert all(task.width > 1 for task in trained)
    for number in (3, 1):
        asked = with_companions(tasks, plan, replace(here, stack_runs=number))
        widths = {task.width for task in asked if task.job.kind == "train"}
        assert widths == {number}
    alone = with_companions(tasks, plan, replace(here, devices_per_run=2))
    assert {task.stack_key for task in alone} == {None}
    assert [task.job for task in with_companions(tasks, plan, here)] == [t.job for t in tasks]


def test_a_placement_takes_what_a_user_wishes() -> None:
    wishes = TrainingWishes(stack=4, memory_gib=2.0, activation_checkpointing=True, compile=True)
    found = place_workers(2, wishes)
    assert (found.num_workers, found.stack_runs, found.memory_bytes) == (2, 4, 2 << 30)
    assert found.activation_checkpointing
    assert found.compile
    assert Placement.from_json(found.to_json()) == found
    free = share_of_memory(1)
    assert 0 < share_of_memory(4) <= free / 3
    with pytest.raises(StudyError, match=r"--devices-per-run 10000: this machine has \d+ "):
        place_workers(None, TrainingWishes(devices_per_run=10000))
