"""The same knowledge test in three languages in the released table."""

from functools import cache

import pandas as pd
import pytest

from planted_grid import RELEASED
from sft_atlas.analyze.questions.answered import Answered
from sft_atlas.analyze.questions.languages import (
    CENTRED,
    GAIN,
    KEPT,
    SCORE,
    cross_lingual,
)
from sft_atlas.evidence.imported import Imported, import_results

pytestmark = pytest.mark.skipif(not RELEASED.exists(), reason="the released table is not here")

PAIRS = [("en", "ja"), ("en", "zh"), ("ja", "zh")]


@cache
def imported() -> Imported:
    return import_results("massive-sft", RELEASED)


@cache
def answer(treated: bool) -> Answered:
    tables = imported().tables if treated else imported().released
    return cross_lingual(tables, num_resamples=100)


def correlations(quantity: str, *, treated: bool = False) -> pd.DataFrame:
    table = answer(treated).tables["cross_lingual"]
    chosen = table[(table["quantity"] == quantity) & (table["epochs_used"] == KEPT)]
    return chosen.set_index(["group", "first_language", "second_language"])


@pytest.mark.parametrize(
    ("group", "pair", "printed"),
    [
        ("", ("en", "ja"), "0.89"),
        ("", ("en", "zh"), "0.64"),
        ("", ("ja", "zh"), "0.68"),
        ("en", ("en", "ja"), "0.93"),
        ("en", ("en", "zh"), "0.65"),
        ("zh", ("en", "ja"), "0.83"),
        ("zh", ("en", "zh"), "0.40"),
        ("ja", ("en", "ja"), "0.84"),
        ("ja", ("en", "zh"), "0.60"),
    ],
    ids=str,
)
def test_scores_go_together_as_printed(group: str, pair: tuple[str, str], printed: str) -> None:
    row = correlations(SCORE).loc[(group, *pair)]
    assert f"{row['correlation']:.2f}" == printed
    assert group or row["num_cells"] == 996


@pytest.mark.parametrize(
    ("pair", "printed"), list(zip(PAIRS, ("0.71", "0.31", "0.20"), strict=True)), ids=str
)
def test_gains_go_together_as_printed(pair: tuple[str, str], printed: str) -> None:
    assert f"{correlations(GAIN).loc[('', *pair), 'correlation']:.2f}" == printed


@pytest.mark.parametrize(
    ("pair", "found"), list(zip(PAIRS, ("0.84", "0.36", "0.41"), strict=True)), ids=str
)
def test_within_a_model_no_base_row_is_needed(pair: tuple[str, str], found: str) -> None:
    for treated in (False, True):
        row = correlations(CENTRED, treated=treated).loc[("", *pair)]
        assert f"{row['correlation']:.2f}" == found


def test_the_three_tests_are_found_by_their_names() -> None:
    table = answer(False).tables["cross_lingual"]
    assert set(table["first"]) | set(table["second"]) == {
        "mmlu-0shot",
        "cmmlu-0shot",
        "jmmlu-0shot",
    }


def test_treated_gains_rest_on_fewer_models() -> None:
    treated = correlations(GAIN, treated=True).loc[("", "en", "ja")]
    assert treated["num_models"] < correlations(GAIN).loc[("", "en", "ja"), "num_models"]
