"""Turn a benchmark's items into questions: the very text a model is shown, and which answer counts.

In: items and examples as rows of any fields. Out: one `Question` per item. An item without a
usable answer (a hidden test label, no accepted text) is kept and says why it is unscored; a field
that a row lacks is a fault of the file and stops the benchmark.
"""

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, final

from transformers import PreTrainedTokenizerBase

from sft_atlas.data.chat import render_chats
from sft_atlas.data.shapes import Turn
from sft_atlas.data.sources import iter_rows
from sft_atlas.data.template import render_answer, render_prompt
from sft_atlas.errors import DataError
from sft_atlas.study.benchmark import Place, parse_text
from sft_atlas.study.spec import BenchmarkDefinition, BenchmarkSpec, Source

_SHOT_SEPARATOR = "\n\n"


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What is asked about one item."""

    id: str
    """The items' `id` where all have one and none repeats, else the position, from 0."""
    prompt: str
    """Templated text, shown examples included."""
    options: tuple[str, ...]
    """choice: each option as it stands in the item; empty for generate."""
    answers: tuple[str, ...]
    """continuations: each option as text that follows the prompt; empty for generate."""
    accepted: tuple[str, ...]
    """generate: all accepted texts."""
    label: int | None
    """choice: index of the right option."""
    unscored: str | None
    """Why this item has no score; None where it can be scored."""

    @property
    def reference(self) -> str | None:
        """What would be right, for a reader; None where nothing is known to be."""
        if self.label is not None:
            return self.options[self.label]
        return " | ".join(self.accepted) or None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Item:
    where: str
    prompt: str
    options: tuple[str, ...]
    accepted: tuple[str, ...]
    label: int | None
    unscored: str | None

    @property
    def shown(self) -> str:
        """The answer that an example is shown with."""
        return self.accepted[0] if self.label is None else self.options[self.label]


def load_questions(
    benchmark: BenchmarkSpec, tokenizer: PreTrainedTokenizerBase
) -> tuple[Question, ...]:
    """Read items and examples and render every question in the study's template.

    Raises:
        DataError: if a source cannot be read, a row lacks a field that the definition names, or
            there are fewer usable examples than shots.
    """
    definition = benchmark.definition
    rows = _read(benchmark.items, benchmark.limit)
    items = [_read_item(row, where, definition) for where, row in rows]
    shots = _load_shots(benchmark)
    prompts = _render_prompts(benchmark, shots, [item.prompt for item in items], tokenizer)
    # Unwrapped text goes on as question-answer does, with a space: lm-eval's default delimiter.
    template = benchmark.template if definition.wrap else "question-answer"
    ids = _item_ids([row for _, row in rows])
    return tuple(
        Question(
            id=ids[i],
            prompt=prompts[i],
            options=item.options,
            answers=tuple(render_answer(template, option) for option in item.options),
            accepted=item.accepted,
            label=item.label,
            unscored=item.unscored,
        )
        for i, item in enumerate(items)
    )


def fill_text(text: str, row: Mapping[str, Any], where: str) -> str:
    """Fill a text's places with a row's values; numbers are written as Python writes them.

    Raises:
        DataError: if the row has no such field, list index or key, or the value is a list,
            mapping or null.
    """
    parts = []
    for part in parse_text(text):
        value = _find(part, row, where) if isinstance(part, Place) else part
        if isinstance(value, (list, dict)) or value is None:
            kind = "null" if value is None else f"a {type(value).__name__}"
            raise DataError(
                f"{where}: {part} is {kind}; expected text or a number. "
                f"Name one part of it, {{field.0}}."
            )
        parts.append(str(value))
    return "".join(parts)


def _read(source: Source, limit: int | None) -> list[tuple[str, dict[str, Any]]]:
    return list(islice(iter_rows(source), limit))


def _read_item(row: Mapping[str, Any], where: str, definition: BenchmarkDefinition) -> _Item:
    options = _read_options(row, where, definition)
    accepted = _read_accepted(row, where, definition)
    label, unscored = None, None
    if definition.kind == "choice":
        assert definition.label is not None
        value = _find(Place(tuple(definition.label.split("."))), row, where)
        label = _parse_label(value, len(options))
        if label is None:
            unscored = f"label {value!r} names none of its {len(options)} options"
    elif not accepted:
        unscored = "no accepted answer"
    return _Item(
        where=where,
        prompt=fill_text(definition.prompt, row, where),
        options=options,
        accepted=accepted,
        label=label,
        unscored=unscored,
    )


