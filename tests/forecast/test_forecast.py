"""Forecasts of single choices: what is said, how sure, and where nothing is said."""

import numpy as np
import pandas as pd
import pytest

from forecast.planted_effects import Truth, scores, world
from planted_grid import Labels, grid_rows, grid_tables
from sft_atlas.errors import Error
from sft_atlas.evidence.tidy import tidy_tables
from sft_atlas.forecast.back_test import HOLES, NEW_DATA, NEW_MODEL, BackTest
from sft_atlas.forecast.forecast import NO_BASE, NO_LIFT, Forecast, back_test, draws, forecast
from sft_atlas.forecast.outcomes import QUERY
from sft_atlas.store.tables import Tables

CHOICE = {"method": "full", "samples": 1000, "schedule": "cosine", "epoch": 10}


def ask(models: list[str], data: list[str], benchmarks: list[str]) -> pd.DataFrame:
    grid = pd.MultiIndex.from_product([models, data, benchmarks])
    table = grid.to_frame(index=False, name=["model", "data", "benchmark"])
    return table.assign(**CHOICE)[list(QUERY)]


def without(tables: Tables, model: str, data: tuple[str, ...]) -> Tables:
    """The same tables before some runs of a model were made."""

    def kept(frame: pd.DataFrame) -> pd.DataFrame:
        gone = (frame["model"] == model) & frame["data"].isin(data)
        return frame[~gone].reset_index(drop=True)

    changed = {**vars(tables), "cells": kept(tables.cells), "scores": kept(tables.scores)}
    return Tables(**changed)


@pytest.fixture(scope="module")
def tables() -> Tables:
    return world(Truth(models=6, datasets=6, benchmarks=4))


@pytest.fixture(scope="module")
def tested(tables: Tables) -> BackTest:
    return back_test(tables)


@pytest.fixture(scope="module")
def new_model(tables: Tables) -> Forecast:
    """m0 before any of its runs, with its base scores."""
    data = tuple(f"d{i}" for i in range(6))
    bare = without(tables, "m0", data)
    return forecast(bare, ask(["m0"], list(data), ["b0", "b1", "b2", "b3"]))


def test_a_new_model_has_a_forecast_with_an_interval(tables: Tables, new_model: Forecast) -> None:
    frame = new_model.frame
    assert frame["is_supported"].all()
    assert set(frame["scheme"]) == {NEW_MODEL}
    assert not frame["is_observed"].any()
    assert (frame["num_models"] == 5).all()
    values, base = scores(Truth(models=6, datasets=6, benchmarks=4))
    truth = (values[0] - base[0]).ravel()
    assert np.corrcoef(truth, frame["gain"])[0, 1] > 0.8
    assert np.mean((frame["low"] <= truth) & (truth <= frame["high"])) > 0.7
    assert frame[["effect", "gain", "low", "high"]].notna().all(axis=None)


def test_the_joint_distribution_is_centred_and_its_draws_are_those(new_model: Forecast) -> None:
    joint = new_model.joint["m0"]
    frame = new_model.frame.loc[joint.rows]
    assert joint.mean == pytest.approx(frame["effect"])
    for name in frame["benchmark"].unique():
        at = (frame["benchmark"] == name).to_numpy()
        assert joint.mean[at].sum() == pytest.approx(0, abs=1e-12)
        assert joint.covariance[at].sum(axis=0) == pytest.approx(np.zeros(24), abs=1e-12)
    sample = draws(joint, num_draws=20_000, seed=1)
    assert sample.mean(axis=0) == pytest.approx(joint.mean, abs=2e-3)
    assert np.cov(sample.T) == pytest.approx(joint.covariance, abs=5e-5)
    assert (draws(joint, num_draws=5, seed=1) == draws(joint, num_draws=5, seed=1)).all()


