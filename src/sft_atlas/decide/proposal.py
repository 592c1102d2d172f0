"""Which cells of a study should be trained, if the budget is smaller than the study?

In: a plan, evidence, weights of benchmarks and a budget. Out: the study's runs in the order of what
they are expected to add to the chosen scores per GPU-hour, and how wide each question's interval
will be with all runs and with those proposed. The one decision: every model of the study is a
decision of its own, and all count the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd

from sft_atlas.decide.names import name_in
from sft_atlas.decide.next_cells import Candidates, next_cells
from sft_atlas.decide.precision import KEYS, expected_precision, mixed_outcomes
from sft_atlas.decide.prior import beliefs, outlook, score_errors, with_known_level
from sft_atlas.decide.weights import resolve_weights, scored_benchmarks
from sft_atlas.forecast.known import known_outcomes, known_panel
from sft_atlas.forecast.panel import Panel
from sft_atlas.forecast.support import MIN_OTHERS
from sft_atlas.statistics.clusters import Floats
from sft_atlas.store.tables import Tables
from sft_atlas.study.job import TrainJob
from sft_atlas.study.plan import Plan

RUN: Final = ("model", "data", "method", "samples", "schedule")
PLANNED: Final = (*RUN, "method_kind", "epochs", "gpu_hours")
PROPOSED: Final = (*RUN, "epochs", "gpu_hours", "gain", "regret")


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """Runs worth making first, and what they buy; gains and regrets are fractions."""

    weights: Mapping[str, float]
    budget_gpu_hours: float
    runs: pd.DataFrame
    """Columns `PROPOSED`, in order: gain is the expected rise of the score that will be chosen for
    the model, regret that of its decision once the list so far is known."""
    by_model: pd.DataFrame
    """model, regret_before, regret_after."""
    precision: pd.DataFrame
    """Columns `precision.COLUMNS`."""
    unsupported: pd.DataFrame
    """`RUN` and why_not: planned runs that the evidence says nothing about."""
    gpu_hours: float
    """Of the proposed runs."""
    planned_gpu_hours: float
    """Of all runs that are missing."""
    stopped: str
    reason: str
    """Why nothing is proposed; empty where something is."""


def planned_runs(plan: Plan) -> pd.DataFrame:
    """Return the missing training runs on one dataset each: columns `PLANNED`.

    `epochs` are those that are kept; `gpu_hours` are the likely ones, with evaluation.
    """
    rows = []
    for planned in plan.jobs:
        job = planned.job
        if not isinstance(job, TrainJob) or job.trajectory.data.kind != "each":
            continue
        run = job.trajectory
        rows.append(
            {
                "model": run.model.name,
                "data": run.data.name,
                "method": run.method.name,
                "samples": run.data.samples,
                "schedule": run.schedule.kind,
                "method_kind": "full" if run.method.lora is None else "lora",
                "epochs": job.keep_epochs,
                "gpu_hours": planned.cost.seconds.likely / 3600,
            }
        )
    frame = pd.DataFrame(rows, columns=list(PLANNED))
    # Seeds of one run teach the same choice: the first stands for all.
    return frame.drop_duplicates(list(RUN), ignore_index=True)


def propose(
    runs: pd.DataFrame,
    evidence: Tables,
    *,
    weights: Mapping[str, float],
    budget_gpu_hours: float,
    families: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Proposal:
    """Choose among planned runs (`planned_runs`) by what the evidence expects of them.

    Models, datasets, methods, sizes and epochs are those of the evidence by name; case, hyphens and
    underscores do not matter. Raises `DataError` for benchmarks that it lacks.
    """
    scores = evidence.scores
    wanted = resolve_weights(weights, scored_benchmarks(scores))
    rows = known_outcomes(evidence, benchmarks=list(wanted), only_final=False)
    mixed = mixed_outcomes(rows, wanted)
    everything = _epochs_of(runs)
    facts: dict[str, Any] = {
        "weights": wanted,
        "budget_gpu_hours": budget_gpu_hours,
        "planned_gpu_hours": float(runs["gpu_hours"].sum()),
    }
    num_models = rows["model"].nunique()
    reason = ""
    if runs.empty:
        reason = "no run on one dataset is missing"
    elif num_models < MIN_OTHERS:
        reason = f"the evidence has runs of {num_models} model(s); it takes at least {MIN_OTHERS}"
    elif unscored := sorted(set(wanted) - set(rows["benchmark"])):
        reason = f"no run on one dataset has a score on {', '.join(unscored)}"
    if reason:
        return Proposal(
            **facts,
            runs=pd.DataFrame(columns=list(PROPOSED)),
            by_model=pd.DataFrame(columns=["model", "regret_before", "regret_after"]),
            precision=expected_precision(mixed, everything, everything.iloc[:0]),
            unsupported=pd.DataFrame(columns=[*RUN, "why_not"]),
            gpu_hours=0.0,
            stopped="",
            reason=reason,
        )
    named = _as_in(rows, runs)
    both = dict(zip(named["model"].astype(str), runs["model"].astype(str), strict=True))
    new = {there: (families or {}).get(here, "") for there, here in both.items()}
    panel = known_panel(evidence, rows, new_models=new)
    vector = np.array([wanted.get(test, 0.0) for test in panel.benchmarks], dtype=np.float64)
    errors = score_errors(scores[scores["benchmark"].isin(list(wanted))])
    models, places, why = _candidates(named, panel, vector, errors)
    found = next_cells(models, budget_gpu_hours=budget_gpu_hours, seed=seed)
    chosen = runs.iloc[[places[step.model][step.run] for step in found.steps]]
    table = chosen[[*RUN, "epochs", "gpu_hours"]].assign(
        gain=[step.gain for step in found.steps], regret=[step.regret for step in found.steps]
    )
    return Proposal(
        **facts,
        runs=table.reset_index(drop=True),
        by_model=pd.DataFrame(
            {
                "model": [str(runs["model"].iloc[where[0]]) for where in places],
                "regret_before": found.regret_before,
                "regret_after": found.regret_after,
            }
        ),
        precision=expected_precision(mixed, everything, _epochs_of(chosen)),
        unsupported=why,
        gpu_hours=float(table["gpu_hours"].sum()),
        stopped=found.stopped,
        reason="" if models else "the evidence says nothing about any planned run",
    )


def _as_in(outcomes: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Runs with the names that the evidence has for their models and datasets."""
    models, data = set(outcomes["model"].astype(str)), set(outcomes["data"].astype(str))
    return runs.assign(
        model=[name_in(models, str(name), "model") for name in runs["model"]],
        data=[name_in(data, str(name), "dataset") for name in runs["data"]],
    )


