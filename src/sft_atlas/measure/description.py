"""What are a dataset's training rows as texts: how long, how often the same, how varied?

In: the examples that a study trains on, before any template. Out: one row per example, and the
numbers of the whole. No model is asked, so they hold for every model alike.

Measures of diversity depend on how much text they see. So they are means over pieces of one size:
the rows end to end, prompt and answer, are cut into pieces of 10,000 words for distinct n-grams,
and of 256 KiB for compression; what is left at the end is not used. A dataset that is smaller than
one piece is one piece, whose size the result names: it must not be compared with larger ones.
"""

import lzma
import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sft_atlas.data.duplicates import MIN_JACCARD, NGRAM_WORDS, near_duplicate_groups
from sft_atlas.data.language import iter_languages
from sft_atlas.data.ngrams import Ints
from sft_atlas.data.overlap import example_text
from sft_atlas.data.shapes import Example
from sft_atlas.data.texts import Text, texts_sha256
from sft_atlas.data.words import collapse, count_words, normalise
from sft_atlas.errors import DataError
from sft_atlas.identity import payload
from sft_atlas.measure.embed import build_embed, mean_cosine
from sft_atlas.measure.quantiles import name_quantiles
from sft_atlas.store.records import Record, make_provenance
from sft_atlas.store.store import Store
from sft_atlas.study.job import DescribeJob
from sft_atlas.study.measure import Embedder

ROWS_NAME: Final = "rows.parquet"
_PIECE_WORDS: Final = 10_000
_PIECE_BYTES: Final = 1 << 18
_MAX_PIECES: Final = 8
"""Pieces that are compressed; 2 MiB take about a second."""
_SPREAD_ROWS: Final = 2000
_LANGUAGE_CHARACTERS: Final = 150
"""Of prompt and of answer each, by which a row's language is told."""


def describe_dataset(store: Store, job: DescribeJob, *, examples: Sequence[Example]) -> Record:
    """Publish the description of a job's examples, given in the subset's order.

    Returns the record that is there if they were described before.

    Raises:
        DataError: if there is no example.
    """
    folder = store.layout.description(job.fingerprint)
    if found := store.find(folder):
        return found
    started = time.time()
    if not examples:
        raise DataError(
            f"dataset {job.dataset.name}: has no row to describe; expected at least one. "
            f"Leave it out."
        )
    # A line break separates prompt and answer, so their words are those of the whole text.
    prompts = [normalise(example.prompt) for example in examples]
    answers = [normalise(example.answer) for example in examples]
    words = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    columns = {
        "row": np.arange(len(examples)),
        "prompt_words": np.array([count_words(prompt) for prompt in prompts]),
        "answer_words": np.array([count_words(answer) for answer in answers]),
        **_describe_texts(examples),
        "near_group": near_duplicate_groups(words),
    }

    def fill(aside: Path) -> dict[str, Any]:
        pq.write_table(pa.table(columns), aside / ROWS_NAME, compression="zstd")
        return {**_summary(columns, examples), **_distinct_ngrams(words)}

    return store.publish(
        folder,
        schema="description/1",
        spec=payload(job),
        fill=fill,
        provenance=lambda: make_provenance(started),
    )


def _describe_texts(examples: Sequence[Example]) -> dict[str, Any]:
    """Return columns of one value per example: lengths, language, and which are equal."""
    beginnings = (
        f"{e.prompt[:_LANGUAGE_CHARACTERS]}\n{e.answer[:_LANGUAGE_CHARACTERS]}" for e in examples
    )
    return {
        "prompt_bytes": np.array([len(e.prompt.encode()) for e in examples]),
        "answer_bytes": np.array([len(e.answer.encode()) for e in examples]),
        "language": list(iter_languages(beginnings)),
        "equal_group": _equal_groups([collapse(example_text(e)) for e in examples]),
        "equal_prompt_group": _equal_groups([collapse(e.prompt) for e in examples]),
    }


def _equal_groups(texts: Sequence[str]) -> Ints:
    """Return for each text the position of the first one that is equal."""
    firsts: dict[str, int] = {}
    return np.array([firsts.setdefault(text, i) for i, text in enumerate(texts)], np.int64)


