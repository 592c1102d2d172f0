"""The property that was planted wins, and what does not vary is not compared."""

from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from sft_atlas.analyze.analysis import analyze
from sft_atlas.analyze.associations import (
    MIN_POINTS,
    associations,
    property_points,
)
from sft_atlas.analyze.data_properties import Properties, data_properties
from sft_atlas.analyze.gains import AVERAGE, cell_gains, common_benchmarks, mean_gains
from sft_atlas.analyze.relations import RIVALS
from sft_atlas.statistics.multiplicity import benjamini_hochberg

SMALL = {"methods": ("full",), "epochs": (1,), "num_models": 5, "num_layers": 2}
SMALL |= {"own": 0.0, "other": 0.0}


def measured(tables: object) -> tuple[Properties, pd.DataFrame]:
    gains = cell_gains(tables)
    properties = data_properties(tables.datasets, tables.descriptions, tables.similarities)
    return properties, property_points(gains, mean_gains(gains), properties)


@pytest.mark.parametrize("planted_name", ["perplexity", "length"])
def test_the_planted_property_wins_against_the_decoys(
    planted: ModuleType, planted_name: str
) -> None:
    world = planted.World(**SMALL, num_datasets=9, noise=0.005, **{planted_name: -0.04})
    analysis = analyze(planted.make_tables(world), questions=(), num_resamples=80)
    table = analysis.associations
    chosen = (table["benchmark"] == AVERAGE) & (table["variant"] == "within_model")
    rows = table[chosen & (table["statistic"] == "spearman")]
    strength = rows.set_index("predictor")["estimate"].abs()
    main = strength[["log_perplexity", "log_length", "similarity"]]
    assert main.idxmax() == f"log_{planted_name}" and main.max() > 0.9
    found = [f for f in analysis.findings if f.question == RIVALS]
    (rival,) = [f for f in found if "length in tokens" in f.statement]
    words = {"perplexity": "answer perplexity", "length": "length in tokens"}
    assert f"Here {words[planted_name]} goes more closely with gain." in rival.statement
    assert rival.is_clear and (rival.estimate > 0) == (planted_name == "perplexity")


def test_similarity_is_found_on_each_benchmark_and_pooled(planted: ModuleType) -> None:
    world = planted.World(**SMALL, num_datasets=9, noise=0.005, similarity=0.05)
    properties, points = measured(planted.make_tables(world))
    main = [item for item in properties.predictors if item.is_main]
    table = associations(points, main, num_resamples=60, num_permutations=60)
    chosen = (table["variant"] == "within_model") & (table["statistic"] == "spearman")
    rows = table[chosen & (table["benchmark"] != AVERAGE)]
    strength = rows.pivot(index="benchmark", columns="predictor", values="estimate")
    assert (strength["similarity"] > 0.9).all() and "*" in strength.index
    assert (strength["similarity"] > strength["log_perplexity"].abs()).all()


def test_the_mean_over_benchmarks_has_the_mean_similarity_to_them(planted: ModuleType) -> None:
    tables = planted.make_tables(planted.World(**SMALL, num_benchmarks=3))
    _, points = measured(tables)
    row = points[points["benchmark"] == AVERAGE].iloc[0]
    own = tables.similarities[tables.similarities["data"] == row["data"]]
    assert len(own) == 3
    assert row["similarity"] == pytest.approx(own["mean_cosine"].mean(), abs=1e-12)
    gap = type(tables)(**{**vars(tables), "similarities": tables.similarities.iloc[1:]})
    _, points = measured(gap)
    first = points["data"] == tables.similarities["data"].iloc[0]
    means = points["benchmark"] == AVERAGE
    assert points.loc[first & means, "similarity"].isna().all()
    assert points.loc[~first & means, "similarity"].notna().all()
    assert common_benchmarks(cell_gains(gap)) == ["knowledge-test", "math-test", "code-test"]


def test_what_does_not_vary_within_a_comparison_gives_its_reason(planted: ModuleType) -> None:
    properties, points = measured(planted.make_tables(planted.World(**SMALL)))
    table = associations(points, properties.predictors, num_resamples=10, num_permutations=10)
    within = table[(table["predictor"] == "similarity") & (table["variant"] == "within_data")]
    assert within["estimate"].isna().all() and within["p_value"].isna().all()
    assert set(within["reason"]) == {"it does not vary between models for the same dataset"}
    assert table.loc[table["estimate"].notna(), "reason"].isna().all()


def test_few_points_give_their_number_as_the_reason(planted: ModuleType) -> None:
    few = {**SMALL, "num_models": 2, "num_datasets": 2}
    properties, points = measured(planted.make_tables(planted.World(**few)))
    table = associations(points, properties.predictors, num_resamples=5, num_permutations=5)
    mean = table[table["benchmark"] == AVERAGE]
    assert set(mean["reason"]) == {f"4 points; it takes {MIN_POINTS}"}


def test_the_size_that_was_trained_on_is_preferred_to_the_largest(planted: ModuleType) -> None:
    tables = planted.make_tables(planted.World(**SMALL, samples=(200,)))
    larger = tables.datasets.assign(samples=1000, mean_tokens=1.0)
    both = pd.concat([larger, tables.datasets], ignore_index=True)
    _, points = measured(type(tables)(**{**vars(tables), "datasets": both}))
    assert (points["log_length"] > 1).all()
    _, points = measured(type(tables)(**{**vars(tables), "datasets": larger}))
    assert (points["log_length"] == 0).all()


def test_p_values_are_adjusted_as_scipy_does() -> None:
    p_values = np.array([0.01, 0.04, np.nan, 0.03, 0.2, 0.01])
    known = np.isfinite(p_values)
    expected = scipy.stats.false_discovery_control(p_values[known])
    assert benjamini_hochberg(p_values)[known] == pytest.approx(expected)
    assert np.isnan(benjamini_hochberg(p_values)[2])
    assert benjamini_hochberg(np.full(2, np.nan)).shape == (2,)
