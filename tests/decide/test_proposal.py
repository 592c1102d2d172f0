"""Which runs of a study a budget should buy."""

import numpy as np
import pandas as pd
import pytest

import sft_atlas
from decide.planted import effects, planted
from planted_grid import Labels
from sft_atlas.decide.proposal import Proposal, planned_runs, propose
from sft_atlas.store.tables import Tables

EFFECT = effects(5, 2, seed=2, size=0.04)
ORDER = np.argsort(-EFFECT.mean(axis=1))


def _runs(models: list[str], *, hours: float = 1.0) -> pd.DataFrame:
    rows = [
        {"model": model, "data": f"d{d}", "method": "full", "samples": 1000, "schedule": "cosine"}
        for model in models
        for d in range(5)
    ]
    return pd.DataFrame(rows).assign(
        method_kind="full", epochs=[(10,)] * len(rows), gpu_hours=hours
    )


@pytest.fixture(scope="module")
def evidence() -> Tables:
    return planted(EFFECT, noise=0.08, labels=Labels(num_items=2000))


@pytest.fixture(scope="module")
def found(evidence: Tables) -> Proposal:
    return propose(
        _runs(["new-a", "new-b"]), evidence, weights={"b0": 1, "b1": 1}, budget_gpu_hours=4.0
    )


def test_the_budget_is_kept_and_the_promising_data_comes_first(found: Proposal) -> None:
    assert 0 < found.gpu_hours <= 4.0
    assert found.planned_gpu_hours == 10.0
    assert set(found.runs["data"]) <= {f"d{place}" for place in ORDER[:4]}
    assert found.reason == ""


def test_regret_falls_for_the_models_that_are_run(found: Proposal) -> None:
    by_model = found.by_model.set_index("model")
    for model in found.runs["model"].unique():
        assert by_model.loc[model, "regret_after"] < by_model.loc[model, "regret_before"]


def test_the_precision_of_a_part_is_no_better_than_that_of_all(found: Proposal) -> None:
    row = found.precision.iloc[0]
    assert row["planned_pairs"] == 10
    assert row["half_width"] > 0
    assert not row["proposed_half_width"] < row["half_width"]


def test_what_the_evidence_lacks_is_listed_with_its_reason(evidence: Tables) -> None:
    runs = _runs(["new-a"])
    runs.loc[0, "data"] = "unheard-of"
    runs.loc[1, "samples"] = 5
    found = propose(runs, evidence, weights={"b0": 1}, budget_gpu_hours=9.0)
    why = found.unsupported.set_index("data")["why_not"]
    assert why["unheard-of"] == "no run in the evidence used unheard-of"
    assert why["d1"].startswith("fewer than 2 other models ran full, 5 samples")


def test_case_and_hyphens_of_names_do_not_matter(evidence: Tables) -> None:
    runs = _runs(["new-a"])
    named = runs.assign(data=runs["data"].str.replace("d", "D-"))
    plain, other = (
        propose(one, evidence, weights={"b0": 1}, budget_gpu_hours=9.0) for one in (runs, named)
    )
    assert other.unsupported.empty
    assert other.runs["data"].str.replace("D-", "d").tolist() == plain.runs["data"].tolist()


def test_too_little_evidence_gives_a_reason() -> None:
    lonely = planted(EFFECT, num_models=1)
    found = propose(_runs(["new-a"]), lonely, weights={"b0": 1}, budget_gpu_hours=9.0)
    assert found.runs.empty
    assert found.reason == "the evidence has runs of 1 model(s); it takes at least 2"
    assert len(found.precision) == 4


def test_a_study_with_nothing_missing_gives_a_reason(evidence: Tables) -> None:
    found = propose(_runs(["new-a"]).iloc[:0], evidence, weights={"b0": 1}, budget_gpu_hours=9.0)
    assert found.reason == "no run on one dataset is missing"


def test_planned_runs_are_those_of_the_plan_on_one_dataset(tmp_path: object) -> None:
    plan = sft_atlas.plan(sft_atlas.new("mine", folder=tmp_path))  # type: ignore[arg-type]
    runs = planned_runs(plan)
    assert len(runs) == 2 * 2 * 2
    assert (runs["gpu_hours"] > 0).all()
    assert set(runs["method_kind"]) == {"full", "lora"}
