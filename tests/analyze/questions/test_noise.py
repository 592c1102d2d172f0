"""Planted spreads of seeds and items come out apart, and nothing is guessed without seeds."""

import numpy as np
import pandas as pd
import pytest

from analyze.planted import World, make_tables
from planted_grid import Labels, grid_rows, grid_tables
from sft_atlas.analyze.questions.answered import Answered
from sft_atlas.analyze.questions.noise import noise_floor
from sft_atlas.evidence.tidy import tidy_tables

ITEMS = 400
ITEM_SD = np.sqrt(0.25 / ITEMS)


def study(
    rng: np.random.Generator,
    *,
    seed_sd: float,
    num_seeds: int,
    num_items: int | None = ITEMS,
    num_benchmarks: int = 3,
) -> Answered:
    """4 models x 5 datasets; every run is scored on items of its own."""
    truth = np.full((4, 5, num_benchmarks), 0.5)
    frames = []
    for seed in range(num_seeds):
        run = np.clip(truth + seed_sd * rng.normal(size=truth.shape), 0, 1)
        scores = rng.binomial(ITEMS, run) / ITEMS
        rows = grid_rows(scores, np.full((4, num_benchmarks), 0.4), Labels(num_items=num_items))
        is_run = rows["method"] != "base"
        frames.append(rows[is_run].assign(seed=seed) if seed else rows)
    return noise_floor(tidy_tables(pd.concat(frames, ignore_index=True)))


@pytest.mark.parametrize("seed_sd", [0.0, 0.02, 0.05])
def test_the_spread_of_seeds_is_told_from_that_of_items(seed_sd: float) -> None:
    rng = np.random.default_rng(round(1000 * seed_sd))
    found = study(rng, seed_sd=seed_sd, num_seeds=6).tables["noise_floor"].set_index("benchmark")
    for name in ("b0", "b1", "b2"):
        row = found.loc[name]
        assert row["item_sd"] == pytest.approx(ITEM_SD, rel=0.05)
        assert row["total_sd"] == pytest.approx(np.hypot(seed_sd, ITEM_SD), rel=0.2)
        assert row["seed_low"] <= seed_sd <= row["seed_high"]
        assert row["degrees_of_freedom"] == 100
    # Three benchmarks with luck of their own: their mean has a third of the variance.
    assert found.loc["", "total_sd"] == pytest.approx(
        np.hypot(seed_sd, ITEM_SD) / np.sqrt(3), rel=0.2
    )


@pytest.mark.parametrize("num_seeds", [2, 5])
def test_intervals_of_the_seed_spread_cover_the_truth(num_seeds: int) -> None:
    rng = np.random.default_rng(num_seeds)
    answer = study(rng, seed_sd=0.03, num_seeds=num_seeds, num_benchmarks=150)
    found = answer.tables["noise_floor"].iloc[1:]
    is_inside = (found["seed_low"] <= 0.03) & (found["seed_high"] >= 0.03)
    # 0.95 less three binomial errors of 150 draws.
    assert len(found) == 150 and is_inside.mean() >= 0.895


def test_the_detectable_difference_is_found_in_four_of_five_studies() -> None:
    rng = np.random.default_rng(5)
    total = float(np.hypot(0.03, ITEM_SD))
    row = study(rng, seed_sd=0.03, num_seeds=8).tables["noise_floor"].iloc[1]
    true = 2.8015 * np.sqrt(2) * total
    assert row["detectable"] == pytest.approx(true, rel=0.15)
    one, other = (rng.normal(size=20_000) * total for _ in range(2))
    is_found = np.abs(one + true - other) > 1.96 * np.sqrt(2) * total
    assert is_found.mean() == pytest.approx(0.8, abs=0.01)
    runs = row["seeds_for_a_point"]
    assert runs == np.ceil((row["detectable"] / 0.01) ** 2)


def test_the_sentence_has_the_spread_its_parts_and_what_one_run_tells() -> None:
    (finding,) = study(np.random.default_rng(6), seed_sd=0.03, num_seeds=4).findings
    assert finding.estimate is not None and finding.interval is not None
    assert finding.n == 80
    for part in ("differ in the seed alone", "items explain", "One run of each of two recipes"):
        assert part in finding.statement


def test_without_replicates_nothing_is_separated() -> None:
    answer = study(np.random.default_rng(7), seed_sd=0.03, num_seeds=1)
    (finding,) = answer.findings
    assert finding.estimate is None and finding.interval is None
    assert finding.reason == "no setting was run with a second seed"
    assert finding.statement.startswith(
        "0 replicated cells: no setting was run with a second seed, so the luck of a training run "
        "cannot be separated from the effect of a model, a dataset or a method. Items alone, each "
        "run with its own, hide differences of two runs below"
    )
    table = answer.tables["noise_floor"].set_index("benchmark")
    assert table.loc["b0", "detectable"] == pytest.approx(2.8015 * np.sqrt(2) * ITEM_SD, rel=0.05)
    assert table["seed_sd"].isna().all()


def test_unknown_item_errors_leave_the_total_spread() -> None:
    answer = study(np.random.default_rng(8), seed_sd=0.03, num_seeds=3, num_items=None)
    table = answer.tables["noise_floor"]
    assert table["total_sd"].notna().all() and table["seed_sd"].isna().all()
    assert set(table["reason"]) == {"the error over items is not known"}
    (finding,) = answer.findings
    assert finding.estimate is None
    assert "seeds and items cannot be told apart" in finding.statement


def test_degenerate_studies_have_a_reason() -> None:
    failed = make_tables(World(num_models=2, num_datasets=2, num_failed=8))
    (finding,) = noise_floor(failed).findings
    assert finding.statement == "Not estimable: no final cell has a score."
    constant = noise_floor(grid_tables(np.full((1, 1, 1), 0.5), np.full((1, 1), 0.5)))
    assert constant.findings[0].estimate is None
    missing = np.full((2, 2, 2), 0.5)
    missing[:, :, 1] = np.nan
    found = noise_floor(grid_tables(missing, np.full((2, 2), 0.5))).tables["noise_floor"]
    assert found["benchmark"].tolist() == ["", "b0"]


def test_seeds_with_equal_scores_are_no_proof_that_there_is_no_luck() -> None:
    rows = grid_rows(np.full((2, 3, 2), 0.5), np.full((2, 2), 0.4), Labels())
    again = rows[rows["method"] != "base"].assign(seed=1)
    (finding,) = noise_floor(tidy_tables(pd.concat([rows, again], ignore_index=True))).findings
    assert finding.interval is None and "they may be one run" in finding.reason
