"""What was each model of a source trained on?

In: a small YAML file that a user writes beside results, because no evaluation program knows it.
Out: labels of the runs in this project's vocabulary, and what is known of the benchmarks. The one
decision: without a file every model is a base model, and nothing is guessed from a name; with a
file every model must be in it, so that no fine-tune passes for a base model by mistake.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, Literal, TypeVar

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from sft_atlas.catalog.cards import find_benchmark, find_dataset, find_hub_model, find_model
from sft_atlas.errors import CatalogError, StudyError
from sft_atlas.evidence.massive_sft import block_names
from sft_atlas.evidence.source import LABELS
from sft_atlas.strict_yaml import Lines, did_you_mean, load, validate

NOT_STATED: Final = "schedule not stated"

T = TypeVar("T")


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class RunEntry(_Entry):
    """One model of the source; without `data` it is a base model."""

    model: str
    """The name of a base model."""
    data: str | None = None
    kind: Literal["each", "all", "leave-one-out", "mixture"] = "each"
    method: str | None = None
    """Any name; it is LoRA where the name has `lora` in it."""
    samples: int | None = Field(default=None, gt=0)
    epoch: int | None = Field(default=None, gt=0)
    epochs: int | None = Field(default=None, gt=0)
    """Epochs that were planned; null: the largest of the block."""
    schedule: str = NOT_STATED
    seed: int = 0


class ModelEntry(_Entry):
    """A base model."""

    family: str = ""
    languages: tuple[str, ...] = ()


class DatasetEntry(_Entry):
    """A training set."""

    group: str = ""


class BenchmarkEntry(_Entry):
    """A column of the source; what is absent comes from the catalog, if it has the name."""

    skill: str | None = None
    language: str | None = None
    unit: Literal["percent", "fraction", "rating"] | None = None
    items: int | None = Field(default=None, gt=0)
    in_mean: bool | None = None
    metric: str | None = None
    """Which of several metrics counts, as the source names it."""


class LabelFile(_Entry):
    """All that a user can say about a source."""

    runs: dict[str, RunEntry] = Field(default_factory=dict)
    models: dict[str, ModelEntry] = Field(default_factory=dict)
    datasets: dict[str, DatasetEntry] = Field(default_factory=dict)
    benchmarks: dict[str, BenchmarkEntry] = Field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    """Models of the source that are left out."""


@dataclass(frozen=True, kw_only=True)
class RunLabels:
    """What a file says, or nothing."""

    content: LabelFile
    lines: Lines | None
    """None: there is no file."""

    def is_kept(self, name: str) -> bool:
        """Tell whether a model of the source is to be read."""
        return name not in self.content.ignore

    def benchmark(self, name: str) -> BenchmarkEntry:
        """Return what is known of a benchmark: from the file, else from the catalog."""
        entry = self.content.benchmarks.get(name, BenchmarkEntry())
        card = _card(find_benchmark, name)
        if card is None:
            return entry
        found = {"skill": card.skill, "language": card.language, "items": card.items}
        stated = entry.model_dump(exclude_none=True)
        return BenchmarkEntry.model_validate(found | stated)


def read_run_labels(path: Path | None) -> RunLabels:
    """Read a file of labels; None: there is none.

    Raises:
        StudyError: with file and line, for what is not in the form of docs/evidence.md.
    """
    if path is None:
        return RunLabels(content=LabelFile(), lines=None)
    value, lines = load(path)
    found = RunLabels(content=validate(LabelFile, value, lines), lines=lines)
    for name, run in found.content.runs.items():
        needed = {"method": run.method, "samples": run.samples, "epoch": run.epoch}
        absent = [key for key, stated in needed.items() if stated is None]
        if run.data is not None and absent:
            raise StudyError(
                f"{lines.where('runs', name)}: {name!r} has data and no {absent[0]}; expected "
                f"data, method, samples and epoch for a tuned model. Add what is absent."
            )
        if run.data is None and len(absent) < len(needed):
            raise StudyError(
                f"{lines.where('runs', name)}: {name!r} has training and no data; expected data, "
                f"method, samples and epoch, or only `model` for a base model."
            )
    return found


def label_runs(names: Sequence[str], known: RunLabels) -> pd.DataFrame:
    """Return the labels of a source's models: columns `line` (from 1) and `LABELS`.

    Raises:
        StudyError: for a model that the file does not name, and two of the same labels.
    """
    runs = [_entry(name, known) for name in names]
    bases = [run.data is None for run in runs]
    facts = {run.model: _model_facts(run.model, known) for run in runs}
    labels = pd.DataFrame(
        {
            "line": range(1, len(runs) + 1),
            "model": [run.model for run in runs],
            "family": [facts[run.model].family for run in runs],
            "languages": [";".join(facts[run.model].languages) for run in runs],
            "data": [run.data or "base" for run in runs],
            "data_kind": ["base" if run.data is None else run.kind for run in runs],
            "data_group": [_group(run, known) for run in runs],
            "samples": pd.array([run.samples for run in runs], dtype="Int64"),
            "method": [run.method or "base" for run in runs],
            "method_kind": [_method_kind(run.method) for run in runs],
            "schedule": [None if run.data is None else run.schedule for run in runs],
            "epoch": pd.array([run.epoch or 0 for run in runs], dtype="Int64"),
            "seed": pd.array([None if run.data is None else run.seed for run in runs], "Int64"),
        }
    )
    labels["block"] = block_names(labels)
    stated = pd.Series(pd.array([run.epochs for run in runs], dtype="Int64"))
    last = stated.fillna(labels.groupby("block")["epoch"].transform("max"))
    labels["horizon_epochs"] = last.mask(pd.Series(bases))
    labels = labels[["line", *LABELS]]
    _refuse_repeated(names, labels, known)
    return labels


def _entry(name: str, known: RunLabels) -> RunEntry:
    if known.lines is None:
        return RunEntry(model=name)
    found = known.content.runs.get(name)
    if found is None:
        raise StudyError(
            f"{known.lines.path}: says nothing of {name!r}; expected every model of the source "
            f"under `runs`, or under `ignore`. {did_you_mean(name, known.content.runs)}"
        )
    return found


def _refuse_repeated(names: Sequence[str], labels: pd.DataFrame, known: RunLabels) -> None:
    is_again = labels.duplicated(list(LABELS)).to_numpy()
    if not is_again.any():
        return
    row = int(is_again.argmax())
    keys = [tuple(values) for values in labels[list(LABELS)].astype("string").to_numpy()]
    first = keys.index(keys[row])
    where = "" if known.lines is None else f"{known.lines.where('runs', names[row])}: "
    raise StudyError(
        f"{where}{names[row]!r} has the same labels as {names[first]!r}; expected one model for "
        f"each run. Give them other seeds, or put one under `ignore`."
    )


def _model_facts(name: str, known: RunLabels) -> ModelEntry:
    stated = known.content.models.get(name)
    if stated is not None:
        return stated
    card = find_hub_model(name) if "/" in name else _card(find_model, name)
    return (
        ModelEntry() if card is None else ModelEntry(family=card.family, languages=card.languages)
    )


def _group(run: RunEntry, known: RunLabels) -> str | None:
    if run.data is None:
        return None
    if run.kind != "each":
        return "mixed"
    stated = known.content.datasets.get(run.data)
    if stated is not None:
        return stated.group
    card = _card(find_dataset, run.data)
    return "" if card is None else card.group


def _method_kind(method: str | None) -> str:
    if method is None:
        return "base"
    return "lora" if "lora" in method.lower() else "full"


@cache
def _card(find: Callable[[str], T], name: str) -> T | None:
    try:
        return find(name)
    except CatalogError:
        return None
