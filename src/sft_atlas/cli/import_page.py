"""Lay out what was imported: how much, what is wrong with it, what is done, and what comes next.

In: imported results. Out: something that Rich can print, or JSON with the keys of docs/cli.md.
"""

import shlex
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from sft_atlas.evidence.defect import Defect
    from sft_atlas.evidence.imported import Imported

_IMPLIED: Final = "models that the source's own pattern implies are"
_MAX_ROWS: Final = 12
"""Rows of the coverage table that are shown."""


def import_json(found: "Imported") -> dict[str, Any]:
    """Return counts, coverage, defects and checks with stable keys."""
    return {
        "name": found.name,
        "kind": found.kind,
        "origin": found.origin,
        "sha256": found.sha256,
        **found.counts(),
        "coverage": list(_coverage(found)),
        "defects": [asdict(defect) for defect in found.defects],
        "checks": list(found.checks),
        "notes": list(found.notes),
    }


def import_page(found: "Imported", store: Path) -> RenderableType:
    """Say what was read, what is missing and what is wrong, and what to do next."""
    parts: list[RenderableType] = [Text(_counts_text(found)), Text()]
    coverage = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("runs", "method"):
        coverage.add_column(title, overflow="fold")
    for title in ("models", "data", "epochs", "cells", "missing", "scores"):
        coverage.add_column(title, justify="right")
    rows = list(_coverage(found))
    for row in rows[:_MAX_ROWS]:
        share = f"{row['num_scores']:,} of {row['num_expected_scores']:,}"
        names = ("num_models", "num_data", "num_epochs", "num_cells", "num_missing_cells")
        numbers = [f"{row[key]:,}" for key in names]
        coverage.add_row(Text(row["block"] or "base models"), Text(row["method"]), *numbers, share)
    parts.append(coverage)
    if len(rows) > _MAX_ROWS:
        parts.append(Text(f"and {len(rows) - _MAX_ROWS} more kinds of runs"))
    parts += [Text(f"\nnote: {note}") for note in found.notes]
    if found.defects:
        findings = "finding" if len(found.defects) == 1 else "findings"
        parts.append(Text(f"\n{len(found.defects)} {findings} about the source:", "bold"))
    for number, defect in enumerate(found.defects, 1):
        parts += _defect_parts(number, defect)
    if found.checks:
        parts.append(Text("\nfound as stated:", "bold"))
        parts += [_indented(check) for check in found.checks]
    # A command that was broken at the window's width could not be copied.
    commands = "\n" + "\n".join(_next_commands(found, store))
    parts.append(Text(commands, no_wrap=True, overflow="ignore"))
    return Group(*parts)


def _counts_text(found: "Imported") -> str:
    counts = found.counts()
    text = (
        f"{found.name}: {counts['num_scores']:,} scores of {counts['num_cells']:,} tuned models "
        f"({counts['num_trajectories']:,} runs) and {counts['num_base_cells']:,} base models on "
        f"{counts['num_benchmarks']} benchmarks"
    )
    lines = [f"{text}, from {found.origin} (SHA-256 {found.sha256[:12]})."]
    if counts["num_missing_cells"]:
        num = counts["num_missing_cells"]
        are = "model that the source's own pattern implies is" if num == 1 else _IMPLIED
        lines.append(f"{num:,} {are} not in it.")
    if counts["num_treated"]:
        lines.append(f"{counts['num_treated']:,} scores and gains are treated, as said below.")
    return "\n".join(lines)


def _coverage(found: "Imported") -> Iterator[dict[str, Any]]:
    """One row per block and method: what it has, and what is missing of it."""
    cells, scores = found.tables.cells, found.released.scores
    num_benchmarks = scores["benchmark"].nunique()
    scored = scores[scores["score"].notna()].groupby("cell").size()
    for (block, method), group in cells.groupby(["block", "method"], sort=True):
        yield {
            "block": block,
            "method": method,
            "num_models": int(group["model"].nunique()),
            "num_data": int(group["data"].nunique()),
            "num_epochs": int(group["epoch"].nunique()),
            "num_cells": int((group["state"] == "done").sum()),
            "num_missing_cells": int((group["state"] != "done").sum()),
            "num_scores": int(scored.reindex(group["cell"]).sum()),
            "num_expected_scores": len(group) * num_benchmarks,
        }


def _defect_parts(number: int, defect: "Defect") -> Iterator[RenderableType]:
    """Say where, what shows it, what it would do to an answer, and what is done."""
    yield Text(f"\n{number}. {defect.kind}: {defect.where}", "bold")
    yield _indented(f"Evidence: {defect.evidence}")
    yield _indented(f"Effect: {defect.effect}")
    yield _indented(f"Done ({defect.treatment}): {defect.what_is_done}")


def _indented(text: str) -> RenderableType:
    return Padding(Text(text), (0, 0, 0, 3))


def _next_commands(found: "Imported", store: Path) -> Iterator[str]:
    where = [] if store == Path("store") else ["--store", str(store)]
    model = found.tables.cells["model"].iloc[0]
    scores = found.tables.scores
    counted = scores.loc[scores["in_mean"].astype(bool) & scores["score"].notna(), "benchmark"]
    benchmark = str((counted if len(counted) else scores["benchmark"]).iloc[0])
    yield "Report: " + shlex.join(["sft-atlas", "report", found.name, *where])
    yield "Which data for a model: " + shlex.join(
        [
            *("sft-atlas", "recommend", "--model", str(model), "--for", benchmark),
            *("--evidence", found.name, *where),
        ]
    )
