"""What goes together between languages within a model is told from models that differ."""

import numpy as np
import pandas as pd
import pytest

from planted_grid import Labels, grid_rows, grid_tables
from sft_atlas.analyze.questions.answered import Answered
from sft_atlas.analyze.questions.languages import (
    CENTRED,
    FINAL,
    GAINS,
    QUESTION,
    SCORE,
    cross_lingual,
    grouped_correlation,
)
from sft_atlas.analyze.translations import same_tests
from sft_atlas.evidence.tidy import tidy_tables
from sft_atlas.store.tables import Tables

NAMES = {"b0": ("exam-0shot", "en"), "b1": ("zh_exam-0shot", "zh"), "b2": ("jexam-0shot", "ja")}


def study(
    scores: np.ndarray, *, base: float = 0.4, names: dict[str, tuple[str, str]] = NAMES
) -> Tables:
    """`scores` is (model, dataset, 3 languages); models are pre-trained on en, zh, ja in turn."""
    languages = [("en", "zh;en", "ja")[m % 3] for m in range(scores.shape[0])]
    labels = Labels(languages=languages, skills=("knowledge",) * scores.shape[2])
    rows = grid_rows(scores, np.full((scores.shape[0], scores.shape[2]), base), labels)
    return tidy_tables(
        rows.assign(
            language=rows["benchmark"].map({old: tongue for old, (_, tongue) in names.items()}),
            benchmark=rows["benchmark"].map({old: name for old, (name, _) in names.items()}),
        )
    )


def planted(*, model_sd: float, shared_sd: float, own_sd: float, num_models: int = 9) -> np.ndarray:
    """A model's level and a run's effect are the same in all languages, the rest is not."""
    rng = np.random.default_rng(4)
    level = model_sd * rng.normal(size=(num_models, 1, 1))
    shared = shared_sd * rng.normal(size=(num_models, 12, 1))
    return np.clip(0.5 + level + shared + own_sd * rng.normal(size=(num_models, 12, 3)), 0, 1)


def answer(scores: np.ndarray) -> Answered:
    return cross_lingual(study(scores), num_resamples=200)


def estimates(found: Answered, quantity: str) -> pd.DataFrame:
    table = found.tables["cross_lingual"]
    chosen = table[(table["quantity"] == quantity) & (table["epochs_used"] == FINAL)]
    return chosen[chosen["group"] == ""]


def test_models_that_differ_are_no_transfer() -> None:
    found = answer(planted(model_sd=0.1, shared_sd=0.0, own_sd=0.02))
    assert (estimates(found, SCORE)["correlation"] > 0.9).all()
    within = estimates(found, CENTRED)
    assert (within["correlation"].abs() < 0.2).all()
    assert ((within["low"] < 0) & (within["high"] > 0)).all()
    text = found.findings[0].statement
    assert text.endswith("The interval covers 0: the data cannot tell whether effects carry over.")


def test_a_shared_effect_of_runs_is_found_within_models() -> None:
    found = answer(planted(model_sd=0.1, shared_sd=0.03, own_sd=0.03))
    within = estimates(found, CENTRED)
    assert within["correlation"].to_numpy() == pytest.approx(0.5, abs=0.2)
    assert (within["low"] > 0).all()
    findings = [one for one in found.findings if one.question == QUESTION]
    assert len(findings) == 3
    assert findings[0].statement.startswith("English and Chinese (exam-0shot, zh_exam-0shot): ")
    assert "by pre-training language: English" in findings[0].statement
    assert findings[0].statement.endswith("What raises one tends to raise the other.")


def test_the_plain_correlation_is_numpys_and_centring_is_by_model() -> None:
    scores = planted(model_sd=0.05, shared_sd=0.03, own_sd=0.03)
    found = answer(scores)
    flat = scores.reshape(-1, 3)
    inside = (scores - scores.mean(axis=1, keepdims=True)).reshape(-1, 3)
    for quantity, values in ((SCORE, flat), (CENTRED, inside)):
        expected = np.corrcoef(values.T)[[0, 0, 1], [1, 2, 2]]
        assert estimates(found, quantity)["correlation"].to_numpy() == pytest.approx(expected)


def test_weights_count_a_row_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    values, groups = rng.normal(size=(20, 2)), np.repeat(np.arange(4), 5)
    counts = rng.integers(0, 4, size=(6, 20))
    found = grouped_correlation(values, groups, counts.astype(float))
    for weights, value in zip(counts, found, strict=True):
        rows = pd.DataFrame(np.repeat(values, weights, axis=0))
        inside = rows - rows.groupby(np.repeat(groups, weights)).transform("mean")
        assert value == pytest.approx(inside.corr().iloc[0, 1])


