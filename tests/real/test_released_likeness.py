"""Likeness, components, mean gains and sources of variance in the released table, to the printed
digits.

The expected figures were computed from the published file apart from this package. Models, datasets
and benchmarks: single datasets, 1,000 samples, cosine, full fine-tuning, twelve zero-shot tasks.
Gains here are those of the file as published, wrong base rows included, as the figures were.
"""

from functools import cache

import numpy as np
import pandas as pd
import pytest

from planted_grid import RELEASED
from sft_atlas.analyze.profiles import main_slices, mean_effects, profiles, single_runs
from sft_atlas.analyze.questions.answered import Answered
from sft_atlas.analyze.questions.components import component_shares
from sft_atlas.analyze.questions.likeness import likeness
from sft_atlas.analyze.questions.synergies import synergies
from sft_atlas.evidence.imported import Imported, import_results
from sft_atlas.statistics.reml import fit_reml
from sft_atlas.store.tables import Tables

pytestmark = pytest.mark.skipif(not RELEASED.exists(), reason="the released table is not here")


@cache
def imported() -> Imported:
    return import_results("massive-sft", RELEASED)


def released() -> Tables:
    return imported().released


@cache
def answer() -> Answered:
    return likeness(released(), num_resamples=200)


def full(name: str) -> pd.DataFrame:
    table = answer().tables[name]
    return table[table["method"] == "full"]


def label(name: str) -> pd.Series:
    rows = full("likeness_labels")
    return rows[(rows["kind"] == "model") & (rows["label"] == name)].iloc[0]


def mean_gain(data: str, benchmark: str) -> float:
    """In points."""
    table = mean_effects(released())
    rows = table[(table["method"] == "full") & (table["benchmark"] == benchmark)]
    return float(100 * rows.set_index("data").loc[data, "gain"])


def test_ten_models_have_all_scores() -> None:
    (rows,) = [part for _, method, part in main_slices(single_runs(released())) if method == "full"]
    kept = profiles(rows)
    assert kept.values.shape == (10, 10, 12)
    assert kept.left_out == ("Gemma2-9B (lacks 12 scores)",)


def test_two_models_correlate_by_0_61_on_average() -> None:
    pairs = full("model_likeness").query("first < second")["correlation"]
    assert len(pairs) == 45
    assert round(pairs.mean(), 2) == 0.61


@pytest.mark.parametrize(
    ("name", "same", "different"), [("family", 0.79, 0.59), ("language", 0.60, 0.61)]
)
def test_family_goes_with_likeness_and_language_does_not(
    name: str, same: float, different: float
) -> None:
    row = label(name)
    assert (round(row["same"], 2), round(row["different"], 2)) == (same, different)
    assert (row["p_adjusted"] <= 0.05) == (name == "family")
    assert (row["low"] > 0) == (name == "family")


def test_five_components_hold_nine_tenths() -> None:
    cumulative = full("components")["cumulative"].to_numpy()[:5]
    assert [round(value, 2) for value in cumulative] == [0.68, 0.78, 0.84, 0.89, 0.92]
    (rows,) = [part for _, method, part in main_slices(single_runs(released())) if method == "full"]
    found = component_shares(profiles(rows).values, num_resamples=200)
    assert found is not None
    assert found.num_needed == 5
    assert found.needed_interval is not None
    assert 4 <= found.needed_interval[0] <= 5 <= found.needed_interval[1] <= 6


def test_mean_gains_by_dataset_over_tasks() -> None:
    table = mean_effects(released())
    rows = table[(table["method"] == "full") & (table["benchmark"] == "")]
    assert rows.set_index("data")["gain_sd"].round(2).to_dict() == {
        "alpaca_cleaned": 0.62,
        "ultrachat": 0.52,
        "magicoder": 0.50,
        "math": 0.24,
        "code_alpaca": 0.23,
        "lima": 0.21,
        "openmath": -0.28,
        "flan_comprehension": -0.50,
        "flan_reasoning": -0.62,
        "flan_knowledge": -0.87,
    }


def test_code_helps_humaneval_and_nothing_else_does() -> None:
    table = mean_effects(released())
    rows = table[(table["method"] == "full") & (table["benchmark"] == "humaneval-0shot")]
    gains = 100 * rows.set_index("data")["gain"]
    assert round(gains["magicoder"], 1) == 25.7
    others = gains.drop("magicoder")
    assert (round(others.min()), round(others.max())) == (-12, 1)


@pytest.mark.parametrize(
    ("data", "points"),
    [
        ("alpaca_cleaned", 17.8),
        ("math", 16.1),
        ("ultrachat", 14.4),
        ("magicoder", 10.9),
        ("openmath", -2.3),
    ],
)
def test_mean_gains_on_gsm8k(data: str, points: float) -> None:
    assert round(mean_gain(data, "gsm8k-0shot"), 1) == points


