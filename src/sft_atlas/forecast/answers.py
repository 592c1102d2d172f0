"""How well can the gain be told in advance?

In: the tables of a grid. Out: Findings about forecasts of a new model, of a model whose other runs
are known and of a new dataset, and the back-tests behind them. What is reported is the nested
choice among candidates, beside the plain forecast that anybody can make.
"""

from dataclasses import replace
from typing import Any, Final

import numpy as np
import pandas as pd

from sft_atlas.analyze.findings import Finding, interval_text, minus, not_estimable, plural, points
from sft_atlas.analyze.gains import labelled_cells
from sft_atlas.analyze.questions.answered import Answered
from sft_atlas.forecast.back_test import (
    BASELINES,
    CHOSEN,
    HOLES,
    NEW_DATA,
    NEW_MODEL,
    BackTest,
)
from sft_atlas.forecast.forecast import back_test
from sft_atlas.statistics.clusters import MIN_CLUSTERS, Floats, t_quantile
from sft_atlas.statistics.conformal import LEVEL
from sft_atlas.store.tables import Tables

QUESTION: Final = "How well can the gain be told in advance?"

_HIDDEN: Final = {NEW_MODEL: "model", HOLES: "model", NEW_DATA: "dataset"}
_CASE: Final = {
    NEW_MODEL: "For a model that was never fine-tuned",
    HOLES: "For a model of whose runs a random half is known",
    NEW_DATA: "For a dataset that nothing was trained on",
}


def forecastability(tables: Tables, *, seed: int = 0) -> Answered:
    """Gains are forecast from other runs and compared with what came of them, by back-tests that
    hide whole models, whole datasets, or a random half of a model's runs.

    The candidates: the mean effect of the same dataset on other models, on the same benchmark; the
    same over all benchmarks; crossed random effects with models that resemble each other in base
    scores (best linear prediction, Henderson 1975); ridge regression; boosted trees; low-rank
    completion (probabilistic principal components, Tipping and Bishop 1999); and the mean of three
    of them. For each hidden group the candidate is chosen by the pairwise accuracy with which the
    other groups are forecast while it is hidden too; the figures of that nested choice are what is
    reported. A problem is a model, a setting and a benchmark; its choices are datasets. Figures:
    the share of pairs of datasets put in the right order (decision accuracy, Magnusson et al.
    2025), the share of problems in which the best, or one of the best three, was chosen, and what
    the choice lost against the best one. Intervals of forecasts are to hold for a whole unseen
    group (Lee, Barber and Willett 2023): their coverage is that of groups whose errors did not set
    the width. Intervals of the figures are Student's t over hidden groups.

    Table `back_test`: one row per scheme (new model, random holes, new dataset) and candidate
    (`chosen` is the nested choice, is_chosen the one that forecasts use): pairwise_accuracy, top1,
    top3, regret and random_regret, rmse and width of intervals (in standard deviations of a
    benchmark's gains), correlation of gains, coverage, worst_coverage and worst_group,
    num_problems, num_groups. Table `back_test_groups`: the same sums for each hidden group.
    """
    test = back_test(tables, seed=seed)
    labels = labelled_cells(tables.cells)
    cells = labels.loc[(labels["data_kind"] == "each") & labels["is_final"], "cell"]
    rows = tuple(str(cell) for cell in cells)
    findings: list[Finding] = []
    for scheme in BASELINES:
        if scheme in test.chosen:
            findings.append(_order(test, scheme, rows))
            findings += _better(test, scheme, rows)
            findings.append(_intervals(test, scheme, rows))
        else:
            findings.append(_none(scheme, test.reasons[scheme]))
    return Answered(
        findings=tuple(findings),
        tables={"back_test": test.frame, "back_test_groups": test.groups},
    )


def _order(test: BackTest, scheme: str, rows: tuple[str, ...]) -> Finding:
    """Say how often two datasets are put in the right order."""
    row = _figures(test, scheme, CHOSEN)
    right, pairs = _sums(test, scheme, CHOSEN)
    share = float(right.sum() / pairs.sum())
    interval = _interval(share, (right - share * pairs) / pairs.sum())
    interval = interval and (max(interval[0], 0.0), min(interval[1], 1.0))
    text = (
        f"{_CASE[scheme]}, two datasets are put in the right order in {100 * share:.0f} % of cases "
        f"{_percent(interval)}; a coin gets 50 %."
    )
    if row["top1"] is not None:
        text += (
            f" The best of all datasets is chosen in {100 * row['top1']:.0f} % of cases"
            f"{_best_three(row)}; the choice loses {row['regret']:.2f} standard deviations of gain "
            f"to the best one, a random choice {row['random_regret']:.2f}."
        )
    return replace(
        _template(test, scheme, rows),
        statement=text,
        estimate=share,
        interval=interval,
        method=(
            f"Share of {int(pairs.sum()):,} pairs with different outcomes; the candidate is chosen "
            f"without the hidden {_HIDDEN[scheme]}. {_OVER.format(_HIDDEN[scheme])}"
        ),
    )


