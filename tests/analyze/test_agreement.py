"""Models agree where the same data moves them, and only there."""

from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from sft_atlas.analyze.agreement import agreement
from sft_atlas.analyze.gains import AVERAGE, cell_gains, mean_gains
from sft_atlas.analyze.layers import layer_profile


def grid(num_models: int, num_datasets: int) -> pd.DataFrame:
    pairs = [(f"m{m}", f"d{d}") for m in range(num_models) for d in range(num_datasets)]
    return pd.DataFrame(pairs, columns=["model", "data"])


def test_it_is_the_mean_of_the_pairs_own_correlations() -> None:
    rows, rng = grid(4, 6), np.random.default_rng(0)
    matrix = rng.normal(size=(24, 3)) + 10.0
    found = agreement(rows, matrix, num_resamples=20)
    table = matrix.reshape(4, 6, 3)
    for position in range(3):
        square = np.corrcoef(table[:, :, position])
        expected = square[np.triu_indices(4, 1)].mean()
        assert found.estimate[position] == pytest.approx(expected, abs=1e-12)
    assert found.num_pairs == 6


def test_the_depth_where_data_moves_all_models_alike_is_found() -> None:
    rows, rng = grid(5, 8), np.random.default_rng(1)
    shared = np.tile(rng.normal(size=8), 5)
    matrix = 1e-6 * (rng.normal(size=(40, 3)) + np.outer(shared, [0.0, 3.0, 0.0]))
    found = agreement(rows, matrix, num_resamples=200)
    assert found.estimate.argmax() == 1 and found.estimate[1] > 0.7
    assert found.low[1] > 0 and found.low[0] < 0 < found.high[0]


def test_equal_changes_have_no_agreement() -> None:
    found = agreement(grid(3, 4), np.full((12, 2), 0.1), num_resamples=10)
    assert np.isnan(found.estimate).all() and np.isnan(found.low).all()


def test_models_without_shared_data_are_no_pair() -> None:
    rows = grid(2, 3).assign(data=[f"d{i}" for i in range(6)])
    found = agreement(rows, np.random.default_rng(0).normal(size=(6, 2)), num_resamples=5)
    assert found.num_pairs == 0 and np.isnan(found.estimate).all()


def test_layers_have_the_change_of_every_model_and_its_own_band(planted: ModuleType) -> None:
    world = planted.World(num_models=4, num_datasets=6, epochs=(1,), layer=0.1, methods=("full",))
    tables = planted.make_tables(world)
    table = layer_profile(tables, mean_gains(cell_gains(tables)), num_resamples=80).table
    assert set(table["norm"]) == {"relative", "rms"}
    single = table[(table["model"] != AVERAGE) & (table["norm"] == "relative")]
    assert single["model"].nunique() == 4 and single["low"].notna().all()
    assert single["agreement"].isna().all()
    assert (single["num_trajectories"] == 6).all()
    few = planted.make_tables(planted.World(num_models=3, num_datasets=4, epochs=(1,)))
    table = layer_profile(few, mean_gains(cell_gains(few)), num_resamples=20).table
    single = table[table["model"] != AVERAGE]
    assert single["correlation"].notna().all() and single["low"].isna().all()
    assert table.loc[table["model"] == AVERAGE, "low"].notna().all()
