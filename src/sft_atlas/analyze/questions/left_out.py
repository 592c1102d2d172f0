"""What does each dataset give to the mixture?

In: runs on all datasets merged, and runs that leave one of them out. Out: the score that is lost
without it, by benchmark and on average. The one decision: the run with all data is also the run
with more samples; the two are not told apart here, and every answer says so.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
from scipy.special import ndtr, stdtr

from sft_atlas.analyze.cell_scores import cell_scores
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
from sft_atlas.analyze.gains import AVERAGE, NORMAL_QUANTILE
from sft_atlas.analyze.questions.answered import Answered
from sft_atlas.statistics.clusters import Floats, t_quantile, within_limit
from sft_atlas.statistics.equivalence import ALPHA
from sft_atlas.statistics.multiplicity import holm

if TYPE_CHECKING:
    from sft_atlas.store.tables import Tables

QUESTION: Final = "What does each dataset give to the mixture?"
AGREEMENT: Final = "Do the methods agree on what each dataset gives to the mixture?"

_FIXED: Final = ["model", "whole", "method", "schedule", "epochs", "epoch", "seed"]
_COLUMNS: Final = (
    *("method", "setting", "dataset", "benchmark", "skill", "metric", "range", "difference"),
    *(
        "standard_error",
        "low",
        "high",
        "relative",
        "unit",
        "p_value",
        "p_adjusted",
        "num_models",
        "num_pairs",
    ),
    *("num_samples_all", "num_samples_without", "reason"),
)
_FAMILY: Final = "The means over benchmarks of all datasets, one method; Holm 1979"


def left_out(tables: "Tables", *, num_resamples: int = 1000, seed: int = 0) -> Answered:
    """Compare runs on all datasets merged with runs that leave one dataset out.

    The difference is the score with all data minus the score without the dataset, at the final
    epoch, for the same model, method, schedule and seed: above 0 the dataset helps the mixture. It
    includes what the additional samples do, because the run without the dataset has fewer. With
    several models the interval is Student's t over models (seeds averaged first), and no narrower
    than item sampling allows. With one model it is the normal interval of item sampling alone: it
    says nothing about another model or another run. p-values are adjusted by Holm's method over
    all datasets for the mean over benchmarks, and over datasets x benchmarks for single ones.
    Where two methods were run, the correlation of their differences over datasets and benchmarks
    tells how much of them is more than the luck of one run. Beside each difference stands how it
    differs from the mean of all datasets: that compares runs of equal size, in which the run on all
    data has no part.

    Table `left_out`: method, setting (of the run without the dataset), dataset, benchmark (empty:
    mean over the benchmarks that count), skill, metric, range (difference x range is in the
    metric's own unit), difference (fraction of the range), standard_error, low and high (95 %),
    relative (difference minus its mean over datasets), unit (what the interval resamples: `items`
    or `models`), p_value, p_adjusted, num_models, num_pairs, num_samples_all, num_samples_without,
    reason (why there is no interval).
    """
    pairs = left_out_pairs(tables)
    if pairs.empty:
        reason = "no run on all datasets has a partner that leaves one of them out"
        return Answered(
            findings=(_not_estimable(reason),),
            tables={"left_out": pd.DataFrame(columns=list(_COLUMNS))},
        )
    table = _differences(pairs)
    findings = [
        _finding(str(method), rows, pairs[pairs["method"] == method])
        for method, rows in table.groupby("method", sort=False)
    ]
    return Answered(
        findings=(*findings, *_agreement(table, pairs)),
        tables={"left_out": table},
    )


def left_out_pairs(tables: "Tables") -> pd.DataFrame:
    """Return one row per pair of final cells and benchmark, with `dataset`: what one lacks.

    Columns: model, method, epoch, seed, setting, benchmark, skill, metric, in_mean, range, dataset,
    cell_all, cell_without, num_samples_all, num_samples_without, difference (all minus without),
    error (over items, of two independent samples). Of several runs on all data the one with the
    fewest samples is taken that has at least as many as the run without the dataset.
    """
    scores = cell_scores(tables)
    scores = scores[scores["is_final"].astype(bool)]
    whole = scores[scores["data_kind"] == "all"].assign(whole=lambda rows: rows["data"])
    without = scores[scores["data_kind"] == "leave-one-out"]
    names = _names(without["data"].unique(), set(whole["data"]))
    without = without[without["data"].isin(names)]
    # Without any such run the names would be a column of numbers, which cannot be matched.
    wholes = without["data"].map({name: found[0] for name, found in names.items()})
    without = without.assign(
        whole=wholes.astype(scores["data"].dtype),
        dataset=without["data"].map({name: found[1] for name, found in names.items()}),
    )
    facts = ["skill", "metric", "in_mean", "range", "setting", "dataset"]
    values = ["cell", "num_samples", "value", "value_se"]
    keys = [*_FIXED, "benchmark"]
    pairs = without[[*keys, *facts, *values]].merge(
        whole[[*keys, *values]], on=keys, suffixes=("_without", "_all")
    )
    pairs = pairs[pairs["num_samples_all"] >= pairs["num_samples_without"]]
    pairs = pairs.sort_values("num_samples_all", kind="stable")
    pairs = pairs.drop_duplicates(["cell_without", "benchmark"]).sort_index()
    return pairs.assign(
        difference=pairs["value_all"] - pairs["value_without"],
        error=np.hypot(pairs["value_se_all"], pairs["value_se_without"]),
    )


def _names(found: Iterable[object], wholes: set[str]) -> dict[str, tuple[str, str]]:
    """Name the merged data and the dataset it lacks, by the name of the data.

    A study's own runs are called `all-but-lima`, or `all-BLOCK-but-lima`; imported ones
    `without-lima`.
    """
    names: dict[str, tuple[str, str]] = {}
    for name in map(str, found):
        if name.startswith("without-") and "all" in wholes:
            names[name] = ("all", name.removeprefix("without-"))
        for whole in sorted(wholes, key=len):
            if name.startswith(f"{whole}-but-"):
                names[name] = (whole, name.removeprefix(f"{whole}-but-"))
    return names


def _differences(pairs: pd.DataFrame) -> pd.DataFrame:
    frames = []
    for (method, setting), part in pairs.groupby(["method", "setting"], sort=False):
        counted = part[part["in_mean"].astype(bool)]
        for family in (_averaged(counted), part):
            if not family.empty:
                rows = _tested(family)
                adjusted = holm(rows["p_value"].to_numpy(dtype=np.float64))
                names = {"method": str(method), "setting": str(setting)}
                frames.append(rows.assign(p_adjusted=adjusted, **names))
    return pd.concat(frames, ignore_index=True)[list(_COLUMNS)]


def _averaged(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean over benchmarks of each pair of cells; a pair that lacks one is left out."""
    size = rows["benchmark"].nunique()
    work = rows.assign(squared=(rows["error"] ** 2).fillna(np.inf))
    table = work.groupby(["dataset", "model", "cell_without"], sort=False, as_index=False).agg(
        difference=("difference", "mean"),
        squared=("squared", "sum"),
        size=("difference", "size"),
        num_samples_all=("num_samples_all", "first"),
        num_samples_without=("num_samples_without", "first"),
    )
    table["error"] = (np.sqrt(table["squared"]) / size).replace(np.inf, np.nan)
    table = table.assign(benchmark=AVERAGE, skill="", metric="mean", range=1.0)
    return table[table["size"] == size]


def _tested(pairs: pd.DataFrame) -> pd.DataFrame:
    """Mean of each dataset and benchmark over models, with its interval; of one, over items."""
    keys = ["dataset", "benchmark", "skill", "metric", "range"]
    work = pairs.assign(squared=(pairs["error"] ** 2).fillna(np.inf))
    models = work.groupby([*keys, "model"], sort=False, as_index=False).agg(
        difference=("difference", "mean"),
        squared=("squared", "sum"),
        size=("squared", "size"),
        num_samples_all=("num_samples_all", "max"),
        num_samples_without=("num_samples_without", "max"),
    )
    models["squared"] /= models["size"] ** 2
    rows = models.groupby(keys, sort=False, as_index=False).agg(
        difference=("difference", "mean"),
        spread=("difference", "std"),
        squared=("squared", "sum"),
        num_models=("size", "size"),
        num_pairs=("size", "sum"),
        num_samples_all=("num_samples_all", "max"),
        num_samples_without=("num_samples_without", "max"),
    )
    size = rows["num_models"].to_numpy(dtype=np.float64)
    is_several = size > 1
    floor = np.sqrt(rows["squared"].to_numpy(dtype=np.float64)) / size
    between = rows["spread"].to_numpy(dtype=np.float64) / np.sqrt(size)
    # Several models tell the error even where that over items is not known.
    error = np.where(is_several, np.fmax(between, np.where(np.isfinite(floor), floor, 0.0)), floor)
    error = np.where(np.isfinite(error) & (error > 0), error, np.nan)
    estimate = rows["difference"].to_numpy(dtype=np.float64)
    quantile = [t_quantile(n) if n > 1 else NORMAL_QUANTILE for n in size]
    margin = np.array(quantile) * error
    bounds = zip(estimate - margin, estimate + margin, strict=True)
    low, high = np.array([within_limit(*pair, 1.0) for pair in bounds]).reshape(-1, 2).T
    ratio = -np.abs(estimate) / error
    tail = np.where(is_several, stdtr(np.maximum(size - 1, 1), ratio), ndtr(ratio))
    mean = rows.groupby("benchmark", sort=False)["difference"].transform("mean")
    return rows.assign(
        relative=estimate - mean,
        standard_error=error,
        low=low,
        high=high,
        unit=np.where(is_several, "models", "items"),
        p_value=2 * tail,
        reason=pd.Series(_reasons(error, low), rows.index, dtype=object),
    )


def _reasons(errors: Floats, low: Floats) -> list[str | None]:
    """Say of each mean why it has no interval."""
    unbounded = "too few models: an interval would hold every possible difference"
    unknown = "the error over items is not known"
    places = zip(np.isnan(errors), np.isnan(low), strict=True)
    return [unknown if no_error else unbounded if no_low else None for no_error, no_low in places]


def _finding(method: str, table: pd.DataFrame, pairs: pd.DataFrame) -> Finding:
    means = table[(table["benchmark"] == AVERAGE) & table["difference"].notna()]
    means = means.sort_values("difference", ascending=False)
    if means.empty:
        reason = "no pair has all of the benchmarks that count"
        return _not_estimable(reason, f"{method}: not estimable: {reason}.")
    rows = means.to_dict("records")
    is_clear = means["p_adjusted"].astype(float) <= ALPHA
    helps, harms = (int((is_clear & sign).sum()) for sign in _signs(means["difference"]))
    best, worst = rows[0], rows[-1]
    even = (
        f"Against the mean dataset, which compares runs of equal size: {best['dataset']} "
        f"{points(best['relative'])}, {worst['dataset']} {points(worst['relative'])}. "
    )
    singles = table[table["benchmark"].isin(_counted(pairs))]
    singles = singles[singles["p_adjusted"].astype(float) <= ALPHA]
    return Finding(
        question=QUESTION,
        statement=(
            f"{method}: datasets that clearly raise the mean over benchmarks by being in the "
            f"mixture: {helps} of {len(means)}; that clearly lower it: {harms}. Most: "
            f"{_shown(best)}; least: {_shown(worst)}. {even}{_singles(singles)}{_limits(best)}"
        ),
        estimate=float(best["difference"]),
        interval=bounds_of(best),
        scale="points",
        n=int(best["num_pairs"]),
        unit=f"pair of runs ({plural(int(best['num_models']), 'model')})",
        method=(
            "Score with all datasets minus score without one, final epochs, same model, method, "
            "schedule and seed; the estimate is that of the dataset that gives most. Interval over "
            f"{best['unit']}; Holm's method over the datasets."
        ),
        rows=tuple(dict.fromkeys([*pairs["cell_all"], *pairs["cell_without"]])),
        p_value=known(best["p_value"]),
        p_adjusted=known(best["p_adjusted"]),
        family=_FAMILY,
        reason=str(best["reason"]) if bounds_of(best) is None else "",
    )


def _signs(values: "pd.Series[float]") -> tuple["pd.Series[bool]", "pd.Series[bool]"]:
    return values > 0, values < 0


def _singles(rows: pd.DataFrame) -> str:
    """Name the three largest clear effects on single benchmarks."""
    if rows.empty:
        return "On no single benchmark is an effect clear. "
    order = rows["difference"].abs().sort_values(ascending=False).index[:3]
    shown = ", ".join(
        f"{row['dataset']} on {row['benchmark']} {points(row['difference'])}"
        for row in rows.loc[order].to_dict("records")
    )
    return f"{plural(len(rows), 'clear effect')} on single benchmarks; largest: {shown} points. "


def _limits(row: Mapping[Any, Any]) -> str:
    text = (
        f"The run with all data has {int(row['num_samples_all']):,} samples, the others "
        f"{int(row['num_samples_without']):,}: what a dataset gives and what more samples give "
        "cannot be told apart."
    )
    if row["num_models"] == 1:
        text += (
            " One model and one run each: the intervals know the items alone, not another model "
            "nor the luck of a run."
        )
    return text


def _shown(row: Mapping[Any, Any]) -> str:
    return f"{row['dataset']} {points(row['difference'])} points {interval_text(bounds_of(row))}"


def _agreement(table: pd.DataFrame, pairs: pd.DataFrame) -> list[Finding]:
    """Correlate the single differences of two methods: what is luck of a run does not agree."""
    singles = table[table["benchmark"].isin(_counted(pairs))]
    wide = singles.pivot_table(
        index=["dataset", "benchmark"], columns="method", values="difference", sort=False
    ).dropna()
    methods = list(wide.columns)
    if len(methods) < 2 or len(wide) < 3:
        return []
    # Benchmarks differ in size and in what more samples do: compare datasets on the same benchmark.
    centred = wide - wide.groupby(level="benchmark").transform("mean")
    first, second = (centred[name].to_numpy(dtype=np.float64) for name in methods[:2])
    spread = float(np.sqrt((first @ first) * (second @ second)))
    if not spread > 0:
        return []
    value = float(first @ second) / spread
    return [
        Finding(
            question=AGREEMENT,
            statement=(
                f"What each dataset gives on each benchmark agrees between {methods[0]} and "
                f"{methods[1]} with r = {minus(f'{value:.2f}')} over {plural(len(wide), 'pair')} "
                "of dataset and benchmark. What does not agree is the method's or the luck of a "
                "run."
            ),
            estimate=value,
            interval=None,
            scale="correlation",
            n=len(wide),
            unit="dataset x benchmark",
            method=(
                "Pearson correlation of differences (all minus without), each minus its "
                "benchmark's mean over datasets."
            ),
            rows=tuple(dict.fromkeys([*pairs["cell_all"], *pairs["cell_without"]])),
            reason="no interval: all differences share one run with all data per method",
        )
    ]


def _counted(pairs: pd.DataFrame) -> list[str]:
    return [str(name) for name in pairs.loc[pairs["in_mean"].astype(bool), "benchmark"].unique()]


def _not_estimable(reason: str, statement: str = "") -> Finding:
    return not_estimable(
        QUESTION,
        reason,
        statement=statement,
        scale="points",
        unit="pair of runs",
        method="Score with all datasets minus score without one.",
    )