def test_base_rows_change_neither_scores_nor_centred_scores() -> None:
    scores = planted(model_sd=0.05, shared_sd=0.03, own_sd=0.03)
    one, other = (
        cross_lingual(study(scores, base=base), num_resamples=50).tables["cross_lingual"]
        for base in (0.4, np.nan)
    )
    for quantity in (SCORE, CENTRED):
        left, right = (table[table["quantity"] == quantity] for table in (one, other))
        pd.testing.assert_frame_equal(left.drop(columns="reason"), right.drop(columns="reason"))
    assert other[other["quantity"] == "gain"]["correlation"].isna().all()


def test_mean_gains_are_by_pre_training_language_and_test() -> None:
    scores = np.full((9, 4, 3), 0.5)
    scores[::3, :, 2] += 0.1
    found = cross_lingual(study(scores), num_resamples=50)
    means = found.tables["language_gains"].set_index(["group", "language"])["gain"]
    assert means["en", "ja"] == pytest.approx(0.2)
    assert means["ja", "ja"] == pytest.approx(0.1)
    assert means["en", ""] == pytest.approx(0.4 / 3)
    gains = [one for one in found.findings if one.question == GAINS]
    assert [one.statement.split(":")[0] for one in gains] == [
        "Models pre-trained on English",
        "Models pre-trained on Japanese",
        "Models pre-trained on Chinese",
    ]


def test_tests_are_matched_by_name_skill_and_metric() -> None:
    facts = ["benchmark", "skill", "metric", "language", "in_mean"]
    rows = [
        ("mmlu-0shot", "knowledge", "accuracy", "en", True),
        ("jmmlu-0shot", "knowledge", "accuracy", "ja", True),
        ("cmmlu-0shot", "knowledge", "accuracy", "zh", True),
        ("mmlu-5shot", "knowledge", "accuracy", "en", False),
        ("boolq", "knowledge", "accuracy", "en", True),
        ("commonsense_qa", "reasoning", "accuracy", "en", True),
        ("jcommonsenseqa", "reasoning", "accuracy", "ja", True),
        ("mini-knowledge", "knowledge", "exact_match", "a", True),
        ("mini-knowledge-b", "knowledge", "exact_match", "b", True),
        ("mini-knowledge-choice", "knowledge", "accuracy", "a", True),
        ("gsm8k", "math", "numeric_match", "en", True),
    ]
    assert same_tests(pd.DataFrame(rows, columns=facts)) == {
        "mmlu": {"mmlu-0shot": "en", "jmmlu-0shot": "ja", "cmmlu-0shot": "zh"},
        "commonsenseqa": {"commonsense_qa": "en", "jcommonsenseqa": "ja"},
        "miniknowledge": {"mini-knowledge": "a", "mini-knowledge-b": "b"},
    }


def test_one_language_alone_is_not_estimable() -> None:
    found = cross_lingual(grid_tables(np.full((3, 3, 2), 0.5), np.full((3, 2), 0.4)))
    (finding,) = found.findings
    assert finding.statement == "Not estimable: no test was given in two languages."
    assert found.tables["cross_lingual"].empty and found.tables["language_gains"].empty


def test_scores_that_do_not_vary_have_a_reason_and_no_number() -> None:
    found = answer(np.full((4, 4, 3), 0.5))
    table = found.tables["cross_lingual"]
    assert table["correlation"].isna().all()
    assert set(table["reason"]) == {"one of the two does not vary"}
    assert found.findings[0].statement == (
        "English and Chinese (exam-0shot, zh_exam-0shot): not estimable: one of the two does not "
        "vary."
    )


def test_two_models_give_a_number_and_no_interval() -> None:
    found = answer(planted(model_sd=0.05, shared_sd=0.03, own_sd=0.03, num_models=2))
    finding = found.findings[0]
    assert finding.estimate is not None and finding.interval is None
    assert finding.reason == "too few models or datasets for an interval"


def test_missing_scores_leave_out_their_cells_alone() -> None:
    scores = planted(model_sd=0.05, shared_sd=0.03, own_sd=0.03)
    scores[0, 1, 1] = np.nan
    sizes = estimates(answer(scores), SCORE)["num_cells"].tolist()
    assert sizes == [107, 108, 107]
    scores[:, :, 1] = np.nan
    table = answer(scores).tables["cross_lingual"]
    assert set(table["first_language"]) | set(table["second_language"]) == {"en", "ja"}
