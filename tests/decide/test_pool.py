"""Several sources as one."""

from dataclasses import replace

import pandas as pd

from decide.planted import effects, planted
from sft_atlas.decide.pool import pool
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
