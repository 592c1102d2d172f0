"""Which data, method, size and number of epochs should a model be trained with, for what the user
wants?

In: tables of evidence, a model, weights of benchmarks, perhaps a budget. Out: ranked choices with
expected gain, interval, probability of being the best, expected regret and cost, and what would
change the answer. The one decision: only choices that at least two other models were trained with
(or this one) are ranked; everything else is listed with the reason why not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final

import numpy as np
import pandas as pd

from sft_atlas.decide.beliefs import contrasts, standing
from sft_atlas.decide.cost import DEVICE, training_price
from sft_atlas.decide.names import name_in
from sft_atlas.decide.next_cells import Candidates, NextCells, next_cells
from sft_atlas.decide.prior import (
    Beliefs,
    Outlook,
    beliefs,
    outlook,
    score_errors,
    with_known_level,
)
from sft_atlas.decide.ranking import (
    by_benchmark,
    by_factor,
    calibrated,
    choices_of,
    num_others,
    unsupported,
)
from sft_atlas.decide.sensitivity import flips
from sft_atlas.decide.weights import resolve_weights, scored_benchmarks
from sft_atlas.errors import DataError
from sft_atlas.forecast.known import known_outcomes, known_panel
from sft_atlas.forecast.outcomes import CHOICE
from sft_atlas.forecast.support import MIN_OTHERS
from sft_atlas.statistics.clusters import Floats
from sft_atlas.store.tables import Tables

METHOD: Final = (
    "Expected scores: mean of the same dataset on other models (scores centred within model and "
    "setting, relatives counting twice), what a setting adds, and the base score's lift; corrected "
    "by this model's own runs (conditioning of a Gaussian). Intervals: standard deviations widened "
    "until they hold for whole models that were left out."
)

CHOICES: Final = (
    *("rank", *CHOICE, "gain", "low", "high", "effect", "effect_low", "effect_high"),
    *("best_probability", "regret", "gpu_hours", "fits_budget", "is_observed", "num_models"),
)

NORMAL: Final = 1.6448536269514722
"""Standard deviations of a Gaussian that hold 90 %."""
_ROUNDING: Final = 1e-5
"""A smaller error of a score is that of the arithmetic: no number of items gives it."""

NO_BASE: Final = "the base model has no usable score on some of these benchmarks"
NO_LIFT: Final = (
    "no other model has a usable base score on some of these benchmarks: nothing tells how far "
    "runs lie above the base model"
)
TOO_FEW: Final = "too few models can be left out to set the width of intervals"


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """An answer, how sure it is, and what it rests on; shares and gains are fractions."""

    model: str
    is_new_model: bool
    """None of its runs is in the evidence."""
    weights: Mapping[str, float]
    """By benchmark in full; they add to 1."""
    choices: pd.DataFrame
    """Columns `CHOICES`, best first (those that fit the budget before the others). gain: of the
    weighted mix over the base model, with low and high (90 %); effect: the same over the mean
    choice, which needs no base score; regret: expected lead of the best over this one; gpu_hours:
    likely, of training; num_models: other models with this very run. Null where not known."""
    by_benchmark: pd.DataFrame
    """rank, benchmark, weight, gain, effect, for each choice."""
    by_factor: pd.DataFrame
    """factor (`data`, `method`, `samples`, `epoch`), value, best_probability: that the best choice
    has this value."""
    flips: pd.DataFrame
    """benchmark, weight (its share now), flips_at (share from which another choice is ahead),
    becomes (that choice): the nearest on either side."""
    next_runs: pd.DataFrame
    """The run that would teach most, and those after it: CHOICE, gain (expected rise of the chosen
    score), gpu_hours, regret (expected, once known)."""
    next_stopped: str
    unsupported: pd.DataFrame
    """CHOICE and why_not, of what some model ran and this answer leaves out."""
    why_no_gain: str
    why_no_interval: str
    cost_basis: str
    budget_gpu_hours: float | None
    sources: tuple[str, ...]
    num_models: int
    """Other models that the answer rests on."""
    reason: str
    """Why nothing can be recommended; empty where something is."""
    notes: tuple[str, ...]
    method: str = METHOD


def recommend(
    tables: Tables,
    *,
    model: str,
    weights: Mapping[str, float],
    budget_gpu_hours: float | None = None,
    family: str = "",
    device: str = DEVICE,
    sources: Sequence[str] = (),
    seed: int = 0,
) -> Recommendation:
    """Rank what a model could be trained with, for a weighted mix of benchmarks.

    `weights` may use short names (see `weights`); scores are fractions of their range when they are
    mixed. A model that the evidence lacks is new: `family` says who its relatives are. `sources`
    are named in the answer.

    Raises:
        DataError: for benchmarks that the evidence lacks, weights or a budget that are no positive
            numbers, or an empty name.
        CatalogError: for an unknown device.
    """
    scores = tables.scores
    wanted = resolve_weights(weights, scored_benchmarks(scores))
    known_models = [] if scores.empty else sorted({str(name) for name in scores["model"].unique()})
    if budget_gpu_hours is not None and not 0 < budget_gpu_hours < np.inf:
        raise DataError(
            f"budget: {budget_gpu_hours:g} GPU-hours; expected a number above 0. Correct it."
        )
    if not model.strip():
        raise DataError("model: no name; expected a base model's. Name one with --model.")
    name = name_in(known_models, model, "model")
    rows = known_outcomes(tables, benchmarks=list(wanted), only_final=False)
    notes = [] if name in known_models else [_new_note(name, known_models)]
    facts: dict[str, Any] = {
        "model": name,
        "weights": wanted,
        "budget_gpu_hours": budget_gpu_hours,
        "sources": tuple(sources),
    }
    others = set(rows["model"]) - {name}
    if len(others) < MIN_OTHERS:
        reason = (
            f"the evidence has runs on one dataset each for {len(others)} other model(s); "
            f"it takes at least {MIN_OTHERS}"
        )
        return _nothing(facts, notes, reason, is_new=name not in set(rows["model"]))
    unscored = sorted(set(wanted) - set(rows["benchmark"]))
    if unscored:
        reason = f"no run on one dataset has a score on {', '.join(unscored)}"
        return _nothing(facts, notes, reason, is_new=name not in set(rows["model"]))
    panel = known_panel(tables, rows, new_models={name: family})
    vector = np.array([wanted.get(test, 0.0) for test in panel.benchmarks], dtype=np.float64)
    errors = score_errors(scores[scores["benchmark"].isin(list(wanted))])
    view = outlook(panel, panel.models.index(name), errors=errors)
    notes += _exact(errors, name, wanted, rows)
    found = beliefs(view, vector)
    if found.mean.size < 2:
        reason = "fewer than two choices were run by two other models on all of these benchmarks"
        return _nothing(facts, notes, reason, is_new=name not in set(rows["model"]))
    kinds = dict(zip(rows["method"].astype(str), rows["method_kind"].astype(str), strict=True))
    return _answer(facts, notes, view, found, vector, kinds, device, seed)


def _answer(
    facts: dict[str, Any],
    notes: list[str],
    view: Outlook,
    found: Beliefs,
    vector: Floats,
    kinds: Mapping[str, str],
    device: str,
    seed: int,
) -> Recommendation:
    panel, budget = view.panel, facts["budget_gpu_hours"]
    tests = [panel.benchmarks[place] for place in np.flatnonzero(vector)]
    table = choices_of(panel, found.setting, found.dataset)
    price = training_price(
        facts["model"], table.assign(method_kind=table["method"].map(kinds)), device=device
    )
    place = standing(found.mean, found.covariance, seed=seed)
    base = float(found.base @ vector[vector > 0])
    gain_factor, effect_factor = calibrated(panel, view.model, vector)
    spread = np.sqrt(np.clip(np.diag(found.covariance), 0, None))
    apart = np.sqrt(np.clip(np.diag(contrasts(found.covariance)), 0, None))
    gain = found.mean - base
    effect = found.mean - found.mean.mean()
    fits = np.ones(len(table), dtype=np.bool_) if budget is None else price.gpu_hours <= budget
    table = table.assign(
        gain=gain,
        low=gain - _margin(spread, gain_factor, found),
        high=gain + _margin(spread, gain_factor, found),
        effect=effect,
        effect_low=effect - _margin(apart, effect_factor, found),
        effect_high=effect + _margin(apart, effect_factor, found),
        best_probability=place.best_probability,
        regret=place.regret,
        gpu_hours=price.gpu_hours,
        fits_budget=None if budget is None else fits,
        is_observed=found.is_observed,
        num_models=view.num_models[found.setting, found.dataset],
        _mean=found.mean,
        _fits=fits,
    )
    order = table.sort_values(["_fits", "_mean"], ascending=[False, False], kind="stable").index
    rank = np.empty(len(table), dtype=np.int64)
    rank[order] = np.arange(1, len(table) + 1)
    table = table.assign(rank=rank)
    next_ = _next(found, table, price.gpu_hours, budget, seed)
    if budget is not None and not fits.any():
        why = (
            "no choice fits the budget"
            if np.isfinite(price.gpu_hours).any()
            else "no cost is known"
        )
        notes.append(f"{why}: choices are ranked without the budget")
    has_gain = bool(np.isfinite(base))
    return Recommendation(
        **facts,
        is_new_model=not bool(np.isfinite(panel.value[view.model]).any()),
        choices=table.loc[order, list(CHOICES)].reset_index(drop=True),
        by_benchmark=by_benchmark(found, tests, facts["weights"], rank),
        by_factor=by_factor(table),
        flips=flips(
            found.by_benchmark,
            tests,
            facts["weights"],
            [_words(row) for _, row in table.iterrows()],
            leader=int(order[0]),
            is_possible=fits if fits.any() else np.ones_like(fits),
        ),
        next_runs=_next_frame(next_, found, table),
        next_stopped=next_.stopped,
        unsupported=unsupported(panel, view, found, vector),
        why_no_gain="" if has_gain else _why_no_gain(view, vector),
        why_no_interval="" if np.isfinite(gain_factor if has_gain else effect_factor) else TOO_FEW,
        cost_basis=price.basis,
        num_models=num_others(panel, view.model, vector),
        reason="",
        notes=tuple(notes),
    )


def _why_no_gain(view: Outlook, weights: Floats) -> str:
    known = np.isfinite(view.panel.base[view.model, np.flatnonzero(weights)]).all()
    return NO_LIFT if known else NO_BASE


def _margin(spread: Floats, factor: float, found: Beliefs) -> Floats:
    """Half-widths; NaN where none can be set. Of runs that are known: their items' error alone."""
    known = np.where(spread > _ROUNDING, NORMAL * spread, np.nan)
    other = spread * factor if np.isfinite(factor) else np.full(spread.size, np.nan)
    return np.where(found.is_observed, known, other)


