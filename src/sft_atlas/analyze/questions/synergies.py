"""Which effects of a dataset on a benchmark hold over models, and how much is one model's own?

In: the tables of a study. Out: the shares of variance by source, and for every dataset and
benchmark the effect that all models share, beyond what the dataset does on average. The one
decision: scores are taken apart, not gains, because model x benchmark effects absorb the base
model; only the shares that name the model need gains.
"""

from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd

from sft_atlas.analyze.crossed_effects import (
    ALL_THREE,
    DATA,
    DATA_BENCHMARK,
    MODEL_DATA,
    OF_DATA,
    SOURCES,
    CrossedEffects,
    fit_crossed,
)
from sft_atlas.analyze.findings import Finding, Scale, minus, not_estimable, plural, points
from sft_atlas.analyze.profiles import final_scores
from sft_atlas.analyze.questions.answered import Answered
from sft_atlas.analyze.shared_effects import MAX_P, SHARED_COLUMNS, shared_effects
from sft_atlas.statistics.clusters import MIN_CLUSTERS, Floats
from sft_atlas.statistics.mixed_equations import NotEstimableError
from sft_atlas.statistics.variance_shares import MeanSquares, mean_squares, share_interval

if TYPE_CHECKING:
    from sft_atlas.store.tables import Tables

SHARES: Final = "Where do differences between scores come from?"
LASTING: Final = "How much of what data does holds over models?"
SYNERGIES: Final = "Which dataset helps which benchmark, whatever the model?"
MAX_DRAWS: Final = 500
"""Bootstrap draws: a quantile of 95 % moves little with more."""
MIN_DRAWS: Final = 100
MAX_DRAWN_SCORES: Final = 50_000_000
"""Scores that are drawn in all; beyond, there are fewer draws, down to `MIN_DRAWS`."""

_NUM_NAMED: Final = 3
_NUM_SOURCES: Final = 4
_MODEL_WORDS: Final = (
    "Crossed random effects by REML on final scores of runs on one dataset, in standard deviations "
    "of the benchmark between datasets of a model; recipes (method, samples, schedule, epochs) are "
    "fixed effects."
)
_INTERVALS: Final = "Intervals from a parametric bootstrap of mean squares."
_SHARE_COLUMNS: Final = [
    *("outcome", "source", "meaning", "variance", "standard_error", "share", "low", "high"),
    *("num_levels", "num_rows", "num_draws", "reason"),
]


