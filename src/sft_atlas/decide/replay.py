"""Would this way of deciding have chosen well, run by run, for models whose truth is known?

In: tables of one grid. Out: for each number of revealed runs what the choice gave away (regret) and
how often it was among the true best three, by this project's decision, the plain order by the other
models' mean, and random order; with intervals over models. Each model in turn plays the new one:
its scores are seen only as they are revealed, and means and covariances come from the others. The
one decision: scores are centred within model, so that base rows, which may be wrong, do not matter.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import pandas as pd

from sft_atlas.analyze.findings import plural
from sft_atlas.analyze.gains import setting_label
from sft_atlas.decide.beliefs import standing
from sft_atlas.decide.prior import centred, kin_mean
from sft_atlas.forecast.crossed import crossed_effects
from sft_atlas.forecast.outcomes import SETTING, outcomes
from sft_atlas.forecast.panel import Panel, gain_scale, hide, make_panel, nan_mean, split
from sft_atlas.forecast.posterior import UNKNOWN_LEVEL, condition
from sft_atlas.statistics.clusters import Floats, Ints, percentile_interval
from sft_atlas.store.tables import Tables

STEPS: Final = (0, 2, 3, 4)
TOP: Final = 3
MIN_MODELS: Final = 4
"""The new model, and three whose results say what to expect and how far to trust it."""
MIN_DATASETS: Final = TOP + 2
NUM_MIXES: Final = 28
NUM_ORDERS: Final = 100
NUM_DRAWS: Final = 400

OURS: Final = "decision"
PLAIN: Final = "plain order"
RANDOM: Final = "random order"

SINGLE: Final = "single benchmarks"
MIXED: Final = "weighted mixes"

COLUMNS: Final = (
    *("weights", "policy", "num_revealed", "regret", "regret_low", "regret_high"),
    *("top3", "difference", "difference_low", "difference_high", "claimed", "held"),
    *("num_problems", "num_models"),
)


@dataclass(frozen=True, kw_only=True)
class Replay:
    """How decisions would have gone."""

    frame: pd.DataFrame
    """One row per kind of weights, policy and number of revealed runs. regret: lead of the true
    best over the chosen dataset in units of the spread within models, with a 95 % interval over
    models; top3: share of choices among the true best three; difference: regret less that of the
    plain order on the same problems, with its interval; claimed: mean probability that the decision
    gave its choice to be the best; held: how often it was. Null where a policy claims nothing."""
    setting: str
    """What was replayed."""
    reason: str = ""
    """Why nothing could be replayed; empty where something was."""


@dataclass(frozen=True, kw_only=True)
class _Problem:
    """One model and one set of weights; arrays over its datasets."""

    truth: Floats
    """Weighted scores in units of the spread within models."""
    ours: Floats
    covariance: Floats
    plain: Floats


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    """Of one problem at one step; means over orders."""

    regret: float
    top: float
    claimed: float
    held: float


def replay(
    tables: Tables,
    *,
    benchmarks: Sequence[str] = (),
    steps: Sequence[int] = STEPS,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Replay:
    """Let each model in turn be new, and decide with more and more of its runs revealed.

    The setting replayed is the one with the most models and datasets, full fine-tuning where two
    have as many. `benchmarks` are those decided about, by default all that count in means.
    """
    rows = outcomes(tables)
    names = sorted(set(benchmarks)) or sorted(
        set(rows.loc[rows["in_mean"].astype(bool), "benchmark"])
    )
    rows = rows[rows["benchmark"].isin(names)]
    if rows.empty:
        return _nothing("no run on a single dataset has a score")
    setting = _main_setting(rows)
    rows = _in_setting(rows, setting)
    label = f"{setting['method']}, " + setting_label(
        int(setting["samples"]), str(setting["schedule"]), int(setting["epoch"])
    )
    panel = make_panel(rows, scale=dict.fromkeys(names, 1.0))
    values = panel.value[:, 0]
    spread = np.sqrt(nan_mean(centred(values) ** 2, axis=(0, 1)))
    kept = np.isfinite(spread) & (spread > 1e-12)
    if not kept.any():
        return _nothing("all datasets score the same", label)
    sets = {SINGLE: np.eye(len(names))[kept], MIXED: _mixes(kept, seed)}
    parts = []
    for kind, weights in sets.items():
        problems = list(_problems(rows, panel, weights, spread))
        if len({model for model, _ in problems}) < MIN_MODELS:
            counts = f"{plural(len(panel.models), 'model')} and "
            counts += plural(len(panel.datasets), "dataset")
            need = f"it takes {MIN_MODELS} models with {MIN_DATASETS} datasets each"
            return _nothing(f"{counts}; {need}", label)
        parts.append(_compared(kind, problems, steps, num_resamples=num_resamples, seed=seed))
    frame = pd.concat(parts, ignore_index=True)[list(COLUMNS)]
    return Replay(frame=frame, setting=label)


def _nothing(reason: str, setting: str = "") -> Replay:
    return Replay(frame=pd.DataFrame(columns=list(COLUMNS)), setting=setting, reason=reason)


def _main_setting(rows: pd.DataFrame) -> dict[str, Any]:
    groups = rows.groupby(list(SETTING), sort=True)
    size = groups[["model", "data"]].nunique()
    size["is_full"] = groups["method_kind"].first() == "full"
    order = ["model", "data", "is_full"]
    best = size.sort_values(order, ascending=False, kind="stable").index[0]
    return dict(zip(SETTING, best, strict=True))


def _in_setting(rows: pd.DataFrame, setting: dict[str, Any]) -> pd.DataFrame:
    kept: pd.DataFrame = rows[(rows[list(SETTING)] == pd.Series(setting)).all(axis=1)]
    return kept


def _mixes(kept: "np.ndarray", seed: int) -> Floats:
    """Random weights: half over all benchmarks, half over three of them."""
    rng = np.random.default_rng([seed, 0x317])
    places = np.flatnonzero(kept)
    mixes = np.zeros((NUM_MIXES, kept.size))
    for number in range(NUM_MIXES):
        chosen = places if number % 2 == 0 else rng.permutation(places)[:3]
        mixes[number, chosen] = rng.dirichlet(np.ones(chosen.size))
    return mixes


def _problems(
    rows: pd.DataFrame, panel: Panel, weights: Floats, spread: Floats
) -> Iterator[tuple[int, _Problem]]:
    """Yield (model, problem); units of `spread`, which is used to count regret only."""
    for model, name in enumerate(panel.models):
        # The unit in which benchmarks are put together must not know the new model either.
        scale = gain_scale(rows[rows["model"] != name]).reindex(list(panel.benchmarks)).fillna(1.0)
        unit: Floats = np.asarray(scale, dtype=np.float64)
        scaled = replace(panel, value=panel.value / unit, base=panel.base / unit, scale=unit)
        visible = hide(scaled, models=[model])
        foretold = crossed_effects(visible, split(visible), [model])
        others = centred(visible.value[:, 0])
        plain = nan_mean(others, axis=0)
        ours = kin_mean(others, scaled.families, model)
        true = scaled.value[model, 0]
        for weight in weights:
            used = np.flatnonzero(weight)
            share = weight[used] * unit[used] / spread[used]
            there = np.isfinite(true[:, used] + plain[:, used]).all(axis=1)
            if there.sum() < MIN_DATASETS:
                continue
            blocks = foretold.covariance[0][there][:, used][:, :, used]
            # One variance for all datasets: with few models that of each is mostly noise.
            variance = np.einsum("dbc,b,c->d", blocks, share, share).mean() * np.ones(there.sum())
            yield (
                model,
                _Problem(
                    truth=true[there][:, used] @ share,
                    ours=ours[there][:, used] @ share,
                    covariance=np.diag(variance) + UNKNOWN_LEVEL * float(share @ share),
                    plain=plain[there][:, used] @ share,
                ),
            )


def _compared(
    kind: str,
    problems: list[tuple[int, _Problem]],
    steps: Sequence[int],
    *,
    num_resamples: int,
    seed: int,
) -> pd.DataFrame:
    """Rows of one kind of weights."""
    models = np.array([model for model, _ in problems])
    rng = np.random.default_rng([seed, 0x5E9])
    found: dict[tuple[str, int], list[_Outcome]] = {}
    for _, problem in problems:
        size = problem.truth.size
        orders = rng.permuted(np.tile(np.arange(size), (NUM_ORDERS, 1)), axis=1)
        by_mean = np.argsort(-problem.plain, kind="stable")[None]
        for step in steps:
            count = min(step, size)
            found.setdefault((OURS, step), []).append(_decide(problem, count, seed))
            for policy, order in ((PLAIN, by_mean), (RANDOM, orders)):
                chosen = _plain_choice(problem, order[:, :count])
                found.setdefault((policy, step), []).append(chosen)
    bags = np.random.default_rng([seed, 0xBA6]).integers(
        0, len(set(models)), (num_resamples, len(set(models)))
    )
    rows = []
    for (policy, step), results in found.items():
        regret = np.array([o.regret for o in results])
        against = regret - np.array([o.regret for o in found[PLAIN, step]])
        row = {"weights": kind, "policy": policy, "num_revealed": step}
        row |= _bounded("regret", regret, models, bags)
        row |= {"top3": float(np.mean([o.top for o in results]))}
        row |= _bounded("difference", against, models, bags)
        claims = policy == OURS
        row |= {
            "claimed": float(np.mean([o.claimed for o in results])) if claims else None,
            "held": float(np.mean([o.held for o in results])) if claims else None,
            "num_problems": len(results),
            "num_models": len(set(models)),
        }
        rows.append(row)
    return pd.DataFrame(rows)


def _bounded(name: str, values: Floats, models: Ints, bags: Ints) -> dict[str, float | None]:
    """Mean, and its 95 % interval when models are drawn with replacement."""
    _, place = np.unique(models, return_inverse=True)
    count = np.bincount(place).astype(np.float64)
    total = np.bincount(place, weights=values)
    drawn = total[bags].sum(axis=1) / count[bags].sum(axis=1)
    low, high = percentile_interval(drawn) or (None, None)
    return {name: float(values.mean()), f"{name}_low": low, f"{name}_high": high}


def _decide(problem: _Problem, count: int, seed: int) -> _Outcome:
    """Reveal the `count` runs of the highest expectation, and choose.

    Every run that is revealed moves what is expected of all others alike, because all vary and
    vary together alike: the order in which they are revealed is that of the first expectations.
    """
    mean, covariance = problem.ours, problem.covariance
    if count:
        seen = np.argsort(-problem.ours, kind="stable")[:count]
        # The level is that of the runs that are revealed: a prior about 0 would pull the rest down.
        level = (problem.truth[seen] - problem.ours[seen]).mean()
        mean, covariance = condition(
            problem.ours + level, problem.covariance, seen, problem.truth[seen]
        )
        mean[seen] = problem.truth[seen]
    chosen = int(np.argmax(mean))
    chance = standing(mean, covariance, num_draws=NUM_DRAWS, seed=seed).best_probability[chosen]
    return _judge(problem.truth, np.array([chosen]), float(chance))


def _plain_choice(problem: _Problem, seen: Ints) -> _Outcome:
    """Choose the best of what was revealed and of the plain forecasts, put on one level.

    `seen` is (orders, revealed); the result is the mean over orders.
    """
    truth = problem.truth
    mean = np.tile(problem.plain, (seen.shape[0], 1))
    if seen.shape[1]:
        mean += (truth[seen] - problem.plain[seen]).mean(axis=1, keepdims=True)
        np.put_along_axis(mean, seen, truth[seen], axis=1)
    return _judge(truth, np.argmax(mean, axis=1))


def _judge(truth: Floats, chosen: Ints, claimed: float = math.nan) -> _Outcome:
    lead = truth.max() - truth[chosen]
    num_better = (truth > truth[chosen][:, None]).sum(axis=1)
    return _Outcome(
        regret=float(lead.mean()),
        top=float((num_better < TOP).mean()),
        claimed=claimed,
        held=float((lead <= 0).mean()),
    )
