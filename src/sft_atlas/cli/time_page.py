"""Lay out what training took beside what was expected, and the time that is left.

Takes the progress of a study; returns something that Rich can print, or JSON with the keys of
docs/cli.md.
"""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from sft_atlas.cli.progress import duration

if TYPE_CHECKING:
    from sft_atlas.store.progress import GroupProgress, Progress
    from sft_atlas.study.assumption import Range


def progress_json(progress: "Progress") -> dict[str, Any]:
    """Return progress with stable keys; spans of time are `[low, likely, high]` device seconds."""
    return {
        "device": progress.device,
        "groups": [asdict(group) | {"ratio": group.ratio} for group in progress.groups],
        "left_seconds": progress.left_seconds,
    }


def progress_parts(progress: "Progress") -> list[RenderableType]:
    """Return a table of training by base model and method, and what is left of everything."""
    parts: list[RenderableType] = []
    if any(group.num_timed for group in progress.groups):
        table = Table(box=None, pad_edge=False, header_style="bold")
        names = ("training of", "method", "runs", "predicted", "took", "ratio", "corrected by")
        for name in (*names, "runs left", "time left"):
            table.add_column(name, overflow="fold")
        for group in progress.groups:
            table.add_row(*_cells(group))
        parts += [Text(), table]
    if progress.left_seconds.high:
        span = _span(progress.left_seconds)
        parts.append(Text(f"\nleft: {span} of device time on {progress.device}"))
    return parts


def _cells(group: "GroupProgress") -> list[str]:
    known = ["", "", ""]
    if group.ratio is not None:
        times = (group.predicted_seconds, group.actual_seconds)
        known = [*map(duration, times), f"{group.ratio:.2f}"]
    factor = group.factor
    corrected = (
        "" if factor is None else f"{factor.likely:.2f} ({factor.low:.2f} to {factor.high:.2f})"
    )
    left = _span(group.left_seconds) if group.num_left else ""
    counts = [str(group.num_timed), *known, corrected, str(group.num_left), left]
    return [group.model, group.method, *counts]


def _span(seconds: "Range") -> str:
    return f"{duration(seconds.likely)} ({duration(seconds.low)} to {duration(seconds.high)})"
