"""Find the answer in what a model wrote, and judge it: pure functions of texts.

The rules are narrow on purpose. `exact_match` forgives whitespace and nothing else;
`numeric_match` compares the last number of each text as exact decimals. A text without an answer
is a wrong answer (score 0), because the model did speak; what could not be asked at all is not
judged here.
"""

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Literal

_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
# A minus between two operands is an operator: the last number of "16-3" is 3.
_NUMBER = re.compile(
    r"(?:(?<![\w).])[-\u2212])?(?:\d+(?:\.\d+)?|(?<![\w.])\.\d+)(?:[eE][-+]?\d{1,3}(?!\w))?"
)


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """Return the text before the first of the stop texts.

    >>> cut_at_stop("4\\n###Question: next", ["###", "\\n"])
    '4'
    """
    ends = [at for at in (text.find(end) for end in stop) if at >= 0]
    return text[: min(ends)] if ends else text


def extract_answer(text: str, pattern: str | None) -> str | None:
    """Return the group of the pattern's last match, the whole text without a pattern, or None.

    >>> extract_answer("#### 7, no: #### 8", "#### ([0-9]+)")
    '8'
    """
    if pattern is None:
        return text
    answer: str | None = None
    for match in re.finditer(pattern, text):
        if match.group(1) is not None:
            answer = match.group(1)
    return answer


def last_number(text: str) -> Decimal | None:
    """Return the last number of a text as an exact decimal; thousands' commas and `$` are removed.

    >>> last_number("That makes $1,234.50 in all.")
    Decimal('1234.50')
    """
    found = _NUMBER.findall(_THOUSANDS.sub("", text.replace("$", "")))
    return Decimal(found[-1].replace("\u2212", "-")) if found else None


def collapse_whitespace(text: str) -> str:
    """Return the words of a text with one space between them."""
    return " ".join(text.split())


def is_right(
    text: str,
    accepted: Sequence[str],
    *,
    metric: Literal["exact_match", "numeric_match"],
    pattern: str | None = None,
) -> bool:
    """Tell whether a text gives one of the accepted answers.

    The pattern is applied to both sides; an accepted text that it does not match counts as a whole.
    """
    answer = extract_answer(text, pattern)
    if answer is None:
        return False
    references = [extract_answer(reference, pattern) or reference for reference in accepted]
    if metric == "exact_match":
        wanted = collapse_whitespace(answer)
        return any(wanted == collapse_whitespace(reference) for reference in references)
    number = last_number(answer)
    return number is not None and any(number == last_number(reference) for reference in references)
