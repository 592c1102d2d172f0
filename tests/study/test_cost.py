"""Estimates follow from FLOPs, bytes and launches, and say what they take for granted."""

from dataclasses import replace
from typing import Literal

import pytest
import torch

from sft_atlas.catalog.cards import ModelCard, find_benchmark, find_model, find_texts
from sft_atlas.execute.placement import Placement
from sft_atlas.measure.divergence import NUM_PERMUTATIONS
from sft_atlas.measure.embed import MAX_TOKENS, WORD_DIMENSION
from sft_atlas.measure.representation import MAX_SENTENCES
from sft_atlas.measure.similarity import MAX_TEXTS
from sft_atlas.model.score import default_batch_tokens
from sft_atlas.study import measure_cost
from sft_atlas.study.assumption import Range, named_assumptions
from sft_atlas.study.budget import check_disk, judge_usd
from sft_atlas.study.cost import CostModel, JobCost, default_device
from sft_atlas.study.job import GradeJob, OverlapJob
from sft_atlas.study.plan import Plan, make_plan
from sft_atlas.study.questions import questions_of
from sft_atlas.study.shape import (
    adapter_weights,
    attention_flops,
    head_weights,
    kv_bytes,
    matmul_weights,
)
from sft_atlas.study.spec import LmEvalDefinition, LoraSpec
from sft_atlas.study.study import StudyBenchmark

from .conftest import Load

BLOCK = "  b: {data: each, samples: 1000, epochs: 3, keep: every, methods: [%s], datasets: [d1]}"
BIG = ("  - {name: m2, hub: org/two}", "  - qwen2.5-7b")


def plan_of(load: Load, method: str = "full", device: str = "h100", block: str = BLOCK) -> Plan:
    return make_plan(load(block % method, BIG), device=device)


def test_training_takes_six_flops_per_weight_and_token(load: Load) -> None:
    study = load(BLOCK % "full", BIG)
    model = CostModel(study, "h100")
    (job,) = [
        p.job
        for p in make_plan(study).jobs
        if p.job.kind == "train" and p.job.trajectory.model.name == "qwen2.5-7b"
    ]
    card = model.card(job.trajectory.model)
    # The output head sees the six tenths of the tokens that are supervised.
    weights = matmul_weights(card) - 0.4 * head_weights(card)
    tokens = 3 * 1000 * 10 * 1.02
    flops_only = 6 * weights * tokens / (989.4e12 * 0.35)
    seconds = model.training(job.trajectory, 3, 1).likely
    assert flops_only < seconds < flops_only + 3600
    longer = model.training(job.trajectory, 6, 1).likely
    shorter = model.training(job.trajectory, 3, 1).likely
    assert longer - shorter > flops_only


def test_lora_costs_less_than_full_and_stores_far_less(load: Load) -> None:
    full, lora = plan_of(load, "full").cost, plan_of(load, "lora").cost
    assert lora.hours["train"].likely < full.hours["train"].likely
    assert lora.weights_bytes < full.weights_bytes / 100
    assert lora.hours["evaluate"].likely == pytest.approx(full.hours["evaluate"].likely)


def test_every_estimate_is_ordered(load: Load) -> None:
    for device in ("cpu-core", "rtx-4090", "h100"):
        cost = plan_of(load, "full, lora", device).cost
        for hours in (*cost.hours.values(), cost.unshared_train_hours, cost.total_hours):
            assert 0 < hours.low < hours.likely < hours.high


def test_a_faster_device_takes_less_time(load: Load) -> None:
    hours = [plan_of(load, device=d).cost.total_hours.likely for d in ("h100", "a100", "rtx-4090")]
    assert hours == sorted(hours)


def test_float32_is_costed_at_its_own_peak(load: Load) -> None:
    asked = ("  - {file: bench.yaml}", "  - hellaswag")
    half, single = (
        make_plan(load(BLOCK % "full", BIG, asked, more=f"precision: {p}"), device="h100").cost
        for p in ("bfloat16", "float32")
    )
    for kind in ("train", "evaluate"):
        assert single.hours[kind].likely > 1.3 * half.hours[kind].likely
    assert single.hours["measure"].likely == pytest.approx(half.hours["measure"].likely)


def test_hours_by_method_add_up_to_hours_by_kind(load: Load) -> None:
    cost = plan_of(load, "full, lora").cost
    assert set(cost.hours_by_method) == {"base", "full", "lora"}
    for kind, hours in cost.hours.items():
        parts = [method[kind].likely for method in cost.hours_by_method.values()]
        assert sum(parts) == pytest.approx(hours.likely)


def test_sharing_saves_the_epochs_that_are_trained_once(load: Load) -> None:
    cost = plan_of(load).cost
    assert cost.unshared_train_hours.likely > cost.hours["train"].likely


