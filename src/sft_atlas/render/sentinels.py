"""Which scores must not be taken at face value, and why?

In: the table of scores with its flags and counts. Out: each kind of warning that was raised, what
it means, and on which benchmarks, in words. A study without warnings gives an empty list.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pandas as pd

from sft_atlas.render.trust import share_text

MAX_NAMED: Final = 4
"""Models or cells that a sentence names; more are counted."""

_COPY: Final = "identical to "
_NEVER: Final = "format never followed"
_NAMES: Final = ("model", "data", "method")
_OFTEN: Final = 0.1
"""Share of answers without the asked form from which it is worth a line."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What was flagged on one benchmark, in words."""

    benchmark: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Sentinel:
    """One kind of warning, what it means, and where it was raised."""

    kind: str
    meaning: str
    is_grave: bool
    """The scores do not say what they seem to; otherwise some are only too low."""
    cases: tuple[Case, ...]


def find_sentinels(scores: pd.DataFrame) -> list[Sentinel]:
    """Return every kind of warning that was raised, the gravest first."""
    if scores.empty:
        return []
    found = []
    for kind in _KINDS:
        raised = scores[kind.is_raised(scores)]
        cases = tuple(
            Case(benchmark=str(benchmark), text=kind.describe(part, scores))
            for benchmark, part in raised.groupby("benchmark", sort=False)
        )
        if cases:
            found.append(
                Sentinel(kind=kind.name, meaning=kind.meaning, is_grave=kind.is_grave, cases=cases)
            )
    return found


def describe_cells(scores: pd.DataFrame) -> dict[str, str]:
    """Name each cell by the labels that tell the study's cells apart."""
    cells = scores.drop_duplicates("cell")
    tuned = cells[cells["method"] != "base"]
    varying = [name for name in ("samples", "schedule", "seed") if tuned[name].nunique() > 1]
    return {str(row["cell"]): _description(row, varying) for row in cells.to_dict("records")}


def _description(row: dict[Hashable, Any], varying: Sequence[str]) -> str:
    if row["method"] == "base":
        return f"{row['model']} base"
    more = [f"{name} {row[name]}" for name in varying]
    return " ".join([*(str(row[name]) for name in _NAMES), f"epoch {row['epoch']}", *more])


def _flagged(text: str) -> Callable[[pd.DataFrame], "pd.Series[bool]"]:
    # Where nothing is scored yet, the column has no type of its own.
    return lambda scores: (
        scores["flags"].astype("string").fillna("").str.contains(text, regex=False).astype(bool)
    )


def _often_unfollowed(scores: pd.DataFrame) -> "pd.Series[bool]":
    """Tell where many answers lack the form, but not all of them do."""
    count = scores["num_unfollowed"].fillna(0)
    many = (count > 0) & (count >= _OFTEN * scores["num_scored"].fillna(0))
    return many.astype(bool) & ~_flagged(_NEVER)(scores)


def _copies(part: pd.DataFrame, scores: pd.DataFrame) -> str:
    """Name the pairs of cells, each once."""
    names = {cell[:12]: name for cell, name in describe_cells(scores).items()}
    pairs: dict[frozenset[str], str] = {}
    for cell, flags in zip(part["cell"], part["flags"], strict=True):
        found = next(flag for flag in flags.split(";") if flag.startswith(_COPY))
        ours, other = str(cell)[:12], found.removeprefix(_COPY)
        text = f"{names[ours]} = {names.get(other, other)}"
        pairs.setdefault(frozenset((ours, other)), text)
    return f"{_cells(part)}: {_listed(list(pairs.values()), '; ')}"


def _never(part: pd.DataFrame, scores: pd.DataFrame) -> str:
    names = describe_cells(scores)
    return f"{_cells(part)}: {_listed([names[str(cell)] for cell in part['cell']])}"


def _bases(part: pd.DataFrame, scores: pd.DataFrame) -> str:
    """Name the base models and what guessing gives; one base counts once, not once per cell."""
    is_base = (scores["benchmark"] == part["benchmark"].iloc[0]) & (scores["method"] == "base")
    known = scores[is_base & scores["score"].notna()].set_index("model")
    models = list(part["model"].unique())
    texts = []
    for model in models:
        score, low, high = known.loc[model, ["score", "score_low", "score_high"]].astype(float)
        texts.append(f"{model} {100 * score:.1f} [{100 * low:.1f}, {100 * high:.1f}]")
    guess = 100 * float(part["chance"].mean())
    return (
        f"{len(models)} of {len(known)} base models, guessing gives {guess:.1f} %: {_listed(texts)}"
    )


def _share(count: str, total: str, what: str) -> Callable[[pd.DataFrame, pd.DataFrame], str]:
    """Return a describer that gives the shares of base models and of tuned ones apart."""

    def describe(part: pd.DataFrame, scores: pd.DataFrame) -> str:
        same = scores[(scores["benchmark"] == part["benchmark"].iloc[0]) & scores["score"].notna()]
        is_base = same["method"] == "base"
        texts = []
        for name, rows in (("base models", same[is_base]), ("tuned models", same[~is_base])):
            some, whole = int(rows[count].fillna(0).sum()), int(rows[total].fillna(0).sum())
            if some:
                percent = share_text(100 * some / whole)
                texts.append(f"{percent} % of {whole:,} {what} of {name}")
        return f"{_cells(part)}: {', '.join(texts)}"

    return describe


def _cells(part: pd.DataFrame) -> str:
    return f"{len(part):,} cell{'' if len(part) == 1 else 's'}"


def _listed(texts: Sequence[str], separator: str = ", ") -> str:
    more = len(texts) - MAX_NAMED
    end = f"{separator}and {more:,} more" if more > 0 else ""
    return separator.join(texts[:MAX_NAMED]) + end


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """How one kind of warning is found, and put into words for a benchmark."""

    name: str
    meaning: str
    is_grave: bool = False
    is_raised: Callable[[pd.DataFrame], "pd.Series[bool]"]
    describe: Callable[[pd.DataFrame, pd.DataFrame], str]
    """Takes the raised rows of one benchmark, and all rows."""


_KINDS: Final = (
    _Kind(
        name="same answers",
        meaning=(
            "Two models gave the same answer to every item, wrong ones too: a row was copied, "
            "training changed nothing, or answers are too short to differ."
        ),
        is_grave=True,
        is_raised=_flagged(_COPY),
        describe=_copies,
    ),
    _Kind(
        name="form never followed",
        meaning=(
            "No answer has the form that is asked for: the score does not say what the model knows."
        ),
        is_grave=True,
        is_raised=_flagged(_NEVER),
        describe=_never,
    ),
    _Kind(
        name="base at chance",
        meaning=(
            "The base model cannot be told from guessing: no loss can be seen, and a gain may be "
            "that of learning how the test is taken."
        ),
        is_grave=True,
        is_raised=_flagged("base at chance"),
        describe=_bases,
    ),
    _Kind(
        name="form often missed",
        meaning="At least a tenth of a cell's answers lack the asked form and count as wrong.",
        is_raised=_often_unfollowed,
        describe=_share("num_unfollowed", "num_scored", "answers"),
    ),
    _Kind(
        name="prompts cut",
        meaning="Prompts longer than max_tokens lost their start: examples, or part of a question.",
        is_raised=_flagged("truncated"),
        describe=_share("num_truncated", "num_items", "prompts"),
    ),
    _Kind(
        name="answers cut",
        meaning="Answers that reached their limit of tokens; few of them can be right.",
        is_raised=_flagged("cut off"),
        describe=_share("num_cut", "num_items", "answers"),
    ),
)
