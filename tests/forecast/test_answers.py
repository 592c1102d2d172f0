"""Findings about forecasts: their words, their numbers, and what degenerate tables give."""

import math
import re

import numpy as np
import pytest

from forecast.planted_effects import Truth, world
from planted_grid import grid_tables
from sft_atlas.analyze.questions.answered import Answered
from sft_atlas.forecast.answers import QUESTION, forecastability
from sft_atlas.statistics.clusters import Floats
from sft_atlas.store.tables import Tables


@pytest.fixture(scope="module")
def answered() -> Answered:
    return forecastability(
        world(Truth(has_groups=True, own=0.2, models=6, datasets=6, benchmarks=3))
    )


def test_every_scheme_has_its_findings(answered: Answered) -> None:
    cases = [finding.statement.split(",")[0] for finding in answered.findings]
    assert sorted(set(cases)) == [
        "For a dataset that nothing was trained on",
        "For a model of whose runs a random half is known",
        "For a model that was never fine-tuned",
    ]
    assert len(cases) == 9
    assert {finding.question for finding in answered.findings} == {QUESTION}


def test_findings_say_the_numbers_of_the_table(answered: Answered) -> None:
    table = answered.tables["back_test"]
    chosen = table[table["candidate"] == "chosen"].set_index("scheme")
    order, better, interval = answered.findings[:3]
    assert order.estimate == pytest.approx(chosen.loc["new model", "pairwise_accuracy"])
    assert order.interval is not None
    assert order.interval[0] <= order.estimate <= order.interval[1] <= 1
    plain = table[(table["scheme"] == "new model") & (table["candidate"] == "mean on other models")]
    gap = order.estimate - plain["pairwise_accuracy"].iloc[0]
    assert better.estimate == pytest.approx(gap)
    assert interval.estimate == pytest.approx(chosen.loc["new model", "coverage"])
    assert str(chosen.loc["new model", "worst_group"]) in interval.statement
    assert order.n == chosen.loc["new model", "num_problems"]
    assert len(order.rows) == 6 * 6


def test_the_sums_of_groups_are_those_of_the_table(answered: Answered) -> None:
    table, groups = (answered.tables[name] for name in ("back_test", "back_test_groups"))
    sums = groups.groupby(["scheme", "candidate"])[["num_right", "num_pairs"]].sum()
    accuracy = table.set_index(["scheme", "candidate"])["pairwise_accuracy"]
    assert (sums["num_right"] / sums["num_pairs"])[accuracy.index].to_numpy() == pytest.approx(
        accuracy.to_numpy()
    )


RNG = np.random.default_rng(0)


def made(scores: Floats) -> Tables:
    return grid_tables(scores, RNG.uniform(0.2, 0.4, (scores.shape[0], scores.shape[2])))


def missing_benchmark() -> Floats:
    scores = RNG.uniform(0.2, 0.6, (4, 3, 2))
    scores[:, :, 0] = np.nan
    return scores


def half_missing() -> Floats:
    scores = RNG.uniform(0.2, 0.6, (5, 4, 3))
    scores[RNG.uniform(size=scores.shape) < 0.5] = np.nan
    return scores


def diagonal() -> Floats:
    scores = np.full((5, 5, 2), np.nan)
    scores[np.arange(5), np.arange(5)] = 0.4
    return scores


@pytest.mark.parametrize(
    "scores",
    [
        RNG.uniform(size=(1, 4, 3)),
        RNG.uniform(size=(4, 1, 3)),
        RNG.uniform(size=(2, 4, 3)),
        RNG.uniform(size=(3, 2, 1)),
        np.full((5, 4, 3), 0.4),
        missing_benchmark(),
        half_missing(),
        diagonal(),
    ],
    ids=[
        *("one-model", "one-dataset", "two-models", "smallest", "constant"),
        *("missing-benchmark", "half-missing", "diagonal"),
    ],
)
def test_degenerate_tables_give_reasons_and_no_nan(scores: Floats) -> None:
    check(forecastability(made(scores)))


def test_no_cells_give_reasons() -> None:
    tables = made(np.full((2, 2, 2), 0.4))
    bare = Tables(**{**vars(tables), "cells": tables.cells[:0], "scores": tables.scores[:0]})
    found = forecastability(bare)
    check(found)
    assert [finding.reason for finding in found.findings] == [
        "no run on a single dataset has a score"
    ] * 3


def test_base_models_alone_give_reasons() -> None:
    check(forecastability(made(np.full((3, 4, 2), np.nan))))


def check(answered: Answered) -> None:
    assert len(answered.findings) >= 3
    for finding in answered.findings:
        assert not re.search(r"\b(nan|inf|None)\b", finding.statement), finding.statement
        assert finding.estimate is None or math.isfinite(finding.estimate)
        assert (finding.estimate is None) == bool(finding.reason)
        assert ("not estimable" in finding.statement) == (finding.estimate is None)
        if finding.interval is not None:
            assert all(math.isfinite(bound) for bound in finding.interval)
