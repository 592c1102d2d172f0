"""Expected intervals, against those that come of it."""

import math

import numpy as np
import pandas as pd
import pytest

from sft_atlas.decide.precision import (
    DATA,
    EPOCHS,
    METHODS,
    SAMPLES,
    expected_precision,
    mixed_outcomes,
    pairs,
)
from sft_atlas.statistics.clusters import t_quantile, two_way_mean


def _runs(
    num_models: int, num_datasets: int, *, methods: tuple[str, ...] = ("full", "lora")
) -> pd.DataFrame:
    rows = [
        {"model": f"m{m}", "data": f"d{d}", "method_kind": kind}
        for m in range(num_models)
        for d in range(num_datasets)
        for kind in methods
    ]
    return pd.DataFrame(rows).assign(samples=1000, schedule="cosine", epoch=10)


def _with_values(
    runs: pd.DataFrame, *, model: float, data: float, rest: float, seed: int = 0
) -> pd.DataFrame:
    """Scores whose LoRA - full differences have these standard deviations."""
    rng = np.random.default_rng(seed)
    models, datasets = (sorted(runs[name].unique()) for name in ("model", "data"))
    by_model = dict(zip(models, model * rng.standard_normal(len(models)), strict=True))
    by_data = dict(zip(datasets, data * rng.standard_normal(len(datasets)), strict=True))
    apart = runs["model"].map(by_model) + runs["data"].map(by_data)
    apart = apart + rest * rng.standard_normal(len(runs))
    return runs.assign(value=np.where(runs["method_kind"] == "lora", apart, 0.0))


def _row(frame: pd.DataFrame, question: str) -> dict[str, object]:
    return frame[frame["question"] == question].to_dict("records")[0]


def test_the_half_width_is_that_of_the_interval_that_comes_of_it() -> None:
    evidence = _with_values(_runs(40, 40), model=0.03, data=0.02, rest=0.04)
    expected = _row(expected_precision(evidence, _runs(8, 6), _runs(4, 6)), METHODS)
    widths = []
    for seed in range(60):
        found = pairs(
            _with_values(_runs(8, 6), model=0.03, data=0.02, rest=0.04, seed=seed),
            METHODS,
            with_values=True,
        )
        codes = [np.unique(found[name], return_inverse=True)[1] for name in ("model", "data")]
        mean = two_way_mean(
            found["difference"].to_numpy(dtype=float), models=codes[0], datasets=codes[1]
        )
        widths.append((mean.high - mean.low) / 2)
    assert expected["half_width"] == pytest.approx(np.mean(widths), rel=0.2)
    assert expected["planned_pairs"] == 48
    assert float(str(expected["proposed_half_width"])) > float(str(expected["half_width"]))


def test_two_datasets_are_compared_over_models() -> None:
    rng = np.random.default_rng(0)
    evidence = _runs(60, 5, methods=("full",))
    evidence = evidence.assign(value=0.05 * rng.standard_normal(len(evidence)))
    row = _row(expected_precision(evidence, _runs(6, 5), _runs(6, 5).iloc[:0]), DATA)
    expected = t_quantile(6) * math.sqrt(2 * 0.05**2 / 6)
    assert row["half_width"] == pytest.approx(expected, rel=0.2)
    assert pd.isna(row["proposed_half_width"])


def test_levels_of_models_do_not_narrow_the_comparison_of_datasets() -> None:
    widths = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        evidence = _runs(8, 5, methods=("full",))
        levels = evidence["model"].map(
            dict(zip(sorted(set(evidence["model"])), range(8), strict=True))
        )
        evidence = evidence.assign(value=levels + 0.05 * rng.standard_normal(len(evidence)))
        widths.append(_row(expected_precision(evidence, evidence, evidence), DATA)["half_width"])
    expected = t_quantile(8) * math.sqrt(2 * 0.05**2 / 8)
    assert np.mean(np.array(widths, dtype=float)) == pytest.approx(expected, rel=0.06)


def test_what_the_evidence_cannot_tell_has_no_number() -> None:
    evidence = _with_values(_runs(6, 5), model=0.01, data=0.01, rest=0.01)
    frame = expected_precision(evidence, _runs(6, 5), _runs(6, 5))
    for question in (SAMPLES, EPOCHS):
        row = _row(frame, question)
        assert pd.isna(row["half_width"])
        assert row["why"] == "not known: the evidence has too few such pairs"


def test_what_the_study_does_not_plan_is_said() -> None:
    evidence = _with_values(_runs(6, 5), model=0.01, data=0.01, rest=0.01)
    planned = _runs(6, 5, methods=("full",))
    row = _row(expected_precision(evidence, planned, planned), METHODS)
    assert row["why"] == "the study plans no such pair"


def test_one_model_and_dataset_have_no_interval() -> None:
    evidence = _with_values(_runs(6, 5), model=0.01, data=0.01, rest=0.01)
    row = _row(expected_precision(evidence, _runs(1, 1), _runs(1, 1)), METHODS)
    assert pd.isna(row["half_width"])
    assert row["why"] == "one model or dataset alone: nothing can be resampled"


def test_empty_evidence_gives_reasons_for_every_question() -> None:
    empty = mixed_outcomes(pd.DataFrame({"benchmark": [], "value": []}), {"b": 1.0})
    frame = expected_precision(empty, _runs(3, 3), _runs(3, 3))
    assert frame["half_width"].isna().all()
    assert (frame["why"] == "not known: the evidence has too few such pairs").all()