def _read_options(
    row: Mapping[str, Any], where: str, definition: BenchmarkDefinition
) -> tuple[str, ...]:
    if definition.choices is None:
        return ()
    if isinstance(definition.choices, tuple):
        return tuple(fill_text(option, row, where) for option in definition.choices)
    place = _only_place(definition.choices)
    values = None if place is None else _find(place, row, where)
    if not isinstance(values, list) or not all(isinstance(v, (str, int, float)) for v in values):
        raise DataError(
            f"{where}: choices {definition.choices} is no list of texts; expected the options. "
            f"Name their field, or list them in the benchmark file."
        )
    return tuple(map(str, values))


def _read_accepted(
    row: Mapping[str, Any], where: str, definition: BenchmarkDefinition
) -> tuple[str, ...]:
    if definition.answer is None:
        return ()
    place = _only_place(definition.answer)
    value = None if place is None else _find(place, row, where)
    if isinstance(value, list):
        return tuple(str(text) for text in value if text is not None)
    if place is not None and (value is None or value == ""):
        return ()
    return (fill_text(definition.answer, row, where),)


def _parse_label(value: object, num_options: int) -> int | None:
    """Return the right option's index from a number (from 0) or letter (from A), or None."""
    index = -1
    text = str(int(value)) if isinstance(value, (bool, int)) else str(value).strip()
    if text.isdecimal():
        index = int(text)
    elif len(text) == 1:
        index = string.ascii_uppercase.find(text.upper())
    return index if 0 <= index < num_options else None


def _only_place(text: str) -> Place | None:
    parts = parse_text(text)
    return parts[0] if len(parts) == 1 and isinstance(parts[0], Place) else None


def _find(place: Place, row: Mapping[str, Any], where: str) -> Any:
    value: Any = row
    for depth, part in enumerate(place.parts):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            holder = "the item" if depth == 0 else f"its {'.'.join(place.parts[:depth])}"
            has = f" has {', '.join(sorted(value))}" if isinstance(value, Mapping) else ""
            raise DataError(
                f"{where}: has no {place}; {holder}{has or ' has no such part'}. "
                f"Correct the benchmark file or the item."
            )
    return value


def _item_ids(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    ids = [str(row["id"]) for row in rows if row.get("id") is not None]
    if len(ids) == len(rows) == len(set(ids)):
        return ids
    return [str(index) for index in range(len(rows))]


def _load_shots(benchmark: BenchmarkSpec) -> list[_Item]:
    if benchmark.shots == 0:
        return []
    if benchmark.few_shot is None:
        raise DataError(
            f"benchmark {benchmark.name}: {benchmark.shots} shots are wanted and there are no "
            f"examples; add few_shot to the benchmark file, or write shots: 0."
        )
    rows = _read(benchmark.few_shot, benchmark.shots)
    shots = [_read_item(row, where, benchmark.definition) for where, row in rows]
    for shot in shots:
        if shot.unscored is not None:
            raise DataError(f"{shot.where}: cannot be shown as an example: {shot.unscored}.")
    if len(shots) < benchmark.shots:
        raise DataError(
            f"benchmark {benchmark.name}: {benchmark.shots} shots are wanted and its examples are "
            f"{len(shots)}; lower shots, or add examples."
        )
    return shots


def _render_prompts(
    benchmark: BenchmarkSpec,
    shots: Sequence[_Item],
    prompts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
) -> list[str]:
    if benchmark.definition.wrap and benchmark.template == "chat":
        turns: list[Turn] = []
        for shot in shots:
            turns += [Turn("user", shot.prompt), Turn("assistant", shot.shown)]
        return render_chats(tokenizer, [(*turns, Turn("user", prompt)) for prompt in prompts])
    shown = [_render_plain(benchmark, s.prompt) + f" {s.shown}" for s in shots]
    head = "".join(text + _SHOT_SEPARATOR for text in shown)
    return [head + _render_plain(benchmark, prompt) for prompt in prompts]


def _render_plain(benchmark: BenchmarkSpec, prompt: str) -> str:
    return render_prompt(benchmark.template, prompt) if benchmark.definition.wrap else prompt
