"""Curves, sizes and the choice of an epoch say what was planted, and no more."""

from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.multitest import multipletests

from planted_grid import Labels, grid_rows, grid_tables
from sft_atlas.analyze.dose_curves import Panel, dose_panels, run_scores, simultaneous_changes
from sft_atlas.analyze.epoch_choice import MARGIN, choose_epoch, stop_rule
from sft_atlas.analyze.findings import EPOCHS, SAMPLES
from sft_atlas.analyze.gains import AVERAGE
from sft_atlas.analyze.questions.answered import Answered
from sft_atlas.analyze.questions.doses import samples_and_epochs
from sft_atlas.evidence.tidy import tidy_tables
from sft_atlas.statistics.clusters import two_way_mean
from sft_atlas.store.tables import Tables

EPOCH_LABELS = Labels(epochs=(1, 2, 3, 4), num_items=20_000)
EMPTY = pd.DataFrame()


def noisy(shape: tuple[int, ...], *, sd: float = 0.005, seed: int = 0) -> np.ndarray:
    """Scores around 0.5; every model, dataset and benchmark has its own level."""
    rng = np.random.default_rng(seed)
    values = 0.5 + sd * rng.normal(size=shape)
    for axis in range(3):
        own = [size if axis == place else 1 for place, size in enumerate(shape)]
        values = values + 0.05 * rng.normal(size=own)
    return values


def over_epochs(path: list[float], **choices: float) -> Tables:
    """A grid of 4 models, 5 datasets and 3 benchmarks whose scores follow a path over epochs."""
    values = noisy((4, 5, 3, 1, len(path)), **choices) + np.array(path)
    return grid_tables(values, np.full((4, 3), 0.4), EPOCH_LABELS)


def two_sizes(effect: list[float], *, base: float = 0.4) -> Tables:
    """A grid at 1,000 and at 4,000 samples; the larger moves each benchmark by its effect."""
    shape = (4, 6, len(effect))
    level = noisy(shape, sd=0.0)
    rng = np.random.default_rng(5)
    parts = [
        grid_rows(
            level + 0.004 * rng.normal(size=shape) + np.array(effect) * (samples > 1000),
            np.full((4, len(effect)), base),
            Labels(samples=samples, num_items=20_000),
        )
        for samples in (1000, 4000)
    ]
    rows = pd.concat([parts[0], parts[1][parts[1]["method"] != "base"]], ignore_index=True)
    return tidy_tables(rows)


def of(answered: Answered, question: str) -> str:
    (found,) = [item for item in answered.findings if item.question == question]
    return found.statement


def panel(values: np.ndarray, *, num_models: int) -> Panel:
    """Runs of crossed models and datasets, (models x datasets, epochs)."""
    num_datasets = len(values) // num_models
    models, datasets = np.divmod(np.arange(len(values)), num_datasets)
    doses = np.arange(1, values.shape[1] + 1)
    names = np.array([f"d{number}" for number in datasets])
    return Panel(doses, values, np.zeros_like(values), models, datasets, names)


def test_a_curve_is_the_mean_change_within_runs() -> None:
    tables = over_epochs([0.0, 0.02, 0.03, 0.03])
    curves = samples_and_epochs(tables, num_resamples=50).tables["dose_curves"]
    line = curves[(curves["data"] == AVERAGE) & (curves["benchmark"] == "b1")].set_index("x")
    scores = tables.scores[
        (tables.scores["benchmark"] == "b1") & (tables.scores["method"] != "base")
    ]
    wide = scores.pivot(index=["model", "data"], columns="epoch", values="score")
    assert line["value"].to_numpy() == pytest.approx(wide.mean().to_numpy())
    errors = scores.pivot(index=["model", "data"], columns="epoch", values="standard_error")
    by_hand = two_way_mean(
        (wide[3] - wide[1]).to_numpy(),
        models=np.repeat(np.arange(4), 5),
        datasets=np.tile(np.arange(5), 4),
        item_errors=np.hypot(errors[3], errors[1]).to_numpy(),
        degrees="effective",
    )
    assert line.loc[3, "change"] == pytest.approx(by_hand.estimate)
    assert line.loc[3, "low"] == pytest.approx(by_hand.low, abs=1e-4)
    later = line.loc[[2, 3, 4]]
    assert (later["band_low"] < later["low"]).all() and (later["band_high"] > later["high"]).all()
    assert line.loc[1, ["change", "low", "high", "band_low", "band_high"]].eq(0.0).all()