def _next(
    found: Beliefs, table: pd.DataFrame, hours: Floats, budget: float | None, seed: int
) -> NextCells:
    """Order the runs that are not known; without costs, runs count alike and no budget limits
    them.
    """
    if not np.isfinite(hours).any():
        budget = None
    price = np.where(np.isfinite(hours), hours, 1.0)
    keys = table.assign(place=np.arange(len(table)))[~found.is_observed]
    runs = [
        tuple(int(p) for p in part["place"])
        for _, part in keys.groupby(["data", "method", "samples", "schedule"], sort=True)
    ]
    longest = np.array([price[list(run)].max() for run in runs], dtype=np.float64)
    one = Candidates(
        mean=found.mean, covariance=with_known_level(found), runs=tuple(runs), gpu_hours=longest
    )
    return next_cells([one], budget_gpu_hours=budget, max_runs=5, seed=seed)


def _next_frame(found: NextCells, one: Beliefs, table: pd.DataFrame) -> pd.DataFrame:
    keys = table.assign(place=np.arange(len(table)))[~one.is_observed]
    groups = [
        part for _, part in keys.groupby(["data", "method", "samples", "schedule"], sort=True)
    ]
    rows = []
    for step in found.steps:
        last = groups[step.run].sort_values("epoch").iloc[-1]
        hours = last["gpu_hours"]
        rows.append(
            {name: last[name] for name in CHOICE}
            | {"gain": step.gain, "gpu_hours": hours, "regret": step.regret}
        )
    return pd.DataFrame(rows, columns=[*CHOICE, "gain", "gpu_hours", "regret"])


