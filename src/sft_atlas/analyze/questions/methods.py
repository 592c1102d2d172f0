"""LoRA or full fine-tuning: which scores more, and where is the difference too small to matter?

In: the tables of a study. Out: differences of cells that agree in everything but the method, by
benchmark and skill, for each setting and kind of data apart, because the answer differs between
them. The one decision: scores are compared, never gains, so that a wrong base row does no harm.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from sft_atlas.analyze.findings import (
    Finding,
    bounds_of,
    interval_text,
    known,
    minus,
    not_estimable,
    plural,
    points,
)
from sft_atlas.analyze.method_differences import (
    CLEAR,
    COMPARISON,
    FINAL,
    KEPT,
    method_differences,
    method_pairs,
    method_reversals,
)
from sft_atlas.analyze.method_traces import method_traces
from sft_atlas.analyze.questions.answered import Answered
from sft_atlas.statistics.equivalence import ALPHA

if TYPE_CHECKING:
    from sft_atlas.store.tables import Tables

QUESTION: Final = "LoRA or full fine-tuning?"
REVERSALS: Final = "Does it depend on the data which method is ahead?"
MARGIN: Final = 0.01
"""Smaller differences do not matter: one percentage point, or a hundredth of a rating's range."""

KIND_WORDS: Final = {
    "each": "single datasets",
    "all": "all datasets merged",
    "leave-one-out": "all datasets but one merged",
    "mixture": "mixtures",
}
_FAMILY: Final = (
    "{level} of one comparison (setting, kind of data, epochs); Holm 1979, apart for the tests of "
    "a difference and of equivalence"
)


def methods_compared(
    tables: "Tables", *, margin: float = MARGIN, num_resamples: int = 1000, seed: int = 0
) -> Answered:
    """Compare LoRA with full fine-tuning on pairs of cells that agree in everything else.

    A pair agrees in model, data, samples, schedule, epoch and seed; its difference is LoRA's score
    minus that of full fine-tuning, so that the base model cancels. Scores are fractions of the
    range from worst to best. The mean over pairs has a two-way cluster-robust interval over models
    and datasets (Cameron, Gelbach and Miller 2011) with Student's t and Satterthwaite's degrees of
    freedom. Two tests stand beside each other: that the difference is not 0, and that it is smaller
    than a margin of one point (two one-sided tests, Schuirmann 1987). The tests over benchmarks of
    one comparison are one family, adjusted by Holm's method; so are those over skills. Adjusted
    p-values take the smaller number of models or datasets less one degrees of freedom. Epochs of a
    run are averaged before they are compared, because they are no independent runs. Divergence from
    the base model, weight change and cost are compared on the same pairs where they were measured.

    Table `method_differences`: setting, data_kind, first (full), second (LoRA), epochs_used (`final
    epoch`, or `mean of kept epochs` where runs kept several), level (`average` over the benchmarks
    that count, `skill`, `benchmark`, or `variant`: other shots and parts of a total), benchmark
    (empty for averages), skill, metric, range (difference x range is in the metric's own unit),
    difference, standard_error, degrees_of_freedom, low and high (95 %), inner_low and inner_high
    (90 %), margin, p_value, p_adjusted, p_equivalence, p_equivalence_adjusted, verdict (from the
    adjusted p-values), share_ahead (of the cells, those where LoRA scores more), num_pairs
    (of runs), num_rows (of cells), num_models, num_datasets, p_rows (Wilcoxon's signed-rank test
    over cells as if they were independent, to compare with figures that were made so; it answers
    no question), reason (why there is no interval).

    Table `method_reversals`: setting, other_setting, first, second, benchmark, change (difference
    after merged data minus that after single datasets, models paired), low, high, p_value,
    p_adjusted, num_models, is_reversed (both differences are clear and of opposite sign).

    Table `method_traces`: see `method_traces.method_traces`.
    """
    pairs = method_pairs(tables)
    table = method_differences(pairs, margin=margin)
    changes = method_reversals(pairs, table, margin=margin)
    traces = method_traces(tables)
    return Answered(
        findings=(
            *_findings(table, pairs, margin),
            *_reversal_findings(changes, pairs),
            *traces.findings,
        ),
        tables={"method_differences": table, "method_reversals": changes, **traces.tables},
    )


def _findings(table: pd.DataFrame, pairs: pd.DataFrame, margin: float) -> list[Finding]:
    """Word each comparison: the average, and what is clear on which benchmark."""
    if table.empty:
        text = "Not estimable: no two cells differ in the method alone, one full and one LoRA."
        return [
            not_estimable(
                QUESTION,
                "no pair of cells differs in the method alone",
                statement=text,
                scale="points",
                unit="pair of runs",
                method="Differences of scores between cells that agree in everything but the "
                "method.",
            )
        ]
    findings = []
    for keys, rows in table.groupby(COMPARISON, sort=False):
        place = dict(zip(COMPARISON, map(str, keys), strict=True))
        averages = rows[rows["level"] == "average"].to_dict("records")
        tests = rows[rows["level"] == "benchmark"]
        if averages and not tests.empty:
            cells = pairs[np.logical_and.reduce([pairs[k] == place[k] for k in COMPARISON[:4]])]
            if place["epochs_used"] == FINAL:
                cells = cells[cells["is_final"].astype(bool)]
            findings.append(_finding(place, dict(averages[0]), tests, cells, margin))
    return findings


