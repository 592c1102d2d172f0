"""What does a user mean by `gsm8k=2,mmlu=1`?

In: names and weights as typed, and the benchmarks of the evidence. Out: weights by benchmark that
add to 1. The one decision: a short name may stand for the one benchmark that begins with it and
counts in means (`gsm8k` for `gsm8k-0shot`); where several could be meant nothing is guessed.
"""

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from sft_atlas.errors import DataError
from sft_atlas.strict_yaml import did_you_mean

if TYPE_CHECKING:
    import pandas as pd

_ODD: Final = re.compile(r"[^a-z0-9]+")


def parse_weights(text: str) -> dict[str, float]:
    """Read `gsm8k=2,mmlu=1`; a name without a number weighs 1.

    >>> parse_weights("gsm8k=2, mmlu")
    {'gsm8k': 2.0, 'mmlu': 1.0}

    Raises `DataError` for what is no positive number, and for a name given twice.
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = (piece.strip() for piece in part.partition("="))
        value = _number(number) if "=" in part else 1.0
        if not name or value is None:
            raise DataError(
                f"--for {text!r}: {part.strip()!r} is no benchmark with a weight above 0; "
                "expected for instance gsm8k=2,mmlu=1. Correct it."
            )
        if name in found:
            raise DataError(f"--for {text!r}: {name} is named twice; expected each once.")
        found[name] = value
    return found


def parse_budget(text: str) -> float:
    """Read `20gpuh` (or `20`) as GPU-hours.

    >>> parse_budget("20gpuh")
    20.0

    Raises `DataError` for anything else.
    """
    value = _number(text.strip().lower().removesuffix("gpuh").strip())
    if value is None:
        raise DataError(
            f"--budget {text!r}: is no number of GPU-hours above 0; expected for instance 20gpuh."
        )
    return value


def scored_benchmarks(scores: "pd.DataFrame") -> "pd.DataFrame":
    """Return `benchmark` and `in_mean` of what was scored, or of all that is asked where nothing
    was: a benchmark without a score gives way to one of a like name that has some.
    """
    if scores.empty:
        return scores.reindex(columns=["benchmark", "in_mean"])
    is_scored = scores["score"].notna()
    return scores.loc[is_scored if is_scored.any() else slice(None), ["benchmark", "in_mean"]]


def resolve_weights(weights: Mapping[str, float], benchmarks: "pd.DataFrame") -> dict[str, float]:
    """Name benchmarks in full, with weights that add to 1.

    `benchmarks` has `benchmark` and `in_mean`. Raises `DataError` for names that match none or
    several, for two names of one benchmark, and for weights that are not positive and finite.
    """
    if not weights:
        raise DataError("weights: none given; expected a benchmark and its weight. Name one.")
    known = benchmarks.groupby("benchmark", sort=True)["in_mean"].any()
    found: dict[str, float] = {}
    for name, weight in weights.items():
        if not (math.isfinite(weight) and weight > 0):
            raise DataError(f"weight of {name}: {weight:g}; expected a number above 0. Correct it.")
        benchmark = _find(name, known)
        if benchmark in found:
            raise DataError(f"weights: {name} means {benchmark}, which is named before. Drop one.")
        found[benchmark] = float(weight)
    # Divided twice: the sum of huge weights is infinite.
    largest = max(found.values())
    total = sum(weight / largest for weight in found.values())
    return {name: weight / largest / total for name, weight in found.items()}


def _find(name: str, known: "pd.Series[bool]") -> str:
    names = [str(benchmark) for benchmark in known.index]
    if name in names:
        return name
    typed = _plain(name)
    for fits in (str.__eq__, str.startswith, str.__contains__):
        every = [full for full in names if typed and fits(_plain(full), typed)]
        counted = [full for full in every if bool(known[full])] or every
        if len(counted) == 1:
            return counted[0]
        if counted:
            listed = ", ".join(counted)
            raise DataError(f"benchmark {name!r}: could be {listed}; name one of them in full.")
    if not names:
        raise DataError(f"benchmark {name!r}: the evidence has no scores. Import some first.")
    raise DataError(f"benchmark {name!r}: not in the evidence; {did_you_mean(name, names)}")


def _plain(name: str) -> str:
    return _ODD.sub("", name.lower())


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None
