"""Read a hand-written YAML file: what does it say, at which line, and where is it wrong?

In: a path, or a value and the pydantic model that it must fit. Out: plain Python values with the
line of each, or one `StudyError` that lists every fault as `file:line: what is wrong`. The file is
read event by event and not by a general loader, so that aliases (which can grow without bound),
repeated keys and tags are refused before anything is built, and scalars follow YAML 1.2: `1e-5` is
a number and `no` is text.
"""

import difflib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from sft_atlas.errors import StudyError

MAX_BYTES: Final = 1 << 20
MAX_DEPTH: Final = 24
MAX_NODES: Final = 50_000

Key = str | int
ModelT = TypeVar("ModelT", bound=BaseModel)

_MAX_SHOWN = 20
_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_BOOL = {
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INT = re.compile(r"[-+]?[0-9]{1,400}|0o[0-7]{1,400}|0x[0-9a-fA-F]{1,400}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


@dataclass(frozen=True, slots=True)
class Lines:
    """Where each value of a loaded file stands."""

    path: Path
    numbers: Mapping[tuple[Key, ...], int]
    """Line, counted from 1, by the keys and list indices that lead to a value."""

    def where(self, *at: Key) -> str:
        """Return `file:line` of a value, or of the nearest thing around it that the file has."""
        return f"{self.path}:{self.line(*at)}"

    def line(self, *at: Key) -> int:
        """Return the line of a value, or of the nearest thing around it that the file has."""
        while at not in self.numbers:
            at = at[:-1]
        return self.numbers[at]


def load(path: Path) -> tuple[Any, Lines]:
    """Parse one YAML document into None, bool, int, float, str, list and dict with text keys.

    Raises:
        StudyError: with file and line, for what is not YAML, an anchor, alias or tag, a repeated
            key, a key that is not text, infinity or NaN, a second document, or a file beyond
            `MAX_BYTES`, `MAX_DEPTH` or `MAX_NODES`.
    """
    text = _read_text(path)
    numbers: dict[tuple[Key, ...], int] = {(): 1}
    reader = _Reader(path, iter(YAML(typ="safe", pure=True).parse(text)), numbers)
    try:
        return reader.read_document(), Lines(path, numbers)
    except YAMLError as error:
        raise _syntax_error(path, error) from error


def validate(model: type[ModelT], value: object, lines: Lines, *at: Key) -> ModelT:
    """Return a value as a pydantic model, checked without any conversion of types.

    `at` leads to the value inside the file. Sequences of the file fit tuples of the model.

    Raises:
        StudyError: one line for each fault (at most 20), in the order of the file, with what was
            expected and, for an unknown key, the nearest key that exists.
    """
    if not isinstance(value, dict):
        raise StudyError(f"{lines.where(*at)}: expected keys and values, got {_shown(value)}.")
    try:
        return model.model_validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        found = error.errors(include_url=False)
    faults = [_fault(details, model, lines, at) for details in found]
    # A union reports one fault for each of its members; the first at a place is the one to read.
    unique = {(fault.line, fault.place): fault for fault in reversed(faults)}
    ordered = sorted(unique.values(), key=lambda fault: fault.line)
    shown = [f"{lines.path}:{fault.line}: {fault.text}" for fault in ordered[:_MAX_SHOWN]]
    if len(ordered) > _MAX_SHOWN:
        shown.append(f"... and {len(ordered) - _MAX_SHOWN} more.")
    raise StudyError("\n".join(shown))


def did_you_mean(name: str, names: Iterable[str], *, kind: str = "Names") -> str:
    """Return `did you mean x? Names: ...`, closest first; without a close name only the list.

    >>> did_you_mean("alpca", ["lima", "alpaca"])
    'did you mean alpaca? Names: alpaca, lima.'
    """
    known = sorted(set(names))
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    rest = [other for other in known if other not in close]
    listed = close + rest
    shown = ", ".join(listed[:10]) + (", ..." if len(listed) > 10 else "")
    return (f"did you mean {close[0]}? " if close else "") + f"{kind}: {shown or 'none'}."


class _Reader:
    """Builds values from parser events; recursion is bounded by `MAX_DEPTH`."""

    def __init__(
        self, path: Path, events: Iterator[Event], numbers: dict[tuple[Key, ...], int]
    ) -> None:
        self._path = path
        self._events = events
        self._numbers = numbers

    def read_document(self) -> Any:
        documents = 0
        value = None
        for event in self._events:
            if isinstance(event, DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise self._error(event, "a second document begins; write one study per file")
                value = self._value(next(self._events), ())
        return value

    def _value(self, event: Event, at: tuple[Key, ...]) -> Any:
        self._check(event, at)
        if isinstance(event, MappingStartEvent):
            return self._mapping(at)
        if isinstance(event, SequenceStartEvent):
            return self._sequence(at)
        assert isinstance(event, ScalarEvent)
        return self._scalar(event)

    def _mapping(self, at: tuple[Key, ...]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        while not isinstance(event := next(self._events), MappingEndEvent):
            self._check(event, at)
            if not isinstance(event, ScalarEvent):
                raise self._error(event, "a key must be text, not a list or mapping")
            key = self._scalar(event)
            if not isinstance(key, str):
                raise self._error(event, f"key {event.value!r} is not text; quote it")
            if key in result:
                first = f"it first stands in line {self._numbers[(*at, key)]}"
                raise self._error(event, f"key {key!r} is repeated; {first}")
            self._numbers[(*at, key)] = event.start_mark.line + 1
            result[key] = self._value(next(self._events), (*at, key))
        return result

    def _sequence(self, at: tuple[Key, ...]) -> list[Any]:
        result: list[Any] = []
        while not isinstance(event := next(self._events), SequenceEndEvent):
            place = (*at, len(result))
            self._numbers[place] = event.start_mark.line + 1
            result.append(self._value(event, place))
        return result

    def _scalar(self, event: ScalarEvent) -> Any:
        text: str = event.value
        if event.style is not None:
            return text
        if text in _NULL:
            return None
        if text in _BOOL:
            return _BOOL[text]
        if _NOT_FINITE.fullmatch(text):
            raise self._error(event, f"{text} is not a finite number")
        if _INT.fullmatch(text):
            return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
        if _FLOAT.fullmatch(text):
            number = float(text)
            if not math.isfinite(number):
                raise self._error(event, f"{_shown(text)} is too large for a number")
            return number
        return text

    def _check(self, event: Event, at: tuple[Key, ...]) -> None:
        if isinstance(event, AliasEvent):
            raise self._error(event, f"alias *{event.anchor} is not allowed; write the value again")
        assert isinstance(event, ScalarEvent | MappingStartEvent | SequenceStartEvent)
        if event.anchor is not None:
            raise self._error(event, f"anchor &{event.anchor} is not allowed; write the value out")
        if event.ctag is not None:
            raise self._error(event, f"tag {event.ctag} is not allowed; remove it")
        if len(at) > MAX_DEPTH:
            raise self._error(event, f"values are nested deeper than {MAX_DEPTH} levels")
        if len(self._numbers) > MAX_NODES:
            raise self._error(event, f"more than {MAX_NODES} values; split the file")

    def _error(self, event: Event, what: str) -> StudyError:
        return StudyError(f"{self._path}:{event.start_mark.line + 1}: {what}.")


@dataclass(frozen=True, slots=True)
class _Fault:
    line: int
    place: str
    text: str


def _fault(
    details: ErrorDetails, model: type[BaseModel], lines: Lines, at: tuple[Key, ...]
) -> _Fault:
    """Turn pydantic's error into a sentence about the file."""
    path, models, expected = _walk(details["loc"], model, lines, at)
    place = _place(path)
    kind = details["type"]
    if kind == "extra_forbidden":
        fields = {name for found in models for name in found.model_fields}
        hint = did_you_mean(str(path[-1]), fields, kind="Fields")
        text = f"{place} is not a field; {hint}"
    elif kind == "missing":
        text = f"{place} is missing; expected {expected}."
    else:
        message = details["msg"].removeprefix("Value error, ").rstrip(".")
        says_all = kind == "value_error"
        got = "" if says_all else f", got {_shown(details['input'])}"
        wanted = f"; expected {expected}" if expected and not says_all else ""
        text = f"{place}: {_clause(message)}{got}{wanted}."
    return _Fault(lines.line(*path), place, text)


def _walk(
    loc: Sequence[Key], model: type[BaseModel], lines: Lines, at: tuple[Key, ...]
) -> tuple[tuple[Key, ...], list[type[BaseModel]], str]:
    """Follow an error's location through file and model: path, models at its end, description.

    Locations also hold names of union members, which the file does not have; they are skipped.
    """
    path, models, description = at, [model], ""
    for i, key in enumerate(loc):
        holders = [found for found in models if key in found.model_fields]
        is_last = i == len(loc) - 1
        if not holders and (*path, key) not in lines.numbers:
            continue
        path = (*path, key)
        if holders:
            field = holders[0].model_fields[str(key)]
            description = _clause((field.description or "").split("\n")[0])
            models = list(_models_in(field.annotation)) or ([] if not is_last else models)
    return path, models, description


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)


def _clause(sentence: str) -> str:
    """Return a sentence as a part of another: no full stop, no capital unless it is a name's."""
    first, _, rest = sentence.rstrip(".").partition(" ")
    first = first.lower() if first[1:].islower() else first
    return f"{first} {rest}" if rest else first


def _place(path: Sequence[Key]) -> str:
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)
    return text.removeprefix(".")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        reason = error.strerror or str(error)
        raise StudyError(f"{path}: cannot be read ({reason}); expected a YAML file.") from error
    if len(content) > MAX_BYTES:
        raise StudyError(f"{path}: is larger than {MAX_BYTES} bytes; expected a hand-written file.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise StudyError(f"{path}:{line}: is not UTF-8 text. Save it as UTF-8.") from error


def _syntax_error(path: Path, error: YAMLError) -> StudyError:
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        line = error.problem_mark.line + 1
        return StudyError(f"{path}:{line}: is not valid YAML: {error.problem}.")
    problem = str(error).split("\n")[0]
    return StudyError(f"{path}: is not valid YAML: {problem}.")
