"""What is timed is what training does; what cannot be timed says why."""

import io
import json
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from sft_atlas.catalog.cards import find_model
from sft_atlas.catalog.devices import Device, find_device
from sft_atlas.data.batches import TrainingRows
from sft_atlas.execute.placement import Placement
from sft_atlas.execute.profiling import (
    Candidate,
    candidates_of,
    measure_profile,
    speed_from,
    task_for,
)
from sft_atlas.execute.timing import Bench, serve
from sft_atlas.execute.timing_task import TIMING_TASK, DeviceTask, ModelTask, ModelTimes
from sft_atlas.machine import this_processor
from sft_atlas.model.load import load_base
from sft_atlas.store.known import step_seconds
from sft_atlas.store.store import open_store
from sft_atlas.study.loader import load_study
from sft_atlas.study.profile import Profile
from sft_atlas.study.shape import training_flops
from sft_atlas.study.spec import ModelSpec
from sft_atlas.train.loop import train
from tiny import LORA, build_job, build_prepared, save_base

POCKET = Path(__file__).parents[2] / "studies" / "pocket.yaml"

CORE = Profile(device=Device(**find_device("cpu-core").model_dump()), is_measured=True)


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    return save_base(tmp_path_factory.mktemp("base"))


def candidate(spec: ModelSpec, card: str = "mini-llama", work: str = "full") -> Candidate:
    lora = LORA if work == "lora" else None
    return Candidate(
        work=work,  # type: ignore[arg-type]
        trajectory=build_job(spec, lora=lora).trajectory,
        card=find_model(card),
        sample_tokens=12.0,
        supervised_fraction=0.5,
    )


def answers(*tasks: DeviceTask | ModelTask) -> list[dict[str, object]]:
    """Return what one process says to tasks, a word to begin after each."""
    lines = "".join(TIMING_TASK.dump_json(task).decode() + "\n\n" for task in tasks)
    out = io.StringIO()
    serve(Bench(device="cpu"), io.StringIO(lines), out)
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_a_process_times_its_device_and_models(spec: ModelSpec) -> None:
    tasks = [
        task_for(candidate(spec, work=w), CORE, seconds=0.05) for w in ("full", "lora", "score")
    ]
    assert all(isinstance(task, ModelTask) for task in tasks)
    found = answers(DeviceTask(seconds=0.1), *(t for t in tasks if isinstance(t, ModelTask)))
    assert [answer["kind"] for answer in found] == ["ready", "times"] * 4
    device, full, lora, score = (answer["times"] for answer in found[1::2])
    assert isinstance(device, dict)
    assert device["reported"] == "cpu"
    assert device["peak_flops"] == device["float32_flops"] > 1e9
    assert device["bandwidth"] > 1e8
    for times in (full, lora, score):
        assert isinstance(times, dict)
        assert times["num_repeats"] >= 1
        assert times["few_seconds"] > 0
        assert times["many_seconds"] > 0
        assert (times["update_seconds"] > 0) == (times is not score)


def test_what_is_not_on_this_machine_is_skipped_and_the_next_is_timed(spec: ModelSpec) -> None:
    gone = ModelSpec(name="gone", source=replace(spec.source, path=Path("/nowhere")))
    tasks = [task_for(candidate(s), CORE, seconds=0.02) for s in (gone, spec)]
    lines = [TIMING_TASK.dump_json(t).decode() + "\n" for t in tasks if isinstance(t, ModelTask)]
    out = io.StringIO()
    serve(Bench(device="cpu"), io.StringIO("".join([*lines, "\n"])), out)
    first, *others = map(json.loads, out.getvalue().splitlines())
    assert first == {
        "kind": "skipped",
        "reason": "model gone: /nowhere is no folder; expected a saved model.",
    }
    assert [answer["kind"] for answer in others] == ["ready", "times"]


def test_the_pass_is_as_long_as_the_study_makes_it(spec: ModelSpec) -> None:
    few = task_for(candidate(spec), CORE, seconds=1.0)
    assert isinstance(few, ModelTask)
    assert (few.num_samples, few.pass_tokens) == (8, 96)
    long = task_for(replace(candidate(spec), sample_tokens=1000.0), CORE, seconds=1.0)
    assert isinstance(long, ModelTask)
    assert (long.num_samples, long.pass_tokens) == (2, 2000)


