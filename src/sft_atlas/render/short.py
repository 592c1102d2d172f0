"""What does a reader learn in a minute: each question's answer in a line, and how sure it is?

In: all Findings. Out: one line per question, from the first of its Findings that could be
estimated, because a question states its main answer first; choosing the clearest would choose by
chance. The bar beside it has its own scale: it shows which side of 0 an interval lies on and how
wide it is, not how questions compare.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from sft_atlas.analyze.findings import Finding, interval_text, minus, points

Certainty = Literal["clear", "open", "note", "not estimable"]

MAX_CHARACTERS: Final = 230
"""A longer statement is cut at the end of a sentence."""

_SENTENCE: Final = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_TESTED: Final = ("points", "correlation", "difference")
_ROOM: Final = 1.12


@dataclass(frozen=True, kw_only=True)
class Bar:
    """An interval with its estimate and 0, as percent of the bar's width."""

    low: float
    width: float
    estimate: float
    zero: float


@dataclass(frozen=True, kw_only=True)
class Line:
    """One question of the opening page."""

    question: str
    text: str
    certainty: Certainty
    number: str
    """The estimate with its interval; empty where there is none."""
    bar: Bar | None
    place: int
    """Of the Finding among all of the page."""
    num_clear: int
    num_tested: int
    """Findings of the question that an interval can make clear."""


def certainty(finding: Finding) -> Certainty:
    """Say how sure an answer is: an interval that covers 0 leaves the direction open."""
    if finding.estimate is None and finding.reason:
        return "not estimable"
    if finding.scale not in _TESTED or finding.estimate is None:
        return "note"
    return "clear" if finding.is_clear else "open"


def opening(findings: Sequence[Finding]) -> list[Line]:
    """Return one line per question, in the order in which they were asked."""
    lines = []
    for question in dict.fromkeys(finding.question for finding in findings):
        answers = [(i, item) for i, item in enumerate(findings) if item.question == question]
        place, chosen = next(((i, f) for i, f in answers if f.estimate is not None), answers[0])
        kinds = [certainty(finding) for _, finding in answers]
        lines.append(
            Line(
                question=question,
                text=_brief(chosen.statement),
                certainty=certainty(chosen),
                number=_number(chosen),
                bar=_bar(chosen),
                place=place,
                num_clear=kinds.count("clear"),
                num_tested=kinds.count("clear") + kinds.count("open"),
            )
        )
    return lines


def _brief(statement: str) -> str:
    """Return the first sentences, or the first parts of a sentence that is too long itself.

    >>> _brief("All: " + "; ".join(["some of the variance"] * 20) + ".")[-24:]
    '; some of the variance …'
    """
    kept = ""
    for sentence in _SENTENCE.split(" ".join(statement.split())):
        if kept and len(kept) + len(sentence) > MAX_CHARACTERS:
            break
        kept = f"{kept} {sentence}".strip()
    if len(kept) > MAX_CHARACTERS and ";" in kept[:MAX_CHARACTERS]:
        return f"{kept[: kept.rindex(';', 0, MAX_CHARACTERS)]} \N{HORIZONTAL ELLIPSIS}"
    return kept


def _number(finding: Finding) -> str:
    value = finding.estimate
    if value is None or finding.scale == "count":
        return ""
    text = points(value) if finding.scale == "points" else minus(f"{value:.2f}")
    return f"{text} {interval_text(finding.interval, finding.scale)}" if finding.interval else text


def _bar(finding: Finding) -> Bar | None:
    if finding.interval is None or finding.estimate is None or finding.scale not in _TESTED:
        return None
    low, high = finding.interval
    reach = _ROOM * max(abs(low), abs(high), abs(finding.estimate))
    if reach == 0:
        return None

    def place(value: float) -> float:
        return round(50 + 50 * value / reach, 2)

    return Bar(
        low=place(low),
        width=round(place(high) - place(low), 2),
        estimate=place(finding.estimate),
        zero=50.0,
    )
