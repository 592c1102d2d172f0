"""Requests: the ids that training would have made, cut to fit, and made once."""

from collections.abc import Callable
from typing import Any

from transformers import PreTrainedTokenizerFast

from sft_atlas.data.encoding import encode_pair
from sft_atlas.evaluate.request import Request, build_requests
from sft_atlas.study.benchmark import Benchmark, build_benchmark_spec
from sft_atlas.study.spec import BenchmarkSpec, ModelSpec, Source

WriteBenchmark = Callable[..., Benchmark]

CHOICE = {
    "kind": "choice",
    "prompt": "{q}",
    "choices": "options",
    "label": "gold",
    "metric": "accuracy",
}
GENERATE = {"kind": "generate", "prompt": "{q}", "answer": "{a}", "metric": "exact_match"}
ITEM = {"q": "What is the capital of France?", "a": "Paris", "options": ["Paris", "x"], "gold": 0}


def build(
    benchmark: BenchmarkSpec, tokenizer: PreTrainedTokenizerFast, max_positions: int | None = None
) -> tuple[Request, ...]:
    model = ModelSpec(source=Source(hub="a/b", revision=str(id(tokenizer))), name="model")
    return build_requests(benchmark, model=model, tokenizer=tokenizer, max_positions=max_positions)


def spec(benchmark: Benchmark, max_tokens: int = 128, **fields: Any) -> BenchmarkSpec:
    settings = {"template": "question-answer"} | fields
    return build_benchmark_spec(benchmark, max_tokens=max_tokens, **settings)


def test_options_are_encoded_as_training_would(
    write_benchmark: WriteBenchmark,
    tokenizer: PreTrainedTokenizerFast,
    bos_tokenizer: PreTrainedTokenizerFast,
) -> None:
    benchmark = spec(write_benchmark([ITEM], **CHOICE))
    for one in (tokenizer, bos_tokenizer):
        (request,) = build(benchmark, one)
        prompt = f"###Question: {ITEM['q']}\n###Answer:"
        for option, ids in zip(("Paris", "x"), request.answer_ids, strict=True):
            pair = encode_pair(one, prompt, f" {option}")
            assert (request.prompt_ids.tolist(), ids.tolist()) == pair
    assert request.prompt_ids[0] == bos_tokenizer.bos_token_id


def test_a_long_prompt_loses_its_start_and_keeps_its_bos(
    write_benchmark: WriteBenchmark, bos_tokenizer: PreTrainedTokenizerFast
) -> None:
    benchmark = write_benchmark([ITEM], **CHOICE)
    (whole,) = build(spec(benchmark), bos_tokenizer)
    (cut,) = build(spec(benchmark, max_tokens=12), bos_tokenizer)
    longest = max(map(len, whole.answer_ids))
    assert cut.is_truncated
    assert not whole.is_truncated
    assert len(cut.prompt_ids) == 12 - longest
    kept = whole.prompt_ids[1 - len(cut.prompt_ids) :].tolist()
    assert cut.prompt_ids.tolist() == [bos_tokenizer.bos_token_id, *kept]
    assert [ids.tolist() for ids in cut.answer_ids] == [ids.tolist() for ids in whole.answer_ids]


def test_the_models_positions_limit_the_prompt_too(
    write_benchmark: WriteBenchmark, tokenizer: PreTrainedTokenizerFast
) -> None:
    benchmark = spec(write_benchmark([ITEM], max_new_tokens=4, **GENERATE))
    (request,) = build(benchmark, tokenizer, max_positions=10)
    assert len(request.prompt_ids) == 6
    assert request.is_truncated


def test_an_answer_without_room_is_unscored(
    write_benchmark: WriteBenchmark, tokenizer: PreTrainedTokenizerFast
) -> None:
    benchmark = spec(write_benchmark([ITEM], max_new_tokens=64, **GENERATE), max_tokens=64)
    (request,) = build(benchmark, tokenizer)
    assert request.unscored == "max_new_tokens is 64 tokens, which leaves no room in 64"
    benchmark = spec(write_benchmark([ITEM], **CHOICE), max_tokens=2)
    (request,) = build(benchmark, tokenizer)
    assert request.unscored is not None
    assert request.unscored.startswith("its longest option has ")


def test_an_empty_option_of_plain_chat_text_is_unscored(
    write_benchmark: WriteBenchmark, tokenizer: PreTrainedTokenizerFast
) -> None:
    items = [{"q": "q", "options": ["a", ""], "gold": 0}]
    fields = CHOICE | {"prompt": "{q}"}
    benchmark = spec(write_benchmark(items, **fields), template="chat")
    (request,) = build(benchmark, tokenizer)
    # The chat template ends in a line break, which moves to the answer: even "" has a token.
    assert request.moved == "\n"
    assert request.unscored is None


def test_requests_are_made_once_per_model_and_benchmark(
    write_benchmark: WriteBenchmark, tokenizer: PreTrainedTokenizerFast
) -> None:
    benchmark = spec(write_benchmark([ITEM], **CHOICE))
    assert build(benchmark, tokenizer) is build(benchmark, tokenizer)
