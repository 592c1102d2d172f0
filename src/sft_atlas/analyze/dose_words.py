"""What do curves over epochs and samples say, in plain words?

In: lines of the tables that `doses` makes. Out: Findings. No sentence says more than its interval
does: where an interval covers 0 the direction is left open, and where nothing could be compared the
Finding says why.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import pandas as pd

from sft_atlas.analyze.epoch_choice import MARGIN
from sft_atlas.analyze.findings import (
    EPOCHS,
    MAX_P,
    SAMPLES,
    Finding,
    bounds_of,
    interval_text,
    known,
    not_estimable,
    plural,
    points,
)
from sft_atlas.analyze.gains import AVERAGE
from sft_atlas.statistics.clusters import Mean

BEST_EPOCH: Final = "Which epoch is best, and what does choosing it cost?"

TWO_WAY: Final = (
    "Two-way cluster-robust interval over models and datasets, Student's t with Satterthwaite's "
    "degrees of freedom."
)
_NUM_NAMED: Final = 3
_KINDS: Final = {
    "each": "",
    "all": " (all data merged)",
    "leave-one-out": " (all data but one merged)",
}


def epoch_finding(line: dict[str, Any], whole: Mean, cells: tuple[str, ...]) -> Finding:
    """Word the change from the first to the last epoch, and where training may stop.

    `line` is that of `best_epochs` for all data and the mean over benchmarks.
    """
    first, last = line["first_epoch"], line["last_epoch"]
    return Finding(
        question=EPOCHS,
        statement=(
            f"{_series(line)}: from epoch {first} to {last} the mean score changes by "
            f"{points(whole.estimate)} points {interval_text(whole.interval)}. "
            f"{_direction(whole.interval, 'Later is better. ', 'Earlier is better. ')}{_stop(line)}"
        ),
        estimate=whole.estimate,
        interval=whole.interval,
        scale="points",
        n=whole.num_rows,
        unit=_unit(line, "run"),
        method=(
            "Difference within runs that were scored at every compared epoch. "
            f"{TWO_WAY} Stopping rule: the first epoch that no later one beats by more than "
            f"{100 * MARGIN:g} point, by bounds that hold for all pairs of epochs at once."
        ),
        rows=cells,
    )


def best_finding(
    line: dict[str, Any], lines: Sequence[dict[str, Any]], cells: tuple[str, ...]
) -> Finding:
    """Word which epoch is best, how sure that is, and what the choice brings to others.

    `lines` are all of the series: those of single datasets on the mean are listed.
    """
    is_same = line["validated"] is not None and line["low"] == line["high"]
    interval = None if is_same else bounds_of(line)
    text = (
        f"{_series(line)}: epoch {line['best_epoch']} has the highest mean score "
        f"({100 * line['chosen_fraction']:.0f} % of resamples choose it, 95 % {_span(line)}). "
    )
    if line["validated"] is None:
        text += f"What choosing it brings is not estimable: {line['reason']}."
    elif is_same:
        text += f"Chosen without the {line['judged_on']} that judge it, it brings nothing."
    else:
        text += (
            f"Chosen without the {line['judged_on']} that judge it, it differs from the last, "
            f"{line['last_epoch']}, by {points(line['validated'])} points "
            f"{interval_text(interval)}; on the scores that chose it, by "
            f"{points(line['apparent'])}. "
            f"{_direction(interval, 'Choosing pays.', 'Taking the last is better.')}"
        )
    single = [other for other in lines if other["benchmark"] == AVERAGE != other["data"]]
    epochs = [other["best_epoch"] for other in single]
    if epochs:
        span = {"epoch_low": min(epochs), "epoch_high": max(epochs)}
        text += f" By dataset the best is {_span(span)}."
    return Finding(
        question=BEST_EPOCH,
        statement=" ".join(text.split()),
        estimate=line["validated"],
        interval=interval,
        scale="points",
        n=line["num_runs"],
        unit=_unit(line, "run"),
        method=(
            f"Highest mean over benchmarks; {line['judged_on'] or 'nothing'} left out in turn. The "
            "interval takes the choices as given. Percentiles of a bootstrap that draws models and "
            "datasets independently (Owen 2007) for the epoch."
        ),
        rows=cells,
        reason=line["reason"] or "",
    )


def size_finding(
    lines: Sequence[dict[str, Any]], *, num_sizes: int, pairs: pd.DataFrame
) -> Finding:
    """Word what the largest number of samples brings instead of the smallest."""
    whole = next((line for line in lines if line["benchmark"] == AVERAGE), None)
    primary = [line for line in lines if line["benchmark"] != AVERAGE and bool(line["in_mean"])]
    some = whole or lines[0]
    first, second = some["first"], some["second"]
    steps = second / first
    text = f"{some['method']}, {some['schedule']}{_KINDS.get(some['data_kind'], '')}: "
    if whole is None:
        text += "the mean over benchmarks is not estimable: no pair was scored on all of them. "
    else:
        text += (
            f"{second:,} samples instead of {first:,} change the mean score by "
            f"{points(whole['difference'])} points {interval_text(bounds_of(whole))}, at equal "
            f"epochs, which is {steps:g} times the steps. "
            f"{_direction(bounds_of(whole), 'More is better.', 'Fewer is better.')}"
        )
    if primary:
        text += f" {_by_benchmark(primary)}"
    sizes = "Two sizes allow" if num_sizes == 2 else "Three sizes allow"
    text += f" {sizes} no curve of samples." if num_sizes < 4 else ""
    reason = "no pair was scored on all common benchmarks" if whole is None else ""
    return Finding(
        question=SAMPLES,
        statement=" ".join(text.split()),
        estimate=whole["difference"] if whole else None,
        interval=bounds_of(whole) if whole else None,
        scale="points",
        n=some["num_pairs"],
        unit=f"pair of cells ({_clusters(some)})",
        method=(
            "Cells that agree in model, data, seed, schedule, epoch and method; a run's epochs are "
            f"averaged first. {TWO_WAY}"
        ),
        rows=tuple(dict.fromkeys([*pairs["cell_first"], *pairs["cell_second"]])),
        p_value=known(whole["p_value"]) if whole else None,
        family=f"single benchmarks of the mean, {len(primary)} tests (Holm 1979)",
        reason=reason,
    )


def nothing_to_compare(
    means: pd.DataFrame, *, has_epochs: bool, has_sizes: bool
) -> Iterator[Finding]:
    """Say why a question has no answer: not estimable, and what it would take."""
    nothing = "no trained cell has a score on all common benchmarks"
    reasons = {
        EPOCHS: (has_epochs, "no run was scored at two epochs; keep several epochs (keep: every)"),
        SAMPLES: (
            has_sizes,
            "no two runs differ in their number of samples alone; train one dataset at two sizes",
        ),
    }
    for question, (is_answered, why) in reasons.items():
        if is_answered:
            continue
        reason = nothing if means.empty else why
        yield not_estimable(
            question,
            reason,
            scale="points",
            unit="run",
            method="Runs that differ in nothing else are compared.",
        )


def _by_benchmark(lines: Sequence[dict[str, Any]]) -> str:
    clear = [line for line in lines if (known(line.get("p_adjusted")) or 1.0) <= MAX_P]
    clear.sort(key=lambda line: -abs(float(line["difference"])))
    listed = ", ".join(
        f"{line['benchmark']} {points(line['difference'])} {interval_text(bounds_of(line))}"
        for line in clear[:_NUM_NAMED]
    )
    listed = listed if len(clear) <= _NUM_NAMED else f"largest: {listed}"
    if not clear:
        won = sum(line["difference"] > 0 for line in lines)
        return (
            f"On none of {plural(len(lines), 'benchmark')} is a direction clear (Holm); "
            f"{won} of them rise."
        )
    return f"Clear on {len(clear)} of {plural(len(lines), 'benchmark')} (Holm): {listed}."


def _stop(line: dict[str, Any]) -> str:
    stop, last = line.get("stop_epoch"), line["last_epoch"]
    if stop is None:
        return "Where to stop is not estimable: nothing can be resampled, or no score changes."
    if line["later_change"] is None:
        return (
            f"No epoch before {last} can be shown to be enough: each may still be beaten by more "
            f"than {100 * MARGIN:g} point."
        )
    most = line["later_change"]
    end = f"adds more than {100 * most:.1f} points" if most > 0 else "reaches it"
    return f"Stop at epoch {stop}: no later epoch up to {last} {end} (95 %, for all at once)."


def _direction(interval: tuple[float, float] | None, up: str, down: str) -> str:
    if interval is None:
        return ""
    if interval[0] <= 0 <= interval[1]:
        return "The interval covers 0: the data cannot tell the direction. "
    return up if interval[0] > 0 else down


def _series(line: dict[str, Any]) -> str:
    return f"{line['method']}, {line['setting']}{_KINDS.get(line['data_kind'], '')}"


def _span(line: dict[str, Any]) -> str:
    low, high = line["epoch_low"], line["epoch_high"]
    return f"epoch {low}" if low == high else f"epochs {low} to {high}"


def _unit(line: dict[str, Any], noun: str) -> str:
    return f"{noun} ({_clusters(line)})"


def _clusters(line: dict[str, Any]) -> str:
    return f"{plural(line['num_models'], 'model')}, {plural(line['num_datasets'], 'dataset')}"
