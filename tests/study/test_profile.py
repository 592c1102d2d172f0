"""A device that was measured is costed by its measurement; any other by its card."""

import math
from dataclasses import replace

import pytest

from sft_atlas.catalog.devices import Device, find_device
from sft_atlas.study.assumption import scenarios
from sft_atlas.study.budget import PlanCost
from sft_atlas.study.cost import CostModel, Known, SampleShape
from sft_atlas.study.plan import Plan, make_plan
from sft_atlas.study.profile import PROFILE, Profile, Skipped, Speed, assumed_profile
from sft_atlas.study.shape import reading_flops, training_flops
from sft_atlas.study.spec import ModelSpec, TrajectorySpec
from sft_atlas.study.study import Study
from sft_atlas.study.training_cost import TimedRun

from .conftest import Load

BLOCK = "  b: {data: each, samples: 20, epochs: 3, methods: [%s], datasets: [d1, d2], keep: last}"
SMALL = ("  - {name: m2, hub: org/two}", "  - {name: m2, hub: org/two, parameters: 4000000}")
BIG = ("  - {name: m2, hub: org/two}", "  - qwen2.5-7b")


def speed_of(spec: ModelSpec, work: str = "full", **more: float) -> Speed:
    numbers = {"pass_seconds": 0.5, "update_seconds": 0.25, "token_seconds": 0.01}
    numbers |= {"token_flops": 1e6, "spread": 0.05} | more
    return Speed(
        model=spec.fingerprint,
        name=spec.name,
        work=work,  # type: ignore[arg-type]
        precision="bfloat16",
        pass_tokens=256,
        tokens_per_second=100.0,
        date="2026-11-21",
        **numbers,
    )


def profile_of(*speeds: Speed, kind: str = "cpu", **more: object) -> Profile:
    card = find_device("cpu-core" if kind == "cpu" else "h100")
    device = Device(**card.model_dump() | {"name": "core (measured)", "source": "measured here"})
    facts: dict[str, object] = {"reported": "cpu" if kind == "cpu" else "NVIDIA H100 80GB HBM3"}
    facts |= {"is_measured": True, "num_processes": 2, "step_seconds": 0.125, "date": "2026-11-21"}
    return Profile(device=device, speeds=speeds, **facts | more)  # type: ignore[arg-type]


def runs_of(study: Study, model: str = "m1") -> list[TrajectorySpec]:
    return [
        item.trajectory
        for item in make_plan(study).trajectories
        if item.trajectory.model.name == model
    ]


def named(cost: PlanCost, begin: str) -> list[str]:
    return [f"{a.value}; {a.source}" for a in cost.assumptions if a.name.startswith(begin)]


def test_a_profile_reads_back(load: Load) -> None:
    (m1, _) = load(BLOCK % "full", SMALL).models
    profile = profile_of(speed_of(m1.spec), skipped=(Skipped(name="m2", reason="too large"),))
    assert PROFILE.validate_python(PROFILE.dump_python(profile, mode="json")) == profile


def test_a_card_says_what_was_assumed_before(load: Load) -> None:
    study = load(BLOCK % "full", SMALL)
    profile, costs = assumed_profile(find_device("cpu-core")), CostModel(study, "cpu-core")
    card = costs.card(study.models[0].spec)
    flops = training_flops(card, None, 10.0, 0.6)
    seconds = profile.seconds_per_token(card, None, length=10.0, supervised_fraction=0.6)
    assert seconds == pytest.approx(flops / (80e9 * 0.35))
    assert profile.step_overhead_seconds(6) == pytest.approx(6 * 0.0025)
    assert profile.measured_values == {}


def test_steps_cost_what_their_passes_tokens_and_updates_were_measured_to_cost(load: Load) -> None:
    study = load(BLOCK % "full", SMALL, ("batch_samples: 4", "batch_samples: 8"))
    run = runs_of(study)[0]
    card = CostModel(study, "cpu-core").card(run.model)
    # Measured at exactly the run's lengths, so that tokens cost what they did then.
    speed = speed_of(run.model, token_flops=training_flops(card, None, 10.0, 0.6))
    costs = CostModel(study, "core (measured)", Known(profile=profile_of(speed)))
    assert costs.trainings.rates(run) == pytest.approx((0.01, 0.5, 0.25))
    steps, tokens = math.ceil(20 / 8), 20 * 10 * 1.02
    expected = 3 * (steps * (0.5 + 0.25) + tokens * 0.01)
    assert costs.trainings.steps(run, 3).likely == pytest.approx(expected)


