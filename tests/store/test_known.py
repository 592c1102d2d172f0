"""A store tells a plan what was measured, and a study what is left of it."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

import sft_atlas
from sft_atlas import machine
from sft_atlas.api import doctor
from sft_atlas.catalog.devices import Device, find_device
from sft_atlas.cli import app
from sft_atlas.cli.pages import status_json, status_page
from sft_atlas.errors import DamagedError, StudyError
from sft_atlas.execute import examination
from sft_atlas.execute.profiling import Candidate
from sft_atlas.identity import payload
from sft_atlas.machine import Processor, this_processor
from sft_atlas.store.known import plan_for_store
from sft_atlas.store.outcomes import outcome_folder
from sft_atlas.store.profiles import (
    newest_profile,
    profile_checks,
    read_profile,
    record_profile,
)
from sft_atlas.store.status import read_status
from sft_atlas.store.store import Store, open_store
from sft_atlas.study.cost import CostModel, SampleShape
from sft_atlas.study.draft import Draft
from sft_atlas.study.job import MeasureJob
from sft_atlas.study.loader import load_study
from sft_atlas.study.plan import make_plan
from sft_atlas.study.profile import Profile, Skipped, Speed
from sft_atlas.study.spec import TrajectorySpec
from sft_atlas.study.study import Study

STUDY = """
study: one
models: [mini-llama, mini-seed]
datasets: [mini-math]
benchmarks: [{name: mini-math, limit: 4}]
max_tokens: 48
precision: float32
methods:
  full: {learning_rate: 3.0e-4, batch_samples: 8}
  lora: {learning_rate: 3.0e-3, batch_samples: 8, rank: 2, alpha: 4}
blocks:
  b: {data: each, samples: 100, schedule: constant, epochs: 4, keep: last, methods: [full, lora]}
