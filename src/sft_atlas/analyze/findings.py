"""What can be said about the study's questions, and what can it not tell?

A Finding is an estimate with its 95 % interval, what was resampled, the method in a sentence and
the cells that it rests on. Its statement is in plain words and never says more than the interval
does: where the interval covers 0 the direction is left open.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import pandas as pd

from sft_atlas.statistics.clusters import Mean, codes, two_way_mean

NUM_ERRORS: Final = 3.0
"""Standard errors beyond which a single gain is counted as a gain or a loss."""

MAX_P: Final = 0.05
"""Largest p-value at which a correlation is worded as one."""

OWN: Final = "Which data helps the benchmark of its own skill?"
LOSSES: Final = "What loses points?"
BEST: Final = "Which data helps most over all benchmarks?"
SAMPLES: Final = "Do more samples help?"
EPOCHS: Final = "Do more epochs help?"

Scale = Literal["points", "correlation", "position", "count", "difference", "share"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One answer, as far as the data can give it."""

    question: str
    statement: str
    """The answer in plain words, with the numbers a reader needs."""
    estimate: float | None
    """In `scale`; points are fractions of 1 here and in all tables."""
    interval: tuple[float, float] | None
    """95 %; None where nothing could be resampled."""
    scale: Scale
    n: int
    """Number of rows that the estimate averages."""
    unit: str
    """What a row is, and which clusters the interval resamples."""
    method: str
    rows: tuple[str, ...]
    """Fingerprints of the cells behind it."""
    benchmarks: tuple[str, ...] = ()
    """The benchmarks behind it; empty for all."""
    p_value: float | None = None
    """Of a test that needs no large numbers; None where none was made."""
    p_adjusted: float | None = None
    """The same, adjusted for all tests of `family`."""
    family: str = ""
    """The tests that were declared together before looking, and how they are adjusted."""
    reason: str = ""
    """Why nothing could be estimated; empty where something was."""

    @property
    def is_clear(self) -> bool:
        """Tell whether the interval excludes 0, and a test does not disagree."""
        if self.interval is None or self.interval[0] <= 0 <= self.interval[1]:
            return False
        p_value = self.p_value if self.p_adjusted is None else self.p_adjusted
        return p_value is None or p_value <= MAX_P


def points(value: float, digits: int = 1) -> str:
    """Format a gain as signed percentage points, with a true minus sign.

    >>> points(0.0342), points(0.0)
    ('+3.4', '0.0')
    """
    text = f"{100 * value:+.{digits}f}"
    return minus(text) if float(text) else text[1:]


def minus(text: str) -> str:
    """Replace every hyphen of formatted numbers by a minus sign; a 0 has no sign.

    >>> minus("-0.00, -0.01"), minus("+0.00")
    ('0.00, \N{MINUS SIGN}0.01', '0.00')
    """
    return _SIGNED_ZERO.sub(r"\1", text).replace("-", "\N{MINUS SIGN}")


_SIGNED_ZERO: Final = re.compile(r"[-+](0(?:\.0+)?)(?![.\d])")


def interval_text(interval: tuple[float, float] | None, scale: Scale = "points") -> str:
    """Format an interval in brackets, or say that there is none."""
    if interval is None:
        return "(no interval: too few models or datasets)"
    if scale == "points":
        # A bound that is not 0 is not shown as 0.
        low, high = (points(v, 2 if 0 < abs(v) < 0.0005 else 1) for v in interval)
        return f"[{low}, {high}]"
    return minus(f"[{interval[0]:.2f}, {interval[1]:.2f}]")


