"""What stands beside the ranked choices of a recommendation?

In: beliefs about the choices for one model. Out: their tables by benchmark and by what may be
chosen, what is left out and why, and how wide intervals must be to hold for whole models.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sft_atlas.decide.beliefs import contrasts
from sft_atlas.decide.prior import Beliefs, Outlook, beliefs, outlook
from sft_atlas.forecast.outcomes import CHOICE, SETTING
from sft_atlas.forecast.panel import Panel
from sft_atlas.forecast.support import MIN_OTHERS
from sft_atlas.statistics.clusters import Floats, Ints
from sft_atlas.statistics.conformal import calibrated_margin


def choices_of(panel: Panel, setting: Ints, dataset: Ints) -> pd.DataFrame:
    """Name choices: columns `CHOICE`."""
    frame = pd.DataFrame([panel.settings[place] for place in setting], columns=list(SETTING))
    frame.insert(0, "data", [panel.datasets[place] for place in dataset])
    return frame


def by_benchmark(
    found: Beliefs, tests: list[str], weights: Mapping[str, float], rank: Ints
) -> pd.DataFrame:
    """Split the expectation of each choice: rank, benchmark, weight, gain, effect."""
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


def by_factor(table: pd.DataFrame) -> pd.DataFrame:
    """Sum the probability of being best over choices that share a value."""
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


def unsupported(panel: Panel, view: Outlook, found: Beliefs, weights: Floats) -> pd.DataFrame:
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
        if not bool(scored[:, setting, dataset].any()):
            why = "no other model's run has scores on all of these benchmarks"
        elif count < MIN_OTHERS:
            why = f"{count} other model(s) ran this setting with scores on all of these benchmarks"
        else:
            why = f"{with_data} other model(s) ran this data with scores on all of these benchmarks"
        choice = dict(zip(SETTING, panel.settings[setting], strict=True))
        rows.append({"data": panel.datasets[dataset], **choice, "why_not": why})
    return pd.DataFrame(rows, columns=[*CHOICE, "why_not"])


def num_others(panel: Panel, model: int, weights: Floats) -> int:
    """Count other models with a run that has a score on every weighted benchmark."""
    scored = np.isfinite(panel.value[..., np.flatnonzero(weights)])
    there = [one.all(axis=2).any() for one in scored]
    return sum(bool(has) for place, has in enumerate(there) if place != model)


def calibrated(panel: Panel, model: int, weights: Floats) -> tuple[float, float]:
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