def synergies(tables: "Tables", *, num_resamples: int = 1000, seed: int = 0) -> Answered:
    """Take scores apart by source, and find the data x benchmark effects that models share.

    Final scores of runs on one dataset, of all recipes (method, samples, schedule, epochs), are
    divided by the benchmark's standard deviation between the datasets of a model and a recipe. They
    are the sum of a fixed effect per recipe and of random effects of model, data, benchmark, their
    products by two, by three, and, with several recipes, of recipe x benchmark, recipe x data x
    benchmark and recipe x model x benchmark. Variances by restricted maximum likelihood (Patterson
    and Thompson 1971; AI-REML: Gilmour, Thompson and Cullis 1995). Intervals of shares from a
    parametric bootstrap of expected mean squares, combined by the method of variance estimates
    recovery (Zou and Donner 2008). The effect of a dataset on a benchmark is what it does beyond
    the mean of this dataset over these benchmarks and of this benchmark over these datasets, on all
    models alike: the best linear unbiased prediction, which is shrunk towards 0. Two-sided p-values
    from its prediction error are adjusted over all pairs of dataset and benchmark (Benjamini and
    Hochberg 1995). An effect *persists* where the adjusted p is at most 0.05, two thirds of at
    least three models show its sign, and at least half of it is left without the model that shows
    it most. Epochs of a run are no replicates: only the last counts. Where no model, dataset and
    benchmark has two recipes or seeds, their meeting cannot be told apart from the noise of a
    single run.

    Table `variance_shares`: outcome (`gain`, or `score` where no base model can be used), source,
    meaning, variance and standard_error (in SD squared), share (of the sum), low, high (95 %),
    num_levels, num_rows, num_draws (of the bootstrap), reason (why a source has no share).

    Table `data_shares`: the same of scores, for the sources in which no base model is: shares of
    the variance between datasets for one model, benchmark and recipe.

    Table `synergies`: data, benchmark, effect, low, high (95 %; fraction of 1), unshrunk (mean of
    the models' own estimates, which a single large effect is nearer to), effect_sd, effect_se_sd
    (in SD of the benchmark), p_value, p_adjusted, false_sign_rate (probability that the sign is
    wrong, given the variances), persists, num_models, num_same_sign (models whose own estimate has
    the sign of the effect), without_strongest_sd (mean over models without that one),
    strongest_model, num_rows.
    """
    rows = final_scores(tables)
    num_draws = min(num_resamples, MAX_DRAWS, max(MIN_DRAWS, MAX_DRAWN_SCORES // max(len(rows), 1)))
    try:
        found = fit_crossed(rows, "score")
    except NotEstimableError as error:
        return _unanswered(str(error))
    squares = mean_squares(found.fit, num_draws=num_draws, seed=seed)
    outcome, whole, whole_squares = "score", found, squares
    if _has_gains(found.rows):
        try:
            whole = fit_crossed(rows, "gain", start=found.fit)
            whole_squares = mean_squares(whole.fit, num_draws=num_draws, seed=seed)
            outcome = "gain"
        except NotEstimableError:
            whole = found
    shares = _share_table(whole, whole_squares, outcome, tuple(SOURCES))
    of_data = _share_table(found, squares, "score", OF_DATA)
    table = shared_effects(found)
    findings = [
        _shares_finding(whole, shares, outcome),
        _lasting_finding(found, squares),
        _synergies_finding(found, table),
    ]
    return Answered(
        findings=tuple(findings),
        tables={"variance_shares": shares, "data_shares": of_data, "synergies": table},
    )


def _has_gains(rows: pd.DataFrame) -> bool:
    """Tell whether gains of several models and datasets are known."""
    known = rows[rows["gain"].notna()]
    return bool(known["model"].nunique() > 1 and known["data"].nunique() > 1)


def _share_table(
    found: CrossedEffects, squares: MeanSquares, outcome: str, sources: tuple[str, ...]
) -> pd.DataFrame:
    """List sources with their share of the sum over `sources`."""
    fit = found.fit
    whole = np.isin(fit.names, sources).astype(np.float64)
    total = float(whole @ fit.variances)
    sizes = dict(zip(fit.design.names, fit.design.sizes, strict=True))
    records: list[dict[str, object]] = []
    for source in sources:
        record: dict[str, object] = {"outcome": outcome, "source": source}
        record |= {"meaning": SOURCES[source], "num_rows": fit.num_rows}
        record |= {"num_draws": squares.num_draws, "num_levels": sizes.get(source)}
        if source in fit.names:
            place = fit.names.index(source)
            part = (np.arange(len(fit.names)) == place).astype(np.float64)
            low, high = _around(float(fit.variances[place]) / total, squares, part, whole)
            record |= {"variance": float(fit.variances[place]), "low": low, "high": high}
            record |= {"standard_error": float(fit.standard_errors[place])}
            record |= {"share": float(fit.variances[place]) / total}
        elif source in fit.dropped:
            record |= {"reason": fit.dropped[source]}
        else:
            continue
        records.append(record)
    table = pd.DataFrame(records, columns=_SHARE_COLUMNS)
    return table.astype({"num_levels": "Int64"})


def _around(share: float, squares: MeanSquares, part: Floats, whole: Floats) -> tuple[float, float]:
    """Interval of a share that holds its estimate.

    Where variances were held at 0, mean squares may place the share elsewhere than REML does.
    """
    low, high = share_interval(squares, part, whole)
    return min(low, share), max(high, share)


def _shares_finding(found: CrossedEffects, shares: pd.DataFrame, outcome: str) -> Finding:
    """Name every source with its share of the variance, largest first."""
    known = shares[shares["share"].notna()].sort_values("share", ascending=False, kind="stable")
    listed = "; ".join(
        f"{row['meaning']} {_percent(row['share'])} {_bounds(row['low'], row['high'])}"
        for row in known.head(_NUM_SOURCES).to_dict("records")
    )
    rest = known.iloc[_NUM_SOURCES:]
    if len(rest):
        listed += f"; {plural(len(rest), 'other source')} together {_percent(rest['share'].sum())}"
    largest = known.iloc[0]
    return Finding(
        question=SHARES,
        statement=(
            f"Of the variance of {found.fit.num_rows:,} {outcome}s: {listed}.{_confounded(found)}"
        ),
        estimate=float(largest["share"]),
        interval=(float(largest["low"]), float(largest["high"])),
        scale="share",
        n=found.fit.num_rows,
        unit=_unit(found, outcome),
        method=f"{_MODEL_WORDS} {_INTERVALS} The estimate is the largest share.",
        rows=_cells(found),
    )


def _lasting_finding(found: CrossedEffects, squares: MeanSquares) -> Finding:
    """Divide what differs between datasets into what holds over models and what is one model's."""
    fit = found.fit
    if found.rows["model"].nunique() < 2:
        return _nothing(LASTING, "there is one model only")
    if found.rows["data"].nunique() < 2:
        return _nothing(LASTING, "there is one dataset only")
    whole = np.isin(fit.names, OF_DATA).astype(np.float64)
    parts = {
        "holds over models": (DATA, DATA_BENCHMARK),
        "belongs to one model": (MODEL_DATA, ALL_THREE),
    }
    texts, values = [], []
    for words, sources in parts.items():
        part = np.isin(fit.names, sources).astype(np.float64)
        share = float(part @ fit.variances) / float(whole @ fit.variances)
        values.append((share, _around(share, squares, part, whole)))
        texts.append(f"{_percent(share)} {_bounds(*values[-1][1])} {words}")
    return Finding(
        question=LASTING,
        statement=(
            "Of what differs between the datasets of one model on one benchmark, "
            f"{' and '.join(texts)}; the rest differs between recipes or is noise."
            f"{_confounded(found)}"
        ),
        estimate=values[0][0],
        interval=values[0][1],
        scale="share",
        n=fit.num_rows,
        unit=_unit(found, "score"),
        method=f"{_MODEL_WORDS} {_INTERVALS} Base models cancel.",
        rows=_cells(found),
    )


def _synergies_finding(found: CrossedEffects, table: pd.DataFrame) -> Finding:
    """Count the effects that persist and name the largest."""
    num_models = found.rows["model"].nunique()
    if num_models < MIN_CLUSTERS:
        return _nothing(
            SYNERGIES, f"{plural(num_models, 'model')} cannot show what holds over more"
        )
    if table.empty:
        return _nothing(SYNERGIES, found.fit.dropped.get(DATA_BENCHMARK, "there are no pairs"))
    lasting = table[table["persists"].astype(bool)]
    named = pd.concat(
        [
            lasting[lasting["effect_sd"] > 0].head(_NUM_NAMED),
            lasting[lasting["effect_sd"] < 0].tail(_NUM_NAMED),
        ]
    )
    listed = "; ".join(
        f"{row['data']} on {row['benchmark']} {points(row['effect'])} "
        f"[{points(row['low'])}, {points(row['high'])}]"
        for row in named.to_dict("records")
    )
    ends = f" Largest, in points: {listed}." if listed else ""
    return Finding(
        question=SYNERGIES,
        statement=(
            f"{len(lasting)} of {plural(len(table), 'pair')} of dataset and benchmark have an "
            f"effect that holds over models, beyond what the dataset does on average.{ends}"
        ),
        estimate=float(len(lasting)),
        interval=None,
        scale="count",
        n=len(table),
        unit=f"pair of dataset and benchmark ({plural(num_models, 'model')})",
        method=(
            f"{_MODEL_WORDS} Effects are predictions, shrunk towards 0; one persists if its "
            f"adjusted p is at most {MAX_P:g}, two thirds of the models show its sign, and half of "
            "it is left without the model that shows it most."
        ),
        rows=_cells(found),
        benchmarks=tuple(dict.fromkeys(lasting["benchmark"])),
        family=(
            f"{plural(len(table), 'pair')} of dataset and benchmark, adjusted after Benjamini and "
            "Hochberg (1995)"
        ),
    )


def _confounded(found: CrossedEffects) -> str:
    """Say where the model's own part cannot be told apart from noise."""
    if ALL_THREE in found.fit.names:
        return ""
    return (
        " No model, dataset and benchmark has a second recipe or seed: what is one model's own on "
        "one benchmark and the noise of a single run cannot be told apart."
    )


def _unanswered(reason: str) -> Answered:
    return Answered(
        findings=tuple(_nothing(question, reason) for question in (SHARES, LASTING, SYNERGIES)),
        tables={
            "variance_shares": pd.DataFrame(columns=_SHARE_COLUMNS),
            "data_shares": pd.DataFrame(columns=_SHARE_COLUMNS),
            "synergies": pd.DataFrame(columns=SHARED_COLUMNS),
        },
    )


def _nothing(question: str, reason: str) -> Finding:
    scale: Scale = "share" if question != SYNERGIES else "count"
    return not_estimable(question, reason, scale=scale, unit="score", method=_MODEL_WORDS)


def _unit(found: CrossedEffects, noun: str) -> str:
    counts = (
        plural(found.rows["model"].nunique(), "model"),
        plural(found.rows["data"].nunique(), "dataset"),
        plural(found.rows["benchmark"].nunique(), "benchmark"),
        plural(found.num_recipes, "recipe"),
    )
    return f"{noun} ({', '.join(counts)}; all are resampled but recipes)"


def _cells(found: CrossedEffects) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(cell) for cell in found.rows["cell"]))


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _bounds(low: float, high: float) -> str:
    return minus(f"[{100 * low:.0f}, {100 * high:.0f}]")
