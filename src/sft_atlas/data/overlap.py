"""Which training rows hold which benchmark items: word for word, or nearly so?

In: texts of training rows, one after another, and texts of items. Out: one `Overlap` per row and
item that belong together. Texts are compared as words without case and punctuation; scripts that
put no space between words are compared character by character. docs/overlap.md gives the rules,
their sources and what they cannot see.

Whether a row overlaps never depends on the other rows. So a subset's overlaps are those of the
whole that lie in it, what is left after dropping has none, and an item that was copied very often
is not mistaken for a common phrase: a phrase is common if many items share it.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, final

from sft_atlas.data.ngrams import build_index, find_shares
from sft_atlas.data.shapes import Example
from sft_atlas.data.words import mark_text, normalise, tokens_per_word

Kind = Literal["exact", "near"]


@final
@dataclass(frozen=True, kw_only=True)
class OverlapSettings:
    """What counts as an overlap; two characters of an unspaced script stand for one word."""

    ngram_words: int = 8
    """Words per n-gram, as for PaLM (Chowdhery et al. 2022) and Tulu 3 (Lambert et al. 2024)."""
    near_fraction: float = 0.5
    """Share of an item's n-grams that one row must hold, in (0, 1]; half, as Tulu 3 asks."""
    near_words: int = 13
    """Shorter items are only found exactly; the longest n-gram of GPT-3 (Brown et al. 2020)."""
    min_words: int = 3
    """Shorter items are never found (as in DeepSeek-Coder, Guo et al. 2024)."""
    max_items: int = 10
    """N-grams of more distinct items than this, or than half of them, do not count; GPT-3 sets the
    same limit on documents. What two items share always counts."""


@final
class Overlap(NamedTuple):
    """A training row that holds a benchmark item; both are positions, counted from 0."""

    row: int
    item: int
    kind: Kind
    share: float
    """Share of the item's n-grams that the row holds, in [0, 1]; 1 for `exact`."""


@final
class KeptRows(NamedTuple):
    """What is left of a dataset without the rows that overlap."""

    indices: list[int]
    """Positions of the rows to keep, ascending."""
    num_dropped: int


DEFAULT_SETTINGS: Final = OverlapSettings()


def find_overlaps(
    rows: Iterable[str], items: Sequence[str], *, settings: OverlapSettings = DEFAULT_SETTINGS
) -> list[Overlap]:
    """Return every overlap once, by row and item; rows are read once, a few at a time.

    An item is `exact` in a row that holds all its words in one piece, and `near` in one that holds
    enough of its n-grams. Equal items are found alike.
    """
    equals: dict[str, list[int]] = defaultdict(list)
    for position, item in enumerate(items):
        equals[" ".join(normalise(item))].append(position)
    return sorted(
        Overlap(row, position, kind, share)
        for row, text, kind, share in _search(rows, list(equals), settings)
        for position in equals[text]
    )


def rows_without_overlap(
    examples: Sequence[Example],
    items: Sequence[str],
    settings: OverlapSettings = DEFAULT_SETTINGS,
) -> KeptRows:
    """Leave out the examples that hold an item, exactly or nearly."""
    found = find_overlaps(map(example_text, examples), items, settings=settings)
    dropped = {overlap.row for overlap in found}
    kept = [index for index in range(len(examples)) if index not in dropped]
    return KeptRows(kept, len(dropped))


def example_text(example: Example) -> str:
    """Return an example as the text that is searched: prompt, line break, answer."""
    return f"{example.prompt}\n{example.answer}"


def is_too_short(item: str, settings: OverlapSettings = DEFAULT_SETTINGS) -> bool:
    """Tell whether an item has too few words to be looked for."""
    words = normalise(item)
    return len(words) < settings.min_words * tokens_per_word(words)


def _search(
    rows: Iterable[str], items: Sequence[str], settings: OverlapSettings
) -> Iterator[tuple[int, str, Kind, float]]:
    """Yield (row, item, kind, share) for distinct normalised items."""
    long, short = _sort_items(items, settings)
    max_items = min(settings.max_items, max(2, len(items) // 2))
    indexes = [
        (
            tokens,
            texts,
            build_index(texts, length=settings.ngram_words * tokens, max_items=max_items),
        )
        for tokens, texts in long.items()
    ]
    for first, chunk in _chunks(rows):
        rows_words = [text.split() for text in chunk] if indexes else []
        for tokens, texts, index in indexes:
            near_tokens = settings.near_words * tokens
            for row, item, share in find_shares(
                index, rows_words, min_share=settings.near_fraction
            ):
                text = " ".join(texts[item])
                if share == 1 and f" {text} " in f" {' '.join(rows_words[row])} ":
                    yield first + row, text, "exact", 1.0
                elif len(texts[item]) >= near_tokens and not index.is_common[item]:
                    yield first + row, text, "near", share
        for row, marked in enumerate(chunk if short else ()):
            for text in _find_short(marked, short, max_tokens=2 * settings.ngram_words):
                yield first + row, text, "exact", 1.0


def _sort_items(
    items: Sequence[str], settings: OverlapSettings
) -> tuple[dict[int, list[list[str]]], dict[str, set[str]]]:
    """Return the items with n-grams by tokens per word, and the short ones by first word."""
    long, short = defaultdict(list), defaultdict(set)
    for item in items:
        words = item.split()
        tokens = tokens_per_word(words)
        if len(words) >= settings.ngram_words * tokens:
            long[tokens].append(words)
        elif len(words) >= settings.min_words * tokens:
            short[words[0]].add(item)
    return long, short


def _find_short(marked: str, short: dict[str, set[str]], *, max_tokens: int) -> set[str]:
    """Return the short items that are whole lines or sentences of a row, one or several."""
    found = set()
    pieces = [line.split() for line in marked.split("\n") if line.strip()]
    for start, piece in enumerate(pieces):
        wanted = short.get(piece[0])
        if wanted is None:
            continue
        words: list[str] = []
        for following in pieces[start:]:
            words += following
            if len(words) > max_tokens:
                break
            text = " ".join(words)
            if text in wanted:
                found.add(text)
    return found


_CHUNK_CHARACTERS: Final = 1 << 21
"""How much text is compared at a time; a row is never split."""


def _chunks(rows: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield marked texts with the position of the first."""
    chunk: list[str] = []
    first = num_characters = 0
    for position, row in enumerate(rows):
        chunk.append(mark_text(row))
        num_characters += len(chunk[-1])
        if num_characters >= _CHUNK_CHARACTERS:
            yield first, chunk
            chunk, first, num_characters = [], position + 1, 0
    if chunk:
        yield first, chunk
