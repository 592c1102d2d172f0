"""Let a model answer requests, by comparing options or in its own words, and judge each answer."""

import math
from collections.abc import Sequence
from typing import NamedTuple, final

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sft_atlas.evaluate.extract import cut_at_stop, is_right
from sft_atlas.evaluate.request import Request
from sft_atlas.model.generate import Completion, greedy_completions
from sft_atlas.model.score import answer_log_likelihoods
from sft_atlas.study.spec import BenchmarkDefinition


@final
class ItemResult(NamedTuple):
    """How one item went."""

    score: float | None
    """1 right, 0 wrong; None unscored."""
    prediction: str | None
    """The chosen option, or the decoded text before any stop text, without outer whitespace."""
    log_likelihood: float | None
    """choice: of the right option, nats."""
    finish: str | None
    """generate: eos, stop or length."""
    reason: str | None
    """Why the item is unscored."""


def unscored(reason: str) -> ItemResult:
    """Return the result of an item that has no score."""
    return ItemResult(None, None, None, None, reason)


def answer_choices(
    definition: BenchmarkDefinition,
    requests: Sequence[Request],
    model: PreTrainedModel,
    *,
    batch_tokens: int | None = None,
) -> list[ItemResult]:
    """Choose the option with the highest log-likelihood, or log-likelihood per UTF-8 byte.

    The first of equal options wins, as in lm-eval's `acc` and `acc_bytes`.
    """
    pairs = [
        (prompt, answer.tolist())
        for request in requests
        for prompt in [request.prompt_ids.tolist()]
        for answer in request.answer_ids
    ]
    scores = iter(answer_log_likelihoods(model, pairs, batch_tokens=batch_tokens))
    return [
        _judge_choice(
            definition, request, [next(scores).log_likelihood for _ in request.answer_ids]
        )
        for request in requests
    ]


def _judge_choice(
    definition: BenchmarkDefinition, request: Request, log_likelihoods: Sequence[float]
) -> ItemResult:
    question = request.question
    assert question.label is not None
    if not all(map(math.isfinite, log_likelihoods)):
        return unscored("a log-likelihood is not finite")
    values = log_likelihoods
    if definition.metric == "accuracy_bytes":
        num_bytes = [max(len(option.encode()), 1) for option in question.options]
        values = [value / size for value, size in zip(values, num_bytes, strict=True)]
    chosen = max(range(len(values)), key=values.__getitem__)
    return ItemResult(
        score=float(chosen == question.label),
        prediction=question.options[chosen],
        log_likelihood=log_likelihoods[question.label],
        finish=None,
        reason=None,
    )


def answer_questions(
    definition: BenchmarkDefinition,
    requests: Sequence[Request],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_tokens: int | None = None,
) -> list[ItemResult]:
    """Decode greedily up to a stop text, the end of sequence or the limit, and judge the text."""

    def read(i: int, ids: Sequence[int]) -> str:
        text = tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)
        return text.removeprefix(requests[i].moved)

    def is_stopped(i: int, ids: Sequence[int]) -> bool:
        text = read(i, ids)
        return any(stop in text for stop in definition.stop)

    completions = greedy_completions(
        model,
        [request.prompt_ids.tolist() for request in requests],
        max_new_tokens=definition.max_new_tokens,
        eos_ids=end_ids(model, tokenizer),
        is_stopped=is_stopped if definition.stop else None,
        cache_tokens=batch_tokens,
    )
    return [
        _judge_text(definition, request, completion, read(i, completion.ids))
        for i, (request, completion) in enumerate(zip(requests, completions, strict=True))
    ]


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the tokens that end an answer: the one that training supervised, and the config's.

    The generation config is left out: it is no part of a cell's weights, and a score must not
    depend on it.
    """
    configured = model.config.get_text_config().eos_token_id
    others = configured if isinstance(configured, list) else [configured]
    return frozenset(i for i in [tokenizer.eos_token_id, *others] if i is not None)


def _judge_text(
    definition: BenchmarkDefinition, request: Request, completion: Completion, text: str
) -> ItemResult:
    if completion.finish == "not-finite":
        return unscored("a logit is not finite")
    kept = cut_at_stop(text, definition.stop)
    prediction = kept.strip()
    assert definition.metric in ("exact_match", "numeric_match")
    right = is_right(
        prediction,
        request.question.accepted,
        metric=definition.metric,
        pattern=definition.pattern,
    )
    # The decoder looks for stop texts every few tokens only, so the text says what came first.
    finish = "stop" if len(kept) < len(text) else completion.finish
    return ItemResult(float(right), prediction, None, finish, None)
