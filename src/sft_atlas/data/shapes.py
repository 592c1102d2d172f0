"""Say what a row of an instruction dataset asks and answers.

In goes one row (a mapping from column to value), out comes an `Example`, or a `RowError` whose text
says what is wrong with the row. A shape is recognised by the columns that it needs, in the order of
`SHAPES`; a study names it where a row could be read in two ways, or maps columns itself with
`fields`. Texts are taken as they are: nothing is stripped or normalised, because every change of a
text is a change of the data.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from sft_atlas.errors import DataError
from sft_atlas.study.spec import DatasetSpec

Role = Literal["system", "user", "assistant"]
Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Which columns a kind of row has."""

    name: str
    prompt: str
    answer: str | None
    """None where one column holds a list of turns."""
    context: str | None = None
    """Optional column with the material that the instruction is about."""
    role: str = ""
    text: str = ""
    """Keys of a turn in a list of turns."""


SHAPES: Final[Mapping[str, Shape]] = {
    shape.name: shape
    for shape in (
        Shape(name="messages", prompt="messages", answer=None, role="role", text="content"),
        Shape(name="conversations", prompt="conversations", answer=None, role="from", text="value"),
        Shape(name="instruction", prompt="instruction", context="input", answer="output"),
        Shape(name="prompt-completion", prompt="prompt", answer="completion"),
        Shape(name="prompt-response", prompt="prompt", answer="response"),
        Shape(name="question-answer", prompt="question", answer="answer"),
    )
}
"""By name, in the order in which `auto` tries them."""

ROLES: Final[Mapping[str, Role]] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
"""What datasets call the speakers."""


class RowError(ValueError):
    """Report why one row is malformed; `sources` adds where it stands."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What one speaker says."""

    role: Role
    content: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One supervised sample as text, before any template."""

    prompt: str
    """The only turn before the answer, or all of them labelled with their roles."""
    answer: str
    turns: tuple[Turn, ...]
    """For a chat template: at most one system turn, then user and assistant by turns, user last."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Prompt turns and answer as found: the texts are not checked yet."""

    turns: tuple[Turn, ...]
    answer: object
    column: str
    """Where the answer stood."""


def example_from_row(row: Row, dataset: DatasetSpec) -> Example:
    """Read one row in the dataset's shape.

    A conversation's answer is its last assistant turn and its prompt all turns before that, or,
    with `first_turn_only`, the first user turn and the reply to it. Turns after the answer are not
    used.

    Raises:
        RowError: if no shape fits, a text is missing, empty, not a string or not valid Unicode, or
            turns are out of order.
    """
    return check_parts(split_row(row, dataset))


def split_row(row: Row, dataset: DatasetSpec) -> Parts:
    """Find prompt and answer without judging the answer, so that a filter can drop it first."""
    if dataset.fields:
        columns = dict(dataset.fields)
        prompt = _text(_lookup(row, columns["prompt"]), columns["prompt"])
        answer = columns["answer"]
        return Parts((Turn("user", prompt),), _lookup(row, answer), answer)
    shape = _find_shape(row, dataset.shape)
    if shape.answer is None:
        return _split_turns(row[shape.prompt], shape, dataset.first_turn_only)
    prompt = _text(row[shape.prompt], shape.prompt)
    context = row.get(shape.context) if shape.context else None
    if context is not None and (not isinstance(context, str) or context.strip()):
        prompt = f"{prompt}\n{_text(context, shape.context or '')}"
    return Parts((Turn("user", prompt),), row[shape.answer], shape.answer)


def check_parts(parts: Parts) -> Example:
    """Check the answer and join the prompt turns; raises RowError."""
    answer = _text(parts.answer, parts.column)
    if len(parts.turns) == 1:
        return Example(prompt=parts.turns[0].content, answer=answer, turns=parts.turns)
    prompt = "\n".join(f"{turn.role.capitalize()}: {turn.content}" for turn in parts.turns)
    return Example(prompt=prompt, answer=answer, turns=parts.turns)


def _find_shape(row: Row, name: str) -> Shape:
    if name != "auto":
        if name not in SHAPES:
            raise DataError(
                f"shape {name!r}: is not known; expected one of {', '.join(SHAPES)}. Name one."
            )
        shape = SHAPES[name]
        missing = [c for c in (shape.prompt, shape.answer) if c is not None and c not in row]
        if missing:
            raise RowError(f"has no column {missing[0]!r}, which shape {name!r} needs")
        return shape
    for shape in SHAPES.values():
        if shape.prompt in row and (shape.answer is None or shape.answer in row):
            return shape
    columns = ", ".join(sorted(map(str, row))) or "none"
    raise RowError(f"unknown shape (columns: {columns}); known are {', '.join(SHAPES)}")


def _lookup(row: Row, path: str) -> object:
    # A column whose own name has dots comes before a path into nested values.
    if path in row:
        return row[path]
    value: Any = row
    for part in path.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, Sequence) and not isinstance(value, str) and _has_index(value, part):
            value = value[int(part)]
        else:
            raise RowError(f"has no column {path!r}")
    return value


def _has_index(value: Sequence[object], part: str) -> bool:
    return part.isdecimal() and int(part) < len(value)


def _split_turns(value: object, shape: Shape, first_turn_only: bool) -> Parts:
    roles = _read_roles(value, shape)
    texts = [turn[shape.text] for turn in value] if isinstance(value, list) else []
    replies = [number for number, role in enumerate(roles) if role == "assistant"]
    if not replies:
        raise RowError("has no assistant turn to learn from")
    reply = replies[0] if first_turn_only else replies[-1]
    start = reply - 1 if first_turn_only else 0
    turns = tuple(
        Turn(roles[number], _text(texts[number], f"{shape.prompt}[{number}]"))
        for number in range(start, reply)
    )
    return Parts(turns, texts[reply], f"{shape.prompt}[{reply}]")


def _read_roles(value: object, shape: Shape) -> list[Role]:
    if not isinstance(value, list) or not value:
        raise RowError(f"{shape.prompt} is not a list of turns")
    roles: list[Role] = []
    for number, turn in enumerate(value):
        where = f"{shape.prompt}[{number}]"
        if not isinstance(turn, Mapping) or shape.role not in turn or shape.text not in turn:
            raise RowError(f"{where} has no {shape.role!r} and {shape.text!r}")
        name = turn[shape.role]
        if not isinstance(name, str) or name not in ROLES:
            raise RowError(f"{where} is by {name!r}; known are {', '.join(ROLES)}")
        roles.append(ROLES[name])
    _check_order(roles, shape.prompt)
    return roles


def _check_order(roles: Sequence[Role], column: str) -> None:
    start = 1 if roles[0] == "system" else 0
    for number, role in enumerate(roles[start:], start):
        expected = "assistant" if (number - start) % 2 else "user"
        if role != expected:
            raise RowError(
                f"{column}[{number}] is by {role}, out of order; expected {expected} there"
            )


def _text(value: object, column: str) -> str:
    if value is None:
        raise RowError(f"{column} is missing")
    if not isinstance(value, str):
        raise RowError(f"{column} is {type(value).__name__}, expected text")
    if not value.strip():
        raise RowError(f"{column} is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RowError(f"{column} is not valid Unicode at character {error.start}") from error
    return value
