"""Read a benchmark file: what is asked, of which items, and how is an answer judged?

In: a YAML file of about fifteen lines beside its items. Out: the hashed definition, the sources
of items and examples, and labels. Texts hold places, `{field}` or `{field.part.0}`, that an
item's fields fill; `{{` and `}}` are braces.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple, Self, final

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sft_atlas.errors import StudyError
from sft_atlas.strict_yaml import Lines, load, validate
from sft_atlas.study.source import local_source
from sft_atlas.study.spec import BenchmarkDefinition, BenchmarkSpec, Precision, Source

METRICS = {
    "choice": ("accuracy", "accuracy_bytes"),
    "generate": ("exact_match", "numeric_match"),
}
"""Metrics by kind of benchmark."""


@final
class Place(NamedTuple):
    """A place in a text: the field's name, then list indices or keys inside its value."""

    parts: tuple[str, ...]

    def __str__(self) -> str:
        return f"{{{'.'.join(self.parts)}}}"


@final
@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A benchmark file's content; `build_benchmark_spec` adds what a study decides."""

    name: str
    definition: BenchmarkDefinition
    items: Source
    few_shot: Source | None
    skill: str
    language: str
    licence: str
    path: Path


class _Items(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    path: str | None = None
    """a JSONL, JSON, CSV or Parquet file, relative to the benchmark file"""
    hub: str | None = None
    """the id of a hub dataset, `owner/name`"""
    revision: str | None = None
    """a commit of the hub dataset"""
    config: str | None = None
    """a configuration of the hub dataset"""
    split: str | None = None
    """a split of the hub dataset"""
    file: str | None = None
    """one data file inside the hub dataset"""

    @model_validator(mode="after")
    def _check_one_place(self) -> Self:
        if (self.path is None) == (self.hub is None):
            raise ValueError("needs either path or hub")
        if self.path is not None and self.model_fields_set != {"path"}:
            raise ValueError("path stands alone; revision, config, split and file belong to hub")
        return self


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str = Field(min_length=1)
    """the benchmark's name"""
    version: int = Field(default=1, ge=1)
    """a number that is raised whenever scores can change"""
    kind: Literal["choice", "generate"]
    """choice or generate"""
    items: _Items
    """path, or hub with config, split and revision"""
    few_shot: _Items | None = None
    """path, or hub with config, split and revision, of examples with the items' fields"""
    prompt: str = Field(min_length=1)
    """text with places such as {question}"""
    wrap: bool = True
    """true (the prompt goes into the study's template) or false"""
    answer: str | None = None
    """text with places; {field} alone may hold a list of accepted answers"""
    choices: str | tuple[str, ...] | None = None
    """the field that lists the options, or a list of texts with places"""
    label: str | None = None
    """the field with the right option's index (from 0) or letter (from A)"""
    metric: Literal["exact_match", "numeric_match", "accuracy", "accuracy_bytes"]
    """accuracy or accuracy_bytes (choice), exact_match or numeric_match (generate)"""
    pattern: str | None = None
    """a regular expression with one group, the answer inside the text"""
    max_new_tokens: int = Field(default=64, ge=1)
    """a number of tokens, at least 1"""
    stop: tuple[str, ...] = ()
    """a list of texts before which decoding ends"""
    skill: str = ""
    """a label for tables"""
    language: str = ""
    """a label for tables"""
    licence: str = ""
    """the licence of the items"""


def load_benchmark(path: Path) -> Benchmark:
    """Read a benchmark file; local items are digested, so that a changed file is another benchmark.

    Raises:
        StudyError: with file and line, for YAML faults, unknown keys, wrong types, fields that do
            not belong to the kind, places that do not parse, or a pattern without exactly one
            group.
    """
    content, lines = load(path)
    file = validate(_File, content, lines)
    _check_kind(file, lines)
    _check_texts(file, lines)
    definition = BenchmarkDefinition(
        kind=file.kind,
        prompt=file.prompt,
        wrap=file.wrap,
        answer=file.answer,
        choices=_as_place(file.choices) if isinstance(file.choices, str) else file.choices,
        label=None if file.label is None else file.label.strip("{}"),
        metric=file.metric,
        pattern=file.pattern,
        max_new_tokens=file.max_new_tokens,
        stop=file.stop,
        version=file.version,
    )
    return Benchmark(
        name=file.name,
        definition=definition,
        items=_source(file.items, path),
        few_shot=None if file.few_shot is None else _source(file.few_shot, path),
        skill=file.skill,
        language=file.language,
        licence=file.licence,
        path=path,
    )


def build_benchmark_spec(
    benchmark: Benchmark,
    *,
    template: str,
    max_tokens: int,
    shots: int = 0,
    limit: int | None = None,
    name: str | None = None,
    precision: Precision = "float32",
) -> BenchmarkSpec:
    """Add what a study decides; examples that are not shown never enter the identity.

    Raises:
        StudyError: if shots are wanted of a benchmark that has no examples.
    """
    if shots > 0 and benchmark.few_shot is None:
        raise StudyError(
            f"{benchmark.path}: has no few_shot examples, and {shots} are wanted; "
            f"write shots: 0, or add few_shot to the file."
        )
    return BenchmarkSpec(
        definition=benchmark.definition,
        items=benchmark.items,
        few_shot=benchmark.few_shot if shots > 0 else None,
        shots=shots,
        limit=limit,
        template=template,
        max_tokens=max_tokens,
        precision=precision,
        name=benchmark.name if name is None else name,
        skill=benchmark.skill,
        language=benchmark.language,
    )


@lru_cache(maxsize=1024)
def parse_text(text: str) -> tuple[str | Place, ...]:
    """Split a text into literal parts and places.

    Raises:
        ValueError: for a single brace, or a place without a name.

    >>> parse_text("{{x}} is {choices.0}.")
    ('{', 'x', '}', ' is ', Place(parts=('choices', '0')), '.')
    """
    parts: list[str | Place] = []
    for token in re.findall(r"\{\{|\}\}|\{[^{}]*\}|[{}]|[^{}]+", text):
        if token in ("{{", "}}"):
            parts.append(token[0])
        elif token in ("{", "}"):
            raise ValueError(f"a single {token!r} stands in {text!r}; double it to mean a brace")
        elif token.startswith("{"):
            names = tuple(token[1:-1].split("."))
            if not all(name.strip() for name in names):
                raise ValueError(f"place {token!r} has no name; write {{field}} or {{field.0}}")
            parts.append(Place(names))
        else:
            parts.append(token)
    return tuple(parts)


def _check_kind(file: _File, lines: Lines) -> None:
    wanted: str = "answer"
    foreign: tuple[str, ...] = ("choices", "label")
    if file.kind == "choice":
        wanted, foreign = "choices", ("answer", "pattern", "stop", "max_new_tokens")
        if file.label is None:
            raise StudyError(f"{lines.where()}: label is missing; a choice benchmark needs it.")
    if wanted not in file.model_fields_set:
        raise StudyError(f"{lines.where()}: {wanted} is missing; kind {file.kind} needs it.")
    for key in foreign:
        if key in file.model_fields_set:
            raise StudyError(
                f"{lines.where(key)}: {key} does not belong to kind {file.kind}; remove it."
            )
    if file.metric not in METRICS[file.kind]:
        names = " or ".join(METRICS[file.kind])
        raise StudyError(
            f"{lines.where('metric')}: metric {file.metric} does not fit kind {file.kind}; "
            f"use {names}."
        )


def _check_texts(file: _File, lines: Lines) -> None:
    options = file.choices if isinstance(file.choices, tuple) else ()
    texts = [("prompt", file.prompt), ("answer", file.answer or "")]
    for key, text in [*texts, *(("choices", option) for option in options)]:
        try:
            parse_text(text)
        except ValueError as error:
            raise StudyError(f"{lines.where(key)}: {key}: {error}.") from error
    if isinstance(file.choices, tuple) and len(file.choices) < 2:
        raise StudyError(f"{lines.where('choices')}: choices lists fewer than two options.")
    if any(not text for text in file.stop):
        raise StudyError(f"{lines.where('stop')}: an empty stop text ends every answer; remove it.")
    if file.pattern is not None:
        _check_pattern(file.pattern, lines)


def _check_pattern(pattern: str, lines: Lines) -> None:
    where = lines.where("pattern")
    try:
        num_groups = re.compile(pattern).groups
    except re.error as error:
        raise StudyError(f"{where}: pattern is no regular expression ({error}).") from error
    if num_groups != 1:
        raise StudyError(
            f"{where}: pattern has {num_groups} groups; expected one, the answer. "
            f"Write (?:...) for a group that only holds together."
        )


def _as_place(text: str) -> str:
    return text if text.startswith("{") else f"{{{text}}}"


def _source(items: _Items, path: Path) -> Source:
    if items.path is not None:
        return local_source(path.parent / items.path)
    return Source(
        hub=items.hub,
        revision=items.revision,
        config=items.config,
        split=items.split,
        file=items.file,
    )
