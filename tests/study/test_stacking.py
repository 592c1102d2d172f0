"""Runs train together where that saves time, and only where they could."""

from dataclasses import replace
from typing import Any

import pytest

from sft_atlas.study.cost import CostModel
from sft_atlas.study.plan import make_plan
from sft_atlas.study.spec import LoraSpec, TrajectorySpec
from sft_atlas.study.stacking import (
    StepCost,
    padding_factor,
    stack_gain,
    stack_key,
    stack_width,
    stacked_seconds,
    step_cost,
)

from .conftest import Load

BLOCK = "  b: {data: each, datasets: [d1], samples: 16, epochs: 1, methods: [%s], models: [%s]}"
PASS_TOKENS = 2048
CORE = StepCost(tokens=96, spread=0.0, token_seconds=39e-6, pass_seconds=9e-3)
"""A core and 0.4 million weights at a few tokens: measured 8 to 10 ms and 39 us."""
GPU = StepCost(tokens=512, spread=0.0, token_seconds=6.6e-6, pass_seconds=29e-3, overlaps=True)
"""An H200 and half a billion weights."""


def run_of(load: Load, *, method: str = "full", model: str = "m1") -> TrajectorySpec:
    return make_plan(load(BLOCK % (method, model))).trajectories[0].trajectory


def test_runs_of_one_model_and_one_kind_of_training_share_a_key(load: Load) -> None:
    run = run_of(load)
    other = replace(
        run,
        seed=9,
        max_tokens=64,
        method=replace(run.method, learning_rate=1.0, batch_samples=2, weight_decay=0.5),
    )
    assert stack_key(run) == stack_key(other) is not None


def test_another_model_precision_or_kind_of_training_has_another_key(load: Load) -> None:
    run = run_of(load)
    factors = LoraSpec(rank=4, alpha=8.0)

    def adapted(lora: LoraSpec) -> TrajectorySpec:
        return replace(run, method=replace(run.method, lora=lora))

    others = [
        run_of(load, model="m2"),
        replace(run, precision="float32" if run.precision == "bfloat16" else "bfloat16"),
        adapted(factors),
        adapted(replace(factors, rank=8)),
        adapted(replace(factors, alpha=4.0)),
        adapted(replace(factors, targets=("q_proj",))),
        adapted(replace(factors, layers=(1,))),
    ]
    keys = [stack_key(run), *(stack_key(other) for other in others)]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("extra", [{"dora": True}, {"bias": "all"}, {"train_embeddings": True}])
def test_what_trains_more_than_factors_trains_alone(load: Load, extra: dict[str, Any]) -> None:
    run = run_of(load)
    lora = LoraSpec(rank=4, alpha=8.0, **extra)
    assert stack_key(replace(run, method=replace(run.method, lora=lora))) is None


@pytest.mark.parametrize(
    ("step", "most", "at_least", "at_most"),
    [
        # Predicted for 512, 1.6k and 8k tokens a step on an H200: 8x, 2.7x and 1.05x.
        (GPU, 16, 7.0, 9.0),
        (replace(GPU, tokens=1600), 16, 2.4, 3.0),
        (replace(GPU, tokens=8000), 16, 1.0, 1.05),
        # For 96 and 768 tokens on a core: 3x and 1.2x.
        (CORE, 16, 2.5, 3.5),
        (replace(CORE, tokens=768), 16, 1.1, 1.3),
    ],
)
def test_gains_are_those_that_were_predicted_by_hand(
    step: StepCost, most: int, at_least: float, at_most: float
) -> None:
    best = max(stack_gain(step, width, pass_tokens=10**9) for width in range(1, most + 1))
    assert at_least <= 1 + best <= at_most


def test_short_steps_of_tiny_models_are_stacked_and_long_ones_are_not() -> None:
    assert stack_width(CORE, pass_tokens=PASS_TOKENS) >= 8
    # 1.6 million weights, 1,000 tokens a step: 130 us a token, 12 ms a pass.
    long = StepCost(tokens=1000, spread=0.2, token_seconds=130e-6, pass_seconds=12e-3)
    assert stack_width(long, pass_tokens=PASS_TOKENS) == 1
    assert stack_width(replace(long, tokens=2000), pass_tokens=PASS_TOKENS) == 1


def test_the_width_is_the_smallest_that_has_nearly_all_of_the_gain() -> None:
    gains = [stack_gain(GPU, width, pass_tokens=16_384) for width in range(1, 65)]
    width = stack_width(GPU, pass_tokens=16_384)
    assert gains[width - 1] >= 0.9 * max(gains) > gains[width - 2]
    assert stack_width(GPU, pass_tokens=16_384, most=3) == 3
    assert stack_width(GPU, pass_tokens=16_384, most=1) == 1


def test_what_each_run_pays_for_itself_is_not_shared() -> None:
    slow = replace(CORE, run_seconds=1.0)
    assert stack_width(slow, pass_tokens=PASS_TOKENS) == 1
    assert stacked_seconds(slow, 4, pass_tokens=PASS_TOKENS) > 4.0


def test_a_step_of_several_passes_is_issued_several_times() -> None:
    whole = stacked_seconds(CORE, 8, pass_tokens=8 * 96)
    halved = stacked_seconds(CORE, 8, pass_tokens=4 * 96)
    assert halved - whole == pytest.approx(CORE.pass_seconds)


def test_unequal_steps_cost_padding() -> None:
    assert padding_factor(0.5, 1) == padding_factor(0.0, 8) == 1.0
    # The expected largest of two standard normals is 0.564, of eight 1.424.
    assert padding_factor(1.0, 2) == pytest.approx(1.564, abs=0.03)
    assert padding_factor(1.0, 8) == pytest.approx(2.424, abs=0.03)
    even, uneven = replace(CORE, spread=0.0), replace(CORE, spread=0.5)
    assert stack_gain(uneven, 8, pass_tokens=PASS_TOKENS) < stack_gain(
        even, 8, pass_tokens=PASS_TOKENS
    )


def test_steps_are_costed_by_the_model_and_the_device(load: Load) -> None:
    study = load(BLOCK % ("full, lora", "m1"))
    found = {
        (planned.trajectory.method.name, device): step_cost(
            planned.trajectory, CostModel(study, device)
        )
        for planned in make_plan(study).trajectories
        for device in ("cpu-core", "h100")
    }
    full, lora = found["full", "cpu-core"], found["lora", "cpu-core"]
    assert full.tokens == lora.tokens
    assert 0.6 < lora.token_seconds / full.token_seconds < 0.8
    assert lora.run_seconds < full.run_seconds
    assert not full.overlaps
    fast = found["full", "h100"]
    assert fast.overlaps
    assert fast.token_seconds < full.token_seconds / 100