def test_neither_the_base_model_nor_the_order_of_rows_moves_an_answer() -> None:
    tables = two_sizes([0.03, 0.0, -0.02])
    turned = Tables(
        cells=tables.cells.iloc[::-1].reset_index(drop=True),
        scores=tables.scores.iloc[::-1].reset_index(drop=True),
        drift=EMPTY,
        datasets=EMPTY,
        curves=EMPTY,
    )
    # A base that is a copy of another's moves gains, and is no reason to lose a comparison.
    moved = two_sizes([0.03, 0.0, -0.02], base=0.1)
    without = Tables(
        cells=tables.cells,
        scores=tables.scores.assign(gain=np.nan, gain_reason="its base is not comparable"),
        drift=EMPTY,
        datasets=EMPTY,
        curves=EMPTY,
    )
    keys = ["benchmark"]
    expected = samples_and_epochs(tables, num_resamples=20).tables["size_differences"]
    for other in (turned, moved, without):
        found = samples_and_epochs(other, num_resamples=20).tables["size_differences"]
        pd.testing.assert_frame_equal(
            found.sort_values(keys, ignore_index=True),
            expected.sort_values(keys, ignore_index=True),
        )


def test_planted_effects_of_more_samples_are_found_and_adjusted() -> None:
    answered = samples_and_epochs(two_sizes([0.03, 0.0, -0.02]), num_resamples=20)
    table = answered.tables["size_differences"].set_index("benchmark")
    assert table.loc[["b0", "b1", "b2"], "difference"].to_numpy() == pytest.approx(
        [0.03, 0.0, -0.02], abs=0.004
    )
    single = table.loc[["b0", "b1", "b2"]]
    expected = multipletests(single["p_value"], method="holm")[1]
    assert single["p_adjusted"].to_numpy() == pytest.approx(expected)
    assert table.loc["b0", "won_fraction"] == 1.0
    assert np.isnan(table.loc[AVERAGE, "p_adjusted"])
    text = of(answered, SAMPLES)
    assert text.startswith(
        "full, cosine: 4,000 samples instead of 1,000 change the mean score by +0."
    )
    assert "which is 4 times the steps" in text
    assert "Clear on 2 of 3 benchmarks (Holm): b0" in text
    assert text.endswith("Two sizes allow no curve of samples.")


def test_a_curve_over_samples_averages_the_epochs_of_a_run() -> None:
    shape = (3, 3, 1, 1, 2)
    parts = [
        grid_rows(
            np.full(shape, 0.5) + 0.1 * size + np.array([0.0, 0.02]),
            np.full((3, 1), 0.4),
            Labels(samples=1000 * 2**size, epochs=(1, 2)),
        )
        for size in range(3)
    ]
    rows = pd.concat([part[part["method"] != "base"] for part in parts], ignore_index=True)
    scores = run_scores(tidy_tables(rows))
    found = dose_panels(scores, dose="samples")["b0"]
    assert found.doses.tolist() == [1000, 2000, 4000]
    assert found.values == pytest.approx(np.tile([0.51, 0.61, 0.71], (9, 1)))
    curves = samples_and_epochs(tidy_tables(rows), num_resamples=5).tables["dose_curves"]
    over = curves[(curves["dose"] == "samples") & (curves["benchmark"] == "b0")]
    assert over["x"].tolist()[:3] == [1000, 2000, 4000] and over["samples"].isna().all()