def plural(count: int, noun: str) -> str:
    """Write a count with its noun.

    >>> plural(1, "model"), plural(3, "model")
    ('1 model', '3 models')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def not_estimable(
    question: str, reason: str, *, scale: Scale, unit: str, method: str, statement: str = ""
) -> Finding:
    """Make the Finding of a question that the tables hold too little for.

    `reason` says what is missing; `statement` is made of it unless it is given.
    """
    return Finding(
        question=question,
        statement=statement or f"Not estimable: {reason}.",
        estimate=None,
        interval=None,
        scale=scale,
        n=0,
        unit=unit,
        method=method,
        rows=(),
        reason=reason,
    )


def known(value: Any) -> float | None:
    """Return a finite number, or None for one that a table does not hold."""
    return None if value is None or pd.isna(value) or math.isinf(value) else float(value)


def bounds_of(row: Mapping[Any, Any]) -> tuple[float, float] | None:
    """Return `low` and `high` of a table's row, or None where either is unknown."""
    low, high = known(row["low"]), known(row["high"])
    return None if low is None or high is None else (low, high)


def cells_of(rows: pd.DataFrame) -> tuple[str, ...]:
    """Return the cells behind rows, each once, in their order."""
    return tuple(dict.fromkeys(str(cell) for cell in rows["cell"]))


def main_setting(gains: pd.DataFrame) -> str:
    """Name the setting with the most model x data pairs: the one that most answers are about."""
    pairs = (
        gains.drop_duplicates(["setting", "model", "data"]).groupby("setting", sort=False).size()
    )
    return str(pairs.idxmax())


def own_skill_findings(gains: pd.DataFrame) -> list[Finding]:
    """Say how datasets move the benchmarks of their own skill, per method, at the final epoch."""
    findings = []
    for method, rows in _final_by_method(gains):
        is_own = (rows["data_group"] == rows["skill"]) & (rows["skill"] != "")
        own = rows[is_own & (rows["data_kind"] == "each")]
        if own.empty:
            continue
        mean = _mean(own)
        by_data = own.groupby("data", sort=False)["gain"].mean().sort_values(ascending=False)
        clear = int((own["gain"] > NUM_ERRORS * own["gain_se"]).sum())
        chance = len(own) * _upper_tail(NUM_ERRORS)
        findings.append(
            Finding(
                question=OWN,
                statement=(
                    f"{method}: trained on a skill, models move its own benchmark by "
                    f"{points(mean.estimate)} points {interval_text(mean.interval)} on average. "
                    f"{clear:,} of {len(own):,} single gains exceed {NUM_ERRORS:g} standard errors "
                    f"(about {chance:.1f} would without any effect). Largest: {by_data.index[0]} "
                    f"({points(by_data.iloc[0])}); smallest: {by_data.index[-1]} "
                    f"({points(by_data.iloc[-1])}). {_verdict(mean, 'rise', 'fall')}"
                ),
                estimate=mean.estimate,
                interval=mean.interval,
                scale="points",
                n=len(own),
                unit=_unit(mean, "gain"),
                method=f"Mean final gain where data group = benchmark skill. {TWO_WAY}",
                rows=cells_of(own),
                benchmarks=tuple(own["benchmark"].unique()),
            )
        )
    return findings


def loss_findings(gains: pd.DataFrame) -> list[Finding]:
    """Count gains below 0 by more than `NUM_ERRORS` standard errors, per method, and name the worst
    pair.
    """
    findings = []
    for method, rows in _final_by_method(gains):
        rows = rows[rows["gain_se"].notna()]
        if rows.empty:
            continue
        lost = rows[rows["gain"] < -NUM_ERRORS * rows["gain_se"]]
        chance = len(rows) * _upper_tail(NUM_ERRORS)
        text = (
            f"{method}: {len(lost):,} of {len(rows):,} final scores lie more than {NUM_ERRORS:g} "
            f"standard errors below their base model (about {chance:.1f} would without any effect)."
        )
        text += _worst_pair(rows) if len(lost) else " No single loss is certain."
        findings.append(
            Finding(
                question=LOSSES,
                statement=text,
                estimate=len(lost) / len(rows),
                interval=None,
                scale="count",
                n=len(rows),
                unit="final cell x benchmark",
                method=(
                    f"A loss is gain < -{NUM_ERRORS:g} x its paired standard error over items; the "
                    "count "
                    "expected by chance is one normal tail times the number of gains."
                ),
                rows=cells_of(lost),
                benchmarks=tuple(lost["benchmark"].unique()),
            )
        )
    return findings