def test_longer_samples_than_were_measured_cost_more_per_token(load: Load) -> None:
    study = load(BLOCK % "full", SMALL)
    spec = study.models[0].spec
    card = CostModel(study, "cpu-core").card(spec)
    profile = profile_of(speed_of(spec, token_flops=training_flops(card, None, 10.0, 0.6)))
    short, long = (
        profile.seconds_per_token(
            card, None, model=spec.fingerprint, length=n, supervised_fraction=0.6
        )
        for n in (10.0, 1000.0)
    )
    assert short == pytest.approx(0.01)
    ratio = training_flops(card, None, 1000.0, 0.6) / training_flops(card, None, 10.0, 0.6)
    assert long / short == pytest.approx(ratio)
    assert ratio > 1.5


def test_a_gpu_hides_what_it_takes_to_issue_its_kernels(load: Load) -> None:
    study = load(BLOCK % "full", BIG)
    run = runs_of(study)[0]
    speed = speed_of(run.model, token_flops=1e3, pass_seconds=2.0, update_seconds=0.0)
    slow, quick = (
        CostModel(
            study, "core (measured)", Known(profile=profile_of(found, kind="gpu"))
        ).trainings.steps(run, 1)
        for found in (speed, replace(speed, pass_seconds=1.0))
    )
    assert slow == quick


def test_a_model_that_was_not_measured_is_like_those_that_were(load: Load) -> None:
    study = load(BLOCK % "full", SMALL)
    first, other = runs_of(study, "m1")[0], runs_of(study, "m2")[0]
    slow = speed_of(first.model, token_flops=80e9 * 0.01 * 0.1)
    known = Known(profile=profile_of(slow))
    measured, assumed = CostModel(study, "core (measured)", known), CostModel(study, "cpu-core")
    assert measured.scenarios[1].train_utilisation == pytest.approx(0.1)
    rates = [costs.trainings.rates(other).token for costs in (measured, assumed)]
    assert rates[0] / rates[1] == pytest.approx(0.35 / 0.1)
    layers = measured.card(other.model).layers
    device = measured.device
    traffic = 6 * 4e6 / (device.bandwidth * 0.85)
    issue = measured.trainings.rates(other).one_pass
    assert issue == pytest.approx(0.125 + layers * device.train_layer_seconds, rel=0.2)
    assert issue > 0.125 + layers * device.train_layer_seconds + 0.5 * traffic


def test_scores_cost_what_reading_was_measured_to_cost(load: Load) -> None:
    asked = ("  - {file: bench.yaml}", "  - {name: hellaswag, limit: 1000}")
    study = load(BLOCK % "full", SMALL, asked)
    spec, benchmark = study.models[0].spec, study.benchmarks[0]
    card = CostModel(study, "cpu-core").card(spec)
    flops = reading_flops(card, 100.0, 0.0)
    quick = speed_of(spec, "score", token_seconds=1e-4, token_flops=flops, pass_seconds=0.01)
    slow = replace(quick, token_seconds=1e-3, pass_seconds=0.1)
    seconds = [
        CostModel(study, "core (measured)", Known(profile=profile_of(speed)))
        .answers(spec, benchmark)
        .likely
        for speed in (quick, slow)
    ]
    assert seconds[1] == pytest.approx(10 * seconds[0], rel=0.01)


def test_a_measured_device_narrows_the_range_and_is_named(load: Load) -> None:
    study = load(BLOCK % "full, lora", SMALL)
    speeds = [
        speed_of(model.spec, work, token_flops=training_flops(card, lora, 10.0, 0.6))
        for model in study.models
        for work, lora in (("full", None), ("lora", study.method_by_name["lora"].lora))
        if (card := model.card) is not None
    ]
    shape = SampleShape(tokens=10.0, supervised_fraction=0.5)
    samples = {(m.spec.name, d.spec.name): shape for m in study.models for d in study.datasets}
    skipped = (Skipped(name="m3", reason="too large for this device"),)
    known = Known(profile=profile_of(*speeds, skipped=skipped), samples=samples)
    measured, assumed = (make_plan(study, known=k).cost for k in (known, Known()))
    widths = [cost.hours["train"].high / cost.hours["train"].low for cost in (measured, assumed)]
    assert widths[0] < 1.7 < 4 < widths[1]
    assert measured.device == "core (measured)"
    assert named(measured, "device") == [
        "core (measured): 0.08 TFLOP/s, 0.01 TB/s, 12.0 GB; measured here"
    ]
    assert named(measured, "speed of m1, full") == [
        "100 tokens/s in passes of 256; 500 ms for a pass of almost no tokens, 250 ms for the "
        "optimizer; measured on this device, 2026-11-21"
    ]
    assert named(measured, "speed of m3")[0].endswith("; too large for this device")
    assert named(measured, "samples of d1") == [
        "10 to 10 tokens, 50% to 50% of them supervised; counted in this store for 2 of 2 base "
        "models"
    ]
    names = [assumption.name for assumption in measured.assumptions]
    assert len(set(names)) == len(names)
    assert not named(assumed, "speed")


