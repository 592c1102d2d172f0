"""What should be trained, from all evidence that there is?

In: results of studies and of others, pooled by name. Out: a recommendation for a model, or the runs
of a study that a budget should buy. The one decision: without a word of the user, everything that
was imported into the store speaks; an own study speaks where it is named or planned.
"""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TypedDict

from sft_atlas.decide.pool import pool
from sft_atlas.decide.proposal import Proposal, planned_runs, propose
from sft_atlas.decide.recommend import Recommendation, recommend
from sft_atlas.errors import StoreError
from sft_atlas.evidence.stored import list_evidence
from sft_atlas.machine import one_thread
from sft_atlas.results import Results
from sft_atlas.store.store import Store
from sft_atlas.study.plan import Plan


class Wishes(TypedDict, total=False):
    """What a user may say beside model and weights."""

    budget_gpu_hours: float | None
    family: str
    """Of a model that the evidence lacks."""
    device: str
    """Whose time is estimated."""


def named_evidence(
    named: Sequence[str | PathLike[str]], store: Store, *, is_needed: bool = True
) -> list[str | PathLike[str]]:
    """Return what was named, else the names of all that was imported.

    Raises `StoreError` if there is none and one is needed.
    """
    names = list(named) or list(list_evidence(store))
    if not names and is_needed:
        raise StoreError(
            f"{store.layout.root}: holds no imported results, and no study was named; expected "
            "evidence. Name a study file with --evidence, or see `sft-atlas import`."
        )
    return names


def recommend_from(
    evidence: Sequence[Results],
    *,
    model: str,
    weights: Mapping[str, float],
    budget_gpu_hours: float | None = None,
    family: str = "",
    device: str = "h100",
) -> Recommendation:
    """Rank choices from pooled evidence."""
    with one_thread():
        return recommend(
            pool({found.name: found.tables for found in evidence}),
            model=model,
            weights=weights,
            budget_gpu_hours=budget_gpu_hours,
            family=family,
            device=device,
            sources=tuple(found.name for found in evidence),
        )


def propose_from(
    evidence: Sequence[Results],
    plan: Plan,
    *,
    weights: Mapping[str, float],
    budget_gpu_hours: float,
) -> Proposal:
    """Propose missing runs of a plan from pooled evidence."""
    families = {model.spec.name: model.spec.family for model in plan.study.models}
    with one_thread():
        return propose(
            planned_runs(plan),
            pool({found.name: found.tables for found in evidence}),
            weights=weights,
            budget_gpu_hours=budget_gpu_hours,
            families=families,
        )
