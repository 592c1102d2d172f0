"""Which data, method, size and number of epochs should a model be trained with, for what the user
wants?

In: tables of evidence, a model, weights of benchmarks, perhaps a budget. Out: ranked choices with
expected gain, interval, probability of being the best, expected regret and cost, and what would
change the answer. The one decision: only choices that at least two other models were trained with
(or this one) are ranked; everything else is listed with the reason why not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sft_atlas.decide.beliefs import contrasts, standing
from sft_atlas.decide.cost import DEVICE, training_price
from sft_atlas.decide.next_cells import Candidates, NextCells, next_cells
from sft_atlas.decide.prior import Beliefs, Outlook, beliefs, outlook, with_known_level
from sft_atlas.decide.sensitivity import flips
from sft_atlas.decide.weights import resolve_weights
from sft_atlas.errors import DataError
from sft_atlas.forecast.known import known_outcomes, known_panel
from sft_atlas.forecast.outcomes import CHOICE, SETTING
from sft_atlas.forecast.panel import Panel
from sft_atlas.forecast.support import MIN_OTHERS
from sft_atlas.statistics.clusters import Floats, Ints
from sft_atlas.statistics.conformal import calibrated_margin
from sft_atlas.store.tables import Tables
from sft_atlas.strict_yaml import did_you_mean

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

NO_BASE: Final = "the base model has no usable score on some of these benchmarks"
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
        DataError: for benchmarks that the evidence lacks or weights that are no positive numbers.
        CatalogError: for an unknown device.
    """
    scores = tables.scores
    empty = pd.DataFrame({"benchmark": [], "in_mean": []})
    wanted = resolve_weights(weights, empty if scores.empty else scores[["benchmark", "in_mean"]])
    known_models = [] if scores.empty else sorted({str(name) for name in scores["model"].unique()})
    name = _same_name(model, known_models)
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
    panel = known_panel(tables, rows, new_models={name: family})
    vector = np.array([wanted.get(test, 0.0) for test in panel.benchmarks], dtype=np.float64)
    view = outlook(panel, panel.models.index(name))
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
    table = _choices_of(panel, found.setting, found.dataset)
    price = training_price(
        facts["model"], table.assign(method_kind=table["method"].map(kinds)), device=device
    )
    place = standing(found.mean, found.covariance, seed=seed)
    base = float(found.base @ vector[vector > 0])
    gain_factor, effect_factor = _calibrated(panel, view.model, vector)
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
        notes.append("no choice fits the budget, or no cost is known: they are ranked without it")
    has_gain = bool(np.isfinite(base))
    return Recommendation(
        **facts,
        is_new_model=not bool(np.isfinite(panel.value[view.model]).any()),
        choices=table.loc[order, list(CHOICES)].reset_index(drop=True),
        by_benchmark=_by_benchmark(found, tests, facts["weights"], rank),
        by_factor=_by_factor(table),
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
        unsupported=_unsupported(panel, view, found, vector),
        why_no_gain="" if has_gain else NO_BASE,
        why_no_interval="" if np.isfinite(gain_factor if has_gain else effect_factor) else TOO_FEW,
        cost_basis=price.basis,
        num_models=_num_others(panel, view.model, vector),
        reason="",
        notes=tuple(notes),
    )


def _calibrated(panel: Panel, model: int, weights: Floats) -> tuple[float, float]:
    """How many standard deviations hold a share `LEVEL` of a left-out model's gains, and of its
    effects; infinite where too few models can be left out.
    """
    errors: list[tuple[int, Floats, Floats]] = []
    for other in range(len(panel.models)):
        if other == model or not np.isfinite(panel.value[other]).any():
            continue
        view = outlook(panel, other)
        before = beliefs(view, weights, use_own=False)
        used = np.flatnonzero(weights)
        truth = panel.value[other][before.setting, before.dataset][:, used]
        truth = truth @ (weights[used] * panel.scale[used])
        there = np.isfinite(truth)
        if there.sum() < 2:
            continue
        missed = truth[there] - before.mean[there]
        kept = before.covariance[np.ix_(there, there)]
        level = np.sqrt(np.maximum(np.diag(kept), 1e-18))
        apart = np.sqrt(np.maximum(np.diag(contrasts(kept)), 1e-18))
        has_base = bool(np.isfinite(before.base).all())
        whole = np.abs(missed) / level if has_base else np.full(missed.size, np.nan)
        errors.append((other, whole, np.abs(missed - missed.mean()) / apart))
    if not errors:
        return np.inf, np.inf
    groups = np.repeat([o for o, _, _ in errors], [e.size for _, e, _ in errors]).astype(np.int64)
    whole = np.concatenate([e for _, e, _ in errors])
    effect = np.concatenate([e for _, _, e in errors])
    known = np.isfinite(whole)
    return calibrated_margin(whole[known], groups[known]), calibrated_margin(effect, groups)