def _candidates(
    runs: pd.DataFrame, panel: Panel, weights: Floats, errors: pd.DataFrame
) -> tuple[list[Candidates], list[list[int]], pd.DataFrame]:
    """Form beliefs by model over what the study plans.

    Returns candidates, their places in `runs`, and the runs that cannot be forecast.
    """
    records = [dict(zip(runs.columns, row, strict=True)) for row in runs.itertuples(index=False)]
    choices = [_choices(record, panel) for record in records]
    models: list[Candidates] = []
    places: list[list[int]] = []
    missing: list[dict[str, Any]] = []
    for name in sorted(runs["model"].unique()):
        own = [place for place, record in enumerate(records) if record["model"] == name]
        view = outlook(panel, panel.models.index(name), errors=errors)
        possible = np.asarray(np.isfinite(panel.value[view.model]).any(axis=2))
        for place in own:
            for setting, dataset in choices[place]:
                possible[setting, dataset] = True
        found = beliefs(view, weights, is_possible=possible)
        pairs = zip(found.setting.tolist(), found.dataset.tolist(), strict=True)
        at = {pair: number for number, pair in enumerate(pairs)}
        reveals = {place: tuple(at[pair] for pair in choices[place] if pair in at) for place in own}
        known = [place for place in own if reveals[place]]
        missing += [
            {key: records[place][key] for key in RUN} | {"why_not": _why_not(records[place], panel)}
            for place in own
            if not reveals[place]
        ]
        if known:
            models.append(
                Candidates(
                    mean=found.mean,
                    covariance=with_known_level(found),
                    runs=tuple(reveals[place] for place in known),
                    gpu_hours=np.array([records[place]["gpu_hours"] for place in known]),
                )
            )
            places.append(known)
    return models, places, pd.DataFrame(missing, columns=[*RUN, "why_not"])


def _choices(record: Mapping[str, Any], panel: Panel) -> list[tuple[int, int]]:
    """Places of a run's kept epochs in the panel."""
    if record["data"] not in panel.datasets:
        return []
    dataset = panel.datasets.index(record["data"])
    keys = [
        (record["method"], record["samples"], record["schedule"], epoch)
        for epoch in record["epochs"]
    ]
    return [(panel.settings.index(key), dataset) for key in keys if key in panel.settings]


def _why_not(run: Mapping[str, Any], panel: Panel) -> str:
    if run["data"] not in panel.datasets:
        return f"no run in the evidence used {run['data']}"
    return (
        f"fewer than {MIN_OTHERS} other models ran {run['method']}, {run['samples']:,} samples, "
        f"{run['schedule']}, at one of these epochs"
    )


def _epochs_of(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per kept epoch, columns of `precision`."""
    frame = runs.assign(epoch=runs["epochs"]).explode("epoch")
    return frame[list(KEYS)].reset_index(drop=True)
