"""Turn questions into token ids that fit the model, once per tokenizer and benchmark of a process.

Prompt and answer are split by the rule that training used (`data.encoding`). A prompt that is too
long loses its start, where the oldest examples are, and keeps its BOS token; a question whose
answer alone is too long is unscored and says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, final

import numpy as np
from transformers import PreTrainedTokenizerBase

from sft_atlas.data.encoding import adds_bos, encode_pairs
from sft_atlas.evaluate.benchmark import Question, load_questions
from sft_atlas.study.spec import BenchmarkSpec, ModelSpec

Ids = np.ndarray[Any, np.dtype[np.int32]]


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One question as token ids."""

    question: Question
    prompt_ids: Ids
    answer_ids: tuple[Ids, ...]
    """choice: each option after the prompt; empty for generate."""
    moved: str
    """Whitespace at the prompt's end that the answer begins with instead."""
    is_truncated: bool
    unscored: str | None
    """Why this item has no score; None where it can be scored."""


@dataclass(frozen=True)
class _Tokenizer:
    """A tokenizer that equals any other of its model, so that it can be part of a cache's key."""

    model: str
    tokenizer: PreTrainedTokenizerBase = field(compare=False)


def build_requests(
    benchmark: BenchmarkSpec,
    *,
    model: ModelSpec,
    tokenizer: PreTrainedTokenizerBase,
    max_positions: int | None,
) -> tuple[Request, ...]:
    """Read and tokenise a benchmark, or return what this process has for the model's tokenizer.

    `max_positions` is what the model can hold; the smaller of it and the benchmark's `max_tokens`
    counts.
    """
    limit = min(benchmark.max_tokens, max_positions or benchmark.max_tokens)
    return _build(benchmark, _Tokenizer(model.fingerprint, tokenizer), limit)


@lru_cache(maxsize=32)
def _build(benchmark: BenchmarkSpec, key: _Tokenizer, limit: int) -> tuple[Request, ...]:
    tokenizer = key.tokenizer
    questions = load_questions(benchmark, tokenizer)
    num_kept = 1 if adds_bos(tokenizer) else 0
    texts = [(q.prompt, answer) for q in questions for answer in q.answers or ("",)]
    encoded = iter(encode_pairs(tokenizer, texts))
    requests = []
    for question in questions:
        pairs = [next(encoded) for _ in question.answers or ("",)]
        answers = [pair.answer_ids for pair in pairs] if question.answers else []
        longest = max(map(len, answers), default=benchmark.definition.max_new_tokens)
        prompt, is_truncated = _cut_start(pairs[0].prompt_ids, limit - longest, num_kept)
        requests.append(
            Request(
                question=question,
                prompt_ids=np.array(prompt, dtype=np.int32),
                answer_ids=tuple(np.array(ids, dtype=np.int32) for ids in answers),
                moved=question.prompt[len(question.prompt.rstrip()) :],
                is_truncated=is_truncated,
                unscored=question.unscored or _fault(answers, longest, limit - num_kept),
            )
        )
    return tuple(requests)


def _cut_start(ids: Sequence[int], room: int, num_kept: int) -> tuple[Sequence[int], bool]:
    if len(ids) <= room:
        return ids, False
    num_last = max(room - num_kept, 1)
    return [*ids[:num_kept], *ids[len(ids) - num_last :]], True


def _fault(answers: Sequence[Sequence[int]], longest: int, limit: int) -> str | None:
    if not all(answers):
        return "an option has no token"
    if longest >= limit:
        what = "its longest option has" if answers else "max_new_tokens is"
        return f"{what} {longest} tokens, which leaves no room in {limit}"
    return None