def _better(test: BackTest, scheme: str, rows: tuple[str, ...]) -> list[Finding]:
    """Say how much the chosen candidate adds to the plain one, if that can forecast every group."""
    plain = BASELINES[scheme]
    right, pairs = _sums(test, scheme, CHOSEN)
    plain_right, plain_pairs = _sums(test, scheme, plain)
    if plain_right.size != right.size or not plain_pairs.sum():
        return []
    share, plain_share = right.sum() / pairs.sum(), plain_right.sum() / plain_pairs.sum()
    gap = float(share - plain_share)
    parts = (right - share * pairs) / pairs.sum()
    interval = _interval(gap, parts - (plain_right - plain_share * plain_pairs) / plain_pairs.sum())
    used = test.groups.loc[
        (test.groups["scheme"] == scheme) & (test.groups["candidate"] == CHOSEN), "used"
    ]
    if set(used) == {plain}:
        verdict = "The plain forecast was chosen for every group."
    elif interval is None:
        verdict = "There are too few groups to say whether that is luck."
    elif interval[0] > 0:
        verdict = "The richer forecast is better."
    elif interval[1] < 0:
        verdict = "The plain forecast is better."
    else:
        verdict = "The interval covers 0: the plain forecast may be as good."
    text = (
        f"{_CASE[scheme]}, the chosen forecast ({', '.join(sorted(set(used)))}) changes the share "
        f"of pairs in the right order by {points(gap)} points {interval_text(interval)} against "
        f"the plain one ({plain}). {verdict}"
    )
    finding = replace(
        _template(test, scheme, rows),
        statement=text,
        estimate=gap,
        interval=interval,
        method=f"Difference of pairwise accuracies. {_OVER.format(_HIDDEN[scheme])}",
        scale="points",
    )
    return [finding]


def _intervals(test: BackTest, scheme: str, rows: tuple[str, ...]) -> Finding:
    """Say how many outcomes lay in 90 % intervals, on average and in the worst group."""
    row = _figures(test, scheme, CHOSEN)
    noun = _HIDDEN[scheme]
    method = (
        f"Half-width: the error that would have held for {100 * LEVEL:.0f} % of the values of each "
        f"left-out {noun} by the others' errors; coverage of {noun}s that did not set it."
    )
    if row["coverage"] is None:
        reason = f"too few {noun}s, or too different ones, to set the width of an interval"
        text = f"{_CASE[scheme]}: not estimable: {reason}."
        return replace(_template(test, scheme, ()), statement=text, method=method, reason=reason)
    text = (
        f"{_CASE[scheme]}, {100 * LEVEL:.0f} % intervals hold for {100 * row['coverage']:.0f} % of "
        f"outcomes on average over {plural(row['num_groups'], noun)}, and for "
        f"{100 * row['worst_coverage']:.0f} % in the worst ({row['worst_group']}). They are "
        f"{row['width']:.1f} standard deviations of gain wide."
    )
    return replace(
        _template(test, scheme, rows), statement=text, estimate=row["coverage"], method=method
    )


_AGREEMENT: Final = 1e-9
_OVER: Final = "95 % interval: Student's t of the ratio's linearised parts over hidden {}s."


def _template(test: BackTest, scheme: str, rows: tuple[str, ...]) -> Finding:
    """A Finding of one scheme without its answer."""
    row = _figures(test, scheme, CHOSEN)
    hidden = plural(int(row["num_groups"]), _HIDDEN[scheme])
    return Finding(
        question=QUESTION,
        statement="",
        estimate=None,
        interval=None,
        scale="count",
        n=int(row["num_problems"]),
        unit=f"model x setting x benchmark ({hidden} hidden)",
        method="",
        rows=rows,
    )


def _none(scheme: str, reason: str) -> Finding:
    return not_estimable(
        QUESTION,
        reason,
        statement=f"{_CASE[scheme]}: not estimable: {reason}.",
        scale="count",
        unit="model x setting x benchmark",
        method="Back-test that hides whole groups.",
    )


def _figures(test: BackTest, scheme: str, candidate: str) -> dict[str, Any]:
    """One row of the back-test; null figures are None."""
    frame = test.frame
    row = frame[(frame["scheme"] == scheme) & (frame["candidate"] == candidate)].iloc[0]
    return {str(name): None if pd.isna(value) else value for name, value in row.items()}


def _sums(test: BackTest, scheme: str, candidate: str) -> tuple[Floats, Floats]:
    """Right pairs and all pairs of each hidden group."""
    groups = test.groups
    rows = groups[(groups["scheme"] == scheme) & (groups["candidate"] == candidate)]
    return rows["num_right"].to_numpy(np.float64), rows["num_pairs"].to_numpy(np.float64)


def _interval(estimate: float, parts: Floats) -> tuple[float, float] | None:
    """Student's t interval of a ratio of sums over groups, whose linearised parts add to 0."""
    if parts.size < MIN_CLUSTERS:
        return None
    error = float(np.sqrt(parts @ parts * parts.size / (parts.size - 1)))
    if error < _AGREEMENT:
        # A few groups that agree by chance are no certainty.
        return None
    margin = t_quantile(parts.size) * error
    return estimate - margin, estimate + margin


def _percent(interval: tuple[float, float] | None) -> str:
    if interval is None:
        return "(no interval: too few groups)"
    return minus(f"[{100 * interval[0]:.0f}, {100 * interval[1]:.0f}]")


def _best_three(row: dict[str, Any]) -> str:
    return "" if row["top3"] is None else f", one of the best three in {100 * row['top3']:.0f} %"
