"""The payload carries every number once, rounds little and never turns nothing into 0."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from sft_atlas.analyze.analysis import analyze
from sft_atlas.render.payload import MAX_CURVE_POINTS, downsample, make_payload


@pytest.fixture(scope="module")
def tables(planted: SimpleNamespace) -> object:
    return planted.make_tables(planted.World(num_failed=1, epochs=(1, 3), num_benchmarks=4))


@pytest.fixture(scope="module")
def payload(tables: object) -> dict:
    return make_payload(tables, analyze(tables, questions=(), num_resamples=30))


def test_scores_round_trip_through_names(tables: object, payload: dict) -> None:
    names, scores = payload["names"], payload["scores"]
    assert len(scores["cell"]) == len(tables.scores)
    for i in (0, 57, len(scores["cell"]) - 1):
        row = tables.scores.iloc[i]
        assert payload["cells"]["cell"][scores["cell"][i]] == row["cell"]
        assert names["benchmarks"][scores["benchmark"][i]] == row["benchmark"]
        if not np.isnan(row["score"]):
            assert scores["score"][i] == pytest.approx(row["score"], abs=1e-5)


def test_missing_scores_are_null_with_their_reason(tables: object, payload: dict) -> None:
    scores = payload["scores"]
    missing = [i for i, score in enumerate(scores["score"]) if score is None]
    assert len(missing) == tables.scores["score"].isna().sum() > 0
    reasons = {payload["names"]["reasons"][scores["reason"][i]] for i in missing}
    assert reasons == {"loss is not finite at step 17; lower the learning rate."}
    assert all(scores["gain"][i] is None for i in missing)


def test_benchmarks_line_up_with_the_data_of_their_skill(payload: dict) -> None:
    assert payload["names"]["benchmarks"][:3] == ["knowledge-test", "math-test", "code-test"]
    assert payload["names"]["data"][:3] == ["knowledge-set", "math-set", "code-set"]


def test_it_is_strict_json(payload: dict) -> None:
    json.dumps(payload, allow_nan=False)


def test_findings_point_to_their_cells(tables: object, payload: dict) -> None:
    num_cells = len(tables.cells)
    assert all(0 <= index < num_cells for rows in payload["findings"] for index in rows)


@pytest.mark.parametrize("size", [1, 7, 60, 61, 5000])
def test_curves_keep_their_mean_and_end(size: int) -> None:
    steps, values = np.arange(1, size + 1), np.linspace(3, 1, size)
    curve = downsample(steps, values)
    assert len(curve["step"]) == len(curve["loss"]) == min(size, MAX_CURVE_POINTS)
    assert curve["step"][-1] == size
    assert np.mean(curve["loss"]) == pytest.approx(values.mean(), abs=0.05)
