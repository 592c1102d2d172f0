"""Which models answer alike to the same data, which datasets do alike, which benchmarks agree?

In: the tables of a study. Out: correlations of all pairs, whether models of one family or one
language are more alike, and how many principal components hold 90 % of the variation. The one
decision: a model's own mean over datasets is taken out first, so that neither a good model nor a
wrong base score makes two models alike.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd

from sft_atlas.analyze.comparisons import (
    BENCHMARK,
    DATA,
    LABELS,
    MODEL,
    Comparison,
    Slice,
    Test,
    adjust,
    compare,
)
from sft_atlas.analyze.findings import MAX_P, Finding, interval_text, minus, not_estimable, plural
from sft_atlas.analyze.profiles import main_slices, mean_effects, profiles, single_runs
from sft_atlas.analyze.questions.answered import Answered
from sft_atlas.analyze.questions.components import NEEDED_SHARE, component_shares

if TYPE_CHECKING:
    from sft_atlas.store.tables import Tables

LIKENESS: Final = "Which models, datasets and benchmarks behave alike?"
SHARED: Final = "Does a shared family, language or skill make them more alike?"
COMPONENTS: Final = "In how many ways do models differ in what data does to them?"
FAMILY: Final = (
    "labels of models, datasets and benchmarks within one setting and method, adjusted after "
    "Benjamini and Hochberg (1995)"
)

_SCALED: Final = (
    "Final scores of runs on one dataset, less the model's mean over datasets, in standard "
    "deviations of the benchmark."
)
_PICKED: Final = "the most alike pair was picked by looking, so that its interval is not given."
_NOUNS: Final = {MODEL: "model", DATA: "dataset", BENCHMARK: "benchmark"}
_RESAMPLED: Final = {
    MODEL: "models and datasets",
    DATA: "datasets and models",
    BENCHMARK: "benchmarks, models and datasets",
}
_PAIR_COLUMNS: Final = [
    *("setting", "method", "first", "second", "correlation", "low", "high"),
    *("first_order", "second_order"),
]
_LABEL_COLUMNS: Final = [
    *("setting", "method", "kind", "label", "same", "different", "difference", "low", "high"),
    *("p_value", "p_adjusted", "num_same", "num_different"),
]
_COMPONENT_COLUMNS: Final = [
    *("setting", "method", "component", "share", "cumulative", "low", "high", "num_models"),
]


def likeness(tables: "Tables", *, num_resamples: int = 1000, seed: int = 0) -> Answered:
    """Compare what the same datasets did to different models, and the like for the other two.

    Each score is taken less its model's mean over datasets on the same benchmark and divided by the
    benchmark's standard deviation; the base model cancels. Final epochs of runs on one dataset in
    the setting with the most of them, each method apart; seeds are averaged. Models, datasets or
    benchmarks that lack scores are left out (the one that lacks the largest share first). Two
    models are compared over all dataset x benchmark entries by Pearson's correlation, two datasets
    over model x benchmark, two benchmarks over model x dataset. Intervals are percentiles of a
    bootstrap that draws datasets (for pairs of models), models (of datasets) or both (of
    benchmarks; Owen 2007); that of a mean over pairs draws the compared things too. Whether a
    shared family, first language, group or skill matters is the difference of two mean
    correlations; p from giving the labels to other models at random, two-sided (Mantel 1967),
    adjusted over all labels of the method (Benjamini and Hochberg 1995). Principal components are
    those of the (dataset x benchmark) by model matrix, not centred further, as in Harada et al.
    (2025); intervals draw datasets.

    Tables `model_likeness`, `data_likeness`, `benchmark_likeness`: setting, method, first, second
    (all ordered pairs, itself included), correlation (null where one side does not vary), low, high
    (95 %), first_order, second_order (places in an order that puts alike ones together), and
    same_family and same_language, same_group, or same_skill and same_language (null where a label
    is not known).

    Table `likeness_labels`: setting, method, kind (model, data or benchmark), label, same,
    different (mean correlations), difference, low, high (95 %), p_value, p_adjusted, num_same,
    num_different (pairs).

    Table `components`: setting, method, component (from 1), share (of the variance), cumulative,
    low, high (95 % of cumulative), num_models.

    Table `mean_effects`: see `profiles.mean_effects`.
    """
    frames: dict[str, list[pd.DataFrame]] = {name: [] for name in _empty_tables()}
    findings: list[Finding] = []
    runs = single_runs(tables)
    for setting, method, rows in main_slices(runs):
        place = Slice(setting=setting, method=method, rows=rows, profiles=profiles(rows))
        parts = [compare(place, kind, num_resamples=num_resamples, seed=seed) for kind in LABELS]
        tests = adjust(parts)
        for part in parts:
            frames[f"{part.kind}_likeness"].append(part.table)
        findings += [_pairs_finding(place, part) for part in parts]
        findings += _label_findings(place, tests)
        frames["likeness_labels"].append(_label_table(place, tests))
        finding, table = _components(place, num_resamples=num_resamples, seed=seed)
        findings.append(finding)
        frames["components"].append(table)
    frames["mean_effects"].append(mean_effects(tables))
    if runs.empty:
        reason = "there are no final scores of runs on one dataset"
        findings = [_nothing(name, "", reason) for name in (LIKENESS, SHARED, COMPONENTS)]
    return Answered(findings=tuple(findings), tables=_joined(frames))


def _pairs_finding(place: Slice, part: Comparison) -> Finding:
    """Say how alike things of one kind are on average, and which pairs most and least."""
    noun, found = _NOUNS[part.kind], part.correlations
    first, second = np.triu_indices(len(part.names), 1)
    pairs = found.estimates[first, second]
    if part.kind == DATA and len(part.names) == 2:
        reason = "of two datasets each is the other's opposite once their mean is taken out"
        return _nothing(LIKENESS, f"{place.words}, {noun}s", reason + place.left_out)
    if found.mean is None:
        reason = (
            f"there is no pair of {noun}s whose scores vary"
            if len(part.names) > 1
            else f"fewer than two {noun}s have all scores"
        )
        return _nothing(LIKENESS, f"{place.words}, {noun}s", reason + place.left_out)
    best, worst = int(np.nanargmax(pairs)), int(np.nanargmin(pairs))

    def named(index: int) -> str:
        names = f"{part.names[first[index]]} and {part.names[second[index]]}"
        return f"{names} ({_number(pairs[index])})"

    # Datasets are compared after their common mean is gone: the mean of all pairs says nothing.
    mean = f"two {noun}s correlate by {_number(found.mean)} on average " + interval_text(
        found.mean_interval, "correlation"
    )
    text = f"{place.words}: most alike are {named(best)}, least {named(worst)}"
    if part.kind != DATA:
        text = f"{place.words}: {mean}; {text.split(': ', 1)[1]}"
    return Finding(
        question=LIKENESS,
        statement=f"{text}, of {plural(pairs.size, 'pair')}.",
        estimate=float(pairs[best]) if part.kind == DATA else found.mean,
        interval=None if part.kind == DATA else found.mean_interval,
        scale="correlation",
        n=int(np.isfinite(pairs).sum()),
        unit=f"pair of {noun}s (resampled: {_RESAMPLED[part.kind]})",
        method=(
            f"{_SCALED} Pearson correlation; "
            f"{_PICKED if part.kind == DATA else 'percentile bootstrap.'}{place.left_out}"
        ),
        rows=place.cells,
        benchmarks=place.profiles.benchmarks,
    )


def _label_findings(place: Slice, tests: Sequence[Test]) -> list[Finding]:
    """Compare pairs with the same label to the others, one Finding per label."""
    if not tests:
        reason = "no label is shared by some of the compared things and not by others"
        return [_nothing(SHARED, place.words, reason)]
    findings = []
    for test in tests:
        found, noun = test.found, _NOUNS[test.kind]
        difference = found.same - found.different
        low, high = found.interval or (-np.inf, np.inf)
        is_clear = test.p_adjusted <= MAX_P and not low <= 0 <= high
        verdict = (
            f"a shared {test.label} goes with {'more' if difference > 0 else 'less'} likeness"
            if is_clear
            else f"the data cannot tell that a shared {test.label} matters"
        )
        findings.append(
            Finding(
                question=SHARED,
                statement=(
                    f"{place.words}: {noun}s of the same {test.label} correlate by "
                    f"{_number(found.same)} ({plural(found.num_same, 'pair')}), others by "
                    f"{_number(found.different)} ({plural(found.num_different, 'pair')}); "
                    f"difference {_number(difference)} "
                    f"{interval_text(found.interval, 'correlation')}, adjusted p = "
                    f"{_p_text(test.p_adjusted)}: {verdict}."
                ),
                estimate=difference,
                interval=found.interval,
                scale="difference",
                n=found.num_same + found.num_different,
                unit=f"pair of {noun}s (resampled: {noun}s)",
                method=(
                    f"{_SCALED} Difference of mean correlations; p from labels permuted over "
                    f"{noun}s (Mantel 1967).{place.left_out}"
                ),
                rows=place.cells,
                benchmarks=place.profiles.benchmarks,
                p_value=found.p_value,
                p_adjusted=test.p_adjusted,
                family=FAMILY,
            )
        )
    return findings


def _components(place: Slice, *, num_resamples: int, seed: int) -> tuple[Finding, pd.DataFrame]:
    """Count the principal components of models that are needed, and list all of them."""
    models = place.profiles.models
    found = component_shares(place.profiles.values, num_resamples=num_resamples, seed=seed)
    empty = pd.DataFrame(columns=_COMPONENT_COLUMNS)
    if found is None or len(models) < 2:
        reason = (
            "the scores do not vary between datasets"
            if found is None
            else "fewer than two models have all scores"
        )
        return _nothing(COMPONENTS, place.words, reason + place.left_out), empty
    shares = np.diff(found.cumulative, prepend=0.0)
    table = pd.DataFrame(
        {
            "setting": place.setting,
            "method": place.method,
            "component": np.arange(1, shares.size + 1),
            "share": shares,
            "cumulative": found.cumulative,
            "low": found.low,
            "high": found.high,
            "num_models": len(models),
        }
    )
    interval = found.needed_interval
    bounds = "" if interval is None else f" [{interval[0]:.0f}, {interval[1]:.0f}]"
    listed = ", ".join(f"{value:.2f}" for value in found.cumulative[: found.num_needed])
    statement = (
        f"{place.words}: {plural(found.num_needed, 'principal component')}{bounds} of at most "
        f"{len(models)} hold {NEEDED_SHARE:.0%} of the variance of "
        f"{plural(len(models), 'model')} (cumulated: {listed})."
    )
    finding = Finding(
        question=COMPONENTS,
        statement=statement,
        estimate=float(found.num_needed),
        interval=interval,
        scale="count",
        n=len(models),
        unit="model (resampled: datasets)",
        method=(
            f"{_SCALED} Principal components of the (dataset x benchmark) by model matrix."
            f"{place.left_out}"
        ),
        rows=place.cells,
        benchmarks=place.profiles.benchmarks,
    )
    return finding, table


def _label_table(place: Slice, tests: Sequence[Test]) -> pd.DataFrame:
    rows = [
        {
            "setting": place.setting,
            "method": place.method,
            "kind": test.kind,
            "label": test.label,
            "same": test.found.same,
            "different": test.found.different,
            "difference": test.found.same - test.found.different,
            "low": test.found.interval[0] if test.found.interval else np.nan,
            "high": test.found.interval[1] if test.found.interval else np.nan,
            "p_value": test.found.p_value,
            "p_adjusted": test.p_adjusted,
            "num_same": test.found.num_same,
            "num_different": test.found.num_different,
        }
        for test in tests
    ]
    return pd.DataFrame(rows, columns=_LABEL_COLUMNS)


def _nothing(question: str, place: str, reason: str) -> Finding:
    where = f"{place}: not estimable" if place else "Not estimable"
    return not_estimable(
        question,
        reason,
        statement=f"{where}: {reason}.".replace("..", "."),
        scale="correlation",
        unit="pair",
        method=_SCALED,
    )


def _p_text(value: float) -> str:
    """Write a p-value; one below 1 is not shown as 1."""
    return f"{value:.2g}" if value < 0.1 else f"{min(value, 0.99 if value < 1 else 1.0):.2f}"


def _number(value: float) -> str:
    return minus(f"{value:.2f}")


def _empty_tables() -> dict[str, pd.DataFrame]:
    tables = {
        f"{kind}_likeness": pd.DataFrame(columns=[*_PAIR_COLUMNS, *LABELS[kind]]) for kind in LABELS
    }
    tables["likeness_labels"] = pd.DataFrame(columns=_LABEL_COLUMNS)
    tables["components"] = pd.DataFrame(columns=_COMPONENT_COLUMNS)
    tables["mean_effects"] = pd.DataFrame()
    return tables


def _joined(frames: dict[str, list[pd.DataFrame]]) -> dict[str, pd.DataFrame]:
    """Stack the tables of all slices; one without rows keeps its columns."""
    joined = {}
    for name, empty in _empty_tables().items():
        kept = [frame for frame in frames[name] if not frame.empty]
        first = frames[name][0] if frames[name] else empty
        joined[name] = pd.concat(kept, ignore_index=True) if kept else first
    return joined
