"""The next job is chosen from values alone, and every order of the plan gives the same choice."""

import random

from sft_atlas.execute.schedule import Task, blocked, choose
from sft_atlas.study.job import MeasureJob, PrepareJob
from sft_atlas.study.spec import DatasetSpec, ModelSpec, Source


def model(name: str) -> ModelSpec:
    return ModelSpec(name=name, source=Source(sha256=name))


def prepare(name: str, dataset: str = "d", cost: float = 1.0) -> Task:
    job = PrepareJob(
        model=model(name),
        dataset=DatasetSpec(name=dataset, source=Source(sha256=dataset)),
        num_samples=10,
        subset_seed=0,
        template="question-answer",
        max_tokens=64,
    )
    return Task(job=job, cost=cost)


def measure(
    name: str, dataset: str = "d", cost: float = 1.0, needs: frozenset[str] = frozenset()
) -> Task:
    job = MeasureJob(
        model=model(name),
        dataset=DatasetSpec(name=dataset, source=Source(sha256=dataset)),
        num_samples=10,
        subset_seed=0,
        template="question-answer",
        max_tokens=64,
    )
    return Task(job=job, cost=cost, needs=needs)


def pick(
    tasks: list[Task], in_memory: str | None = None, busy: set[str] | None = None
) -> Task | None:
    return choose(tasks, done=set(), in_memory=in_memory, busy_models=busy or set())


def test_jobs_that_others_wait_for_go_first() -> None:
    assert pick([measure("a", cost=100), prepare("a")]) == prepare("a")


def test_a_worker_keeps_the_model_it_has_loaded() -> None:
    small, large = measure("a"), measure("b", cost=50)
    assert pick([small, large], in_memory=model("a").fingerprint) == small
    assert pick([small, large]) == large


def test_a_free_worker_takes_a_model_that_no_other_works_on() -> None:
    a, b = measure("a", cost=50), measure("b")
    assert pick([a, b], busy={model("a").fingerprint}) == b
    assert pick([a], busy={model("a").fingerprint}) == a


def test_a_job_waits_for_what_it_needs() -> None:
    needed = prepare("a")
    waiting = measure("a", needs=frozenset({needed.job.fingerprint}))
    assert pick([waiting]) is None
    done = {needed.job.fingerprint}
    assert choose([waiting], done=done, in_memory=None, busy_models=set()) == waiting


def test_what_needs_a_failed_job_is_blocked_and_so_is_what_needs_that() -> None:
    first = prepare("a")
    second = measure("a", needs=frozenset({first.job.fingerprint}))
    third = measure("a", "e", needs=frozenset({second.job.fingerprint}))
    free = measure("b")
    stuck = blocked([free, third, second], {first.job.fingerprint})
    assert stuck == {second.job.fingerprint, third.job.fingerprint}


def test_the_order_of_the_plan_changes_nothing() -> None:
    tasks = [measure("abc"[i % 3], f"d{i}", cost=1 + i % 2) for i in range(12)]
    choices = set()
    for seed in range(20):
        random.Random(seed).shuffle(tasks)
        chosen = pick(tasks)
        assert chosen is not None
        choices.add(chosen.job.fingerprint)
    assert len(choices) == 1
