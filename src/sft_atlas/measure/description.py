"""What are a dataset's training rows as texts: how long, how often the same, how varied?

In: the examples that a study trains on, before any template. Out: one row per example, and the
numbers of the whole. No model is asked, so they hold for every model alike.

Measures of diversity depend on how much text they see. So they are means over pieces of one size:
the rows end to end, prompt and answer, are cut into pieces of 10,000 words for distinct n-grams,
and of 256 KiB for compression; what is left at the end is not used. A dataset that is smaller than
one piece is one piece, whose size the result names: it must not be compared with larger ones.
"""

import hashlib
import lzma
import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sft_atlas.data.duplicates import MIN_JACCARD, NGRAM_WORDS, near_duplicate_groups
from sft_atlas.data.language import iter_languages
from sft_atlas.data.overlap import example_text
from sft_atlas.data.shapes import Example
from sft_atlas.data.words import collapse, count_words, normalise
from sft_atlas.errors import DataError
from sft_atlas.identity import canonical_json, payload
from sft_atlas.measure.embed import build_embed
from sft_atlas.store.records import Record, make_provenance
from sft_atlas.store.store import Store
from sft_atlas.study.job import DescribeJob
from sft_atlas.study.measure import Embedder

ROWS_NAME: Final = "rows.parquet"
_QUANTILES: Final = (0.05, 0.25, 0.5, 0.75, 0.95)
_PIECE_WORDS: Final = 10_000
_PIECE_BYTES: Final = 1 << 18
_MAX_PIECES: Final = 16
"""Pieces that are compressed; 4 MiB take 2 s."""
_SPREAD_ROWS: Final = 2000
_LANGUAGE_CHARACTERS: Final = 250
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
    columns = _describe_rows(examples)

    def fill(aside: Path) -> dict[str, Any]:
        pq.write_table(pa.table(columns), aside / ROWS_NAME, compression="zstd")
        return _summary(columns, examples)

    return store.publish(
        folder,
        schema="description/1",
        spec=payload(job),
        fill=fill,
        provenance=lambda: make_provenance(started),
    )


def _describe_rows(examples: Sequence[Example]) -> dict[str, Any]:
    """Return columns of one value per example: its place, lengths, language and groups."""
    texts = [example_text(example) for example in examples]
    beginnings = (
        f"{e.prompt[:_LANGUAGE_CHARACTERS]}\n{e.answer[:_LANGUAGE_CHARACTERS]}" for e in examples
    )
    return {
        "row": np.arange(len(examples)),
        "prompt_words": np.array([count_words(e.prompt) for e in examples]),
        "answer_words": np.array([count_words(e.answer) for e in examples]),
        "prompt_bytes": np.array([len(e.prompt.encode()) for e in examples]),
        "answer_bytes": np.array([len(e.answer.encode()) for e in examples]),
        "language": list(iter_languages(beginnings)),
        "equal_group": _equal_groups([collapse(text) for text in texts]),
        "equal_prompt_group": _equal_groups([collapse(e.prompt) for e in examples]),
        "near_group": near_duplicate_groups([normalise(text) for text in texts]),
    }


def _equal_groups(texts: Sequence[str]) -> NDArray[np.int64]:
    """Return for each text the position of the first one that is equal."""
    firsts: dict[str, int] = {}
    return np.array([firsts.setdefault(text, i) for i, text in enumerate(texts)], np.int64)


def _summary(columns: dict[str, Any], examples: Sequence[Example]) -> dict[str, Any]:
    texts = [example_text(example) for example in examples]
    content = canonical_json([[example.prompt, example.answer] for example in examples])
    return {
        "num_rows": len(examples),
        "num_words": int(columns["prompt_words"].sum() + columns["answer_words"].sum()),
        "num_bytes": int(columns["prompt_bytes"].sum() + columns["answer_bytes"].sum()),
        "texts_sha256": hashlib.sha256(content.encode()).hexdigest(),
        **_length_spread(columns),
        "exact_duplicate_fraction": _repeated_share(columns["equal_group"]),
        "prompt_duplicate_fraction": _repeated_share(columns["equal_prompt_group"]),
        "near_duplicate_fraction": _repeated_share(columns["near_group"]),
        "near_duplicate_settings": {"ngram_words": NGRAM_WORDS, "min_jaccard": MIN_JACCARD},
        **_distinct_ngrams(texts),
        **_compression(texts),
        **_spread(texts),
        "languages": _language_shares(columns["language"]),
    }


def _length_spread(columns: dict[str, Any]) -> dict[str, float]:
    found = {}
    for name in ("prompt_words", "answer_words", "prompt_bytes", "answer_bytes"):
        found[f"{name}_mean"] = float(columns[name].mean())
        for q in _QUANTILES:
            found[f"{name}_{round(100 * q):02d}"] = float(np.quantile(columns[name], q))
    return found


def _repeated_share(groups: NDArray[np.int64]) -> float:
    """Return the share of rows that would go if each group kept one."""
    return 1 - len(np.unique(groups)) / len(groups)


def _distinct_ngrams(texts: Sequence[str]) -> dict[str, float | None]:
    """Return distinct n-grams per n-gram of a piece (Li et al. 2016, arXiv 1510.03055).

    No n-gram crosses the end of a row, or of a piece.
    """
    words = [normalise(text) for text in texts]
    row_of_word = np.repeat(np.arange(len(words)), [len(row) for row in words])
    _, ids = np.unique(np.array([*chain.from_iterable(words), ""]), return_inverse=True)
    ids = ids[:-1]
    size = min(_PIECE_WORDS, len(ids))
    found: dict[str, float | None] = {"distinct_piece_words": size}
    for n in (1, 2, 3):
        shares = []
        for start in range(0, len(ids) - size + 1, size or 1):
            grams = np.lib.stride_tricks.sliding_window_view(ids[start : start + size], n)
            rows = row_of_word[start : start + size]
            grams = grams[rows[: len(grams)] == rows[n - 1 :]]
            if len(grams):
                shares.append(len(np.unique(grams, axis=0)) / len(grams))
        found[f"distinct_{n}"] = float(np.mean(shares)) if shares else None
    return found


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
    total = vectors.sum(axis=0)
    mean_cosine = float((total @ total - (vectors**2).sum()) / (n * (n - 1)))
    return {"embedding_spread": 1 - mean_cosine, "embedding_rows": n}


def _language_shares(languages: Sequence[str]) -> dict[str, float]:
    """Return the share of rows by language, most frequent first."""
    codes, counts = np.unique(languages, return_counts=True)
    order = np.lexsort((codes, -counts))
    return {str(codes[i]): counts[i] / len(languages) for i in order}
