"""How many samples and how many epochs are worth their cost?

In: the tables of a study or of imported results. Out: curves over epochs and samples, the largest
number of samples against the smallest, the best epoch and what choosing it costs. The one decision:
an epoch that was picked because it scored best is never reported by the scores that picked it; its
advantage is what it brings to models that had no say.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from sft_atlas.analyze.dose_curves import (
    SERIES,
    Panel,
    benchmark_means,
    by_run,
    change,
    dose_panels,
    p_of,
    paired_scores,
    run_scores,
    simultaneous_changes,
)
from sft_atlas.analyze.dose_words import (
    best_finding,
    epoch_finding,
    nothing_to_compare,
    size_finding,
)
from sft_atlas.analyze.epoch_choice import Choice, choose_epoch, stop_rule
from sft_atlas.analyze.findings import Finding
from sft_atlas.analyze.gains import AVERAGE, setting_label
from sft_atlas.analyze.questions.answered import Answered
from sft_atlas.statistics.clusters import Mean, codes, two_way_mean
from sft_atlas.statistics.multiplicity import holm

if TYPE_CHECKING:
    from sft_atlas.store.tables import Tables

CURVE_COLUMNS: Final = (
    *("dose", *SERIES, "setting", "data", "benchmark", "x"),
    *("value", "change", "low", "high", "band_low", "band_high"),
    *("num_runs", "num_models", "num_datasets"),
)
SIZE_COLUMNS: Final = (
    *("method", "data_kind", "schedule", "horizon_epochs", "first", "second"),
    *("benchmark", "skill", "metric", "in_mean", "range", "difference", "low", "high"),
    *("p_value", "p_adjusted", "won_fraction"),
    *("num_pairs", "num_runs", "num_models", "num_datasets"),
)
BEST_COLUMNS: Final = (
    *(*SERIES, "setting", "data", "benchmark", "first_epoch", "last_epoch"),
    *("best_epoch", "epoch_low", "epoch_high", "chosen_fraction"),
    *("apparent", "validated", "low", "high", "optimism", "judged_on", "num_left_out"),
    *("stop_epoch", "later_change", "num_runs", "num_models", "num_datasets", "reason"),
)

_PLAN: Final = [name for name in SERIES if name != "samples"]


def samples_and_epochs(tables: "Tables", *, num_resamples: int = 1000, seed: int = 0) -> Answered:
    """Follow scores over epochs and samples, and say what more of either is worth.

    Scores are compared within a run (over epochs) or between runs that agree in everything else
    (over samples), so the base model cancels. A curve averages runs that have a score at every
    compared dose; bounds are two-way cluster-robust over models and datasets (Cameron, Gelbach and
    Miller 2011) with Satterthwaite's degrees of freedom, and bands hold at all doses at once by a
    multivariate t (Hothorn, Bretz and Westfall 2008). The epochs of a run are repeated measures and
    count as one run. The largest number of samples is compared with the smallest on each benchmark;
    p-values take the smaller number of models or datasets less one degrees of freedom, and are
    adjusted over the benchmarks that count in the mean (Holm 1979), and over the others apart. The
    best epoch is chosen on all models but one and judged on that one; what it seemed to bring on
    the scores that chose it is shown beside, and the difference is the optimism of choosing.
    Training may stop at the first epoch after which no later one adds a point, by bounds that hold
    for all pairs of epochs at once.

    Tables (values, changes and bounds are fractions of 1, ratings fractions of their range):

    `dose_curves`: dose (`epoch` or `samples`), method, data_kind, samples, schedule, horizon_epochs
    (0 where the schedule has no end; what the curve does not hold fixed is null), setting, data and
    benchmark (empty for the mean over all), x (epoch, or number of samples), value (mean score),
    change (from the first dose, within runs), low, high (95 % at this dose), band_low, band_high
    (95 % at all doses at once; curves over all data alone), num_runs, num_models, num_datasets.

    `size_differences`: method, data_kind, schedule, horizon_epochs, first, second (numbers of
    samples), benchmark (empty for the mean), skill, metric, in_mean, range (what a difference of 1
    is in the metric's own unit), difference (second less first), low, high, p_value, p_adjusted
    (null for the mean, one planned test), won_fraction (of the pairs of cells, those at which the
    second is ahead), num_pairs (of cells), num_runs, num_models, num_datasets.

    `best_epochs`: method, data_kind, samples, schedule, horizon_epochs, setting, data, benchmark,
    first_epoch, last_epoch, best_epoch, epoch_low, epoch_high (central 95 % of what resampled
    models and datasets choose), chosen_fraction (of the resamples that choose the same), apparent
    (the best epoch less the last, on the scores that chose it), validated (the same on what had no
    say), low, high (of validated), optimism (their difference), judged_on (`models`, `datasets` or
    `benchmarks`: what is left out), num_left_out, stop_epoch and later_change (epochs after it add
    at most this, 95 %, at once for all; benchmark and data means alone), reason (why it cannot be
    told, else null).
    """
    scores = run_scores(tables)
    means = benchmark_means(scores)
    both = pd.concat([means, scores], ignore_index=True) if not means.empty else scores
    curves: list[dict[str, Any]] = []
    best: list[dict[str, Any]] = []
    found: list[Finding] = []
    for key, rows in _groups(both, list(SERIES)):
        place = key | {"setting": _setting(key, rows)}
        panels = dose_panels(rows, dose="epoch")
        cells = tuple(rows["cell"].unique())
        for benchmark, panel in panels.items():
            curves += _lines(place | {"dose": "epoch", "benchmark": benchmark}, panel, seed=seed)
        if panels:
            lines = list(_choices(place, panels, num_resamples=num_resamples, seed=seed))
            best += lines
            found += _of_epochs(panels, lines, cells)
    sizes: list[dict[str, Any]] = []
    differences: list[dict[str, Any]] = []
    for key, rows in _groups(both, _PLAN):
        for benchmark, panel in dose_panels(rows, dose="samples").items():
            place = key | {"dose": "samples", "benchmark": benchmark, "setting": ""}
            sizes += _lines(place, panel, seed=seed)
        pairs = size_pairs(rows)
        if len(pairs):
            lines = [key | line for line in size_differences(pairs)]
            differences += lines
            found.append(size_finding(lines, num_sizes=rows["samples"].nunique(), pairs=pairs))
    return Answered(
        findings=(*found, *nothing_to_compare(means, has_epochs=bool(best), has_sizes=bool(sizes))),
        tables={
            "dose_curves": pd.DataFrame([*curves, *sizes], columns=list(CURVE_COLUMNS)),
            "size_differences": pd.DataFrame(differences, columns=list(SIZE_COLUMNS)),
            "best_epochs": pd.DataFrame(best, columns=list(BEST_COLUMNS)),
        },
    )


def size_pairs(rows: pd.DataFrame) -> pd.DataFrame:
    """Pair the cells of the largest number of samples with those of the smallest.

    Columns: those of `dose_curves.paired_scores`; empty with a single size.
    """
    first, second = int(rows["samples"].min()), int(rows["samples"].max())
    pairs = paired_scores(rows, factor="samples", first=first, second=second)
    return pairs.assign(first=first, second=second) if first < second else pairs.iloc[:0]


def size_differences(pairs: pd.DataFrame) -> list[dict[str, Any]]:
    """Test each benchmark's mean difference; columns of the table from `first` on.

    Holm 1979 over the benchmarks that count in the mean, and over the others apart. The mean over
    benchmarks is one planned test and is not adjusted.
    """
    lines = []
    every_run = by_run(pairs)
    places = every_run.groupby("benchmark", sort=False).indices
    for benchmark, part in pairs.groupby("benchmark", sort=False):
        runs = every_run.iloc[places[benchmark]]
        mean = two_way_mean(
            runs["difference"].to_numpy(dtype=np.float64),
            models=codes(runs["model"]),
            datasets=codes(runs["data"]),
            item_errors=runs["error"].to_numpy(dtype=np.float64),
            degrees="effective",
            limit=1.0,
        )
        labels = ("first", "second", "skill", "metric", "in_mean", "range")
        lines.append(
            {name: part[name].iloc[0] for name in labels}
            | {"benchmark": str(benchmark), "difference": mean.estimate}
            | {"low": mean.low, "high": mean.high, "p_value": p_of(mean)}
            | {"won_fraction": float((part["difference"] > 0).mean()), "num_pairs": len(part)}
            | _counts(mean)
        )
    for members in (
        [line for line in lines if line["benchmark"] != AVERAGE and bool(line["in_mean"]) is flag]
        for flag in (True, False)
    ):
        adjusted = holm(np.array([line["p_value"] for line in members]))
        for line, p_adjusted in zip(members, adjusted, strict=True):
            line["p_adjusted"] = float(p_adjusted)
    return lines


def _groups(rows: pd.DataFrame, keys: list[str]) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    if rows.empty:
        return
    for values, part in rows.groupby(keys, sort=False):
        yield dict(zip(keys, values, strict=True)), part


def _setting(key: dict[str, Any], rows: pd.DataFrame) -> str:
    epochs = int(key["horizon_epochs"]) or int(rows["epochs"].max())
    return setting_label(int(key["samples"]), str(key["schedule"]), epochs)


def _lines(place: dict[str, Any], panel: Panel, *, seed: int) -> Iterator[dict[str, Any]]:
    """Points of the curve over all data, then of each dataset's if there are several."""
    names = np.unique(panel.data).tolist()
    parts = {AVERAGE: panel} | ({name: panel.only(name) for name in names} if names[1:] else {})
    for name, part in parts.items():
        later = [(0, index) for index in range(1, part.doses.size)]
        band = simultaneous_changes(part, later, seed=seed) if name == AVERAGE else None
        for index, dose in enumerate(part.doses):
            mean = change(part, 0, index)
            # At the first dose there is no change that could be off.
            low, high = (mean.low, mean.high) if index else (0.0, 0.0)
            line = {"data": name, "x": int(dose), "value": float(part.values[:, index].mean())}
            line |= {"change": mean.estimate, "low": low, "high": high} | _counts(mean)
            if band is not None:
                bounds = (band.low[index - 1], band.high[index - 1]) if index else (0.0, 0.0)
                line |= dict(zip(("band_low", "band_high"), map(float, bounds), strict=True))
            yield place | line


def _choices(
    place: dict[str, Any], panels: dict[str, Panel], *, num_resamples: int, seed: int
) -> Iterator[dict[str, Any]]:
    """Choose an epoch for all data on each benchmark, and for each dataset on the mean."""
    for benchmark, panel in panels.items():
        names = np.unique(panel.data).tolist() if benchmark == AVERAGE else []
        parts = {AVERAGE: panel} | ({name: panel.only(name) for name in names} if names[1:] else {})
        for name, part in parts.items():
            by_benchmark = _by_benchmark(panels, name) if benchmark == AVERAGE else None
            choice = choose_epoch(
                part, by_benchmark=by_benchmark, num_resamples=num_resamples, seed=seed
            )
            line = place | {"data": name, "benchmark": benchmark} | _choice(choice, part)
            if benchmark == name == AVERAGE:
                stop = stop_rule(part, seed=seed)
                line |= {"stop_epoch": stop.epoch, "later_change": stop.most} if stop else {}
            yield line


def _by_benchmark(panels: dict[str, Panel], data: str) -> np.ndarray:
    """Mean value of each benchmark that has every epoch of the mean's panel."""
    doses = panels[AVERAGE].doses
    parts = [panel if data == AVERAGE else panel.only(data) for panel in panels.values()]
    kept = [part for part in parts if np.array_equal(part.doses, doses) and part.values.size]
    return np.array([part.values.mean(axis=0) for part in kept[1:]])


def _choice(choice: Choice, panel: Panel) -> dict[str, Any]:
    mean = choice.validated
    line = {
        "first_epoch": int(panel.doses[0]),
        "last_epoch": int(panel.doses[-1]),
        "best_epoch": choice.epoch,
        "epoch_low": choice.epoch_low,
        "epoch_high": choice.epoch_high,
        "chosen_fraction": choice.chosen_fraction,
        "apparent": choice.apparent,
        "validated": mean.estimate if mean else None,
        "low": mean.low if mean else None,
        "high": mean.high if mean else None,
        "optimism": choice.optimism,
        "judged_on": choice.judged_on,
        "num_left_out": choice.num_left_out,
        "reason": None if mean else "a single run and benchmark: nothing can be left out",
    }
    return line | _counts(change(panel, 0, 0))


def _counts(mean: Mean) -> dict[str, int]:
    return {
        "num_runs": mean.num_rows,
        "num_models": mean.num_models,
        "num_datasets": mean.num_datasets,
    }


def _of_epochs(
    panels: dict[str, Panel], lines: list[dict[str, Any]], cells: tuple[str, ...]
) -> list[Finding]:
    """Findings of one series: they are about the mean over benchmarks."""
    if AVERAGE not in panels:
        return []
    panel = panels[AVERAGE]
    chosen = next(line for line in lines if line["benchmark"] == line["data"] == AVERAGE)
    whole = change(panel, 0, panel.doses.size - 1)
    return [epoch_finding(chosen, whole, cells), best_finding(chosen, lines, cells)]
