"""Say how much a benchmark asks of a model: passes, prompt tokens and decoded tokens.

Cards state it. For a benchmark file without a card it follows from the size of the items' file;
what cannot be known is a named constant.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sft_atlas.study.study import StudyBenchmark

BYTES_PER_TOKEN: Final = 4.0
"""English text under a vocabulary of 32,000 to 256,000 entries."""

UNKNOWN_ITEMS: Final = 1_000
UNKNOWN_PROMPT_TOKENS: Final = 150.0
UNKNOWN_ANSWER_TOKENS: Final = 32.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Questions:
    """The work of one benchmark on one model, in a base model's tokens."""

    num_items: int
    passes_per_item: int
    prompt_tokens: float
    """Mean tokens of one prompt, its solved examples included."""
    answer_tokens: float
    """Mean tokens scored in one pass, or decoded for one item."""
    max_new_tokens: int
    """Limit of decoding; 0 where nothing is decoded."""
    is_known: bool
    """From a card; otherwise from file sizes and constants."""


def questions_of(benchmark: StudyBenchmark) -> Questions:
    """Return how much a benchmark asks, with its shots and its limit."""
    card, spec = benchmark.card, benchmark.spec
    definition = None if spec is None else spec.definition
    if card is not None:
        items, prompt, answer = card.items, card.prompt_tokens, card.answer_tokens
        passes = card.choices
        decodes = card.kind != "choice"
        limit = card.max_new_tokens or round(4 * answer)
    else:
        items, prompt = _items_and_prompt(None if spec is None else spec.items.path)
        answer, passes, limit = UNKNOWN_ANSWER_TOKENS, 4, 0
        decodes = definition is not None and definition.kind == "generate"
    if definition is not None:
        decodes = definition.kind == "generate"
        limit = definition.max_new_tokens
    if decodes:
        passes, answer = 1, min(answer, limit)
    return Questions(
        num_items=min(items, benchmark.limit or items),
        passes_per_item=passes,
        prompt_tokens=prompt + benchmark.shots * (prompt + answer),
        answer_tokens=answer,
        max_new_tokens=limit if decodes else 0,
        is_known=card is not None,
    )


def _items_and_prompt(path: Path | None) -> tuple[int, float]:
    if path is None or path.suffix != ".jsonl" or not path.is_file():
        return UNKNOWN_ITEMS, UNKNOWN_PROMPT_TOKENS
    with path.open("rb") as stream:
        num_items = sum(1 for line in stream if line.strip())
    num_items = max(num_items, 1)
    return num_items, path.stat().st_size / num_items / BYTES_PER_TOKEN