def _summary(columns: dict[str, Any], examples: Sequence[Example]) -> dict[str, Any]:
    texts = [example_text(example) for example in examples]
    return {
        "num_rows": len(examples),
        "num_words": int(columns["prompt_words"].sum() + columns["answer_words"].sum()),
        "num_bytes": int(columns["prompt_bytes"].sum() + columns["answer_bytes"].sum()),
        "texts_sha256": texts_sha256([Text("", "", e.prompt, e.answer) for e in examples]),
        **_length_spread(columns),
        "exact_duplicate_fraction": _repeated_share(columns["equal_group"]),
        "prompt_duplicate_fraction": _repeated_share(columns["equal_prompt_group"]),
        "near_duplicate_fraction": _repeated_share(columns["near_group"]),
        "near_duplicate_settings": {"ngram_words": NGRAM_WORDS, "min_jaccard": MIN_JACCARD},
        **_compression(texts),
        **_spread(texts),
        "languages": _language_shares(columns["language"]),
    }


def _length_spread(columns: dict[str, Any]) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for name in ("prompt_words", "answer_words", "prompt_bytes", "answer_bytes"):
        found[f"{name}_mean"] = float(columns[name].mean())
        found |= name_quantiles(name, columns[name])
    return found


def _repeated_share(groups: Ints) -> float:
    """Return the share of rows that would go if each group kept one."""
    return 1 - len(np.unique(groups)) / len(groups)


def _distinct_ngrams(texts: Sequence[Sequence[str]]) -> dict[str, float | None]:
    """Return distinct n-grams per n-gram of a piece (Li et al. 2016, arXiv 1510.03055).

    No n-gram crosses the end of a row, or of a piece.
    """
    numbers: dict[str, int] = {}
    words = chain.from_iterable(texts)
    ids = np.array([numbers.setdefault(word, len(numbers)) for word in words], np.int64)
    rows = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
    size = min(_PIECE_WORDS, len(ids))
    starts = range(0, len(ids) - size + 1, size) if size else ()
    found: dict[str, float | None] = {"distinct_piece_words": size}
    for n in (1, 2, 3):
        shares = [_distinct_share(ids[i : i + size], rows[i : i + size], n) for i in starts]
        known = [share for share in shares if share is not None]
        found[f"distinct_{n}"] = float(np.mean(known)) if known else None
    return found


def _distinct_share(ids: Ints, rows: Ints, n: int) -> float | None:
    """Return distinct n-grams per n-gram of one piece; None where it has no n-gram."""
    if len(ids) < n:
        return None
    _, small = np.unique(ids, return_inverse=True)
    # Numbers below the piece's size: three of them fit one 64-bit number.
    grams = np.lib.stride_tricks.sliding_window_view(small, n) @ (len(ids) ** np.arange(n))
    grams = grams[rows[: len(grams)] == rows[n - 1 :]]
    return len(np.unique(grams)) / len(grams) if len(grams) else None


def _compression(texts: Sequence[str]) -> dict[str, float]:
    """Return bytes per compressed byte (xz, preset 6, checksum and header left out)."""
    content = "\n".join(texts).encode()
    size = min(_PIECE_BYTES, len(content))
    pieces = [content[i : i + size] for i in range(0, len(content) - size + 1, size)]
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6}]
    ratios = [
        size / len(lzma.compress(piece, lzma.FORMAT_RAW, filters=filters))
        for piece in pieces[:_MAX_PIECES]
    ]
    return {"compression_ratio": float(np.mean(ratios)), "compression_piece_bytes": size}


def _spread(texts: Sequence[str]) -> dict[str, float | None]:
    """Return the mean cosine distance of two different rows, of the first 2,000."""
    vectors = build_embed(Embedder(kind="words"))(texts[:_SPREAD_ROWS]).astype(np.float64)
    n = len(vectors)
    if n < 2:
        return {"embedding_spread": None, "embedding_rows": n}
    return {"embedding_spread": 1 - mean_cosine(vectors), "embedding_rows": n}


def _language_shares(languages: Sequence[str]) -> dict[str, float]:
    """Return the share of rows by language, most frequent first."""
    codes, counts = np.unique(languages, return_counts=True)
    order = np.lexsort((codes, -counts))
    return {str(codes[i]): counts[i] / len(languages) for i in order}
