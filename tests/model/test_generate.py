"""Greedy decoding: equal to transformers' own, token for token, whatever shares the batch."""

import math
import random
from collections.abc import Sequence

import pytest
import torch
from transformers import (
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
)
from transformers.models.auto import AutoModelForCausalLM

from sft_atlas.errors import DataError
from sft_atlas.model.generate import greedy_completions
from sft_atlas.study.passes import SCORE_BATCH_TOKENS

SHAPE = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.4,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 8, "final_logit_softcapping": 3.0}
CONFIGS = {
    "llama": LlamaConfig(**SHAPE),
    "qwen2": Qwen2Config(**SHAPE),
    "gemma2": Gemma2Config(**SHAPE, **GEMMA, sliding_window=7),
    "mistral": MistralConfig(**SHAPE, sliding_window=6),
}
NO_EOS: frozenset[int] = frozenset()


@pytest.fixture(params=list(CONFIGS))
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(3)
    return AutoModelForCausalLM.from_config(CONFIGS[request.param]).eval()


@pytest.fixture
def prompts() -> list[list[int]]:
    rng = random.Random(0)
    return [[rng.randrange(40) for _ in range(rng.randint(1, 18))] for _ in range(12)]


def reference(
    model: PreTrainedModel, prompt: Sequence[int], eos: list[int] | None, num_tokens: int
) -> list[int]:
    ids = torch.tensor([prompt])
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=num_tokens,
        eos_token_id=eos,
        pad_token_id=0,
    )
    new: list[int] = output[0, len(prompt) :].tolist()
    return new


def test_decoding_equals_transformers_token_for_token(
    model: PreTrainedModel, prompts: list[list[int]]
) -> None:
    completions = greedy_completions(model, prompts, max_new_tokens=12, eos_ids=NO_EOS)
    for prompt, completion in zip(prompts, completions, strict=True):
        assert list(completion.ids) == reference(model, prompt, None, 12)
        assert completion.finish == "length"


def test_decoding_ends_at_any_end_of_sequence_token(
    model: PreTrainedModel, prompts: list[list[int]]
) -> None:
    free = greedy_completions(model, prompts, max_new_tokens=12, eos_ids=NO_EOS)
    eos = [free[0].ids[3], free[5].ids[8]]
    completions = greedy_completions(model, prompts, max_new_tokens=12, eos_ids=frozenset(eos))
    for prompt, completion in zip(prompts, completions, strict=True):
        expected = reference(model, prompt, eos, 12)
        has_ended = expected[-1] in eos
        assert list(completion.ids) == (expected[:-1] if has_ended else expected)
        assert completion.finish == ("eos" if has_ended else "length")
    assert "eos" in {completion.finish for completion in completions}


def test_batches_and_dropped_rows_change_no_token(
    model: PreTrainedModel, prompts: list[list[int]]
) -> None:
    eos = frozenset({0, 9, 18, 27})
    together = greedy_completions(model, prompts, max_new_tokens=14, eos_ids=eos)
    alone = [
        greedy_completions(model, [prompt], max_new_tokens=14, eos_ids=eos)[0] for prompt in prompts
    ]
    small = greedy_completions(model, prompts, max_new_tokens=14, eos_ids=eos, cache_tokens=100)
    assert together == alone == small


def test_prompts_that_are_read_in_groups_give_the_same_tokens(
    model: PreTrainedModel, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [*prompts, [1], [2]]
    together = greedy_completions(model, prompts, max_new_tokens=12, eos_ids=NO_EOS)
    monkeypatch.setitem(SCORE_BATCH_TOKENS, "cpu", 20)
    assert greedy_completions(model, prompts, max_new_tokens=12, eos_ids=NO_EOS) == together


def test_a_stop_text_ends_a_row_and_no_other(prompts: list[list[int]]) -> None:
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"]).eval()
    free = greedy_completions(model, prompts, max_new_tokens=12, eos_ids=NO_EOS)
    stop = free[0].ids[2]
    stopped = greedy_completions(
        model,
        prompts,
        max_new_tokens=12,
        eos_ids=NO_EOS,
        is_stopped=lambda _, ids: stop in ids,
    )
    for before, after in zip(free, stopped, strict=True):
        assert after.finish == ("stop" if stop in before.ids else "length")
        assert after.ids == before.ids[: len(after.ids)]
        if after.finish == "stop":
            assert before.ids.index(stop) < len(after.ids) <= before.ids.index(stop) + 4


def test_a_stop_text_is_asked_about_with_the_number_of_its_prompt(
    prompts: list[list[int]],
) -> None:
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"]).eval()
    completions = greedy_completions(
        model,
        prompts,
        max_new_tokens=12,
        eos_ids=NO_EOS,
        is_stopped=lambda i, _: i % 2 == 0,
        cache_tokens=150,
    )
    assert [c.finish for c in completions] == ["stop", "length"] * 6


def test_logits_that_are_not_finite_end_a_row_with_that_reason() -> None:
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"]).eval()
    with torch.no_grad():
        model.get_input_embeddings().weight[5] = math.nan
    completions = greedy_completions(model, [[5], [6]], max_new_tokens=1, eos_ids=NO_EOS)
    assert completions[0] == ((), "not-finite")
    assert completions[1].finish == "length"


def test_a_prompt_without_tokens_is_refused() -> None:
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"]).eval()
    with pytest.raises(DataError, match=r"^prompt 1: has no token; expected at least one\.$"):
        greedy_completions(model, [[1], []], max_new_tokens=2, eos_ids=NO_EOS)