seeds: [0, 1, 2, 3, 4, 5]
"""


@pytest.fixture
def study(tmp_path: Path) -> Study:
    path = tmp_path / "one.yaml"
    path.write_text(STUDY)
    return load_study(path)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store", create=True)


def runs_of(study: Study, model: str = "mini-llama", method: str = "full") -> list[TrajectorySpec]:
    runs = Draft.of(study).trajectories.values()
    return [run for run in runs if (run.model.name, run.method.name) == (model, method)]


def finish(store: Store, run: TrajectorySpec, epochs: int = 4, **provenance: Any) -> None:
    state = provenance.pop("state", "finished")
    result = {"state": state, "last_epoch": epochs, "num_steps": 13 * epochs, "num_tokens": 1}
    store.publish(
        outcome_folder(store, run.fingerprint, last_epoch=epochs),
        schema="trajectory/1",
        spec=payload(run),
        fill=lambda _: result,
        provenance=lambda: {"device": "cpu"} | provenance,
    )


def profile(processor: Processor | None = None, **facts: Any) -> Profile:
    name = (processor or this_processor()).name
    card = find_device("cpu-core").model_dump() | {"name": f"{name} (measured)", "source": "here"}
    return Profile(device=Device(**card), is_measured=True, reported="cpu", **facts)


def test_a_resumed_run_counts_all_steps_at_the_speed_of_those_that_were_timed(
    study: Study, store: Store
) -> None:
    whole, resumed, *_ = runs_of(study)
    finish(store, whole, train_seconds=26.0, num_timed_steps=52)
    finish(store, resumed, train_seconds=5.0, num_timed_steps=10)
    known = plan_for_store(study, store).known
    assert [run.seconds for run in known.runs] == [26.0, 26.0]
    assert [run.trajectory for run in known.runs] == [whole, resumed]


def test_runs_that_tell_no_time_are_left_out(study: Study, store: Store) -> None:
    old, diverged, longer, *_ = runs_of(study)
    finish(store, old)
    finish(store, diverged, state="diverged", train_seconds=1.0, num_timed_steps=3)
    finish(store, longer, epochs=2, train_seconds=1.0, num_timed_steps=26)
    finish(store, longer, epochs=6, train_seconds=6.0, num_timed_steps=52)
    (known,) = plan_for_store(study, store).known.runs
    # The longest run says most; its last 52 of 78 steps were timed.
    assert (known.epochs, known.seconds) == (6, pytest.approx(9.0))


def test_a_dataset_that_was_measured_tells_its_samples_lengths(study: Study, store: Store) -> None:
    jobs = [p.job for p in make_plan(study).jobs if isinstance(p.job, MeasureJob)]
    assert len(jobs) == 2
    store.publish(
        store.layout.dataset(jobs[0].fingerprint),
        schema="dataset/2",
        spec=payload(jobs[0]),
        fill=lambda _: {"num_samples": 100, "num_tokens": 1500, "answer_tokens": 300},
        provenance=dict,
    )
    known = plan_for_store(study, store).known
    shape = SampleShape(tokens=15.0, supervised_fraction=0.2)
    assert known.samples == {(jobs[0].model.name, "mini-math"): shape}


def test_runs_that_took_twice_as_long_double_the_time_that_is_left(
    study: Study, store: Store
) -> None:
    before = plan_for_store(study, store)
    costs = CostModel(study, "cpu-core")
    for run in runs_of(study)[:5]:
        seconds = 2 * costs.trainings.steps(run, 4).likely
        finish(store, run, train_seconds=seconds, num_timed_steps=52)
    found = read_status(make_plan(study), store).progress
    assert found is not None
    assert found.device == "cpu-core"
    groups = {(group.model, group.method): group for group in found.groups}
    assert list(groups) == [(m, w) for m in ("mini-llama", "mini-seed") for w in ("full", "lora")]
    own, other = groups["mini-llama", "full"], groups["mini-seed", "lora"]
    assert (own.num_timed, other.num_timed) == (5, 0)
    assert own.ratio == pytest.approx(2.0)
    assert own.actual_seconds == pytest.approx(2 * own.predicted_seconds)
    assert other.ratio is None
    assert own.factor is not None
    assert own.factor.likely == pytest.approx(2.0, rel=0.02)
    assert other.factor is not None
    assert 1.2 < other.factor.likely < own.factor.likely
    # Their weights are not published, so they are still to be trained: six runs, at twice the time.
    after = plan_for_store(study, store)
    assert own.num_left == 6
    steps = costs.trainings.steps(runs_of(study)[0], 4).likely
    first = runs_of(study)[0]
    times = [p.cost_model().trainings.seconds(first, 4, 1).likely for p in (before, after)]
    assert times[1] - times[0] == pytest.approx((own.factor.likely - 1) * 1.02 * steps)
    assert own.left_seconds.likely == pytest.approx(6 * times[1])
    assert found.left_seconds == pytest.approx(after.cost.total_hours.times(3600))


def test_status_shows_what_training_took_beside_what_was_expected(
    study: Study, store: Store
) -> None:
    for run in runs_of(study)[:2]:
        finish(store, run, train_seconds=60.0, num_timed_steps=52)
    status = read_status(make_plan(study), store)
    assert status.progress is not None
    stream = io.StringIO()
    Console(file=stream, width=200).print(status_page(status, Path("one.yaml")))
    lines = stream.getvalue().splitlines()
    group = status.progress.groups[0]
    (row,) = [line for line in lines if line.startswith("mini-llama   full")]
    ratio, factor = group.ratio, group.factor
    assert ratio is not None
    assert factor is not None
    corrected = f"{factor.likely:.2f} ({factor.low:.2f} to {factor.high:.2f})"
    assert " ".join(row.split()).startswith(
        f"mini-llama full 2 2 s 2 min 0 s {ratio:.2f} {corrected}"
    )
    assert any(line.startswith("left: ") and line.endswith("on cpu-core") for line in lines)
    content = json.loads(json.dumps(status_json(status, Path("one.yaml")), default=str))
    progress = content["progress"]
    assert progress["left_seconds"] == list(status.progress.left_seconds)
    assert progress["groups"][0]["actual_seconds"] == 120.0
    assert progress["groups"][0]["ratio"] == ratio
    assert progress["groups"][2]["ratio"] is None


def test_the_newest_profile_of_this_processor_is_used_and_no_other(
    study: Study, store: Store
) -> None:
    here, there = this_processor(), replace(this_processor(), name="another")
    record_profile(store, there, profile(there), started=1e9)
    assert read_profile(store, here) is None
    assert plan_for_store(study, store).device == "cpu-core"
    for started, load in ((1e9, 1.0), (1.7e9, 2.0), (1.6e9, 3.0)):
        record_profile(store, here, profile(load=load), started=started)
    assert read_profile(store, here) == profile(load=2.0)
    assert plan_for_store(study, store).device == f"{here.name} (measured)"
    assert plan_for_store(study, store, device="h100").device == "h100"


def test_an_altered_profile_is_found_damaged(store: Store) -> None:
    folder = record_profile(store, this_processor(), profile(), started=1e9)
    path = folder / "record.json"
    path.write_text(path.read_text().replace("80000000000.0", "90000000000.0"))
    with pytest.raises(
        DamagedError, match=r"was altered after it was written \(its seal differs\)"
    ):
        read_profile(store, this_processor())


def test_doctor_shows_what_was_measured(store: Store) -> None:
    (unknown,) = profile_checks(store, this_processor())
    assert (unknown.name, unknown.status) == ("speed", "limited")
    assert unknown.fix == "sft-atlas doctor --measure STUDY"
    speed = Speed(
        model="0" * 32,
        name="mini-llama",
        work="full",
        precision="float32",
        pass_seconds=0.01,
        update_seconds=0.001,
        token_seconds=1e-4,
        token_flops=1e6,
        pass_tokens=2048,
        tokens_per_second=9012.3,
        spread=0.1,
        date="2026-11-21",
    )
    skipped = Skipped(name="olmo-7b", reason="too large for this device: 146.0 GB of 9.0 GB")
    measured = profile(speeds=(speed,), skipped=(skipped,), load=0.1)
    record_profile(store, this_processor(), measured, started=1e9)
    device, model, large = profile_checks(store, this_processor())
    assert device.found.startswith("0.08 TFLOP/s in float32, 10 GB/s, 2.5 ms per layer and ")
    assert device.found.endswith(f"here; {newest_profile(store, this_processor())}")
    assert device.status == "ok"
    assert model.name == "mini-llama, full"
    assert model.found == "9,012 tokens/s in passes of 2,048, 2026-11-21"
    assert large.found == "not measured: too large for this device: 146.0 GB of 9.0 GB"
    record_profile(store, this_processor(), replace(measured, load=1.5), started=2e9)
    busy = profile_checks(store, this_processor())[0]
    assert (busy.status, busy.fix) == ("limited", "measure again when nothing else runs")


def test_doctor_measures_for_the_plans_of_its_store(
    tmp_path: Path, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def measure(_processor: object, _placement: object, wanted: list[Candidate]) -> Profile:
        asked.extend(f"{candidate.name} {candidate.work}" for candidate in wanted)
        return profile(num_processes=2)

    monkeypatch.setattr(examination, "measure_profile", measure)
    monkeypatch.setattr(machine, "examine", lambda _folder: [])  # asks torch in a process
    words = ["doctor", str(study.path), "--measure", "--store", str(tmp_path / "new"), "--json"]
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 0, shown.output
    assert "speed" in {check["name"] for check in json.loads(shown.stdout)}
    works = ("full", "lora", "score")
    assert asked == [f"{model} {work}" for model in ("mini-llama", "mini-seed") for work in works]
    measured = sft_atlas.plan(study.path, store=tmp_path / "new")
    assert measured.device == f"{this_processor().name} (measured)"
    assert sft_atlas.plan(study.path).device == "cpu-core"


def test_doctor_reads_a_study_only_to_measure(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"one.yaml: is read to measure its base models; add --me"):
        doctor(tmp_path / "one.yaml", store=tmp_path / "store")