def test_known_runs_of_a_model_sharpen_the_rest(tables: Tables, new_model: Forecast) -> None:
    part = forecast(
        without(tables, "m0", ("d0", "d1")), ask(["m0"], ["d0", "d1"], ["b0", "b1", "b2", "b3"])
    )
    assert set(part.frame["scheme"]) == {HOLES}
    width = (part.frame["high"] - part.frame["low"]).mean()
    assert width < (new_model.frame["high"] - new_model.frame["low"]).mean()


def test_a_run_in_the_evidence_is_answered_by_itself(tables: Tables, tested: BackTest) -> None:
    found = forecast(tables, ask(["m1"], ["d2"], ["b1"]), tested=tested).frame.iloc[0]
    row = tables.scores[
        (tables.scores[["model", "data", "benchmark"]] == ["m1", "d2", "b1"]).all(axis=1)
    ]
    assert found["is_observed"]
    assert found["gain"] == pytest.approx(row["gain"].iloc[0])
    assert np.isnan(found["low"])
    assert found["why_no_interval"] == (
        "this run is in the evidence; its own interval comes from its items"
    )


def test_a_model_without_base_scores_is_ranked_and_has_no_gain(
    tables: Tables, tested: BackTest
) -> None:
    found = forecast(tables, ask(["unheard-of"], ["d0", "d1", "d2"], ["b0"]), tested=tested)
    assert found.frame["is_supported"].all()
    assert found.frame["gain"].isna().all()
    assert set(found.frame["why_no_gain"]) == {NO_BASE}
    others = tables.scores[(tables.scores["benchmark"] == "b0") & tables.scores["data"].ne("base")]
    means = others.groupby("data")["score"].mean()[["d0", "d1", "d2"]]
    assert found.frame["effect"].argmax() == means.argmax()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"benchmark": "b9"}, "no run in the evidence was scored on b9"),
        ({"samples": 20000}, "samples 20,000 was never run; the evidence has 1,000"),
        ({"epoch": 3}, "epoch 3 was never run; the evidence has 10"),
        ({"method": "lora"}, "method lora was never run; the evidence has full"),
        ({"schedule": "constant"}, "schedule constant was never run; the evidence has cosine"),
        ({"data": "d9"}, "no run in the evidence used d9, and nothing else is known about it"),
    ],
    ids=["benchmark", "samples", "epoch", "method", "schedule", "data"],
)
def test_it_abstains_outside_of_what_was_seen(
    tables: Tables, tested: BackTest, change: dict[str, object], reason: str
) -> None:
    found = forecast(tables, ask(["m0"], ["d0"], ["b0"]).assign(**change), tested=tested)
    row = found.frame.iloc[0]
    assert not row["is_supported"]
    assert row["why_not"] == reason
    assert row[["effect", "gain", "low", "high"]].isna().all()
    assert not found.joint


def test_settings_that_were_never_combined_are_not_forecast() -> None:
    values = np.random.default_rng(0).uniform(0.2, 0.6, (3, 2, 2))
    base = np.full((3, 2), 0.3)
    few = grid_rows(values, base, Labels(samples=1000))
    many = grid_rows(values, base, Labels(samples=5000, methods=("lora",)))
    rows = pd.concat([few, many[many["method"] != "base"]], ignore_index=True)
    query = ask(["new"], ["d0"], ["b0"]).assign(samples=5000)
    found = forecast(tidy_tables(rows), query).frame.iloc[0]
    assert found["why_not"] == (
        "no run in the evidence has full, 5,000 samples, cosine, epoch 10 together"
    )


def test_one_other_model_is_not_enough() -> None:
    tables = world(Truth(models=2, datasets=3, benchmarks=2))
    found = forecast(tables, ask(["m0", "new"], ["d0"], ["b0"])).frame
    assert found["why_not"].tolist() == [
        "1 other model in the evidence has a score on b0; a forecast takes 2",
        "",
    ]