def test_models_that_cannot_be_timed_say_why(spec: ModelSpec) -> None:
    unknown = replace(candidate(spec), card=None)
    assert task_for(unknown, CORE, seconds=1.0) == (
        "nothing states its size; add `parameters:` to its entry in the study file"
    )
    small = replace(CORE, device=CORE.device.model_copy(update={"memory_bytes": 1e9}))
    assert task_for(candidate(spec, "smollm2-135m", "score"), small, seconds=1.0) == (
        "too large for this device: 1.1 GB of 0.8 GB"
    )
    slow = task_for(candidate(spec, "qwen2.5-7b"), CORE, seconds=1.0)
    assert isinstance(slow, str)
    assert slow == "too slow to time here: 256 tokens would take about 373 s"


def test_what_processes_saw_becomes_one_speed(spec: ModelSpec) -> None:
    about = candidate(spec)
    task = task_for(about, CORE, seconds=1.0)
    assert isinstance(task, ModelTask)
    seen = [
        ModelTimes(
            few_seconds=0.01 * n,
            many_seconds=0.03 * n,
            update_seconds=0.001 * n,
            spread=0.1,
            num_repeats=3,
        )
        for n in (1, 2, 3)
    ]
    core, gpu = (
        speed_from(about, task, seen, is_gpu=is_gpu, date="2026-11-21") for is_gpu in (False, True)
    )
    assert (core.pass_seconds, core.update_seconds) == (0.02, 0.002)
    assert core.token_seconds == pytest.approx(0.04 / 96)
    assert gpu.token_seconds == pytest.approx(0.06 / 96)
    assert core.tokens_per_second == pytest.approx(96 / 0.06)
    assert about.card is not None
    assert core.token_flops == training_flops(about.card, None, 12.0, 0.5)


def test_each_base_model_is_timed_under_each_work_of_its_study() -> None:
    found = candidates_of(load_study(POCKET))
    models = ("mini-llama", "mini-seed", "mini-gemma3")
    expected = [(model, work) for model in models for work in ("full", "lora", "score")]
    assert [(c.name, c.work) for c in found] == expected
    assert all((c.trajectory.method.lora is not None) == (c.work == "lora") for c in found[:2])


@pytest.mark.slow
def test_runs_take_what_the_profile_says(tmp_path: Path, spec: ModelSpec) -> None:
    """Two processes measure; then a run is trained, and its steps take what was predicted."""
    about = replace(candidate(spec), card=find_model("mini-llama"))
    placement = Placement(device="cpu", num_workers=2)
    found = measure_profile(this_processor(), placement, [about], seconds=1.0)
    assert found.num_processes == 2
    assert found.skipped == ()
    (speed,) = found.speeds
    rows = TrainingRows([build_prepared(200)])
    store = open_store(tmp_path, create=True)
    record = train(build_job(spec, keep_epochs=(3,)), store=store, base=load_base(spec), rows=rows)
    steps, tokens = record.result["num_steps"], record.result["num_tokens"]
    step = speed.pass_seconds + speed.update_seconds + speed.token_seconds * tokens / steps
    assert step_seconds(record) / (steps * step) == pytest.approx(1.0, abs=0.6)


@pytest.mark.slow
def test_processes_that_measure_together_see_the_same(spec: ModelSpec) -> None:
    placement = Placement(device="cpu", num_workers=2)
    gone = ModelSpec(name="gone", source=replace(spec.source, path=Path("/nowhere")))
    wanted = [candidate(gone), candidate(spec, work="score"), candidate(spec, work="lora")]
    found = measure_profile(this_processor(), placement, wanted, seconds=0.3)
    assert [skipped.name for skipped in found.skipped] == ["gone"]
    assert [speed.work for speed in found.speeds] == ["score", "lora"]
    assert statistics.mean(speed.tokens_per_second for speed in found.speeds) > 100
