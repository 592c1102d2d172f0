"""What does a table of separated values say, field by field, and on which line?

In: a file that anyone may have written: with commas, semicolons or tabs, in UTF-8 or UTF-16, with a
decimal point or comma. Out: its fields as text with line numbers, and columns of them as numbers. A
number that was read wrongly is worse than a file that was refused, so whatever can be read in two
ways is an error with its line.
"""

import codecs
import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from sft_atlas.errors import DataError

MAX_BYTES: Final = 1 << 30

BLANKS: Final = ("", "-", "na", "n/a", "nan", "none", "null")
"""Texts that stand for no value, in any case."""

_SEPARATORS: Final = (",", ";", "\t")
_POINT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_COMMA = re.compile(r"[-+]?(\d+,\d*|,\d+)([eE][-+]?\d+)?")
_SHOWN_CHARACTERS: Final = 60


@dataclass(frozen=True, kw_only=True)
class TextTable:
    """The fields of a file, stripped of space around them."""

    path: Path
    fields: pd.DataFrame
    """Texts; columns are the header's names."""
    lines: "pd.Series[int]"
    """Line of each row in the file, from 1; rows as `fields`."""

    def where(self, row: int) -> str:
        """Return `file:line` of a row, counted from 0."""
        return f"{self.path}:{int(self.lines.iloc[row])}"


def read_text_table(path: Path) -> TextTable:
    """Read a file whose first line names its columns.

    Raises:
        DataError: with file and line, if it is no file or no text, has no rows, rows of other
            lengths than the header, or a name twice.
    """
    text = _read_text(path)
    first = text.split("\n", 1)[0]
    separator = max(_SEPARATORS, key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows: list[list[str]] = []
    lines: list[int] = []
    names: list[str] = []
    start = 1
    try:
        for row in reader:
            if not names:
                names = _header(path, row)
            elif any(map(str.strip, row)):
                if len(row) != len(names):
                    raise DataError(
                        f"{path}:{start}: has {len(row)} fields; the header has {len(names)}. "
                        f"Write one field for each column."
                    )
                rows.append(row)
                lines.append(start)
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{path}:{start}: is no table of separated values ({error}). "
            f"Write it again with a program that quotes fields as RFC 4180 says."
        ) from error
    if not rows:
        raise DataError(f"{path}: has a header and no rows; expected one row per model.")
    fields = pd.DataFrame(rows, columns=names, dtype="str")
    fields = fields.apply(lambda column: column.str.strip())
    return TextTable(path=path, fields=fields, lines=pd.Series(lines, dtype="int64"))


def read_numbers(table: TextTable, names: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return columns as (texts with a decimal point or null, numbers or NaN).

    A decimal comma is read as such where no field of these columns has a decimal point.

    Raises:
        DataError: with file and line, for what is no finite number, and for both marks in one file.
    """
    written = table.fields[list(names)]
    texts = written.mask(written.apply(lambda column: column.str.lower().isin(BLANKS)))
    has_comma = texts.apply(lambda column: column.str.fullmatch(_COMMA, na=False)).to_numpy(bool)
    has_point = texts.apply(lambda column: column.str.contains(".", regex=False, na=False))
    if has_comma.any():
        row, place = _first(has_comma)
        if has_point.to_numpy(bool).any():
            other, other_place = _first(has_point.to_numpy(bool))
            raise DataError(
                f"{table.where(row)}: column {names[place]!r} holds {texts.iat[row, place]!r} and "
                f"line {int(table.lines.iloc[other])} holds {texts.iat[other, other_place]!r}; "
                f"expected one decimal mark. Write all numbers with a decimal point."
            )
        texts = texts.apply(lambda column: column.str.replace(",", ".", regex=False))
    is_number = texts.apply(lambda column: column.str.fullmatch(_POINT, na=True)).to_numpy(bool)
    if not is_number.all():
        row, place = _first(~is_number)
        shown = str(written.iat[row, place])[:_SHOWN_CHARACTERS]
        raise DataError(
            f"{table.where(row)}: column {names[place]!r} holds {shown!r}; expected a finite "
            f"number such as 45.3, or nothing where there is no score."
        )
    values = texts.astype("float64")
    is_finite = np.isfinite(values.to_numpy()) | values.isna().to_numpy()
    if not is_finite.all():
        row, place = _first(~is_finite)
        raise DataError(
            f"{table.where(row)}: column {names[place]!r} holds {texts.iat[row, place]!r}, which "
            f"is too large for a number; expected a score."
        )
    return texts.astype(object).where(texts.notna(), None), values


def _first(found: "np.ndarray[tuple[int, int], np.dtype[np.bool_]]") -> tuple[int, int]:
    """Row and column of the first true value, row by row."""
    row, column = np.unravel_index(int(found.argmax()), found.shape)
    return int(row), int(column)


def _header(path: Path, row: list[str]) -> list[str]:
    names = [name.strip() for name in row]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f"{path}:1: names {twice[0]!r} twice; expected each column once. Rename or remove one."
        )
    return names


def _read_text(path: Path) -> str:
    if path.is_dir():
        raise DataError(f"{path}: is a folder; expected a file of comma-separated values.")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(
                f"{path}: is larger than {MAX_BYTES >> 30} GiB; expected a table of scores. "
                f"Remove columns that are not scores, or split it."
            )
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); expected a file of comma-separated values."
        ) from error
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{line}: is not UTF-8 or UTF-16 text; save the table as UTF-8."
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(f"{path}:{line}: has a null character; save the table as UTF-8 text.")
    if not text.strip():
        raise DataError(f"{path}: is empty; expected a header and one row per model.")
    return text