def _finding(
    place: Mapping[str, str],
    average: Mapping[Any, Any],
    tests: pd.DataFrame,
    cells: pd.DataFrame,
    margin: float,
) -> Finding:
    interval = bounds_of(average)
    lora, full = place["second"], place["first"]
    where = f"{KIND_WORDS.get(place['data_kind'], place['data_kind'])}, {place['setting']}"
    used = ", mean of kept epochs" if place["epochs_used"] == KEPT else ""
    mean = "no pair of runs has all benchmarks"
    if average["num_pairs"]:
        mean = (
            f"{points(average['difference'])} points {interval_text(interval)} on average over "
            f"{average['num_pairs']:,} {'pair' if average['num_pairs'] == 1 else 'pairs'} of runs"
        )
    listed = _listed(tests, lora, full, margin)
    if average["num_models"] == 1:
        listed += " One model: this says nothing about another."
    return Finding(
        question=QUESTION,
        statement=f"{where[0].upper()}{where[1:]}{used}: {lora} minus {full}: {mean}. {listed}",
        estimate=known(average["difference"]),
        interval=interval,
        scale="points",
        n=int(average["num_pairs"]),
        unit=(
            f"pair of runs ({plural(int(known(average['num_models']) or 0), 'model')}, "
            f"{plural(int(known(average['num_datasets']) or 0), 'dataset')})"
        ),
        method=(
            "Differences of scores between cells that agree in model, data, samples, schedule, "
            "epoch and seed. Two-way cluster-robust interval over models and datasets, Student's t "
            f"with Satterthwaite's degrees of freedom; equivalence within {_margin(margin)} by two "
            f"one-sided tests. Benchmarks are named by p-values that Holm's method adjusted."
        ),
        rows=tuple(dict.fromkeys([*cells["cell_first"], *cells["cell_second"]])),
        benchmarks=tuple(str(name) for name in tests["benchmark"]),
        p_value=known(average["p_value"]),
        p_adjusted=known(average["p_adjusted"]),
        family=_FAMILY.format(level="The mean over benchmarks: the only test"),
        reason=str(average["reason"] or "") if interval is None else "",
    )


def _listed(tests: pd.DataFrame, lora: str, full: str, margin: float) -> str:
    """List the benchmarks by what can be said about them."""
    parts = []
    is_clear = tests["verdict"].isin(CLEAR)
    for name, chosen in (
        (
            lora,
            tests[is_clear & (tests["difference"] > 0)].sort_values("difference", ascending=False),
        ),
        (full, tests[is_clear & (tests["difference"] < 0)].sort_values("difference")),
    ):
        if not chosen.empty:
            shown = ", ".join(_amount(row) for row in chosen.to_dict("records"))
            parts.append(f"{name} is ahead on {shown}")
    same = tests[tests["verdict"].isin(("equivalent", "different but small"))]
    if not same.empty:
        parts.append(f"equivalent within {_margin(margin)} on {', '.join(same['benchmark'])}")
    open_ = tests[tests["verdict"] == "cannot tell"]
    if len(open_) == len(tests):
        return f"On none of {plural(len(tests), 'benchmark')} can the data tell."
    if not open_.empty:
        parts.append(f"cannot tell on {', '.join(open_['benchmark'])}")
    return f"By benchmark: {'; '.join(parts)}."


def _amount(row: Mapping[Any, Any]) -> str:
    if row["range"] == 1:
        return f"{row['benchmark']} {points(row['difference'])}"
    grades = minus(f"{row['difference'] * row['range']:+.2f}")
    return f"{row['benchmark']} {points(row['difference'])} ({grades} grades)"


def _margin(margin: float) -> str:
    size = 100 * margin
    return f"{size:g} point{'' if size == 1 else 's'}"


def _reversal_findings(changes: pd.DataFrame, pairs: pd.DataFrame) -> list[Finding]:
    findings = []
    keys = ["setting", "other_setting", "first", "second"]
    for place, rows in changes.groupby(keys, sort=False):
        where = dict(zip(keys, map(str, place), strict=True))
        clear = rows[rows["p_adjusted"].astype(float) <= ALPHA].sort_values("change")
        shown = ", ".join(
            f"{r['benchmark']} {points(r['change'])}" for r in clear.to_dict("records")
        )
        reversed_ = ", ".join(rows.loc[rows["is_reversed"].astype(bool), "benchmark"])
        text = (
            f"{where['second']} minus {where['first']} after all datasets merged "
            f"({where['other_setting']}) compared with after single datasets ({where['setting']}): "
        )
        text += (
            f"the difference shifts on {shown} points."
            if shown
            else f"on none of {plural(len(rows), 'benchmark')} is a shift clear."
        )
        text += (
            f" The leader changes on {reversed_}." if reversed_ else " No leader changes clearly."
        )
        text += " Amount of data and kind of data change together here."
        kept = pairs["is_final"].astype(bool) & pairs["data_kind"].isin(("each", "all"))
        cells = pairs[kept & pairs["setting"].isin((where["setting"], where["other_setting"]))]
        findings.append(
            Finding(
                question=REVERSALS,
                statement=text,
                estimate=float(len(clear)),
                interval=None,
                scale="count",
                n=int(rows["num_models"].max()),
                unit="model, its mean over datasets",
                method=(
                    "Mean difference of each model after merged data minus that after single "
                    "datasets; Student's t over models, Holm's method over benchmarks."
                ),
                rows=tuple(dict.fromkeys([*cells["cell_first"], *cells["cell_second"]])),
                benchmarks=tuple(rows["benchmark"]),
                family="All benchmarks of one pair of settings; Holm 1979",
            )
        )
    return findings