def test_runs_that_end_early_leave_the_panel() -> None:
    values = noisy((4, 5, 3, 1, 4))
    values[:, 0, :, :, 3] = np.nan
    scores = run_scores(grid_tables(values, np.full((4, 3), 0.4), EPOCH_LABELS))
    found = dose_panels(scores, dose="epoch")["b0"]
    assert found.values.shape == (16, 4)
    assert "d0" not in found.data


def test_training_may_stop_where_the_curve_is_flat() -> None:
    answered = samples_and_epochs(over_epochs([0.0, 0.05, 0.08, 0.08]), num_resamples=200)
    line = answered.tables["best_epochs"].query("data == '' and benchmark == ''").iloc[0]
    assert line["stop_epoch"] == 3
    assert 0 < line["later_change"] < MARGIN
    assert "Stop at epoch 3: no later epoch up to 4 adds more than 0." in of(answered, EPOCHS)
    assert "Later is better." in of(answered, EPOCHS)
    rising = samples_and_epochs(over_epochs([0.0, 0.03, 0.06, 0.09]), num_resamples=50)
    assert "No epoch before 4 can be shown to be enough" in of(rising, EPOCHS)


def test_a_stop_seldom_misses_more_than_it_says() -> None:
    rng = np.random.default_rng(8)
    path = np.array([0.0, 0.01, 0.02, 0.04])
    missed = 0
    for number in range(150):
        taste = 0.01 * np.cumsum(rng.normal(size=(5, 1, 4)), axis=2)
        values = (path + taste + 0.01 * rng.normal(size=(5, 6, 4))).reshape(30, 4)
        stop = stop_rule(panel(values, num_models=5), seed=number)
        assert stop is not None
        missed += stop.most is not None and path[stop.epoch :].max() - path[stop.epoch - 1] > MARGIN
    assert missed / 150 <= 0.05


def test_all_changes_lie_in_the_band_at_once() -> None:
    rng = np.random.default_rng(9)
    inside, pairs = 0, [(0, j) for j in range(1, 5)]
    for number in range(200):
        steps = rng.normal(size=(6, 1, 5)) + rng.normal(size=(1, 8, 5)) + rng.normal(size=(6, 8, 5))
        band = simultaneous_changes(panel(steps.reshape(48, 5), num_models=6), pairs, seed=number)
        inside += bool(((band.low <= 0) & (band.high >= 0)).all())
    assert inside / 200 >= 0.93


def test_choosing_among_equal_epochs_brings_nothing_and_seems_to() -> None:
    rng = np.random.default_rng(10)
    apparent, validated = [], []
    for _ in range(200):
        values = rng.normal(size=(30, 8))
        choice = choose_epoch(panel(values, num_models=6), num_resamples=1)
        assert choice.validated is not None
        apparent.append(choice.apparent)
        validated.append(choice.validated.estimate)
    error = np.std(validated) / np.sqrt(200)
    assert abs(np.mean(validated)) < 3 * error
    assert np.mean(apparent) > 10 * error


def test_a_planted_best_epoch_is_chosen_and_pays() -> None:
    values = noisy((4, 5, 3, 1, 4), sd=0.01) + np.array([0.0, 0.06, 0.02, 0.0])
    answered = samples_and_epochs(
        grid_tables(values, np.full((4, 3), 0.4), EPOCH_LABELS), num_resamples=200
    )
    best = answered.tables["best_epochs"]
    line = best.query("data == '' and benchmark == ''").iloc[0]
    assert (line["best_epoch"], line["epoch_low"], line["epoch_high"]) == (2, 2, 2)
    assert line["validated"] == pytest.approx(0.06, abs=0.01)
    assert line["judged_on"] == "models" and line["num_left_out"] == 4
    assert len(best.query("benchmark == ''")) == 6 and len(best) == 9
    text = of(answered, "Which epoch is best, and what does choosing it cost?")
    assert "Choosing pays." in text and text.endswith("By dataset the best is epoch 2.")


