"""A plan holds each piece of work once, and only what is missing."""

import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from sft_atlas.study.job import (
    EvaluateJob,
    Job,
    MeasureJob,
    PrepareJob,
    SimilarityJob,
    TrainJob,
    UpdatesJob,
)
from sft_atlas.study.loader import load_study
from sft_atlas.study.measure import CellMeasure
from sft_atlas.study.missing import Inventory, PlannedJob
from sft_atlas.study.plan import JOB_KINDS, Plan, make_plan
from sft_atlas.study.spec import CellSpec

from .conftest import Load

BLOCKS = """\
  short: {data: each, samples: 5, epochs: 2, keep: every, schedule: constant, methods: [full]}
  long: {data: each, samples: 5, epochs: 4, keep: [1, 4], schedule: constant, methods: [full]}
  large: {data: [each, all], samples: 9, epochs: 3, methods: [lora], models: [m1]}
"""


def jobs_of(plan: Plan, kind: str) -> list[PlannedJob]:
    return [planned for planned in plan.jobs if planned.job.kind == kind]


def everything(plan: Plan, without: Iterable[str] = ()) -> Inventory:
    """What a store holds when the plan is done."""
    cells = {cell.cell.fingerprint: cell for cell in plan.cells}
    scored = [*cells, *(base.cell.fingerprint for base in plan.bases)]
    benchmarks = [spec.fingerprint for spec in plan.study.benchmark_specs]
    measures = [p.job.fingerprint for p in jobs_of(plan, "measure")]
    full = Inventory(
        cells=frozenset(cells),
        scores=frozenset((cell, benchmark) for cell in scored for benchmark in benchmarks),
        datasets=frozenset(measures),
        overlaps=frozenset(p.job.fingerprint for p in jobs_of(plan, "overlap")),
        descriptions=frozenset(p.job.fingerprint for p in jobs_of(plan, "describe")),
        similarities=frozenset(
            pair.fingerprint
            for p in jobs_of(plan, "similarity")
            if isinstance(p.job, SimilarityJob)
            for pair in p.job.pairs
        ),
        updates=frozenset(p.job.fingerprint for p in jobs_of(plan, "updates")),
        measured=frozenset(
            (cell.fingerprint, measure.fingerprint)
            for p in plan.jobs
            for cell, measures in measured_by(p.job)
            for measure in measures
        ),
        outcomes=frozenset((t.trajectory.fingerprint, t.epochs[-1]) for t in plan.trajectories),
    )
    return replace(full, **{name: frozenset() for name in without})


def measured_by(job: Job) -> list[tuple[CellSpec, tuple[CellMeasure, ...]]]:
    if isinstance(job, TrainJob):
        return [(cell, job.measures_of(cell)) for cell in job.cells]
    return [(job.cell, job.measures)] if isinstance(job, EvaluateJob) else []


def counts(**kinds: int) -> dict[str, int]:
    return dict.fromkeys(JOB_KINDS, 0) | kinds


def test_blocks_count_their_cells_and_what_they_share(load: Load) -> None:
    plan = make_plan(load(BLOCKS))
    short, long, large = plan.blocks
    assert (short.num_cells, short.num_trajectories) == (12, 6)
    assert (long.num_cells, long.num_trajectories) == (12, 6)
    assert (large.num_cells, large.num_trajectories) == (4, 4)
    assert short.shared == (("long", 6),)
    assert long.shared == (("short", 6),)
    assert (plan.num_cells, plan.num_trajectories) == (12 + 12 - 6 + 4, 6 + 4)


def test_runs_of_one_trajectory_are_one_job_with_all_kept_epochs(load: Load) -> None:
    plan = make_plan(load(BLOCKS))
    jobs = [planned.job for planned in jobs_of(plan, "train")]
    kept = [job.keep_epochs for job in jobs if isinstance(job, TrainJob)]
    assert sorted(kept) == [(1, 2, 4)] * 6 + [(3,)] * 4
    assert plan.trajectories[0].blocks == ("short", "long")


def test_a_new_store_lacks_everything_once(load: Load) -> None:
    plan = make_plan(load(BLOCKS))
    assert plan.num_jobs == counts(
        prepare=6, measure=6, train=10, evaluate=2, overlap=3, describe=3, similarity=3
    )
    names = [planned.job.fingerprint for planned in plan.jobs]
    assert len(set(names)) == len(names)
    assert plan.num_done == 0


def test_base_models_are_scored_like_cells(load: Load) -> None:
    plan = make_plan(load(BLOCKS))
    jobs = [p.job for p in jobs_of(plan, "evaluate")]
    assert all(isinstance(job, EvaluateJob) and job.cell.trajectory is None for job in jobs)
    assert all(job.cell.epoch == 0 for job in jobs if isinstance(job, EvaluateJob))
    assert [base.cell.model.name for base in plan.bases] == ["m1", "m2"]


