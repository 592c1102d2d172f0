"""What the training benchmark publishes rests on: which cells it draws, what it makes of times."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def estimates(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return _module(monkeypatch, "estimates")


@pytest.fixture
def grid(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return _module(monkeypatch, "grid")


def _module(monkeypatch: pytest.MonkeyPatch, name: str) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return importlib.import_module(f"training.{name}")


def _records(grid: ModuleType, *, num_repeats: int, noise: float) -> list[dict[str, object]]:
    """Return cells of 3 s and 1 (full) or 0.5 ms (LoRA) per token; every other repeat is slower."""
    whole = grid.make_grids((64, 256))["S"]
    records = []
    for repeat in range(num_repeats):
        factor = 1 + noise * (repeat % 2)
        cells = []
        for cell in grid.draw_cells(whole, repeat, 2):
            tokens = 80 * cell.trajectory.samples * cell.epoch
            per_token = 1e-3 if cell.trajectory.method == "full" else 0.5e-3
            seconds = factor * (3 + per_token * tokens)
            method = cell.trajectory.method
            cells.append({"method": method, "tokens": tokens, "seconds": seconds})
        records.append({"repeat": repeat, "cells": cells})
    return records


def _work(grid: ModuleType, estimates: ModuleType, *, together: int) -> object:
    whole = grid.make_grids((64, 256))["S"]
    cells = [(c.trajectory.method, 80 * c.trajectory.samples * c.epoch) for c in whole.cells]
    return estimates.Work(cells=tuple(cells), together=together)


def test_a_sampled_arm_gets_the_seconds_that_its_whole_grid_would_take(
    grid: ModuleType, estimates: ModuleType
) -> None:
    records = _records(grid, num_repeats=5, noise=0)
    work = _work(grid, estimates, together=2)

    found = estimates.estimate(records, work)

    truth = sum(3 + {"full": 1e-3, "lora": 0.5e-3}[m] * tokens for m, tokens in work.cells) / 2
    assert found.seconds == pytest.approx(truth)
    assert found.num_cells == 10


def test_an_interval_holds_what_repeats_differ_by(grid: ModuleType, estimates: ModuleType) -> None:
    work = _work(grid, estimates, together=1)
    exact = estimates.estimate(_records(grid, num_repeats=5, noise=0), work)

    found = estimates.estimate(_records(grid, num_repeats=5, noise=0.5), work)

    assert found.low < exact.seconds * 1.2 < found.high
    assert found.high - found.low > 0.1 * exact.seconds


def test_a_whole_arm_is_its_median_and_a_ratio_draws_the_same_repeats(
    estimates: ModuleType,
) -> None:
    work = estimates.Work(cells=())
    slow = [{"repeat": i, "seconds": 2.0 * s} for i, s in enumerate((5.0, 1.0, 3.0))]
    fast = [{"repeat": i, "seconds": s} for i, s in enumerate((5.0, 1.0, 3.0))]

    a, b = estimates.estimate(slow, work), estimates.estimate(fast, work)

    assert (a.seconds, b.seconds) == (6.0, 3.0)
    assert estimates.ratio(a, b) == {"ratio": 2.0, "interval": [2.0, 2.0]}


def test_repeats_together_draw_every_stratum(grid: ModuleType) -> None:
    whole = grid.make_grids((64, 256))["S"]
    drawn = [cell for repeat in range(8) for cell in grid.draw_cells(whole, repeat, 2)]

    strata = {(c.trajectory.method, c.trajectory.samples, c.epoch) for c in drawn}

    assert len(whole.cells) == 96
    assert len(strata) == 2 * 2 * 4
    assert all({c.trajectory.method for c in drawn[i : i + 2]} == {"full", "lora"} for i in (0, 2))


def test_mechanisms_are_tried_on_both_methods_and_on_other_runs_each_repeat(
    grid: ModuleType,
) -> None:
    whole = grid.make_grids((64, 256))["S"]
    drawn = [grid.draw_trajectories(whole, repeat) for repeat in range(4)]

    assert all([t.method for t in pair] == ["full", "lora"] for pair in drawn)
    assert all({t.samples for t in pair} == {64, 256} for pair in drawn)
    assert len(set(drawn)) > 1
