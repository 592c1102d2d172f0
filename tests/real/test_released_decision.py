"""Decisions replayed on the released table, beside the published figures of the plain order.

14 score columns, 11 models (one lacks one dataset), full fine-tuning, 1,000 samples, cosine. The
figures are regret in standard deviations within models, and the share of choices among the true
best three, after 0, 2, 3 and 4 of ten runs.
"""

from functools import cache

import pytest

from planted_grid import RELEASED
from sft_atlas.decide.answers import decision_answered
from sft_atlas.decide.recommend import recommend
from sft_atlas.decide.replay import MIXED, OURS, PLAIN, RANDOM, SINGLE, STEPS, Replay, replay
from sft_atlas.evidence.imported import Imported, import_results

pytestmark = pytest.mark.skipif(not RELEASED.exists(), reason="the released table is not here")

COLUMNS = (
    *("math-0shot", "gsm8k-4shot", "gsm8k-0shot", "humaneval-0shot", "mbpp_4shot", "mbpp-0shot"),
    *("BoolQ-0shot", "nq-0shot", "hellaswag-0shot", "mmlu-0shot", "cmmlu-0shot", "jmmlu-0shot"),
    *("mtbench-total", "alpaca_eval_v2-total"),
)


@cache
def released() -> Imported:
    return import_results("massive-sft", RELEASED)


@cache
def replayed(kind: str) -> Replay:
    found = released()
    tables = found.released if kind == "as published" else found.tables
    return replay(tables, benchmarks=COLUMNS)


def figures(found: Replay, policy: str, weights: str = SINGLE) -> list[tuple[float, float]]:
    frame = found.frame
    rows = frame[(frame["policy"] == policy) & (frame["weights"] == weights)]
    rows = rows.set_index("num_revealed").loc[list(STEPS)]
    return list(zip(rows["regret"], rows["top3"], strict=True))


KINDS = pytest.mark.parametrize("kind", ["as published", "treated"])


@KINDS
def test_the_plain_order_has_its_published_figures(kind: str) -> None:
    found = replayed(kind)
    assert found.setting == "full, 1,000 samples, cosine, 10 epochs"
    assert found.frame["num_problems"].iloc[0] == 154
    shown = [(round(regret, 2), round(top, 2)) for regret, top in figures(found, PLAIN)]
    assert shown == [(0.27, 0.77), (0.15, 0.90), (0.08, 0.96), (0.02, 1.00)]


@KINDS
def test_random_order_has_its_published_figures(kind: str) -> None:
    published = [(0.27, 0.77), (0.26, 0.77), (0.23, 0.80), (0.21, 0.82)]
    for mine, theirs in zip(figures(replayed(kind), RANDOM), published, strict=True):
        # Random orders differ: 100 of them have a standard error of about 0.005.
        assert mine == pytest.approx(theirs, abs=0.015)


@KINDS
def test_the_decision_is_at_least_as_good_as_the_plain_order_at_every_step(kind: str) -> None:
    found = replayed(kind)
    ours, plain = figures(found, OURS), figures(found, PLAIN)
    for (regret, top), (plain_regret, plain_top) in zip(ours, plain, strict=True):
        assert regret <= plain_regret + 1e-9
        assert top >= plain_top - 1e-9


@KINDS
def test_for_weighted_mixes_the_decision_is_nowhere_clearly_worse(kind: str) -> None:
    frame = replayed(kind).frame
    rows = frame[(frame["policy"] == OURS) & (frame["weights"] == MIXED)]
    assert (rows["difference_low"] <= 1e-9).all()
    assert (rows["difference"] < 0.003).all()


@KINDS
def test_the_probability_of_being_best_is_near_what_held(kind: str) -> None:
    frame = replayed(kind).frame
    rows = frame[frame["policy"] == OURS]
    assert (rows["claimed"] - rows["held"]).abs().max() < 0.17


def test_the_answers_take_no_score_of_the_table_for_more_than_it_is() -> None:
    found = decision_answered(released().tables)
    assert len(found.findings) == 4
    for finding in found.findings:
        assert finding.interval is not None
        assert "nan" not in finding.statement


def test_a_recommendation_ranks_what_was_run_and_names_what_would_change_it() -> None:
    found = recommend(
        released().tables, model="Yi-1.5-9B", weights={"gsm8k-0shot": 2, "mmlu-0shot": 1}
    )
    assert found.reason == ""
    assert not found.is_new_model
    assert found.num_models == 10
    assert len(found.choices) > 100
    assert found.choices["data"].iloc[0] in {"ultrachat", "magicoder", "alpaca_cleaned", "math"}
    assert found.choices["gain"].iloc[0] > 0.15
    assert not found.flips.empty
