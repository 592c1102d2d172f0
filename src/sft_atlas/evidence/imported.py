"""What do results that somebody else measured say, and how far can they be trusted?

In: a file or folder of a known kind. Out: its scores as the tables of a study, twice: as released,
and with what the tests found treated. Both are kept because a reader who compares with the
publisher's own figures needs the first, and an answer needs the second.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal, get_args

from sft_atlas.errors import DataError
from sft_atlas.evidence.defect import Defect
from sft_atlas.evidence.defects import find_defects, passed_checks
from sft_atlas.evidence.eval_results import read_eval_results
from sft_atlas.evidence.lm_eval_results import read_lm_eval
from sft_atlas.evidence.massive_sft import read_massive_sft
from sft_atlas.evidence.opencompass import read_opencompass
from sft_atlas.evidence.run_labels import read_run_labels
from sft_atlas.evidence.source import SourceTable
from sft_atlas.evidence.tidy import tidy_tables
from sft_atlas.evidence.treatment import source_rows
from sft_atlas.store.tables import Tables
from sft_atlas.strict_yaml import did_you_mean

Kind = Literal["massive-sft", "lm-eval", "opencompass", "eval-results"]
KINDS: Final = get_args(Kind)

_READERS: Final = {
    "lm-eval": read_lm_eval,
    "opencompass": read_opencompass,
    "eval-results": read_eval_results,
}

IMPORTER: Final = 1
"""Raised when the same source gives other tables or defects."""


@dataclass(frozen=True, kw_only=True)
class Imported:
    """The results of one source."""

    name: str
    """What the store and the report call it."""
    kind: str
    """One of `KINDS`."""
    origin: str
    """Path or address, as the user gave it."""
    sha256: str
    """Of the file or folder."""
    tables: Tables
    """With the defects treated."""
    released: Tables
    """As published; the cells are the same."""
    defects: tuple[Defect, ...]
    checks: tuple[str, ...]
    """What was tested and found right, as sentences."""
    notes: tuple[str, ...] = ()
    """What was taken for granted or left out when it was read, as sentences."""

    def counts(self) -> dict[str, int]:
        """Return the numbers of base models, runs (cells), benchmarks and scores.

        `num_missing_cells` are runs that the source's own pattern implies and that it lacks;
        `num_treated` are scores and gains that are not as released.
        """
        cells, scores = self.tables.cells, self.tables.scores
        is_base = cells["method"] == "base"
        is_done = cells["state"] == "done"
        old = self.released.scores
        num_treated = sum(
            int(((scores[name] != old[name]) & ~(scores[name].isna() & old[name].isna())).sum())
            for name in ("score", "gain")
        )
        return {
            "num_models": int(cells["model"].nunique()),
            "num_base_cells": int(is_base.sum()),
            "num_cells": int((~is_base & is_done).sum()),
            "num_missing_cells": int((~is_base & ~is_done).sum()),
            "num_trajectories": int(cells.loc[is_done, "trajectory"].nunique()),
            "num_benchmarks": int(scores["benchmark"].nunique()),
            "num_scores": int(old["score"].notna().sum()),
            "num_treated": num_treated,
        }


def import_results(
    kind: str,
    path: Path,
    *,
    name: str | None = None,
    labels: Path | None = None,
    origin: str | None = None,
) -> Imported:
    """Read a source of one of `KINDS`, test it, and form its tables; nothing is stored.

    Args:
        kind: what wrote it.
        path: the file or folder.
        name: what to call it; None: the source's own name.
        labels: file that says what each model was trained on (docs/evidence.md).
        origin: where it came from, if not from `path`.

    Raises:
        DataError: for an unknown kind or a source that cannot be read.
        StudyError: for a wrong file of labels.
    """
    source = _read(kind, path, labels)
    if not source.values.notna().to_numpy().any():
        raise DataError(f"{source.origin}: has no score; expected at least one.")
    defects = find_defects(source)
    released = tidy_tables(source_rows(source))
    treated = tidy_tables(source_rows(source, defects)) if defects else released
    # A run whose scores are all left out was still run.
    scores = treated.scores.assign(state=released.scores["state"])
    return Imported(
        name=name or source.name,
        kind=kind,
        origin=origin or source.origin,
        sha256=source.sha256,
        tables=replace(treated, cells=released.cells, scores=scores),
        released=released,
        defects=defects,
        checks=passed_checks(source),
        notes=source.notes,
    )


def _read(kind: str, path: Path, labels: Path | None) -> SourceTable:
    if kind == "massive-sft":
        if labels is not None:
            raise DataError(
                f"{labels}: is not used; a {kind} table has its labels. Leave --labels out."
            )
        return read_massive_sft(path)
    if kind not in _READERS:
        raise DataError(f"no importer {kind!r}; {did_you_mean(kind, KINDS)}")
    return _READERS[kind](path, read_run_labels(labels))
