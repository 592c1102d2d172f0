"""Does fine-tuning move the same test alike in several languages?

In: the tables of a study. Out: how closely scores of one test in two languages go together over
models, and over the runs of the same model, by the language a model was pre-trained on. The one
decision: scores of different models go together because some models are better at everything; what
training does shows only within a model, so that every score is also centred on its model's mean.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

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
from sft_atlas.analyze.gains import AVERAGE
from sft_atlas.analyze.questions.answered import Answered
from sft_atlas.analyze.translations import same_tests
from sft_atlas.statistics.clusters import (
    MIN_CLUSTERS,
    Floats,
    Ints,
    codes,
    percentile_interval,
    two_way_mean,
    two_way_weights,
)

if TYPE_CHECKING:
    from sft_atlas.store.tables import Tables

QUESTION: Final = "Do gains carry over between languages?"
GAINS: Final = "How do models of each pre-training language move on each language's test?"

SCORE: Final = "score"
CENTRED: Final = "score within model"
GAIN: Final = "gain"
FINAL: Final = "final epoch"
KEPT: Final = "all kept epochs"

_WORDS: Final = {"en": "English", "zh": "Chinese", "ja": "Japanese"}
_COLUMNS: Final = (
    *("test", "first", "second", "first_language", "second_language", "quantity", "group"),
    *("epochs_used", "correlation", "low", "high", "num_cells", "num_models", "num_datasets"),
    "reason",
)
_GAIN_COLUMNS: Final = (
    *("test", "group", "benchmark", "language", "gain", "low", "high", "num_cells", "num_models"),
    "num_datasets",
)


def cross_lingual(tables: "Tables", *, num_resamples: int = 1000, seed: int = 0) -> Answered:
    """Correlate scores of the same test in two languages, over all models and within each.

    Benchmarks are one test where they share skill and metric, differ in language, and the name of
    one, without its shots and its language, contains that of the other (mmlu, cmmlu, jmmlu); only
    those that count in means over benchmarks. Three quantities are correlated (Pearson): scores,
    scores minus the mean over the runs of their model, and gains over the base model. The second
    needs no base model and is what the answer rests on. Intervals are percentiles of a bootstrap
    that draws models and datasets independently (Owen 2007); the centring is repeated in each draw;
    none below three models or three datasets. A group is the first of the languages that a model
    was pre-trained on.

    Table `cross_lingual`: test, first and second (benchmarks), first_language, second_language,
    quantity (`score`, `score within model`, `gain`), group (empty: all models), epochs_used (`final
    epoch`, or `all kept epochs`, in which long runs weigh more), correlation, low, high (95 %),
    num_cells, num_models, num_datasets, reason (why something is null).

    Table `language_gains`: test, group, benchmark (empty: mean over the test's languages),
    language, gain (final epochs, fraction of the range), low, high (95 %, two-way clustered; null
    below three models), num_cells, num_models, num_datasets.
    """
    scores = _with_gains(tables)
    tests = same_tests(scores)
    if not tests:
        reason = "no test was given in two languages"
        empty = {"cross_lingual": _COLUMNS, "language_gains": _GAIN_COLUMNS}
        return Answered(
            findings=(
                not_estimable(
                    QUESTION,
                    reason,
                    scale="correlation",
                    unit="final cell",
                    method="Pearson correlation of scores of one test in two languages.",
                ),
            ),
            tables={name: pd.DataFrame(columns=list(names)) for name, names in empty.items()},
        )
    lines: list[dict[str, object]] = []
    gains: list[dict[str, object]] = []
    for test, members in tests.items():
        rows = scores[scores["benchmark"].isin(members)]
        for used, part in ((FINAL, rows[rows["is_final"].astype(bool)]), (KEPT, rows)):
            place = {"test": test, "epochs_used": used}
            found = _correlations(part, members, num_resamples=num_resamples, seed=seed)
            lines += [place | line for line in found]
        gains += [{"test": test} | line for line in _mean_gains(rows)]
    table = pd.DataFrame(lines, columns=list(_COLUMNS))
    means = pd.DataFrame(gains, columns=list(_GAIN_COLUMNS))
    cells = tuple(dict.fromkeys(scores["cell"]))
    return Answered(
        findings=(*_findings(table, cells), *_gain_findings(means, cells)),
        tables={"cross_lingual": table, "language_gains": means},
    )


def _with_gains(tables: "Tables") -> pd.DataFrame:
    """Scores with `gain` (fraction of the range; null without a usable base) and `group`."""
    scores = cell_scores(tables)
    if scores.empty:
        return scores
    gains = tables.scores[["cell", "benchmark", "gain", "gain_se"]]
    rows = scores.merge(gains, on=["cell", "benchmark"], how="left")
    group = rows["languages"].fillna("").str.split(";").str[0]
    span = rows["range"]
    gain = {name: rows[name].astype(float) / span for name in ("gain", "gain_se")}
    return rows.assign(group=group, **gain)


def _correlations(
    rows: pd.DataFrame, members: Mapping[str, str], *, num_resamples: int, seed: int
) -> Iterator[dict[str, object]]:
    """Correlate each pair of languages, over all models and in each group."""
    labels = ["cell", "model", "data", "group"]
    wide = {
        name: rows.pivot(index=labels, columns="benchmark", values=name)
        for name in ("value", "gain")
    }
    groups = [AVERAGE, *sorted(set(rows["group"]) - {""})]
    draws = _Draws(num_resamples=num_resamples, seed=seed)
    for first, second in combinations(members, 2):
        if members[first] == members[second]:
            continue
        place: dict[str, object] = {"first": first, "second": second}
        place |= {"first_language": members[first], "second_language": members[second]}
        for group in groups:
            for quantity, name in ((SCORE, "value"), (CENTRED, "value"), (GAIN, "gain")):
                table = wide[name].reindex(columns=[first, second]).dropna()
                if group:
                    table = table[table.index.get_level_values("group") == group]
                found = _correlation(table, draws, is_centred=quantity == CENTRED)
                yield place | {"quantity": quantity, "group": group} | found


@dataclass(frozen=True, kw_only=True)
class _Draws:
    """Resamples of models and datasets, made once for all quantities of the same cells."""

    num_resamples: int
    seed: int
    made: dict[bytes, Floats] = field(default_factory=dict)

    def weights(self, models: Ints, datasets: Ints) -> Floats:
        key = models.tobytes() + datasets.tobytes()
        if key not in self.made:
            self.made[key] = two_way_weights(
                models, datasets, num_resamples=self.num_resamples, seed=self.seed
            )
        return self.made[key]


def _correlation(table: pd.DataFrame, draws: _Draws, *, is_centred: bool) -> dict[str, object]:
    models = codes(table.index.get_level_values("model"))
    datasets = codes(table.index.get_level_values("data"))
    facts: dict[str, object] = {
        "num_cells": len(table),
        "num_models": len(set(models.tolist())),
        "num_datasets": len(set(datasets.tolist())),
    }
    if len(table) < 3:
        return facts | {"reason": "fewer than three cells have both"}
    values = table.to_numpy(dtype=np.float64)
    within = models if is_centred else 0 * models
    estimate = grouped_correlation(values, within, np.ones((1, len(table))))[0]
    if np.isnan(estimate):
        return facts | {"reason": "one of the two does not vary"}
    facts["correlation"] = float(estimate)
    if min(int(models.max()), int(datasets.max())) + 1 < MIN_CLUSTERS:
        return facts | {"reason": "too few models or datasets for an interval"}
    weights = draws.weights(models, datasets)
    interval = percentile_interval(grouped_correlation(values, within, weights))
    if interval is None:
        return facts | {"reason": "too few resamples in which both vary"}
    return facts | {"low": interval[0], "high": interval[1]}


def grouped_correlation(values: Floats, groups: Ints, weights: Floats) -> Floats:
    """Pearson correlation of two columns after each group's weighted mean is subtracted.

    `values` is (rows, 2), `groups` (rows,), `weights` (resamples, rows); one correlation per
    resample, NaN where a column does not vary inside any group.
    """
    num_resamples = weights.shape[0]
    sums = np.zeros((3, num_resamples))
    for group in range(int(groups.max()) + 1):
        chosen = np.flatnonzero(groups == group)
        # Centred first: the differences of large sums below would lose their digits.
        x, y = (values[chosen] - values[chosen].mean(axis=0)).T
        moments = weights[:, chosen] @ np.stack([np.ones(x.size), x, y, x * x, y * y, x * y], 1)
        total, sum_x, sum_y, *products = moments.T
        weight = np.where(total > 0, total, 1.0)
        pairs = ((sum_x, sum_x), (sum_y, sum_y), (sum_x, sum_y))
        for place, (product, (left, right)) in enumerate(zip(products, pairs, strict=True)):
            sums[place] += product - left * right / weight
    tiny = _TINY * weights.sum(axis=1) * np.square(np.abs(values).max(axis=0))[:, None]
    varies = (sums[0] > tiny[0]) & (sums[1] > tiny[1])
    scale = np.sqrt(np.where(varies, sums[0] * sums[1], 1.0))
    return np.where(varies, np.clip(sums[2] / scale, -1.0, 1.0), np.nan)


_TINY: Final = 1e-12


def _mean_gains(rows: pd.DataFrame) -> Iterator[dict[str, object]]:
    """Mean final gain of each group's models on each language's test, and on all of them."""
    final = rows[rows["is_final"].astype(bool) & rows["gain"].notna()]
    size = final["benchmark"].nunique()
    for group, part in final.groupby("group", sort=True):
        means = part.groupby(["cell", "model", "data"], sort=False, as_index=False)
        whole = means.agg(gain=("gain", "mean"), size=("gain", "size"))
        whole = whole[whole["size"] == size].assign(benchmark=AVERAGE, language="")
        for chosen in (whole, *(one for _, one in part.groupby("benchmark", sort=False))):
            if chosen.empty:
                continue
            mean = two_way_mean(
                chosen["gain"].to_numpy(dtype=np.float64),
                models=codes(chosen["model"]),
                datasets=codes(chosen["data"]),
                degrees="effective",
                limit=1.0,
            )
            # Two models bound nothing: their interval would leave the range of scores.
            is_bounded = mean.num_models >= MIN_CLUSTERS and mean.interval is not None
            low, high = (mean.low, mean.high) if is_bounded else (None, None)
            yield {
                "group": group,
                "benchmark": chosen["benchmark"].iloc[0],
                "language": chosen["language"].iloc[0],
                "gain": mean.estimate,
                "low": low,
                "high": high,
                "num_cells": mean.num_rows,
                "num_models": mean.num_models,
                "num_datasets": mean.num_datasets,
            }


def _findings(table: pd.DataFrame, cells: tuple[str, ...]) -> list[Finding]:
    """Word each pair of languages: within model, by group, and over models."""
    findings = []
    for (first, second), rows in table.groupby(["first", "second"], sort=False):
        final = rows[rows["epochs_used"] == FINAL]
        by = {(row["quantity"], row["group"]): row for row in final.to_dict("records")}
        main = by[CENTRED, AVERAGE]
        names = f"{_word(main['first_language'])} and {_word(main['second_language'])}"
        groups = [
            f"{_word(group)} {_shown(row)}"
            for (quantity, group), row in by.items()
            if quantity == CENTRED and group and pd.notna(row["correlation"])
        ]
        over = by[SCORE, AVERAGE]
        if pd.isna(main["correlation"]):
            text = f"{names} ({first}, {second}): not estimable: {main['reason']}."
        else:
            text = (
                f"{names} ({first}, {second}): over runs of the same model the scores go together "
                f"with r = {_shown(main)}"
                + (f"; by pre-training language: {', '.join(groups)}" if len(groups) > 1 else "")
                + f". Over all models and runs r = {_shown(over)}. {_end(main)}"
            )
        findings.append(
            Finding(
                question=QUESTION,
                statement=text,
                estimate=known(main["correlation"]),
                interval=bounds_of(main),
                scale="correlation",
                n=int(main["num_cells"]),
                unit=(
                    f"final cell ({plural(int(main['num_models']), 'model')}, "
                    f"{plural(int(main['num_datasets']), 'dataset')})"
                ),
                method=(
                    "Pearson correlation of scores on the two tests, each minus its model's mean. "
                    "Interval: percentiles of a bootstrap that draws models and datasets "
                    "independently."
                ),
                rows=cells,
                benchmarks=(str(first), str(second)),
                reason=str(main["reason"]) if bounds_of(main) is None else "",
            )
        )
    return findings


def _end(row: Mapping[Any, Any]) -> str:
    interval = bounds_of(row)
    if interval is None:
        return f"No interval: {row['reason']}."
    if interval[0] <= 0 <= interval[1]:
        return "The interval covers 0: the data cannot tell whether effects carry over."
    if row["correlation"] < 0:
        return "What raises one lowers the other."
    return "What raises one tends to raise the other."


def _gain_findings(means: pd.DataFrame, cells: tuple[str, ...]) -> list[Finding]:
    findings = []
    for (test, group), rows in means.groupby(["test", "group"], sort=False):
        whole = rows[rows["benchmark"] == AVERAGE].to_dict("records")
        if not whole:
            continue
        main = whole[0]
        shown = ", ".join(
            f"{_word(row['language'])} {_gain_text(row)}"
            for row in rows[rows["benchmark"] != AVERAGE].to_dict("records")
        )
        end = "" if bounds_of(main) else " No interval: fewer than three models have a usable base."
        models = f"Models pre-trained on {_word(str(group))}" if group else "Models"
        findings.append(
            Finding(
                question=GAINS,
                statement=(
                    f"{models}: mean change of {test} against the base model: {shown} points.{end}"
                ),
                estimate=float(main["gain"]),
                interval=bounds_of(main),
                scale="points",
                n=int(main["num_cells"]),
                unit=(
                    f"final cell ({plural(int(main['num_models']), 'model')}, "
                    f"{plural(int(main['num_datasets']), 'dataset')})"
                ),
                method=(
                    "Mean final gain over runs; the estimate is the mean over the languages. "
                    "Two-way cluster-robust interval over models and datasets, Student's t with "
                    "Satterthwaite's degrees of freedom."
                ),
                rows=cells,
                benchmarks=tuple(rows.loc[rows["benchmark"] != AVERAGE, "benchmark"]),
                reason="" if bounds_of(main) else "fewer than three models have a usable base",
            )
        )
    return findings


def _gain_text(row: Mapping[Any, Any]) -> str:
    interval = bounds_of(row)
    return points(row["gain"]) + (f" {interval_text(interval)}" if interval else "")


def _word(language: str) -> str:
    return _WORDS.get(language, language)


def _shown(row: Mapping[Any, Any]) -> str:
    value = minus(f"{row['correlation']:.2f}")
    interval = bounds_of(row)
    return value if interval is None else f"{value} {interval_text(interval, 'correlation')}"
