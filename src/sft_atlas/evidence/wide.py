"""How do single scores, each found in its own file, become one wide table?

In: scores with the names of model and column. Out: a source table. What all readers of loose
results need alike is decided here: a column is a fraction of 1, a percentage or a rating for all
models at once, and a file cannot mix them unseen.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from sft_atlas import files
from sft_atlas.errors import DataError
from sft_atlas.evidence.run_labels import BenchmarkEntry, RunLabels, label_runs
from sft_atlas.evidence.source import Column, SourceTable

SCALES: Final = {"percent": 0.01, "fraction": 1.0, "rating": 1.0}


@dataclass(frozen=True, kw_only=True)
class LooseScore:
    """One number that a source gives for one model."""

    model: str
    """As the source names it."""
    column: str
    text: str
    """As written."""
    value: float
    where: str
    """File, or file:line."""
    error: float | None = None
    num_items: int | None = None


def wide_table(
    scores: Sequence[LooseScore],
    columns: Sequence[Column],
    known: RunLabels,
    *,
    origin: Path,
    sha256: str,
    notes: Sequence[str] = (),
) -> SourceTable:
    """Arrange scores as a source table; of two of one model and column the later one counts.

    Raises:
        StudyError: if the labels do not fit the models.
    """
    names = list(dict.fromkeys(score.model for score in scores))
    labels = label_runs(names, known)
    rows = {name: row for row, name in enumerate(names)}
    places = {column.name: place for place, column in enumerate(columns)}
    shape = (len(names), len(columns))
    values, errors, sizes = (np.full(shape, np.nan) for _ in range(3))
    texts = np.full(shape, None, dtype=object)
    for score in scores:
        at = rows[score.model], places[score.column]
        values[at], texts[at] = score.value, score.text
        errors[at] = np.nan if score.error is None else score.error
        sizes[at] = np.nan if score.num_items is None else score.num_items
    header = [column.name for column in columns]
    said = [] if known.lines is not None else [_no_labels(len(names))]
    return SourceTable(
        name=source_name(origin),
        sha256=sha256,
        origin=str(origin),
        labels=labels,
        texts=pd.DataFrame(texts, columns=header, dtype=object),
        values=pd.DataFrame(values, columns=header),
        columns=tuple(columns),
        errors=pd.DataFrame(errors, columns=header),
        num_items=pd.DataFrame(sizes, columns=header),
        notes=(*said, *notes),
    )


def make_column(
    name: str, entry: BenchmarkEntry, *, unit: str, metric: str, in_mean: bool
) -> Column:
    """Describe a column by what is known of its benchmark; `unit` is one of `SCALES`."""
    return Column(
        name=name,
        benchmark=name,
        skill=entry.skill or "",
        language=entry.language or "",
        metric="rating" if unit == "rating" else metric,
        scale=SCALES[unit],
        num_items=entry.items,
        in_mean=in_mean if entry.in_mean is None else entry.in_mean,
    )


def find_unit(column: str, scores: Iterable[LooseScore]) -> str:
    """Tell whether a column holds fractions of 1 or percentages, by its numbers.

    Raises:
        DataError: if it holds both numbers that only a fraction can be (0.412) and larger ones.
    """
    found = [score for score in scores if score.column == column]
    large = [score for score in found if score.value > 1]
    small = [score for score in found if 0 < score.value < 1]
    if large and small:
        raise DataError(
            f"{small[0].where}: {column!r} is {small[0].text} here and {large[0].text} in "
            f"{large[0].where}; expected fractions of 1 or percentages throughout. Say "
            f"`unit: percent` or `unit: fraction` under `benchmarks` in a file of labels."
        )
    return "percent" if large else "fraction"


def digest_files(paths: Sequence[Path], root: Path) -> str:
    """Return one SHA-256 of files: their names below `root` and their bytes."""
    digest = hashlib.sha256()
    for path in paths:
        name = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
        digest.update(f"{name}\0{files.sha256_file(path)}\n".encode())
    return digest.hexdigest()


def source_name(origin: Path) -> str:
    """Make a name that results can be kept under from the name of their file or folder.

    >>> source_name(Path("runs/My results (2)"))
    'My-results-2'
    """
    stem = origin.resolve().stem if origin.is_file() else origin.resolve().name
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "._") else "-" for c in stem)
    words = [word for word in plain.strip("._-").split("-") if word]
    return "-".join(words)[:64] or "imported"


def _no_labels(num_models: int) -> str:
    return (
        f"no file says what the models were trained on, so all {num_models} are taken for base "
        f"models and there is no gain; name one with --labels"
    )
