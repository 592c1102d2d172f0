"""A layer has one change; depths are compared at the shallowest positions."""

from collections.abc import Callable
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from sft_atlas.analyze.gains import AVERAGE, cell_gains, mean_gains
from sft_atlas.analyze.layers import layer_changes, layer_profile
from sft_atlas.analyze.relations import layer_findings


def test_the_change_of_a_layer_is_that_of_all_its_weights(planted: ModuleType) -> None:
    tables = planted.make_tables(planted.World(epochs=(1,)))
    drift = pd.DataFrame(
        {
            "cell": ["c"] * 3,
            "layer": [0, 0, np.nan],
            "num_layers": [1, 1, 1],
            "position": [0.5, 0.5, np.nan],
            "kind": ["attention.query", "total", "total"],
            "frobenius": [3.0, 5.0, 100.0],
            "relative": [0.3, 0.1, 1.0],
            "rms": [0.03, 0.01, 0.1],
        }
    )
    changes = layer_changes(type(tables)(**{**vars(tables), "drift": drift}))
    assert changes[["relative", "rms"]].to_numpy().tolist() == [[0.1, 0.01]]


def test_models_of_other_depth_are_read_at_the_shallowest_positions(planted: ModuleType) -> None:
    tables = planted.make_tables(planted.World(epochs=(1,), methods=("full",)))
    deep = planted.make_tables(planted.World(epochs=(1,), methods=("full",), num_layers=12)).drift
    first = tables.cells.loc[tables.cells["model"] == "llama-a", "cell"]
    drift = pd.concat(
        [tables.drift[~tables.drift["cell"].isin(first)], deep[deep["cell"].isin(first)]]
    )
    mixed = type(tables)(**{**vars(tables), "drift": drift})
    table = layer_profile(mixed, mean_gains(cell_gains(mixed)), num_resamples=50).table
    average = table[(table["model"] == AVERAGE) & (table["norm"] == "relative")]
    assert average["position"].tolist() == pytest.approx([(i + 0.5) / 6 for i in range(6)])
    assert (average["num_trajectories"] == 28).all()


def test_unchanged_weights_are_zero_change(planted: ModuleType) -> None:
    tables = planted.make_tables(planted.World(epochs=(1,)))
    still = type(tables)(
        **{**vars(tables), "drift": tables.drift.assign(frobenius=0.0, relative=0.0, rms=0.0)}
    )
    profile = layer_profile(still, mean_gains(cell_gains(still)), num_resamples=50).table
    assert (profile["change"] == 0).all()
    assert profile["correlation"].isna().all()


def test_too_few_models_to_compare_depths_is_said_once(planted: ModuleType) -> None:
    tables = planted.make_tables(planted.World(num_models=2, num_datasets=4, epochs=(1,)))
    gains = cell_gains(tables)
    means = mean_gains(gains)
    (answer,) = layer_findings(layer_profile(tables, means, num_resamples=10), gains, means)
    assert answer.statement.startswith(
        "Too few models or datasets to tell (2 and 4; it takes three of each). The relative change "
        "itself, in the first and the last layer: full 0.0"
    )
    assert "; lora 0.0" in answer.statement
    assert (answer.estimate, answer.interval, answer.n) == (None, None, 16)


def with_relative(planted: ModuleType, change: Callable[[pd.DataFrame], pd.Series]) -> object:
    """Planted tables whose relative change is another; column `gain` is the cell's mean gain."""
    world = planted.World(num_datasets=6, num_benchmarks=3, epochs=(1,), methods=("full",))
    tables = planted.make_tables(world)
    means = mean_gains(cell_gains(tables)).set_index("cell")["gain"]
    drift = tables.drift.assign(gain=tables.drift["cell"].map(means))
    return type(tables)(**{**vars(tables), "drift": drift.assign(relative=change(drift))})


def test_a_layer_that_never_moves_takes_no_band_from_the_others(planted: ModuleType) -> None:
    frozen = with_relative(planted, lambda d: d["relative"].where(d["layer"] > 0, 0.0))
    profile = layer_profile(frozen, mean_gains(cell_gains(frozen)), num_resamples=60)
    rows = profile.table[profile.table["model"] == AVERAGE]
    rows = rows[rows["norm"] == "relative"]
    assert rows["low"].isna().tolist() == [True] + 5 * [False]
    assert profile.peaks[("200 samples, constant, 1 epoch", "full")].size > 50
    (answer,) = layer_findings(profile, cell_gains(frozen), mean_gains(cell_gains(frozen)))
    assert "The relative change itself is 0.0000 in the first" in answer.statement


def test_layers_whose_change_goes_with_losing_are_not_called_undecided(
    planted: ModuleType,
) -> None:
    tables = with_relative(planted, lambda d: 0.1 - 0.1 * d["gain"] - 0.01 * d["gain"] * d["layer"])
    means = mean_gains(cell_gains(tables))
    profile = layer_profile(tables, means, num_resamples=60)
    (answer,) = layer_findings(profile, cell_gains(tables), means)
    assert "(r = \N{MINUS SIGN}1.00" in answer.statement
    assert "cannot tell" not in answer.statement
