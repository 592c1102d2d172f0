"""How likely does every cell find every text of a set?

In: the cells of a study and a likelihood measure. Out: matrices with a row per cell and a column
per text, which the map of all models is made of. A cell without a record, or with a likelihood
that is no number, is named with the reason and has no row. The one decision: cells that were asked
other questions are refused, because no distance between them means anything; but models whose chat
templates word the same questions differently are kept, since their answers can be compared.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sft_atlas.errors import StoreError
from sft_atlas.identity import canonical_json
from sft_atlas.store.records import check_artifact
from sft_atlas.store.store import Store
from sft_atlas.study.measure import LikelihoodMeasure

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

Variant = Literal["whole", "prompt", "answer"]
"""prompt: of the question; answer: of the answer after it; whole: of both."""

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
    cells: tuple[str, ...]
    """Fingerprints of the K cells that have a row, in the order that was asked for."""
    wordings: tuple[str, ...]
    """Digest of the texts as each cell read them; chat templates word the same question
    differently."""
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

    def texts_sha256(self, variant: Variant) -> str | None:
        """Return what names the texts of a variant, or None where cells read other wordings.

        Answers are the same in every wording: their name covers the questions' ids alone.
        """
        if variant == "answer":
            return hashlib.sha256(canonical_json(list(self.texts)).encode()).hexdigest()
        return self.wordings[0] if len(set(self.wordings)) == 1 else None

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> "Vectors":
        """Return the vectors of the cells in these rows, in this order."""
        rows = [int(row) for row in rows]
        return replace(
            self,
            cells=tuple(self.cells[row] for row in rows),
            wordings=tuple(self.wordings[row] for row in rows),
            prompt=self.prompt[rows],
            answer=self.answer[rows],
            prompt_tokens=self.prompt_tokens[rows],
            answer_tokens=self.answer_tokens[rows],
            is_cut=self.is_cut[rows],
        )


def load_vectors(store: Store, cells: Iterable[str], measure: LikelihoodMeasure) -> Vectors:
    """Read the likelihoods of the cells with these fingerprints; a name twice counts once.

    Raises: as `read_vectors`.
    """
    return read_vectors(store, cells, measure.fingerprint)


def read_vectors(store: Store, cells: Iterable[str], measure: str) -> Vectors:
    """Read likelihoods by the measure's fingerprint.

    Raises:
        StoreError: if two cells were asked different questions.
        DamagedError: if a record or its table is not what was published.
    """
    found: dict[str, pa.Table] = {}
    missing: dict[str, str] = {}
    wordings: list[str] = []
    for cell in dict.fromkeys(cells):
        folder = store.layout.measure(cell, measure)
        record = store.find(folder)
        if record is None:
            missing[cell] = UNMEASURED
            continue
        table = pq.read_table(check_artifact(folder, record, VECTORS_NAME), use_threads=False)
        if not _is_finite(table):
            missing[cell] = NOT_FINITE
            continue
        first = next(iter(found), cell)
        if found and not found[first]["text"].equals(table["text"]):
            raise StoreError(
                f"{folder}: cell {cell} was asked other questions than cell {first}; expected the "
                f"same texts for all cells. Move the folder away and run the study again."
            )
        wordings.append(str(record.result["texts_sha256"]))
        found[cell] = table
    return _gathered(measure, wordings, found, missing)


def benchmark_likelihoods(vectors: Vectors | None, cells: pd.DataFrame) -> pd.DataFrame:
    """Return how likely each base model finds each benchmark's own texts; one row per pair.

    Columns: cell, model, benchmark, texts_sha256 (the texts as this model reads them: other chat
    templates word a prompt differently), num_texts, num_left_out (texts that some base model did
    not read whole; they count for none, so that n is the same for all), and for each part
    (`prompt`, `answer` after its prompt, `whole`): `<part>_nll` (nats), `<part>_tokens`,
    `<part>_bytes`, `<part>_token_perplexity` and `<part>_token_bits_per_byte`, which can be
    compared across tokenizers; null where the texts lack that part.

    `cells` needs the columns cell, model and epoch.
    """
    base_models = cells.loc[(cells["epoch"] == 0).fillna(False), ["cell", "model"]]
    models = dict(base_models.itertuples(index=False, name=None))
    if vectors is None or not models.keys() & set(vectors.cells):
        return pd.DataFrame()
    bases = vectors.take([row for row, cell in enumerate(vectors.cells) if cell in models])
    is_whole = ~bases.is_cut.any(axis=0)
    groups = np.array(bases.groups)
    rows = []
    for name in dict.fromkeys(bases.groups):
        chosen = is_whole & (groups == name)
        for row, cell in enumerate(bases.cells):
            facts = {"cell": cell, "model": models[cell], "benchmark": name}
            facts |= {"texts_sha256": bases.wordings[row], "num_texts": int(chosen.sum())}
            facts |= {"num_left_out": int((groups == name).sum() - chosen.sum())}
            rows.append(facts | _part_sums(bases, row, chosen))
    return pd.DataFrame(rows)


def _part_sums(vectors: Vectors, row: int, chosen: Bools) -> dict[str, Any]:
    found: dict[str, Any] = {}
    sums = np.zeros(3)
    for part in ("prompt", "answer", "whole"):
        if part != "whole":
            columns = [getattr(vectors, f"{part}{suffix}") for suffix in ("", "_tokens")]
            nll, tokens = (float(column[row, chosen].sum()) for column in columns)
            num_bytes = float(getattr(vectors, f"{part}_bytes")[chosen].sum())
            now = np.array([-nll, tokens, num_bytes])
            sums += now
        else:
            now = sums
        nll, tokens, num_bytes = (float(value) for value in now)
        found |= {f"{part}_nll": nll, f"{part}_tokens": int(tokens)}
        found[f"{part}_bytes"] = int(num_bytes)
        found[f"{part}_token_perplexity"] = np.exp(nll / tokens) if tokens else None
        found[f"{part}_token_bits_per_byte"] = nll / np.log(2) / num_bytes if num_bytes else None
    return found


def _gathered(
    measure: str, wordings: list[str], found: dict[str, pa.Table], missing: dict[str, str]
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
        cells=tuple(found),
        wordings=tuple(wordings),
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
