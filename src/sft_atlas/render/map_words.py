"""What does the page say about the map of all models in words and tables?

In: the map's tables. Out: rows of text for the page, which can be read without scripts: what a
model's place goes with, whether data moves models the same way, and how well each layout shows the
distances. Parts of the texts that say the same are still listed, each by its name.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import pandas as pd

from sft_atlas.analyze.likelihood_map import MapTables
from sft_atlas.analyze.map_groups import RELATIONS

VARIANTS: Final = {
    "whole": "question and answer",
    "prompt": "question",
    "answer": "answer, given the question",
}
METHODS: Final = {
    "tsne": "t-SNE",
    "pca": "principal components",
    "mds": "metric scaling (MDS)",
}
_QUALITY: Final = {
    "trustworthiness": "Trustworthiness",
    "stress": "Stress",
    "rank_correlation": "Rank correlation",
    "explained": "Squared distance held",
}


@dataclass(frozen=True, kw_only=True)
class MapRow:
    """One row of a table of the map."""

    name: str
    values: tuple[str, ...] = ()
    method: str = ""
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class MapWords:
    """The texts of the map's section."""

    reason: str
    """Why there is no map; empty where there is one."""
    notes: tuple[str, ...]
    share_names: tuple[str, ...]
    shares: tuple[MapRow, ...]
    share_note: str
    agreement_names: tuple[str, ...]
    agreement: tuple[MapRow, ...]
    quality_names: tuple[str, ...]
    quality: tuple[MapRow, ...]


def map_words(drawn: MapTables) -> MapWords | None:
    """Return what is said about the map, or None where no likelihood was measured."""
    if drawn.points.empty and not drawn.reason:
        return None
    shares, agreement = drawn.shares, drawn.agreement
    groupings = [] if shares.empty else list(shares["grouping"].unique())
    relations = [] if agreement.empty else [r for r in RELATIONS if r in set(agreement["relation"])]
    return MapWords(
        reason=drawn.reason,
        notes=_notes(drawn),
        share_names=tuple(str(name).capitalize() for name in groupings),
        shares=_pivot(shares, "grouping", groupings, _share_text),
        share_note=_share_note(shares),
        agreement_names=tuple(relation.capitalize() for relation in relations),
        agreement=_pivot(agreement, "relation", relations, _cosine_text),
        quality_names=tuple(_QUALITY.values()),
        quality=tuple(_quality_row(row) for row in drawn.quality.to_dict("records")),
    )


def _notes(drawn: MapTables) -> tuple[str, ...]:
    return tuple(
        f"{count:,} {'cell has' if count == 1 else 'cells have'} no place: {reason}."
        for reason, count in drawn.missing
    )


def _pivot(frame: pd.DataFrame, column: str, names: Sequence[str], text: Any) -> tuple[MapRow, ...]:
    if frame.empty:
        return ()
    rows = []
    for variant, part in frame.groupby("variant", sort=False):
        known = {row[column]: row for row in part.to_dict("records")}
        values = tuple(text(known[name]) if name in known else "\N{EM DASH}" for name in names)
        rows.append(MapRow(name=VARIANTS[str(variant)], values=values))
    return tuple(rows)


def _share_text(row: dict[str, Any]) -> str:
    return f"{100 * row['share']:.1f} %"


def _cosine_text(row: dict[str, Any]) -> str:
    bounds = ""
    if pd.notna(row["low"]):
        bounds = f" [{_cosine(row['low'])}, {_cosine(row['high'])}]"
    return f"{_cosine(row['cosine'])}{bounds} ({row['num_pairs']:,} pairs)"


def _cosine(value: float) -> str:
    # Adding 0 turns the -0.0 that rounding leaves behind into 0.
    return f"{round(value, 2) + 0:.2f}".replace("-", "\N{MINUS SIGN}")


def _share_note(shares: pd.DataFrame) -> str:
    if shares.empty:
        return ""
    chance = shares.drop_duplicates("grouping")
    by_chance = ", ".join(
        f"{row['grouping']} {100 * row['chance']:.1f} %" for row in chance.to_dict("records")
    )
    return (
        f"Share of the squared distances between {int(chance['num_cells'].max()):,} tuned models "
        f"that lies between the groups of a label; labels overlap, so shares need not add up. "
        f"Groups of these sizes that mean nothing have: {by_chance}."
    )


def _quality_row(row: dict[Any, Any]) -> MapRow:
    name, method = VARIANTS[row["variant"]], METHODS[row["method"]]
    if isinstance(row.get("reason"), str):
        return MapRow(name=name, method=method, reason=row["reason"])
    return MapRow(name=name, method=method, values=tuple(_number(row.get(key)) for key in _QUALITY))


def _number(value: Any) -> str:
    if value is None or pd.isna(value):
        return "\N{EM DASH}"
    return f"{value:.3f}".replace("-", "\N{MINUS SIGN}")
