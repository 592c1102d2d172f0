"""What does a released table say, in its own words and units?

In: nothing but what a reader of one format found. Out: the values as they were written and as
numbers, what is known about each column, and the labels of each row in this project's vocabulary.
The texts are kept because how a number was rounded tells what it was computed from.
"""

from dataclasses import dataclass

import pandas as pd

LABELS = (
    *("model", "family", "languages", "data", "data_kind", "data_group", "samples"),
    *("method", "method_kind", "schedule", "horizon_epochs", "epoch", "seed", "block"),
)
"""Labels of a row. A base model has data, data_kind, method and method_kind `base` and epoch 0;
`data_kind` is `each`, `all` or `leave-one-out` else. `languages` are joined by `;`."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One score column: what it measures, and what its publisher says about it."""

    name: str
    """As in the source."""
    benchmark: str
    """Name in the tables of a study."""
    skill: str
    language: str
    metric: str
    """`rating` is a grade from 1 to 10; all else are fractions of 1."""
    scale: float
    """Factor from the released number to the score: 0.01 for percent."""
    num_items: int | None = None
    """Items that the publisher states, or the benchmark's card; None: not known."""
    num_groups: int | None = None
    """The score is the plain mean over so many groups of items; None: over items."""
    in_mean: bool = True
    """It counts in means over benchmarks: one column per benchmark, no parts of a total."""
    part_of: str | None = None
    """Name of the column that is the plain mean of this one and its like."""


@dataclass(frozen=True, kw_only=True)
class SourceTable:
    """A wide table: one row per model, one column per score."""

    name: str
    sha256: str
    """Of the file or folder that was read."""
    origin: str
    """Path or address, as the user gave it."""
    labels: pd.DataFrame
    """Columns `LABELS`, and `line`: the row's place in the source, from 1; in a file of separated
    values the line of that file, so that the first row is 2."""
    texts: pd.DataFrame
    """Scores as written; null where blank. Rows as `labels`, columns named by `Column.name`."""
    values: pd.DataFrame
    """The same as numbers in released units; NaN where blank."""
    columns: tuple[Column, ...]
    errors: pd.DataFrame | None = None
    """Standard errors that the source gives, in released units; NaN where it gives none."""
    num_items: pd.DataFrame | None = None
    """Items that each score rests on, where that differs between rows; NaN where not known."""
    notes: tuple[str, ...] = ()
    """What the reader took for granted or left out, as sentences."""
