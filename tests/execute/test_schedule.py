"""The next job is chosen from values alone, and every order of the plan gives the same choice."""

import itertools
import random

from sft_atlas.execute.schedule import Task, blocked, choose
from sft_atlas.study.job import MeasureJob, PrepareJob
from sft_atlas.study.spec import DatasetSpec, ModelSpec, Source
from tiny import build_job


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


def train(
    seed: int, cost: float = 1.0, *, name: str = "a", key: str | None = "k", tokens: float = 100.0
) -> Task:
    job = build_job(model(name), seed=seed)
    return Task(job=job, cost=cost, stack_key=key, width=4, step_tokens=tokens)


def group_of(
    tasks: list[Task], *, num_workers: int = 1, busy: set[str] | None = None
) -> list[Task]:
    found = choose(
        tasks, done=set(), in_memory=None, busy_models=busy or set(), num_workers=num_workers
    )
    return list(found)


def pick(
    tasks: list[Task], in_memory: str | None = None, busy: set[str] | None = None
) -> Task | None:
    found = choose(tasks, done=set(), in_memory=in_memory, busy_models=busy or set())
    return found[0] if found else None


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
    assert choose([waiting], done=done, in_memory=None, busy_models=set()) == (waiting,)


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


def test_runs_that_may_train_together_go_to_one_worker_the_longest_first() -> None:
    runs = [train(seed, cost=seed) for seed in range(1, 6)]
    assert group_of(runs) == runs[::-1]
    assert group_of([*runs, train(9, cost=9, key="other")])[1:] == []
    assert group_of([*runs, measure("a", cost=0.5)]) == runs[::-1]


def test_a_run_without_a_key_trains_alone() -> None:
    runs = [train(seed, cost=seed, key=None) for seed in range(1, 4)]
    assert group_of(runs) == [runs[-1]]
    assert group_of([measure("a", cost=9), *runs]) == [measure("a", cost=9)]


def test_a_group_leaves_every_worker_its_share() -> None:
    runs = [train(seed, cost=seed) for seed in range(1, 9)]
    assert [len(group_of(runs, num_workers=n)) for n in (1, 2, 3, 8, 20)] == [8, 4, 3, 1, 1]
    handed_out = []
    for _ in range(3):
        group = group_of(runs, num_workers=3)
        handed_out.append(len(group))
        runs = [run for run in runs if run not in group]
    assert handed_out == [3, 2, 1]


def test_workers_that_have_a_model_each_need_not_share_it() -> None:
    runs = [train(seed, name=name) for seed, name in itertools.product(range(6), "ab")]
    assert len(group_of(runs, num_workers=2)) == 6
    assert len(group_of(runs, num_workers=4)) == 3


def test_a_group_is_a_few_times_as_many_as_train_at_once() -> None:
    runs = [train(seed) for seed in range(100)]
    assert len(group_of(runs)) == 16


def test_runs_with_steps_of_one_length_go_together() -> None:
    short = [train(seed, tokens=50) for seed in range(4)]
    long = [train(seed, tokens=400) for seed in range(4, 8)]
    longest = train(8, cost=2, tokens=390)
    assert {task.step_tokens for task in group_of([*short, *long, longest], num_workers=2)} == {
        390,
        400,
    }


def test_the_order_of_the_plan_changes_no_group() -> None:
    runs = [train(i, cost=1 + i % 2, tokens=100 + i % 3) for i in range(12)]
    groups = set()
    for seed in range(20):
        random.Random(seed).shuffle(runs)
        groups.add(tuple(task.job.fingerprint for task in group_of(runs, num_workers=2)))
    assert len(groups) == 1
