"""How likely does every cell find every text of a set?

In: the cells of a study and a likelihood measure. Out: matrices with a row per cell and a column
per text, which the map of all models is made of. A cell without a record, or with a likelihood
that is no number, is named with the reason and has no row. The one decision: cells that read
different texts are refused, because no distance between them means anything.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sft_atlas.errors import StoreError
from sft_atlas.store.records import check_artifact
from sft_atlas.store.store import Store
from sft_atlas.study.measure import LikelihoodMeasure

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

VECTORS_NAME: Final = "likelihood.parquet"

UNMEASURED: Final = "its likelihoods were not measured yet"
NOT_FINITE: Final = "a log-likelihood is missing or not finite"

_PER_CELL: Final = (
    "prompt_log_likelihood",
    "answer_log_likelihood",
    "prompt_tokens",
    "answer_tokens",
    "is_cut",
)
_PER_TEXT: Final = ("prompt_bytes", "answer_bytes")


@dataclass(frozen=True, kw_only=True)
class Vectors:
    """Log-likelihoods of K cells on N texts, in nats, summed over the tokens of a part."""

    measure: str
    """Fingerprint of the likelihood measure."""
    texts_sha256: str
    """Digest of the text set; empty without any cell."""
    cells: tuple[str, ...]
    """Fingerprints of the K cells that have a row, in the order that was asked for."""
    texts: tuple[str, ...]
    groups: tuple[str, ...]
    """Benchmark of each text, or what its file calls it."""
    prompt: Floats
    """(K, N) log-likelihood of the prompt."""
    answer: Floats
    """(K, N) log-likelihood of the answer after the prompt."""
    prompt_tokens: Ints
    """(K, N) scored tokens; they differ between tokenizers."""
    answer_tokens: Ints
    is_cut: Bools
    """(K, N) whether the cell read only the beginning of the text."""
    prompt_bytes: Ints
    """(N,) bytes of the text's prompt (UTF-8)."""
    answer_bytes: Ints
    missing: dict[str, str] = field(default_factory=dict)
    """Why a wanted cell has no row, by its fingerprint."""

    @property
    def num_cells(self) -> int:
        return len(self.cells)

    @property
    def num_texts(self) -> int:
        return len(self.texts)


def load_vectors(store: Store, cells: Iterable[str], measure: LikelihoodMeasure) -> Vectors:
    """Read the likelihoods of the cells with these fingerprints; a name twice counts once.

    Raises:
        StoreError: if two cells were measured on different texts.
        DamagedError: if a record or its table is not what was published.
    """
    found: dict[str, pa.Table] = {}
    missing: dict[str, str] = {}
    digests: dict[str, str] = {}
    for cell in dict.fromkeys(cells):
        folder = store.layout.measure(cell, measure.fingerprint)
        record = store.find(folder)
        if record is None:
            missing[cell] = UNMEASURED
            continue
        table = pq.read_table(check_artifact(folder, record, VECTORS_NAME), use_threads=False)
        if not _is_finite(table):
            missing[cell] = NOT_FINITE
            continue
        digest = str(record.result["texts_sha256"])
        first = next(iter(digests), cell)
        if digests and digests[first] != digest:
            raise StoreError(
                f"{folder}: cell {cell} read texts {digest[:12]}, but cell {first} read "
                f"{digests[first][:12]}; expected one text set for all cells. "
                f"Move the folder away and run the study again."
            )
        digests[cell] = digest
        found[cell] = table
    return _gathered(measure.fingerprint, next(iter(digests.values()), ""), found, missing)


def _gathered(
    measure: str, digest: str, found: dict[str, pa.Table], missing: dict[str, str]
) -> Vectors:
    tables = list(found.values())
    texts: Sequence[str] = tables[0]["text"].to_pylist() if tables else ()
    groups: Sequence[str] = tables[0]["group"].to_pylist() if tables else ()
    per_cell = {name: _stacked(tables, name, len(texts)) for name in _PER_CELL}
    # A text that one tokenizer cut has fewer bytes there: its own length is the largest.
    per_text = {
        name: _stacked(tables, name, len(texts)).max(axis=0, initial=0).astype(np.int64)
        for name in _PER_TEXT
    }
    return Vectors(
        measure=measure,
        texts_sha256=digest,
        cells=tuple(found),
        texts=tuple(texts),
        groups=tuple(groups),
        prompt=per_cell["prompt_log_likelihood"].astype(np.float64),
        answer=per_cell["answer_log_likelihood"].astype(np.float64),
        prompt_tokens=per_cell["prompt_tokens"].astype(np.int64),
        answer_tokens=per_cell["answer_tokens"].astype(np.int64),
        is_cut=per_cell["is_cut"].astype(np.bool_),
        missing=missing,
        **per_text,
    )


def _stacked(tables: Sequence[pa.Table], name: str, size: int) -> NDArray[Any]:
    rows = [table[name].to_numpy() for table in tables]
    return np.stack(rows) if rows else np.zeros((0, size))


def _is_finite(table: pa.Table) -> bool:
    for name in ("prompt_log_likelihood", "answer_log_likelihood"):
        column = table[name]
        if column.null_count or not np.isfinite(column.to_numpy()).all():
            return False
    return True