def test_a_new_dataset_is_forecast_from_its_group_where_groups_tell() -> None:
    tables = world(
        Truth(has_groups=True, own=0.2, data_benchmark=0.01, datasets=8, benchmarks=4, models=4)
    )
    features = pd.DataFrame({"data": ["mine"], "data_group": ["skill 2"]})
    query = ask(["m0"], ["mine"], [f"b{i}" for i in range(4)])
    found = forecast(tables, query, features=features)
    assert found.frame["is_supported"].all()
    assert set(found.frame["scheme"]) == {NEW_DATA}
    assert found.frame["gain"].argmax() == 2
    other = forecast(tables, query.assign(data="yours"), tested=found.back_test).frame
    assert not other["is_supported"].any()


def test_kept_epochs_are_forecast_from_kept_epochs() -> None:
    values = np.random.default_rng(1).uniform(0.2, 0.6, (4, 3, 2, 1, 2))
    values[..., 0] -= 0.1
    tables = grid_tables(values, np.full((4, 2), 0.3), Labels(epochs=(1, 10)))
    both = pd.concat([ask(["new"], ["d0", "d1"], ["b0"]).assign(epoch=e) for e in (1, 10)])
    found = forecast(tables, both).frame
    assert found["is_supported"].all()
    early, late = found["effect"].to_numpy().reshape(2, 2)
    assert (late - early).mean() > 0.03


@pytest.mark.parametrize(
    ("num_worlds", "num_hidden", "slack"),
    [(1, 1, 2.0), pytest.param(6, 4, 1.3, marks=pytest.mark.slow)],
    ids=["one", "many"],
)
def test_the_joint_distribution_is_as_wide_as_its_errors(
    num_worlds: int, num_hidden: int, slack: float
) -> None:
    """Squared errors of the effects on hidden models, over the variances that were told."""
    squared, told = 0.0, 0.0
    for seed in range(num_worlds):
        truth = Truth(models=6, datasets=6, benchmarks=4, model_data_benchmark=0.04, seed=seed)
        values, _ = scores(truth)
        names = [f"d{i}" for i in range(6)]
        for model in range(num_hidden):
            bare = without(world(truth), f"m{model}", tuple(names))
            found = forecast(bare, ask([f"m{model}"], names, [f"b{i}" for i in range(4)]))
            effect = values[model] - values[model].mean(axis=0)
            joint = found.joint[f"m{model}"]
            squared += float(((effect.ravel() - joint.mean) ** 2).sum())
            told += float(np.trace(joint.covariance))
    assert 1 / slack < squared / told < slack


def test_a_query_lacks_columns() -> None:
    query = ask(["m0"], ["d0"], ["b0"]).drop(columns=["method", "epoch"])
    with pytest.raises(Error) as caught:
        forecast(world(Truth(models=2)), query)
    assert str(caught.value) == (
        "queries: no column method, epoch; a query has model, data, method, samples, schedule, "
        "epoch, benchmark. Add them."
    )


def test_no_evidence_is_a_reason_for_every_query(tables: Tables) -> None:
    bare = Tables(**{**vars(tables), "cells": tables.cells[:0], "scores": tables.scores[:0]})
    found = forecast(bare, ask(["m0"], ["d0", "d1"], ["b0"]))
    assert set(found.frame["why_not"]) == {"no run on a single dataset has a score"}
    assert found.frame["gain"].isna().all()


def test_a_base_score_without_any_lift_gives_no_gain(tables: Tables) -> None:
    models = sorted(set(tables.scores["model"]))
    bare = tables.scores.copy()
    is_other = bare["model"] != "m0"
    bare.loc[is_other, ["gain", "base_score"]] = np.nan
    bare = bare[~(is_other & (bare["method"] == "base"))]
    hidden = without(tables, "m0", tuple(f"d{d}" for d in range(6)))
    changed = {**vars(hidden), "scores": bare[bare["cell"].isin(set(hidden.scores["cell"]))]}
    found = forecast(Tables(**changed), ask(models[:1], ["d0", "d1"], ["b0"])).frame
    assert (found["why_no_gain"] == NO_LIFT).all()
    assert (found["why_no_interval"] == NO_LIFT).all()
    assert found[["gain", "low", "high"]].isna().all(axis=None)
    assert found["effect"].notna().all()
