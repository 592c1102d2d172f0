"""What is wrong with rows that hold another row's scores, and whose are they?

In: a wide table and its copies. Out: defects, one for each pair of base rows and one for all other
pairs of a kind. Which of two base rows is the original is told from the models' own tuned rows, and
only where these leave no doubt: else neither is trusted.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from sft_atlas.evidence.copies import Copy, Pairing, find_copies
from sft_atlas.evidence.defect import Defect, Treatment
from sft_atlas.evidence.source import SourceTable
from sft_atlas.evidence.wording import chance, counted, listed

_CLEAR: Final = 0.25
"""A score is far from a model's tuned rows if it is so many standard deviations of the column
outside of all of them."""
_MIN_CLEAR: Final = 3
_MAX_SHOWN: Final = 4

_TREATMENTS: Final[dict[Pairing, tuple[Treatment, str, str]]] = {
    "models": (
        "exclude score",
        "The scores of both rows in these columns are left out.",
        "Two models seem to agree where one was never scored.",
    ),
    "own base": (
        "exclude score",
        "The tuned row's scores are left out.",
        "The tuned model was perhaps never scored: its gains of 0 are not measured.",
    ),
    "tuned": (
        "note",
        "Both rows stay: which of them is the copy cannot be told.",
        "One result counts as two.",
    ),
}


def copy_defects(source: SourceTable) -> tuple[Defect, ...]:
    """Find rows whose scores are another row's."""
    copies = find_copies(source)
    found = [_base_rows(source, copy) for copy in copies if copy.pairing == "base"]
    of_base = {row for copy in copies if copy.pairing == "own base" for row in copy.rows}
    groups: dict[tuple[Pairing, tuple[str, ...]], list[Copy]] = {}
    for copy in copies:
        # Rows that are all their base's are no news among themselves.
        if copy.pairing != "base" and not (copy.pairing == "tuned" and of_base >= set(copy.rows)):
            groups.setdefault((copy.pairing, copy.columns), []).append(copy)
    found += [_other_rows(source, group) for group in groups.values()]
    return tuple(found)


def copy_facts(source: SourceTable) -> tuple[str, ...]:
    """Say that rows were compared, and which kinds of pairs hold no copies."""
    if len(source.values) < 2:
        return ()
    found = {copy.pairing for copy in find_copies(source)}
    facts = []
    if not found & {"tuned", "own base"}:
        facts.append("no two rows of one model have the same scores throughout")
    if "models" not in found:
        facts.append("no tuned rows of different models have the same scores in half the columns")
    return tuple(facts)


def _base_rows(source: SourceTable, copy: Copy) -> Defect:
    names = [_row_name(source, row) for row in copy.rows]
    chosen, reason = _original(source, copy)
    left_out = listed([_row_name(source, row) for row in chosen])
    return Defect(
        kind="copied row",
        columns=copy.columns,
        rows=_lines(source, chosen),
        where=f"{names[0]} and {names[1]}: {counted(len(copy.columns), 'column')}",
        evidence=f"{_agreement(copy)}{reason}",
        effect=(
            "Gains of one of the models, or of both, are off by the same amount in every row. "
            "Comparisons within a model are not touched, since the base row cancels."
        ),
        treatment="exclude gain",
        what_is_done=f"No gain is formed with {left_out} in these columns.",
    )


def _other_rows(source: SourceTable, copies: Sequence[Copy]) -> Defect:
    """Word pairs of one kind that agree in the same columns."""
    likeliest = max(copies, key=lambda copy: copy.log_chance)
    treatment, done, effect = _TREATMENTS[likeliest.pairing]
    pairs = [" and ".join(_row_name(source, row) for row in copy.rows) for copy in copies]
    rows = sorted({row for copy in copies for row in copy.rows})
    if likeliest.pairing == "own base":
        rows = [row for row in rows if source.labels["method"].iloc[row] != "base"]
    shown = "; ".join([*pairs[:_MAX_SHOWN], "..."] if len(pairs) > _MAX_SHOWN else pairs)
    each = "" if len(pairs) == 1 else f"{len(pairs):,} pairs of rows. Of one: "
    return Defect(
        kind="copied row",
        columns=likeliest.columns,
        rows=_lines(source, rows),
        where=f"{shown}: {counted(len(likeliest.columns), 'column')}",
        evidence=f"{each}{_agreement(likeliest)}",
        effect=effect,
        treatment=treatment,
        what_is_done=done,
    )


def _agreement(copy: Copy) -> str:
    maybe = (
        f" {listed(copy.maybe_by_chance)} alone could agree by chance."
        if copy.maybe_by_chance and len(copy.columns) < copy.num_shared
        else ""
    )
    return (
        f"The rows agree to the last digit in {len(copy.columns)} of the {copy.num_shared} "
        f"columns in which both have a score; the chance is at most {chance(copy.log_chance)}, "
        f"counting all pairs of rows.{maybe}"
    )


def _lines(source: SourceTable, rows: Sequence[int]) -> tuple[int, ...]:
    lines = source.labels["line"].to_numpy()
    return tuple(int(lines[row]) for row in rows)


def _original(source: SourceTable, copy: Copy) -> tuple[tuple[int, ...], str]:
    """Return the rows whose gains cannot be trusted, and why, from the models' tuned rows.

    Training moves a score, but seldom past where all of a model's runs are: a base score far
    outside of them is not that model's own.
    """
    names = [_row_name(source, row).removesuffix(" (base)") for row in copy.rows]
    far = [_num_far(source, copy, row) for row in copy.rows]
    text = (
        f" The scores lie far outside of all tuned rows of {names[0]} in "
        f"{counted(far[0], 'column')}, of {names[1]} in {far[1]}"
    )
    for place, other in ((0, 1), (1, 0)):
        if far[place] >= _MIN_CLEAR and not far[other]:
            return (copy.rows[place],), f"{text}: they are those of {names[other]}."
    return copy.rows, f"{text}: this does not tell whose they are."


def _num_far(source: SourceTable, copy: Copy, row: int) -> int:
    """Number of columns in which a base row's score lies far outside of its model's tuned rows."""
    labels = source.labels
    is_own = (labels["model"] == labels["model"].iloc[row]) & (labels["method"] != "base")
    tuned = source.values.loc[is_own.to_numpy(), list(copy.columns)]
    score = source.values[list(copy.columns)].iloc[row]
    beyond = np.maximum(tuned.min() - score, score - tuned.max())
    return int((beyond > _CLEAR * source.values[list(copy.columns)].std()).sum())


def _row_name(source: SourceTable, row: int) -> str:
    """Name a row by what tells it from the others of its model."""
    labels = source.labels.iloc[row]
    if labels["method"] == "base":
        return f"{labels['model']} (base)"
    return f"{labels['model']} ({labels['data']}, {labels['method']}, epoch {labels['epoch']})"
