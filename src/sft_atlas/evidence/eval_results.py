"""What do the evaluation results in model repositories of the Hugging Face hub say?

In: a folder of repositories with `.eval_results/*.yaml` (huggingface.co/docs/hub/eval-results), or
one such repository. Out: one row per repository, one column per benchmark and task. The one
decision: the format does not say whether 20.9 is a percentage, so a column is read as one where a
value is above 1, and a column that mixes both is refused until the user says which it is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict

from sft_atlas.errors import DataError
from sft_atlas.evidence.run_labels import RunLabels
from sft_atlas.evidence.source import Column, SourceTable
from sft_atlas.evidence.wide import LooseScore, digest_files, find_unit, make_column, wide_table
from sft_atlas.strict_yaml import load, validate

_FOLDER: Final = ".eval_results"


class _Benchmark(BaseModel):
    model_config = ConfigDict(extra="ignore", use_attribute_docstrings=True)

    id: str
    """The benchmark's repository on the hub."""
    task_id: str
    """The name of a task in it, such as default."""


class _Entry(BaseModel):
    model_config = ConfigDict(extra="ignore", use_attribute_docstrings=True)

    dataset: _Benchmark
    """The benchmark: id and task_id."""
    value: float
    """The score, a number."""
    date: str | None = None
    notes: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Found:
    model: str
    entry: _Entry
    where: str


def read_eval_results(path: Path, known: RunLabels) -> SourceTable:
    """Read the results of any number of repositories.

    Raises:
        DataError: if there are none, or a column mixes fractions and percentages.
        StudyError: with file and line, for a file of another form, or labels that do not fit.
    """
    paths = sorted(path.rglob(f"{_FOLDER}/*.yaml")) if path.is_dir() else []
    if not paths:
        raise DataError(
            f"{path}: has no {_FOLDER}/*.yaml; expected a folder with model repositories of the "
            f"hub, such as ORGANISATION/MODEL/{_FOLDER}/gsm8k.yaml."
        )
    found = [
        result
        for file in paths
        if known.is_kept(_model_name(file, path))
        for result in _results(file, path)
    ]
    # Of two results of one benchmark the newer counts.
    found.sort(key=lambda result: result.entry.date or "")
    scores = [
        LooseScore(
            model=result.model,
            column=_column_name(result.entry),
            text=repr(result.entry.value),
            value=result.entry.value,
            where=result.where,
        )
        for result in sorted(found, key=lambda result: result.model)
    ]
    num_again = len(scores) - len({(score.model, score.column) for score in scores})
    digested = [*paths, *([known.lines.path] if known.lines is not None else [])]
    return wide_table(
        scores,
        _columns(found, scores, known),
        known,
        origin=path,
        sha256=digest_files(digested, path),
        notes=[f"results given again, of which the newest counts: {num_again}"] * bool(num_again),
    )


def _model_name(file: Path, root: Path) -> str:
    """Path of the repository below the folder that was named; its own name, if it is that."""
    name = file.parent.parent.relative_to(root).as_posix()
    return root.resolve().name if name == "." else name


def _results(file: Path, root: Path) -> Iterator[_Found]:
    value, lines = load(file)
    if not isinstance(value, list):
        raise DataError(f"{file}:1: is no list; expected a list of results with dataset and value.")
    for place, item in enumerate(value):
        entry = validate(_Entry, item, lines, place)
        yield _Found(
            model=_model_name(file, root), entry=entry, where=f"{file}:{lines.line(place)}"
        )


def _column_name(entry: _Entry) -> str:
    name = entry.dataset.id
    if entry.dataset.task_id not in ("default", ""):
        name = f"{name}/{entry.dataset.task_id}"
    return f"{name} ({entry.notes})" if entry.notes else name


def _columns(
    found: Sequence[_Found], scores: Sequence[LooseScore], known: RunLabels
) -> list[Column]:
    columns = []
    for name in dict.fromkeys(_column_name(result.entry) for result in found):
        entry = known.benchmark(name)
        unit = entry.unit or find_unit(name, scores)
        columns.append(make_column(name, entry, unit=unit, metric="accuracy", in_mean=True))
    return columns