@pytest.mark.parametrize(
    ("shape", "judged_on", "num_left_out"),
    [((1, 5, 3), "datasets", 5), ((1, 1, 3), "benchmarks", 3), ((2, 1, 1), "models", 2)],
    ids=["one model", "one run", "one dataset"],
)
def test_what_is_left_out_is_what_there_is(
    shape: tuple[int, int, int], judged_on: str, num_left_out: int
) -> None:
    tables = grid_tables(noisy((*shape, 1, 4)), np.full((shape[0], shape[2]), 0.4), EPOCH_LABELS)
    best = samples_and_epochs(tables, num_resamples=20).tables["best_epochs"]
    line = best.query("data == '' and benchmark == ''").iloc[0]
    assert (line["judged_on"], line["num_left_out"]) == (judged_on, num_left_out)


def test_one_run_on_one_benchmark_gives_no_advice() -> None:
    tables = grid_tables(noisy((1, 1, 1, 1, 4)), np.full((1, 1), 0.4), EPOCH_LABELS)
    answered = samples_and_epochs(tables, num_resamples=20)
    (best,) = [item for item in answered.findings if "best" in item.question]
    assert best.estimate is None
    assert best.reason == "a single run and benchmark: nothing can be left out"
    assert "not estimable: a single run" in best.statement
    assert "Where to stop is not estimable" in of(answered, EPOCHS)


def degenerate() -> dict[str, Tables]:
    values = noisy((3, 3, 2, 1, 4))
    base = np.full((3, 2), 0.4)
    missing = values.copy()
    missing[:, :, 1] = np.nan
    nothing = Tables(cells=EMPTY, scores=EMPTY, drift=EMPTY, datasets=EMPTY, curves=EMPTY)
    return {
        "empty": nothing,
        "no score at all": grid_tables(np.full_like(values, np.nan), base, EPOCH_LABELS),
        "constant": grid_tables(np.full_like(values, 0.5), base, EPOCH_LABELS),
        "a benchmark without scores": grid_tables(missing, base, EPOCH_LABELS),
        "no number of items": grid_tables(
            values, base, Labels(epochs=(1, 2, 3, 4), num_items=None)
        ),
    }


@pytest.mark.parametrize("name", list(degenerate()))
def test_degenerate_tables_get_a_sentence_and_no_nan(name: str) -> None:
    answered = samples_and_epochs(degenerate()[name], num_resamples=20)
    assert {found.question for found in answered.findings} >= {EPOCHS, SAMPLES}
    for found in answered.findings:
        assert "nan" not in found.statement.lower() and "inf" not in found.statement
        assert found.estimate is None or np.isfinite(found.estimate)
        assert found.interval is None or np.isfinite(found.interval).all()
        assert (found.estimate is None) == bool(found.reason)


def test_what_cannot_be_compared_is_said_with_the_way_out() -> None:
    tables = grid_tables(noisy((3, 3, 2)), np.full((3, 2), 0.4))
    answered = samples_and_epochs(tables)
    assert [found.statement for found in answered.findings] == [
        "Not estimable: no run was scored at two epochs; keep several epochs (keep: every).",
        "Not estimable: no two runs differ in their number of samples alone; train one dataset at "
        "two sizes.",
    ]
    assert all(table.empty for table in answered.tables.values())


def test_a_store_of_planted_gains_is_answered(planted: ModuleType) -> None:
    world = planted.World(per_epoch=0.03, samples=(200, 400), methods=("full",))
    answered = samples_and_epochs(planted.make_tables(world), num_resamples=50)
    (found, _) = [item for item in answered.findings if item.question == EPOCHS]
    assert found.estimate == pytest.approx(0.06, abs=0.01)
    assert found.interval is not None and found.interval[0] > 0
    assert "0 times" not in of(answered, SAMPLES)