def _nothing(
    facts: dict[str, Any], notes: list[str], reason: str, *, is_new: bool
) -> Recommendation:
    return Recommendation(
        **facts,
        is_new_model=is_new,
        choices=pd.DataFrame(columns=list(CHOICES)),
        by_benchmark=pd.DataFrame(columns=["rank", "benchmark", "weight", "gain", "effect"]),
        by_factor=pd.DataFrame(columns=["factor", "value", "best_probability"]),
        flips=pd.DataFrame(columns=["benchmark", "weight", "flips_at", "becomes"]),
        next_runs=pd.DataFrame(columns=[*CHOICE, "gain", "gpu_hours", "regret"]),
        next_stopped="",
        unsupported=pd.DataFrame(columns=[*CHOICE, "why_not"]),
        why_no_gain=reason,
        why_no_interval=reason,
        cost_basis="",
        num_models=0,
        reason=reason,
        notes=tuple(notes),
    )


def _new_note(model: str, known: Sequence[str]) -> str:
    near = get_close_matches(model.lower(), [name.lower() for name in known], n=1)
    hint = next((f" (did you mean {name}?)" for name in known if name.lower() in near), "")
    return f"{model} is not in the evidence and is taken for a new model{hint}"


def _exact(
    errors: pd.DataFrame, model: str, weights: Mapping[str, float], rows: pd.DataFrame
) -> list[str]:
    """Name the benchmarks on which this model's runs have scores without an error."""
    scored = set(rows.loc[rows["model"] == model, "benchmark"]) & set(weights)
    missing = sorted(scored - set(errors.loc[errors["model"] == model, "benchmark"]))
    if not missing:
        return []
    return [f"the error of scores on {', '.join(missing)} is not known: they count as exact"]


def _words(row: "pd.Series[Any]") -> str:
    return (
        f"{row['data']}, {row['method']}, {row['samples']:,} samples, {row['schedule']}, "
        f"epoch {row['epoch']}"
    )