def _margin(spread: Floats, factor: float, found: Beliefs) -> Floats:
    """Half-widths; NaN for runs that are known, and where none can be set."""
    if not np.isfinite(factor):
        return np.full(spread.size, np.nan)
    return np.where(found.is_observed, np.nan, spread * factor)


def _choices_of(panel: Panel, setting: Ints, dataset: Ints) -> pd.DataFrame:
    frame = pd.DataFrame([panel.settings[place] for place in setting], columns=list(SETTING))
    frame.insert(0, "data", [panel.datasets[place] for place in dataset])
    return frame


def _by_benchmark(
    found: Beliefs, tests: list[str], weights: Mapping[str, float], rank: Ints
) -> pd.DataFrame:
    effect = found.by_benchmark - found.by_benchmark.mean(axis=0)
    rows = [
        {
            "rank": int(rank[choice]),
            "benchmark": test,
            "weight": weights[test],
            "gain": found.by_benchmark[choice, number] - found.base[number],
            "effect": effect[choice, number],
        }
        for choice in np.argsort(rank)
        for number, test in enumerate(tests)
    ]
    return pd.DataFrame(rows)


def _by_factor(table: pd.DataFrame) -> pd.DataFrame:
    parts = []
    for factor in ("data", "method", "samples", "epoch"):
        share = table.groupby(factor, sort=False)["best_probability"].sum()
        share = share.sort_values(ascending=False, kind="stable")
        parts.append(
            pd.DataFrame(
                {"factor": factor, "value": share.index, "best_probability": share.to_numpy()}
            ).astype({"value": object})
        )
    return pd.concat(parts, ignore_index=True)


def _next(
    found: Beliefs, table: pd.DataFrame, hours: Floats, budget: float | None, seed: int
) -> NextCells:
    """Order the runs that are not known; without costs, runs count alike."""
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


def _unsupported(panel: Panel, view: Outlook, found: Beliefs, weights: Floats) -> pd.DataFrame:
    """What somebody ran and this answer does not rank."""
    used = np.flatnonzero(weights)
    ran: NDArray[np.bool_] = np.asarray(np.isfinite(panel.value).any(axis=(0, 3)))
    ran[found.setting, found.dataset] = False
    rows = []
    scored = np.asarray(np.isfinite(panel.value[..., used]).all(axis=3))
    scored[view.model] = False
    for setting, dataset in np.argwhere(ran):
        count = int(scored[:, setting].any(axis=1).sum())
        with_data = int(scored[:, :, dataset].any(axis=1).sum())
        if count < MIN_OTHERS:
            why = f"{count} other model(s) ran this setting with scores on all of these benchmarks"
        else:
            why = f"{with_data} other model(s) ran this data with scores on all of these benchmarks"
        choice = dict(zip(SETTING, panel.settings[setting], strict=True))
        rows.append({"data": panel.datasets[dataset], **choice, "why_not": why})
    return pd.DataFrame(rows, columns=[*CHOICE, "why_not"])


def _num_others(panel: Panel, model: int, weights: Floats) -> int:
    scored = np.isfinite(panel.value[..., np.flatnonzero(weights)])
    there = [one.all(axis=2).any() for one in scored]
    return sum(bool(has) for place, has in enumerate(there) if place != model)


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


def _same_name(model: str, known: Sequence[str]) -> str:
    """The name in the evidence that differs in case at most, else as typed.

    Raises `DataError` for an empty name.
    """
    if not model.strip():
        raise DataError("model: no name; expected a base model's. Name one with --model.")
    same = [name for name in known if name.lower() == model.lower()]
    return model if model in known or len(same) != 1 else same[0]


def _new_note(model: str, known: Sequence[str]) -> str:
    hint = f" ({did_you_mean(model, known)})" if known else ""
    return f"{model} is not in the evidence and is taken for a new model{hint}"


def _words(row: "pd.Series[Any]") -> str:
    return (
        f"{row['data']}, {row['method']}, {row['samples']:,} samples, {row['schedule']}, "
        f"epoch {row['epoch']}"
    )