def test_a_larger_limit_of_new_tokens_costs_more(load: Load) -> None:
    study = load(BLOCK % "full", BIG)
    quiz = study.benchmarks[0]
    asked = questions_of(quiz)
    assert (asked.num_items, asked.max_new_tokens, asked.is_known) == (5, 8, False)
    assert quiz.spec is not None
    definition = replace(quiz.spec.definition, max_new_tokens=80)
    longer = replace(quiz, name="longer", spec=replace(quiz.spec, definition=definition))
    model, spec = CostModel(study, "h100"), study.models[1].spec
    assert model.answers(spec, longer).likely > 5 * model.answers(spec, quiz).likely


def test_shots_lengthen_the_prompt_and_a_limit_shortens_the_benchmark(load: Load) -> None:
    study = load(
        BLOCK % "full",
        ("  - {file: bench.yaml}", "  - {name: gsm8k, shots: 4, limit: 100}\n  - gsm8k"),
    )
    few, none = (questions_of(b) for b in study.benchmarks)
    assert (few.num_items, none.num_items) == (100, 1319)
    assert (few.num_available, none.num_available) == (1319, 1319)
    assert few.prompt_tokens == none.prompt_tokens
    assert few.shown_tokens == 4 * (none.prompt_tokens + none.answer_tokens)
    assert none.shown_tokens == 0
    assert none.max_new_tokens == 400


def test_a_benchmark_that_cannot_be_scored_is_costed_apart(load: Load) -> None:
    study = load(BLOCK % "full", BIG)
    silent = StudyBenchmark(name="mt-bench", spec=None, card=find_benchmark("mt-bench"))
    cost = make_plan(replace(study, benchmarks=(silent,)), device="h100").cost
    assert cost.unscored_hours.likely > 0
    assert cost.scored_tokens == 0


def test_grading_takes_requests_and_no_device(load: Load) -> None:
    asked = ("  - {file: bench.yaml}", "  - {name: mt-bench, limit: 40}\n  - alpaca-eval")
    plan = make_plan(load(BLOCK % "full", BIG, asked, more="judge: {model: j}"), device="h100")
    graded = [p for p in plan.jobs if isinstance(p.job, GradeJob)]
    num_cells = plan.num_cells + len(plan.bases)
    assert len(graded) == num_cells == 8
    assert {p.cost for p in graded} == {JobCost()}
    # MT-Bench: two turns, each rated; AlpacaEval: both orders of a pair.
    assert plan.cost.judge_requests == num_cells * (40 * 2 + 805 * 2)
    assert plan.cost.judge_prompt_tokens > 300 * plan.cost.judge_requests
    read, written = plan.cost.judge_prompt_tokens, plan.cost.judge_answer_tokens
    assert judge_usd(plan.cost, 2.5, 10.0) == pytest.approx((2.5 * read + 10 * written) / 1e6)
    assert "a judge's request" in {a.name for a in plan.cost.assumptions}


def test_looking_for_overlap_takes_no_device(load: Load) -> None:
    plan = make_plan(load(BLOCK % "full", BIG, more="measures: {overlap: true}"), device="h100")
    (found,) = [p for p in plan.jobs if isinstance(p.job, OverlapJob)]
    assert found.cost == JobCost()


def test_a_task_of_lm_eval_is_costed_by_its_limit_of_new_tokens(load: Load) -> None:
    (quiz,) = load(BLOCK % "full").benchmarks
    assert quiz.spec is not None
    for limit, options in ((0, 4), (64, 1)):
        task = LmEvalDefinition(task="gsm8k", package="0.4.13", max_new_tokens=limit)
        asked = questions_of(replace(quiz, spec=replace(quiz.spec, definition=task)))
        assert (asked.max_new_tokens, asked.num_options) == (limit, options)
        assert not asked.is_known


def test_a_prompt_is_no_longer_than_it_may_be(load: Load) -> None:
    named = ("  - {file: bench.yaml}", "  - longbench-v2\n  - {name: nq-open, shots: 25}")
    long, shown = (questions_of(b) for b in load(BLOCK % "full", named).benchmarks)
    assert long.prompt_tokens == 2048 - 1
    assert (shown.prompt_tokens, shown.shown_tokens) == (22, 25 * 30)
    short = load(BLOCK % "full", named, more="max_tokens: 256")
    assert questions_of(short.benchmarks[1]).shown_tokens == 256 - 32 - 22


def test_weights_and_disk_are_counted_byte_by_byte(load: Load) -> None:
    plan = plan_of(load)
    big, small = 7_615_616_512, 1_000_000
    assert plan.cost.weights_bytes == 2 * 3 * (big + small)
    assert plan.cost.disk_bytes > plan.cost.weights_bytes
    assert plan.cost.peak_disk_bytes == plan.cost.disk_bytes + 2 * 12 * big