def _worst_pair(rows: pd.DataFrame) -> str:
    means = rows.groupby(["data", "benchmark"], sort=False, as_index=False).agg(
        gain=("gain", "mean"), size=("gain", "size")
    )
    worst = means.sort_values("gain").iloc[0]
    if worst["gain"] >= 0:
        return " No pair of dataset and benchmark loses on average."
    cells = plural(int(worst["size"]), "cell")
    return (
        f" The largest mean loss: {worst['data']} on {worst['benchmark']}, "
        f"{points(float(worst['gain']))} points over {cells}."
    )


def best_data_findings(means: pd.DataFrame) -> list[Finding]:
    """Compare the data with the largest mean gain to the runner-up, on the same models."""
    findings = []
    for method, rows in _final_by_method(means):
        table = rows.pivot_table(index="model", columns="data", values="gain", sort=False)
        table = table.dropna(axis="columns")
        if table.shape[1] < 2:
            continue
        # Where no error is known, the table of errors has no column of that name.
        errors = rows.pivot_table(index="model", columns="data", values="gain_se", sort=False)
        errors = errors.reindex(index=table.index, columns=table.columns)
        order = table.mean().sort_values(ascending=False)
        best, second = str(order.index[0]), str(order.index[1])
        lead = (table[best] - table[second]).to_numpy(dtype=float)
        clusters = codes(table.index)
        # The winner was picked by looking: each of its rivals gets a share of the 5 %.
        level = 1 - 0.05 / (table.shape[1] - 1)
        mean = two_way_mean(
            lead,
            models=clusters,
            datasets=0 * clusters,
            item_errors=np.hypot(*errors[[best, second]].to_numpy(dtype=float).T),
            level=level,
            limit=1.0,
        )
        ahead = mean.interval is not None and mean.interval[0] > 0
        end = "The lead is clear." if ahead else "The data cannot tell these two apart."
        statement = (
            f"{method}: {best} has the largest mean gain ({points(order.iloc[0])} points), "
            f"{points(mean.estimate)} {interval_text(mean.interval)} ahead of {second} on the same "
            f"{plural(len(table), 'model')}. {end}"
        )
        findings.append(
            Finding(
                question=BEST,
                statement=statement,
                estimate=mean.estimate,
                interval=mean.interval,
                scale="points",
                n=len(table),
                unit="model",
                method=(
                    "Mean over benchmarks; lead over the runner-up paired by model, Student's t "
                    f"over models at level {level:.3f}, because the best of {table.shape[1]} was "
                    "chosen by looking (Bonferroni)."
                ),
                rows=cells_of(rows[rows["data"].isin([best, second])]),
            )
        )
    return findings


TWO_WAY: Final = (
    "Two-way cluster-robust interval over models and datasets, Student's t on the smaller number "
    "of clusters."
)


def _final_by_method(gains: pd.DataFrame) -> Sequence[tuple[str, pd.DataFrame]]:
    """Final rows of the main setting, by method."""
    if gains.empty:
        return []
    rows = gains[gains["is_final"] & (gains["setting"] == main_setting(gains))]
    return [(str(method), part) for method, part in rows.groupby("method", sort=False)]


def _mean(rows: pd.DataFrame) -> Mean:
    values = rows["gain"].to_numpy(dtype=float)
    return two_way_mean(
        values,
        models=codes(rows["model"]),
        datasets=codes(rows["data"]),
        item_errors=rows["gain_se"].to_numpy(dtype=float),
        limit=1.0,
    )


def _verdict(mean: Mean, up: str, down: str) -> str:
    """Word the direction only where the interval gives one."""
    if mean.interval is None or mean.interval[0] <= 0 <= mean.interval[1]:
        return "The interval covers 0: the data cannot tell the direction." if mean.interval else ""
    return f"On average they {up if mean.estimate > 0 else down}."


def _unit(mean: Mean, noun: str) -> str:
    clusters = f"{plural(mean.num_models, 'model')}, {plural(mean.num_datasets, 'dataset')}"
    return f"{noun} ({clusters})"


def _upper_tail(errors: float) -> float:
    return 0.5 * math.erfc(errors / math.sqrt(2))
