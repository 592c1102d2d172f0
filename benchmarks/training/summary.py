"""Make the figures that are published of the records: seconds, speeds and ratios per grid."""

import statistics
from collections.abc import Sequence
from typing import Any

from training.estimates import Estimate, Work, estimate, ratio
from training.grid import Grid
from training.protocol import ARMS, MECHANISMS, Arm, Record, count_tokens
from training.world import World

OURS = "G"


def summarise(world: World, grids: dict[str, Grid], records: Sequence[Record]) -> dict[str, Any]:
    """Return, per grid, every arm's estimate and its ratio to ours; and what mechanisms bring."""
    found: dict[str, Any] = {}
    for name, grid in grids.items():
        of_grid = [r for r in records if r["grid"] == name and r["arm"] in ARMS]
        estimates = {
            arm: estimate([r for r in of_grid if r["arm"] == arm], _work(world, grid, ARMS[arm]))
            for arm in ARMS
            if any(r["arm"] == arm for r in of_grid)
        }
        if estimates:
            found[name] = {
                "about": grid.about,
                "num_cells": len(grid.cells),
                "arms": {
                    arm: _row(world, grid, arm, value, estimates, of_grid)
                    for arm, value in estimates.items()
                },
            }
    found["mechanisms"] = _mechanisms(records)
    return found


def _work(world: World, grid: Grid, arm: Arm) -> Work:
    cells = []
    for cell in grid.cells:
        t = cell.trajectory
        tokens, _ = count_tokens(world.folder, t.model, t.dataset, t.samples)
        cells.append((t.method, cell.epoch * tokens))
    return Work(cells=tuple(cells), together=arm.together)


def _row(
    world: World,
    grid: Grid,
    arm: str,
    value: Estimate,
    estimates: dict[str, Estimate],
    records: Sequence[Record],
) -> dict[str, Any]:
    own = [record for record in records if record["arm"] == arm]
    tokens, supervised = _trained(world, grid, shares_epochs=ARMS[arm].shares_epochs)
    row = value.to_json() | {
        "cells_per_hour": round(3600 * len(grid.cells) / value.seconds),
        "tokens_per_second": round(tokens / value.seconds),
        "supervised_tokens_per_second": round(supervised / value.seconds),
        "peak_mib": max(record["peak_mib"] for record in own),
        "load_average": [min(r["load_average"] for r in own), max(r["load_average"] for r in own)],
    }
    if "cells" not in own[0]:
        row["cpu_seconds"] = statistics.median(record["cpu_seconds"] for record in own)
        row["written_mb"] = statistics.median(record["written_mb"] for record in own)
    else:
        row["cpu_seconds_per_cell"] = _per_cell(own, "cpu_seconds")
        row["written_mb_per_cell"] = _per_cell(own, "written_mb")
    if OURS in estimates and arm != OURS:
        row["times_ours"] = ratio(value, estimates[OURS])
    return row


def _per_cell(records: Sequence[Record], key: str) -> float:
    num_cells = sum(len(record["cells"]) for record in records)
    return round(sum(record[key] for record in records) / num_cells, 2)


def _trained(world: World, grid: Grid, *, shares_epochs: bool) -> tuple[int, int]:
    """Return tokens that go through the model, and those of them that are supervised."""
    passes = max(grid.epochs) if shares_epochs else sum(grid.epochs)
    counts = [count_tokens(world.folder, t.model, t.dataset, t.samples) for t in grid.trajectories]
    return passes * sum(n for n, _ in counts), passes * sum(n for _, n in counts)


def _mechanisms(records: Sequence[Record]) -> dict[str, Any]:
    """Compare each mechanism arm with `ours, alone` repeat by repeat, on the same trajectories."""
    seconds = {
        arm: {r["repeat"]: r["seconds"] for r in records if r["arm"] == arm} for arm in MECHANISMS
    }
    base = seconds["ours, alone"]
    found: dict[str, Any] = {}
    for arm, of_repeat in seconds.items():
        ratios = [of_repeat[repeat] / base[repeat] for repeat in of_repeat if repeat in base]
        if ratios:
            found[arm] = {
                "seconds": [of_repeat[repeat] for repeat in sorted(of_repeat)],
                "times_alone": round(statistics.median(ratios), 2),
                "range": [round(min(ratios), 2), round(max(ratios), 2)],
            }
    return found