def test_samples_that_were_counted_replace_the_cards(load: Load) -> None:
    study = load(BLOCK % "full", SMALL)
    run = runs_of(study)[0]
    shape = SampleShape(tokens=25.0, supervised_fraction=0.5)
    costs = CostModel(study, "cpu-core", Known(samples={("m1", "d1"): shape}))
    for scenario in costs.scenarios:
        assert costs.trainings.tokens(run, scenario) == (20 * 25.0, 0.5)
    dearest = costs.trainings.tokens(runs_of(study, "m2")[0], costs.scenarios[2])
    assert tuple(dearest) == pytest.approx((20 * 10 * 1.5, 0.9))


def test_a_device_that_is_named_ignores_all_that_was_measured(load: Load) -> None:
    study = load(BLOCK % "full", SMALL)
    run = runs_of(study)[0]
    finished = TimedRun(trajectory=run, epochs=3, seconds=1e6, device="cpu")
    known = Known(profile=profile_of(speed_of(run.model)), runs=(finished,))
    plain, told = (make_plan(study, device="cpu-core", known=k) for k in (Known(), known))
    assert told.cost == plain.cost
    assert make_plan(study, known=known).cost != plain.cost


def test_a_processor_that_was_measured_stands_for_no_large_study(load: Load) -> None:
    def device(profile: Profile, *changes: tuple[str, str]) -> str:
        return make_plan(load(BLOCK % "full", *changes), known=Known(profile=profile)).device

    assert device(profile_of(), BIG) == "h100"
    assert device(profile_of(), SMALL) == "core (measured)"
    assert device(profile_of(kind="gpu"), BIG) == "core (measured)"
    assert device(profile_of(kind="gpu"), SMALL) == "core (measured)"


def test_a_result_says_which_device_it_ran_on() -> None:
    for name, reported in (("h100", "NVIDIA H100 80GB HBM3"), ("cpu-core", "cpu")):
        assert assumed_profile(find_device(name)).ran_on(reported)
        assert not assumed_profile(find_device("rtx-4090")).ran_on(reported)
    assert assumed_profile(find_device("rtx-4090")).ran_on("NVIDIA GeForce RTX 4090")
    assert profile_of(kind="gpu").ran_on("NVIDIA H100 80GB HBM3")
    assert not profile_of(kind="gpu").ran_on("NVIDIA H100 PCIe")


def finished(study: Study, factor: float, device: str = "cpu") -> tuple[TimedRun, ...]:
    costs = CostModel(study, "cpu-core")
    return tuple(
        TimedRun(
            trajectory=run,
            epochs=2,
            seconds=factor * costs.trainings.steps(run, 2).likely,
            device=device,
        )
        for run in runs_of(study)
    )


def test_finished_runs_that_took_twice_as_long_double_what_is_left(load: Load) -> None:
    seeds = "seeds: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]"
    study = load(BLOCK % "full", SMALL, more=seeds)
    runs = finished(study, 2.0)
    assert len(runs) == 20
    plans: list[Plan] = [make_plan(study, known=Known(runs=found)) for found in ((), runs)]
    run = runs_of(study)[0]
    before, after = (plan.cost_model().trainings.seconds(run, 3, 1) for plan in plans)
    steps = plans[0].cost_model().trainings.steps(run, 3).likely
    assert after.likely - before.likely == pytest.approx(1.02 * steps, rel=0.01)
    assert plans[1].cost.hours["train"].likely > 1.5 * plans[0].cost.hours["train"].likely
    (text,) = named(plans[1].cost, "correction")
    assert text.startswith("m1 full 2.00 (1.9")
    assert text.endswith("; 20 finished runs of this study (docs/plan.md)")


def test_runs_on_another_device_correct_nothing(load: Load) -> None:
    study = load(BLOCK % "full", SMALL)
    runs = finished(study, 2.0, device="NVIDIA H100 80GB HBM3")
    cost = make_plan(study, known=Known(runs=runs)).cost
    assert cost.hours == make_plan(study).cost.hours
    assert not named(cost, "correction")


def test_a_profile_keeps_what_an_earlier_one_knew_of_other_models(load: Load) -> None:
    first, second = (model.spec for model in load(BLOCK % "full", SMALL).models)
    earlier = profile_of(speed_of(first), speed_of(second))
    now = profile_of(speed_of(first, pass_seconds=9.0))
    assert [s.pass_seconds for s in now.beside(earlier).speeds] == [9.0, 0.5]
    assert now.beside(None) is now
    assert now.beside(replace(earlier, num_processes=1)) is now


def test_noise_of_the_measurement_widens_the_range(load: Load) -> None:
    (m1, _) = load(BLOCK % "full", SMALL).models
    for spread, ends in ((0.0, (1 / 1.08, 1.16)), (0.5, (1 / 1.5, 2.0))):
        values = profile_of(speed_of(m1.spec, spread=spread)).measured_values
        low, _, high = scenarios(values)
        assert (low.speed_factor, high.speed_factor) == pytest.approx(ends)