def test_rows_are_prepared_once_at_the_largest_size(load: Load) -> None:
    plan = make_plan(load(BLOCKS))
    sizes = {}
    for planned in jobs_of(plan, "prepare"):
        assert isinstance(planned.job, PrepareJob)
        sizes[planned.job.model.name, planned.job.dataset.name] = planned.job.num_samples
    assert sizes == {("m1", d): 9 for d in ("d1", "d2", "d3")} | {
        ("m2", d): 5 for d in ("d1", "d2", "d3")
    }


def test_what_trains_or_measures_waits_for_its_rows(load: Load) -> None:
    plan = make_plan(load(BLOCKS))
    prepare = {p.job.fingerprint: p.job for p in jobs_of(plan, "prepare")}
    for planned in jobs_of(plan, "train"):
        job = planned.job
        assert isinstance(job, TrainJob)
        needed = [prepare[name] for name in planned.needs]
        wanted = {part.dataset.name for part in job.trajectory.data.parts}
        assert {n.dataset.name for n in needed if isinstance(n, PrepareJob)} == wanted
    assert all(len(planned.needs) == 1 for planned in jobs_of(plan, "measure"))


def test_datasets_are_measured_on_what_is_trained_or_as_the_study_says(load: Load) -> None:
    def sizes(plan: Plan) -> set[int]:
        found = [p.job for p in jobs_of(plan, "measure")]
        return {job.num_samples for job in found if isinstance(job, MeasureJob)}

    assert sizes(make_plan(load(BLOCKS))) == {5, 9}
    assert sizes(make_plan(load(BLOCKS, more="measures: {dataset_samples: 6}"))) == {5, 6}
    assert sizes(make_plan(load(BLOCKS, more="measures: {dataset: false}"))) == set()


def test_a_finished_study_has_nothing_to_do(load: Load) -> None:
    study = load(BLOCKS)
    plan = make_plan(study, everything(make_plan(study)))
    assert plan.jobs == ()
    assert plan.num_done == plan.num_cells
    assert all(block.num_missing == 0 for block in plan.blocks)
    assert plan.cost.total_hours.high == 0
    assert plan.total_cost.total_hours.likely > 0


def test_a_stored_cell_without_a_score_is_evaluated_and_not_trained(load: Load) -> None:
    study = load(BLOCKS)
    plan = make_plan(study, everything(make_plan(study), without=["scores"]))
    assert plan.num_jobs == counts(evaluate=22 + 2)
    assert all(cell.is_trained and not cell.is_done for cell in plan.cells)


def test_a_new_benchmark_asks_for_that_alone(load: Load) -> None:
    done = everything(make_plan(load(BLOCKS)))
    more = ("  - {file: bench.yaml}", "  - {file: bench.yaml}\n  - {file: bench.yaml, shots: 1}")
    plan = make_plan(load(BLOCKS, more), done)
    assert plan.num_jobs == counts(evaluate=24)
    for planned in plan.jobs:
        assert isinstance(planned.job, EvaluateJob)
        assert [spec.name for spec in planned.job.benchmarks] == ["quiz-1shot"]
        assert planned.job.measures == ()


def test_a_stored_cell_that_lacks_a_measure_is_measured(load: Load) -> None:
    study = load(BLOCKS)
    done = everything(make_plan(study))
    drift = next(m for m in study.measures.every if m.kind == "drift")
    left = frozenset(pair for pair in done.measured if pair[1] != drift.fingerprint)
    plan = make_plan(study, replace(done, measured=left))
    assert plan.num_jobs == counts(evaluate=22)
    for planned in plan.jobs:
        assert isinstance(planned.job, EvaluateJob)
        assert (planned.job.benchmarks, planned.job.measures) == ((), (drift,))
    unmeasured = load(BLOCKS, more="measures: {drift: false}")
    assert make_plan(unmeasured, replace(done, measured=left)).jobs == ()


def test_base_models_have_the_measures_that_their_cells_are_compared_with(load: Load) -> None:
    plan = make_plan(load(BLOCKS, more="measures: {spectrum: every}"))
    for planned in jobs_of(plan, "evaluate"):
        assert isinstance(planned.job, EvaluateJob)
        kinds = [measure.kind for measure in planned.job.measures]
        assert kinds == ["likelihood", "forgetting", "representation"]


def test_what_is_measured_of_last_epochs_is_measured_of_no_other(load: Load) -> None:
    study = load(BLOCKS, more="measures: {drift: last, forgetting: false}")
    for planned in jobs_of(make_plan(study), "train"):
        assert isinstance(planned.job, TrainJob)
        *earlier, last = planned.job.cells
        kinds = [measure.kind for measure in planned.job.measures_of(last)]
        assert kinds == ["likelihood", "drift", "representation"]
        for cell in earlier:
            assert [m.kind for m in planned.job.measures_of(cell)] == ["likelihood"]


def test_updates_wait_for_all_last_epochs_of_their_base(load: Load) -> None:
    plan = make_plan(load(BLOCKS, more="measures: {updates: true}"))
    trained = {p.job.fingerprint: p.job for p in jobs_of(plan, "train")}
    for planned in jobs_of(plan, "updates"):
        assert isinstance(planned.job, UpdatesJob)
        jobs = [trained[need] for need in planned.needs]
        last = {job.cells[-1].fingerprint for job in jobs if isinstance(job, TrainJob)}
        assert {cell.fingerprint for cell in planned.job.cells} == last
    assert {p.job.model.name for p in jobs_of(plan, "updates")} == {"m1", "m2"}  # type: ignore[union-attr]