def test_kept_checkpoints_need_their_disk(load: Load) -> None:
    plain = plan_of(load).cost
    kept = make_plan(load(BLOCK % "full", BIG, more="keep_checkpoints: true"), device="h100").cost
    assert kept.disk_bytes - plain.disk_bytes == 12 * (7_615_616_512 + 1_000_000)


def test_a_plan_that_cannot_fit_is_refused(load: Load) -> None:
    cost = plan_of(load).cost
    assert check_disk(cost, cost.peak_disk_bytes) is None
    assert check_disk(cost, 10**11) == (
        "the plan needs 229.0 GB on the disk (45.7 GB of them weights), and 100.0 GB are free; "
        "expected room for all of it. Keep fewer epochs, use LoRA, or name a larger disk with "
        "--store."
    )


def test_what_does_not_fit_into_a_device_is_named(load: Load) -> None:
    needs = {(m.model, m.method): m for m in plan_of(load, "full, lora", "rtx-4090").cost.memory}
    assert not needs["qwen2.5-7b", "full"].fits
    assert needs["qwen2.5-7b", "full"].tokens_per_pass == 0
    assert needs["m1", "lora"].fits
    assert needs["m1", "lora"].tokens_per_pass > 16_384
    assert needs["qwen2.5-7b", "full"].num_bytes > 16 * 7_615_616_512


def test_every_assumption_is_named_with_its_source(load: Load) -> None:
    cost = plan_of(load).cost
    names = [assumption.name for assumption in cost.assumptions]
    assert len(set(names)) == len(names)
    assert {"device", "FLOPs per trained token", "tokens per sample of d1"} <= set(names)
    assert "questions of quiz" in names
    assert all(assumption.value and assumption.source for assumption in cost.assumptions)
    assert len(named_assumptions()) == 20


@pytest.mark.parametrize(("device", "scored"), [("cpu-core", 2048), ("h100", 16_384)])
def test_passes_are_costed_as_runs_make_them(load: Load, device: str, scored: int) -> None:
    kind: Literal["cpu", "cuda"] = "cuda" if device == "h100" else "cpu"
    assert default_batch_tokens(torch.device(kind)) == scored
    trained = Placement(device=kind, num_workers=1).pass_tokens
    (found,) = [a for a in plan_of(load, device=device).cost.assumptions if a.name == "passes"]
    assert found.value == f"{trained} tokens in training, {scored} in scoring"


def only(kept: str) -> str:
    """Return a study's `measures` that ask for one thing, on 50 neutral texts."""
    names = ("dataset", "description", "overlap", "drift", "likelihoods", "forgetting")
    wishes = dict.fromkeys((*names, "representations", "spectrum"), "false") | {kept: "last"}
    asked = ", ".join(f"{name}: {wish}" for name, wish in wishes.items() if name)
    return f"measures: {{{asked}, similarity: [], texts: {{name: neutral, limit: 50}}}}"


def test_what_base_models_keep_for_measures_counts_on_the_disk(load: Load) -> None:
    def measured(kept: str) -> int:
        study = load(BLOCK % "full", BIG, more=only(kept))
        return make_plan(study, device="h100").cost.measures_bytes

    study = load(BLOCK % "full", BIG)
    cards = [CostModel(study, "h100").card(model.spec) for model in study.models]
    tokens = 50 * find_texts("neutral").tokens_per_text
    points = 50 + 50 + tokens / measure_cost.SENTENCE_TOKENS  # last, mean, and sentences
    states = sum(points * (card.layers + 1) * 4 * card.hidden_size for card in cards)
    vectors = sum(min(4 * matmul_weights(card), 16 << 30) for card in cards)
    assert measured("") == 0
    assert measured("forgetting") == pytest.approx(2 * tokens * (8 * 1024 + 12), rel=0.01)
    assert measured("representations") == pytest.approx(states, rel=0.01)
    assert measured("spectrum") == pytest.approx(vectors, rel=0.01)


def test_comparisons_are_costed_as_they_are_made() -> None:
    assert measure_cost.COMPARED_TEXTS == MAX_TEXTS
    assert measure_cost.PERMUTATIONS == NUM_PERMUTATIONS
    assert measure_cost.MAX_SENTENCES == MAX_SENTENCES
    assert (measure_cost.WORD_DIMENSION, measure_cost.HIDDEN_TOKENS) == (WORD_DIMENSION, MAX_TOKENS)


def test_comparing_hidden_states_reads_what_the_benchmark_asks(load: Load) -> None:
    costs = []
    for name in ("humaneval", "boolq"):
        asked = ("  - {file: bench.yaml}", f"  - {name}")
        study = load(BLOCK % "full", BIG, asked, more="measures: {similarity: [hidden]}")
        plan = make_plan(study, device="h100")
        costs.append(max(p.cost.measure.likely for p in plan.jobs if p.job.kind == "similarity"))
    few, many = (find_benchmark(name).items for name in ("humaneval", "boolq"))
    assert few < 1000 < 2000 < many
    assert 1.5 * costs[0] < costs[1]


