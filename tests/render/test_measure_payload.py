"""Curves and points survive their way onto the page, and what is absent stays absent."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from sft_atlas.analyze.analysis import Analysis, analyze
from sft_atlas.analyze.gains import AVERAGE
from sft_atlas.render.coding import nested, significant
from sft_atlas.render.measure_payload import measure_names
from sft_atlas.render.payload import make_payload


@pytest.fixture(scope="module")
def tables(planted: SimpleNamespace) -> object:
    world = planted.World(num_datasets=3, num_benchmarks=3, epochs=(1, 2), num_failed=1)
    return planted.make_tables(world)


@pytest.fixture(scope="module")
def analysis(tables: object) -> Analysis:
    return analyze(tables, questions=(), num_resamples=10)


@pytest.fixture(scope="module")
def payload(tables: object, analysis: Analysis) -> dict:
    return make_payload(tables, analysis)


def test_points_find_their_properties_through_their_pair(analysis: Analysis, payload: dict) -> None:
    points, pairs, names = payload["points"], payload["pairs"], payload["names"]
    assert "similarity" in points and "log_perplexity" in pairs
    for i, row in enumerate(analysis.points.to_dict("records")):
        pair = points["pair"][i]
        assert names["models"][pairs["model"][pair]] == row["model"]
        assert names["data"][pairs["data"][pair]] == row["data"]
        assert points["similarity"][i] == pytest.approx(row["similarity"], rel=1e-3)
        for key in ("log_perplexity", "log_length", "ifd"):
            assert pairs[key][pair] == pytest.approx(row[key], rel=1e-4)


def test_curves_keep_every_position_and_value(analysis: Analysis, payload: dict) -> None:
    packed, names = payload["layers"], payload["names"]
    curves = packed["curves"]
    chosen = analysis.layers["model"] == AVERAGE
    rows = analysis.layers[chosen & (analysis.layers["norm"] == "rms")]
    (first, *_) = [
        i
        for i, model in enumerate(curves["model"])
        if model == -1 and names["norms"][curves["norm"][i]] == "rms"
    ]
    rows = rows[rows["method"] == names["methods"][curves["method"][first]]]
    assert packed["grids"][curves["position"][first]] == pytest.approx(
        rows["position"].tolist(), rel=1e-3
    )
    assert curves["change"][first] == pytest.approx(rows["change"].tolist(), rel=1e-3)
    assert len(packed["grids"]) == 1


def test_forgetting_points_to_its_cells(analysis: Analysis, payload: dict) -> None:
    packed = payload["forgetting"]
    for i, row in enumerate(analysis.forgetting.to_dict("records")):
        assert payload["cells"]["cell"][packed["cell"][i]] == row["cell"]
        assert packed["kl"][i] == pytest.approx(row["kl_per_token"], rel=1e-3)
    runs = pd.Series(packed["run"])
    assert runs.nunique() == analysis.forgetting["trajectory"].nunique()


def test_small_numbers_keep_their_digits_and_gaps_stay_gaps() -> None:
    frame = pd.DataFrame({"model": "", "at": [0.0, 1.0], "x": [1.2346e-17, np.nan], "y": np.nan})
    packed = nested(frame, ["model"], ["at", "x", "y"], {"models": []})
    assert packed["grids"] == [[0, 1]]
    assert packed["curves"] == {"model": [-1], "at": [0], "x": [[1.235e-17, None]], "y": [None]}
    assert significant(float("inf")) is None


def test_every_section_is_strict_json_when_nothing_was_measured(tables: object) -> None:
    none = {name: pd.DataFrame() for name in ("drift", "datasets", "curves", "spectra", "scans")}
    none |= {name: pd.DataFrame() for name in ("descriptions", "similarities", "updates")}
    none |= {name: pd.DataFrame() for name in ("forgetting", "representations")}
    bare = type(tables)(**{**vars(tables), **none})
    analysis = analyze(bare, questions=(), num_resamples=5)
    payload = make_payload(bare, analysis)
    json.dumps(payload, allow_nan=False)
    assert measure_names(analysis)["predictors"] == ["log_kl"]
    assert payload["points"]["gain"] == [] and payload["dimensions"]["grids"] == []