def test_a_longer_run_trains_on_and_keeps_the_identity_of_its_beginning(load: Load) -> None:
    short = load("  b: {data: each, samples: 5, epochs: 2, keep: every, schedule: constant}")
    done = everything(make_plan(short))
    long = load("  b: {data: each, samples: 5, epochs: 3, keep: every, schedule: constant}")
    plan = make_plan(long, done)
    assert plan.num_jobs == counts(prepare=6, train=12)
    assert [cell.is_done for cell in plan.cells] == [True, True, False] * 12
    (block,) = plan.blocks
    assert (block.num_trained, block.num_done, block.num_missing) == (24, 24, 12)


def test_a_longer_stored_run_serves_a_shorter_study(load: Load) -> None:
    long = load("  b: {data: each, samples: 5, epochs: 3, keep: every, schedule: constant}")
    short = load("  b: {data: each, samples: 5, epochs: 2, keep: every, schedule: constant}")
    plan = make_plan(short, everything(make_plan(long)))
    # Only what is measured of a study's own last epochs is new.
    assert plan.num_jobs == counts(evaluate=12)
    for planned in plan.jobs:
        assert isinstance(planned.job, EvaluateJob)
        assert planned.job.benchmarks == ()
        assert [measure.kind for measure in planned.job.measures] == ["representation"]


def test_cells_without_the_record_of_their_run_are_trained_again(load: Load) -> None:
    study = load("  b: {data: each, samples: 5, epochs: 2}")
    plan = make_plan(study, everything(make_plan(study), without=["outcomes"]))
    assert plan.num_jobs == counts(prepare=6, train=12)


def test_another_study_shares_what_is_equal(load: Load) -> None:
    done = everything(make_plan(load("  b: {data: each, samples: 5, epochs: 2}")))
    other = load(
        "  other: {data: [each, all], samples: 5, epochs: 2}", ("study: tiny", "study: other")
    )
    plan = make_plan(other, done)
    assert plan.num_jobs == counts(prepare=6, train=4)


def test_two_names_of_one_model_are_one_work(load: Load) -> None:
    twice = ("  - {name: m2, hub: org/two}", "  - {name: m2, hub: org/one, revision: abc}")
    plan = make_plan(load("  b: {data: each, samples: 5, epochs: 2}", twice))
    assert (plan.num_cells, len(plan.bases)) == (6, 1)
    assert plan.num_jobs == counts(
        prepare=3, measure=3, train=6, evaluate=1, overlap=3, describe=3, similarity=3
    )


def test_jobs_do_not_depend_on_the_order_of_the_file(load: Load) -> None:
    def names(plan: Plan) -> set[tuple[str, frozenset[str]]]:
        return {(planned.job.fingerprint, planned.needs) for planned in plan.jobs}

    lines = BLOCKS.splitlines(keepends=True)
    moved = ("  - {name: d1, path: d1.jsonl, tokens_per_sample: 10}\n", "")
    last = "  - {name: d3, hub: org/three}\n"
    back = (last, f"{last}  - {{name: d1, path: d1.jsonl, tokens_per_sample: 10}}\n")
    assert names(make_plan(load("".join(reversed(lines)), moved, back))) == names(
        make_plan(load(BLOCKS))
    )


def test_every_kept_checkpoint_is_asked_for(load: Load) -> None:
    plan = make_plan(load(BLOCKS, more="keep_checkpoints: true"))
    jobs = [planned.job for planned in jobs_of(plan, "train")]
    assert all(isinstance(job, TrainJob) and job.keep_checkpoint for job in jobs)


@pytest.mark.slow
def test_a_hundred_thousand_cells_are_planned_in_seconds(tmp_path: Path) -> None:
    path = tmp_path / "big.yaml"
    models = ", ".join(f"{{name: m{i}, hub: org/m{i}, parameters: 1000000}}" for i in range(10))
    datasets = ", ".join(f"{{name: d{i}, hub: org/d{i}}}" for i in range(10))
    path.write_text(
        f"study: big\nmodels: [{models}]\ndatasets: [{datasets}]\n"
        "methods:\n  full: {learning_rate: 1e-5, batch_samples: 4}\n"
        "  lora: {learning_rate: 1e-4, batch_samples: 4, rank: 2, alpha: 4}\n"
        f"seeds: {[*range(25)]}\n"
        "blocks:\n  b: {data: [each, leave-one-out], epochs: 3, samples: "
        f"{[*range(100, 1100, 100)]}}}\n"
    )
    started = time.process_time()
    plan = make_plan(load_study(path))
    assert plan.cost.total_hours.likely > 0
    assert (plan.num_cells, plan.num_trajectories) == (100_000, 100_000)
    assert time.process_time() - started < 20