def test_knowledge_data_helps_natural_questions_most() -> None:
    table = mean_effects(released())
    rows = table[(table["method"] == "full") & (table["benchmark"] == "nq-0shot")]
    gains = 100 * rows.set_index("data")["gain"]
    assert gains.idxmax() == "flan_knowledge"
    assert round(gains.max(), 1) == 11.9


@pytest.mark.parametrize(
    ("benchmark", "score", "cell"),
    [
        ("mtbench-total", 6.08, ("Qwen2.5-7B", "alpaca_cleaned", "full", 1000)),
        ("alpaca_eval_v2-total", 0.1082, ("Gemma2-9B", "alpaca_cleaned", "full", 1000)),
        ("mmlu-0shot", 0.698, ("Yi-1.5-9B", "ultrachat", "lora", 1000)),
        ("gsm8k-4shot", 0.851, ("Qwen2.5-7B", "ultrachat", "full", 1000, "constant", 6)),
        ("humaneval-0shot", 0.805, ("Qwen2.5-7B", "magicoder", "full", 1000, "constant", 3)),
    ],
    ids=["mtbench", "alpaca_eval", "mmlu", "gsm8k", "humaneval"],
)
def test_best_cells(benchmark: str, score: float, cell: tuple[object, ...]) -> None:
    rows = released().scores.query("method != 'base' and benchmark == @benchmark")
    best = rows.loc[rows["score"].idxmax()]
    digits = len(str(score).split(".")[1])
    assert round(float(best["score"]), digits) == score
    names = ["model", "data", "method", "samples", "schedule", "epoch"]
    assert tuple(best[name] for name in names[: len(cell)]) == cell


def test_treated_tables_tell_the_same_of_likeness() -> None:
    """What is wrong with base rows does not reach what is centred within models."""
    treated = likeness(imported().tables, num_resamples=10)
    for name in ("model_likeness", "components"):
        column = "correlation" if name == "model_likeness" else "cumulative"
        np.testing.assert_allclose(
            treated.tables[name][column].to_numpy(dtype=float),
            answer().tables[name][column].to_numpy(dtype=float),
            atol=1e-9,
        )


METRICS = (
    *("math-0shot", "gsm8k-4shot", "humaneval-0shot", "hellaswag-10shot", "mmlu-5shot"),
    *("nq-0shot", "nq-1shot", "mbpp-0shot", "gsm8k-0shot", "BoolQ-0shot", "hellaswag-0shot"),
    *("mmlu-0shot", "mtbench-total", "alpaca_eval_v2-total"),
)


def test_sources_of_gains_over_all_epochs_and_fourteen_metrics() -> None:
    """An independent fit with numeric gradients, in minutes, found these shares (in percent)."""
    scores = released().scores
    kept = scores["benchmark"].isin(METRICS) & (scores["data_kind"] == "each")
    rows = scores[kept & scores["gain"].notna()]
    assert len(rows) == 10_954
    gain = rows["gain"].astype(float)
    spread = gain.groupby(rows["benchmark"]).transform("std")
    keys = {
        "model:benchmark": 25.4,
        "data": 16.3,
        "model:data:benchmark": 15.5,
        "benchmark": 14.6,
        "data:benchmark": 12.4,
        "model:data": 3.1,
        "model": 2.6,
    }
    factors = {name: rows.groupby(name.split(":"), sort=False).ngroup().to_numpy() for name in keys}
    assert sum(np.unique(levels).size for levels in factors.values()) == 1979
    fixed = {
        "lora": (rows["method"] == "lora").to_numpy(dtype=float),
        "constant": (rows["schedule"] == "constant").to_numpy(dtype=float),
        "samples": np.log(rows["samples"].to_numpy(dtype=float)),
        "epoch": np.log(rows["epoch"].to_numpy(dtype=float)),
    }
    fit = fit_reml((gain / spread).to_numpy(), factors, fixed)
    assert fit.is_converged
    found = dict(zip(fit.names, 100 * fit.shares, strict=True))
    # That fit printed one decimal and stopped where its numeric gradient was small.
    assert found == pytest.approx({**keys, "residual": 10.0}, abs=0.15)


def test_code_on_humaneval_and_knowledge_on_natural_questions_hold_over_models() -> None:
    found = synergies(released(), num_resamples=50)
    table = found.tables["synergies"].set_index(["data", "benchmark"])
    lasting = table[table["persists"].astype(bool)]
    assert {("magicoder", "humaneval-0shot"), ("flan_knowledge", "nq-0shot")} <= set(lasting.index)
    assert table.loc[("magicoder", "humaneval-0shot"), "num_models"] == 11
    shares = found.tables["variance_shares"].set_index("source")
    assert shares.loc["model:data:benchmark", "low"] > 0.05
    assert shares["share"].sum() == pytest.approx(1)
