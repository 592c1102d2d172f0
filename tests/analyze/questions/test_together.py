"""Properties of the data are asked together, and an answer is given only where there is one."""

from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.multitest import multipletests

from planted_grid import grid_tables
from sft_atlas.analyze.associations import POOLED
from sft_atlas.analyze.gains import AVERAGE
from sft_atlas.analyze.questions.together import TOGETHER, properties_together
from sft_atlas.store.tables import Tables

EMPTY = pd.DataFrame()


def planted_world(planted: ModuleType, **choices: float) -> Tables:
    world = {
        "num_models": 5,
        "num_datasets": 10,
        "num_benchmarks": 5,
        "epochs": (1,),
        "methods": ("full",),
        "own": 0.0,
    }
    return planted.make_tables(planted.World(**(world | choices)))


def test_the_planted_property_is_found_beside_the_decoys(planted: ModuleType) -> None:
    answered = properties_together(planted_world(planted, perplexity=-0.04), num_resamples=200)
    table = answered.tables["partial_effects"]
    pooled = table[table["benchmark"] == POOLED].set_index("predictor")
    assert list(pooled.index) == ["log_perplexity", "log_length", "similarity"]
    assert pooled.loc["log_perplexity", "effect"] < -0.02
    assert (pooled["num_rows"] == 250).all()
    perplexity, length, similarity = answered.findings
    assert perplexity.question == TOGETHER and perplexity.is_clear
    assert len(perplexity.rows) == 50
    assert perplexity.statement.startswith(
        "full, between datasets for the same model, with length in tokens and similarity (words) "
        "held fixed: one standard deviation more answer perplexity goes with \N{MINUS SIGN}"
    )
    assert perplexity.statement.endswith("More of it goes with lower scores.")
    for decoy in (length, similarity):
        assert not decoy.is_clear
        assert decoy.statement.endswith("The data cannot tell the direction.")


def test_p_values_are_adjusted_over_the_declared_families(planted: ModuleType) -> None:
    answered = properties_together(planted_world(planted), num_resamples=99)
    table = answered.tables["partial_effects"]
    is_summary = table["benchmark"].isin([POOLED, AVERAGE])
    for rows, method in ((table[is_summary], "holm"), (table[~is_summary], "fdr_by")):
        expected = multipletests(rows["p_value"], method=method)[1]
        assert rows["p_adjusted"].to_numpy() == pytest.approx(expected)
    assert len(table) == 3 * (5 + 2)


def test_a_wrong_base_moves_nothing(planted: ModuleType) -> None:
    tables = planted_world(planted)
    wrong = tables.scores.assign(gain=np.nan, gain_reason="the base row is a copy")
    moved = Tables(**{**vars(tables), "scores": wrong})
    found, expected = (
        properties_together(each, num_resamples=20).tables["partial_effects"]
        for each in (moved, tables)
    )
    pd.testing.assert_frame_equal(found, expected)


def test_properties_that_rise_together_are_not_told_apart(planted: ModuleType) -> None:
    tables = planted_world(planted, perplexity=-0.04)
    perplexity = tables.datasets["answer_nll"] / tables.datasets["answer_tokens"]
    wobble = np.random.default_rng(0).normal(size=len(perplexity))
    twins = tables.datasets.assign(mean_tokens=np.exp(perplexity + 0.05 * wobble))
    answered = properties_together(Tables(**{**vars(tables), "datasets": twins}), num_resamples=50)
    assert "can hardly tell them apart." in answered.findings[0].statement
    assert "variance inflation" not in answered.findings[2].statement
    exact = tables.datasets.assign(mean_tokens=np.exp(perplexity))
    answered = properties_together(Tables(**{**vars(tables), "datasets": exact}), num_resamples=50)
    assert answered.findings[0].statement == (
        "full: the effect of answer perplexity is not estimable: the other properties give it "
        "exactly."
    )
    assert answered.findings[0].estimate is None and answered.findings[2].estimate is not None


def test_imported_results_have_no_properties_and_say_so() -> None:
    tables = grid_tables(np.random.default_rng(0).uniform(size=(4, 6, 3)), np.full((4, 3), 0.4))
    (found,) = properties_together(tables).findings
    assert found.statement == (
        "Not estimable: the table holds no data properties; measure the datasets under their base "
        "models (measure: dataset), or give them with the imported results."
    )
    assert found.estimate is None and found.reason


def test_degenerate_tables_get_a_sentence_and_no_nan(planted: ModuleType) -> None:
    small = planted_world(planted, num_models=1, num_datasets=3)
    whole = planted_world(planted)
    constant = Tables(**{**vars(whole), "scores": whole.scores.assign(score=0.5)})
    missing = Tables(**{**vars(whole), "scores": whole.scores.assign(score=np.nan)})
    one_model = planted_world(planted, num_models=1)
    for tables in (
        Tables(cells=EMPTY, scores=EMPTY, drift=EMPTY, datasets=EMPTY, curves=EMPTY),
        small,
        constant,
        missing,
        one_model,
    ):
        answered = properties_together(tables, num_resamples=20)
        assert answered.findings
        for found in answered.findings:
            assert "nan" not in found.statement.lower() and found.statement.endswith(".")
            assert found.estimate is None or np.isfinite(found.estimate)
            assert (found.estimate is None) == bool(found.reason)