def test_a_model_without_a_size_is_guessed_and_named(load: Load) -> None:
    assumptions = make_plan(load(BLOCK % "full")).cost.assumptions
    (found,) = [a for a in assumptions if a.name == "size of m2"]
    assert found.value == "7e+09 weights, a guess"
    assert found.source == (
        "nothing states it; add `parameters:` to the model's entry in the study file"
    )


def test_a_guessed_size_refuses_no_plan(load: Load) -> None:
    cost = make_plan(load(BLOCK % "full", more="keep_checkpoints: true")).cost
    assert cost.guessed_sizes == ("m2",)
    assert cost.peak_disk_bytes > 10**11
    assert cost.stated_peak_disk_bytes < 10**9
    assert check_disk(cost, 10**9) is None
    refused = check_disk(cost, 10**6)
    assert refused is not None
    # What m1 and m2 keep of neutral texts does not rest on their size; m1's share of it is stated.
    assert refused.startswith("the plan needs 0.1 GB on the disk (0.0 GB of them weights), beside ")
    assert "beside what m2 of unknown size will need" in refused


def test_a_plan_of_stated_sizes_guesses_none(load: Load) -> None:
    cost = plan_of(load).cost
    assert cost.guessed_sizes == ()
    assert cost.stated_peak_disk_bytes == cost.peak_disk_bytes
    assert cost.stated_weights_bytes == cost.weights_bytes


def test_a_hub_id_that_a_card_has_takes_the_cards_size(load: Load) -> None:
    study = load(BLOCK % "full", ("org/two", "Qwen/Qwen2.5-0.5B"))
    card, entry = find_model("qwen2.5-0.5b"), study.model_by_name["m2"]
    assert entry.card is not None
    assert entry.card.parameters == card.parameters
    assert entry.spec.name == "m2"
    assert (entry.spec.source.hub, entry.spec.source.revision) == ("Qwen/Qwen2.5-0.5B", None)
    own = ("hub: org/two", "hub: Qwen/Qwen2.5-0.5B, parameters: 1000")
    sized = load(BLOCK % "full", own).model_by_name["m2"]
    assert sized.card is not None
    assert sized.card.parameters == 1000
    assert sized.spec.fingerprint == entry.spec.fingerprint
    nearly = load(BLOCK % "full", ("org/two", "Qwen/Qwen2.5-0")).model_by_name["m2"]
    assert nearly.card is None


def test_small_models_are_costed_on_a_core(load: Load) -> None:
    assert (
        default_device(load(BLOCK % "full", ("  - {name: m2, hub: org/two}\n", ""))) == "cpu-core"
    )
    assert default_device(load(BLOCK % "full")) == "h100"


def test_ranges_add_and_scale() -> None:
    assert Range(1, 2, 3).plus(Range(1, 1, 1)).times(2) == Range(4, 6, 8)


QWEN: ModelCard = find_model("qwen2.5-7b")


def test_an_adapters_size_is_that_of_peft() -> None:
    # 40,370,176 is what PEFT prints as trainable parameters for rank 16 on all linear layers.
    lora = LoraSpec(rank=16, alpha=32)
    assert adapter_weights(QWEN, lora) == 40_370_176
    attention = replace(lora, targets=("q_proj", "v_proj"))
    assert adapter_weights(QWEN, attention) == 28 * 16 * (2 * 3584 + 3584 + 512)
    half = replace(attention, layers=tuple(range(14)), dora=True)
    assert adapter_weights(QWEN, half) == 14 * (16 * (2 * 3584 + 3584 + 512) + 3584 + 512)
    whole = replace(attention, train_embeddings=True)
    embeddings = adapter_weights(QWEN, whole) - adapter_weights(QWEN, attention)
    assert embeddings == 2 * 152_064 * 3584
    tied = find_model("qwen2.5-0.5b")
    embedding = adapter_weights(tied, whole) - adapter_weights(tied, attention)
    assert embedding == tied.vocab_size * tied.hidden_size


def test_the_input_embedding_multiplies_nothing() -> None:
    assert matmul_weights(QWEN) == 7_615_616_512 - 152_064 * 3584
    tied = find_model("qwen2.5-0.5b")
    assert matmul_weights(tied) == tied.parameters


def test_keys_and_values_follow_the_heads() -> None:
    assert kv_bytes(QWEN, 2.0) == 2 * 28 * 4 * 128 * 2
    assert attention_flops(QWEN, 100) == 2 * 28 * 3584 * 100
