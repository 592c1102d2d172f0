"""LoRA against full in the released table: the published differences, and what they are worth."""

from functools import cache

import numpy as np
import pandas as pd
import pytest

from planted_grid import RELEASED
from sft_atlas.analyze.method_differences import FINAL, KEPT
from sft_atlas.analyze.questions.answered import Answered
from sft_atlas.analyze.questions.left_out import left_out, left_out_pairs
from sft_atlas.analyze.questions.methods import methods_compared
from sft_atlas.analyze.questions.noise import noise_floor
from sft_atlas.evidence.imported import Imported, import_results

pytestmark = pytest.mark.skipif(not RELEASED.exists(), reason="the released table is not here")


@cache
def imported() -> Imported:
    return import_results("massive-sft", RELEASED)


@cache
def answer() -> Answered:
    return methods_compared(imported().released)


def differences(kind: str, used: str) -> pd.DataFrame:
    """Rows of single benchmarks, with `shown`: the difference in percent or grades."""
    table = answer().tables["method_differences"]
    chosen = table[(table["data_kind"] == kind) & (table["epochs_used"] == used)]
    chosen = chosen[chosen["level"].isin(("benchmark", "variant"))].set_index("benchmark")
    unit = np.where(chosen["range"] > 1, chosen["range"], 100.0)
    return chosen.assign(shown=chosen["difference"] * unit)


@pytest.mark.parametrize(
    ("benchmark", "printed"),
    [
        ("mtbench-total", "+0.21"),
        ("alpaca_eval_v2-total", "+0.27"),
        ("mmlu-0shot", "+2.8"),
        ("cmmlu-0shot", "+3.9"),
        ("jmmlu-0shot", "+4.3"),
        ("hellaswag-0shot", "+6.7"),
        ("BoolQ-0shot", "+6.7"),
        ("mbpp_4shot", "+3.1"),
        ("gsm8k-0shot", "-1.6"),
        ("math-0shot", "-0.26"),
    ],
)
def test_single_datasets_differ_as_printed(benchmark: str, printed: str) -> None:
    row = differences("each", FINAL).loc[benchmark]
    assert f"{row['shown']:+.{len(printed.split('.')[1])}f}" == printed
    assert row["num_pairs"] in (99, 109)


@pytest.mark.parametrize(
    ("benchmark", "printed"),
    [
        ("mtbench-total", "-0.33"),
        ("alpaca_eval_v2-total", "-0.90"),
        ("mmlu-0shot", "-1.1"),
        ("nq-5shot", "-1.4"),
        ("gsm8k-4shot", "+2.1"),
    ],
)
def test_merged_data_differ_as_printed_over_all_epochs(benchmark: str, printed: str) -> None:
    row = differences("all", KEPT).loc[benchmark]
    assert f"{row['shown']:+.{len(printed.split('.')[1])}f}" == printed
    assert (row["num_rows"], row["num_pairs"]) in ((100, 10), (90, 9))


def test_printed_p_values_are_those_of_rows_taken_as_independent() -> None:
    rows = differences("each", FINAL)
    assert f"{rows.loc['mtbench-total', 'p_rows']:.0e}" == "4e-09"
    assert f"{rows.loc['mtbench-total', 'share_ahead']:.0%}" == "79%"
    assert f"{rows.loc['gsm8k-0shot', 'p_rows']:.3f}" == "0.015"
    assert rows.loc["math-0shot", "p_rows"] > 0.05


def test_with_models_and_datasets_resampled_the_single_claims_are_open() -> None:
    rows = differences("each", FINAL)
    for name in ("mtbench-total", "gsm8k-0shot"):
        assert rows.loc[name, "p_value"] > 1e5 * rows.loc["mtbench-total", "p_rows"]
        assert rows.loc[name, "p_adjusted"] > 0.05
        assert rows.loc[name, "verdict"] == "cannot tell"
    assert rows.loc["alpaca_eval_v2-total", "verdict"] == "equivalent"


def test_the_shift_from_single_to_merged_data_is_clear_on_the_open_ended_tests() -> None:
    changes = answer().tables["method_reversals"].set_index("benchmark")
    clear = changes[changes["p_adjusted"] <= 0.05]
    assert {"mtbench-total", "alpaca_eval_v2-total", "mmlu-0shot"} <= set(clear.index)
    assert (clear["change"] < 0).all()


def test_treated_tables_give_the_same_answer_where_nothing_was_unmixed() -> None:
    treated = methods_compared(imported().tables).tables["method_differences"]
    published = answer().tables["method_differences"]
    keys = ["data_kind", "epochs_used", "level", "benchmark", "skill"]
    both = published.merge(treated, on=keys, suffixes=("", "_treated"))
    both = both[both["benchmark"].ne("mmlu-5shot")]
    assert both["difference"].to_numpy() == pytest.approx(
        both["difference_treated"].to_numpy(), nan_ok=True
    )


def test_no_statement_holds_a_number_that_is_none() -> None:
    tables = imported().tables
    for found in (answer(), left_out(tables), noise_floor(tables)):
        for finding in found.findings:
            assert "nan" not in finding.statement.lower().replace("benchmark", "")
            assert finding.estimate is None or np.isfinite(finding.estimate)
            assert finding.interval is not None or finding.reason or finding.scale == "count"


def test_leaving_out_is_one_model_with_ten_datasets_and_two_methods() -> None:
    tables = imported().tables
    pairs = left_out_pairs(tables)
    assert set(pairs["model"]) == {"OLMo-7B-hf"}
    sizes = pairs.drop_duplicates("cell_without")
    assert sizes["method"].value_counts().to_dict() == {"full": 10, "lora": 10}
    assert set(sizes["num_samples_all"]) == {10_000}
    assert set(sizes["num_samples_without"]) == {9_000}
    found = left_out(tables)
    means = found.tables["left_out"].query("benchmark == '' and method == 'full'")
    order = means.set_index("dataset")["difference"]
    # The code data carry the mixture's code scores; the numbers are computed from the table here.
    assert order.idxmax() == "magicoder" and order.idxmin() == "openmath"
    assert "10,000 samples, the others 9,000" in found.findings[0].statement


def test_no_cell_of_the_release_was_run_twice() -> None:
    (finding,) = noise_floor(imported().tables).findings
    assert finding.estimate is None
    assert finding.statement.startswith("0 replicated cells")
