"""What do results that somebody else measured say, and how far can they be trusted?

In: a file or folder of a known kind. Out: its scores as the tables of a study, twice: as released,
and with what the tests found treated. Both are kept because a reader who compares with the
publisher's own figures needs the first, and an answer needs the second.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sft_atlas.errors import DataError
from sft_atlas.evidence.defect import Defect
from sft_atlas.evidence.massive_sft import read_massive_sft
from sft_atlas.evidence.source import SourceTable
from sft_atlas.evidence.tidy import tidy_tables
from sft_atlas.evidence.treatment import source_rows
from sft_atlas.store.tables import Tables
from sft_atlas.strict_yaml import did_you_mean

KINDS: Final = ("massive-sft",)


@dataclass(frozen=True, kw_only=True)
class Imported:
    """The results of one source."""

    name: str
    """What the store and the report call it."""
    kind: str
    origin: str
    """Path or address, as the user gave it."""
    sha256: str
    """Of the file or folder."""
    tables: Tables
    """With the defects treated."""
    released: Tables
    """As published."""
    defects: tuple[Defect, ...]
    checks: tuple[str, ...]
    """What was tested and found right, as sentences."""


def import_results(kind: str, path: Path, *, name: str | None = None) -> Imported:
    """Read a source of one of `KINDS`, test it, and form its tables; nothing is stored.

    Raises:
        DataError: for an unknown kind or a source that cannot be read.
    """
    source = _read(kind, path)
    defects: tuple[Defect, ...] = ()
    return Imported(
        name=name or source.name,
        kind=kind,
        origin=source.origin,
        sha256=source.sha256,
        tables=tidy_tables(source_rows(source, defects)),
        released=tidy_tables(source_rows(source)),
        defects=defects,
        checks=(),
    )


def _read(kind: str, path: Path) -> SourceTable:
    if kind == "massive-sft":
        return read_massive_sft(path)
    raise DataError(f"no importer {kind!r}; {did_you_mean(kind, KINDS)}")
