"""Several sources as one."""

import pandas as pd

from decide.planted import effects, planted
from sft_atlas.decide.pool import pool


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
