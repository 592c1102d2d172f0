"""Several sources as one."""

from dataclasses import replace

import pandas as pd

from decide.planted import effects, planted
from sft_atlas.decide.pool import pool
from sft_atlas.decide.weights import resolve_weights, scored_benchmarks
from sft_atlas.forecast.outcomes import outcomes


def test_one_source_is_itself() -> None:
    tables = planted(effects(3, 2), num_models=3)
    assert pool({"one": tables}) is tables


def test_rows_of_two_sources_are_joined_and_those_of_both_are_the_firsts() -> None:
    tables = planted(effects(3, 2), num_models=4)
    parts = []
    for models in (["m0", "m1", "m2"], ["m2", "m3"]):
        kept = {
            name: frame[frame["model"].isin(models)]
            for name, frame in (("cells", tables.cells), ("scores", tables.scores))
        }
        parts.append(type(tables)(**{**vars(tables), **kept}))
    found = pool({"one": parts[0], "two": parts[1]})
    assert len(found.scores) == len(tables.scores)
    key = ["cell", "benchmark"]
    pd.testing.assert_series_equal(
        found.scores.sort_values(key)["score"].reset_index(drop=True),
        tables.scores.sort_values(key)["score"].reset_index(drop=True),
        check_dtype=False,
    )


def test_no_rows_anywhere_are_no_rows() -> None:
    tables = planted(effects(3, 2), num_models=3)
    empty = type(tables)(**{**vars(tables), "cells": pd.DataFrame(), "scores": pd.DataFrame()})
    assert pool({"one": empty, "two": empty}).scores.empty


def test_scores_of_one_run_from_two_sources_are_not_averaged() -> None:
    first = planted(effects(3, 2), num_models=4)
    cells, scores = (
        frame.assign(cell="other " + frame["cell"]) for frame in (first.cells, first.scores)
    )
    again = scores[scores["benchmark"] == "b0"].assign(score=0.9)
    more = scores[scores["benchmark"] == "b1"].assign(benchmark="b2")
    second = replace(first, cells=cells, scores=pd.concat([again, more], ignore_index=True))
    found = outcomes(pool({"one": first, "two": second}))
    assert (found["num_cells"] == 1).all()
    assert set(found["benchmark"]) == {"b0", "b1", "b2"}
    assert (found["value"] != 0.9).all()


def test_a_test_without_examples_has_one_name_over_sources() -> None:
    tables = planted(effects(3, 2), num_models=3)
    first = str(tables.scores["benchmark"].iloc[0])
    other = tables.scores.assign(
        benchmark=tables.scores["benchmark"].replace({first: f"{first}-0shot"}),
        model="theirs " + tables.scores["model"],
        cell="theirs " + tables.scores["cell"],
    )
    found = pool({"ours": tables, "theirs": replace(tables, scores=other)})
    assert set(found.scores["benchmark"]) == set(tables.scores["benchmark"])
    alone = replace(tables, scores=other)
    assert f"{first}-0shot" in set(pool({"theirs": alone, "more": alone}).scores["benchmark"])


def test_a_benchmark_that_nothing_has_scored_yet_gives_way_to_one_that_was() -> None:
    scores = pd.DataFrame(
        {
            "benchmark": ["gsm8k", "gsm8k-0shot", "gsm8k-0shot"],
            "in_mean": True,
            "score": [float("nan"), 0.4, 0.5],
        }
    )
    assert resolve_weights({"gsm8k": 2}, scored_benchmarks(scores)) == {"gsm8k-0shot": 1.0}
    assert scored_benchmarks(scores.iloc[:0]).empty
