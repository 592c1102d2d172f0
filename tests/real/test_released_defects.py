"""Every fault that is known of the released table of Harada et al. 2025 is found by its test."""

import pandas as pd
import pytest

from planted_grid import RELEASED
from sft_atlas.evidence.defect import Defect
from sft_atlas.evidence.defects import find_defects, passed_checks, unmixed
from sft_atlas.evidence.massive_sft import read_massive_sft
from sft_atlas.evidence.source import SourceTable

pytestmark = pytest.mark.skipif(not RELEASED.exists(), reason="the released table is not here")


@pytest.fixture(scope="module")
def source() -> SourceTable:
    return read_massive_sft(RELEASED)


@pytest.fixture(scope="module")
def defects(source: SourceTable) -> tuple[Defect, ...]:
    return find_defects(source)


def of(defects: tuple[Defect, ...], kind: str, column: str | None = None) -> Defect:
    (found,) = [
        defect
        for defect in defects
        if defect.kind == kind and (column is None or column in defect.columns)
    ]
    return found


def models(source: SourceTable, defect: Defect) -> list[str]:
    rows = source.labels["line"].isin(defect.rows)
    return sorted(set(source.labels["model"][rows]))


def test_these_are_all(defects: tuple[Defect, ...]) -> None:
    assert sorted((defect.kind, defect.columns[0]) for defect in defects) == [
        ("copied row", "humaneval-0shot"),
        ("copied row", "mbpp_4shot"),
        ("format learning", "BoolQ-5shot"),
        ("format learning", "mbpp-0shot"),
        ("format learning", "mmlu-5shot"),
        ("holes on one arm", "alpaca_eval_v2-total"),
        ("holes on one arm", "mbpp_4shot"),
        ("missing items", "alpaca_eval_v2-total"),
        ("mixed definitions", "mmlu-5shot"),
        ("odd scale", "Truthful_QA-0shot"),
        ("stated number of items", "mtbench-total"),
        ("stub column", "LongBench-v2-0shot"),
        ("total differs from its parts", "mtbench-total"),
    ]


def test_two_definitions_in_one_column(source: SourceTable, defects: tuple[Defect, ...]) -> None:
    defect = of(defects, "mixed definitions")
    assert defect.columns == ("mmlu-5shot",)
    assert defect.evidence.startswith(
        "228 values can only be plain means over 57 scores of two decimals, 774 only over 181; "
        "5 fit both."
    )
    assert (
        "taking mmlu-0shot and cmmlu-0shot out leaves impossible scores in 66 rows"
        in defect.evidence
    )
    assert (
        "taking jmmlu-0shot and cmmlu-0shot out leaves possible scores in all rows, 0.01 to 70.58 %"
        in defect.evidence
    )
    assert "The base row of LLM-jp-3-7B and Qwen2.5-7B is of one kind" in defect.effect
    assert len(defect.rows) == 774
    values = unmixed(source, defect)
    assert source.values["mmlu-5shot"].isna().sum() == values.isna().sum() == 20
    is_tuned = source.labels["line"].isin(defect.rows)
    means = values[is_tuned].groupby(source.labels["model"][is_tuned]).mean()
    assert means["Meta-Llama-3-8B"] == pytest.approx(51.4, abs=0.05)
    assert means["Qwen2.5-7B"] == pytest.approx(58.4, abs=0.05)


def test_copied_base_rows(source: SourceTable, defects: tuple[Defect, ...]) -> None:
    whole = of(defects, "copied row", "mtbench-math")
    part = of(tuple(defect for defect in defects if defect != whole), "copied row")
    assert models(source, whole) == ["Chinese-Mistral-7B-v0.1", "Mistral-7B-v0.1"]
    assert len(whole.columns) == 29
    assert models(source, part) == ["LLM-jp-3-7B", "OLMo-7B-hf"]
    assert set(part.columns) == {
        *("mbpp-0shot", "gsm8k-0shot", "nq-0shot", "nq-5shot", "nq-25shot", "BoolQ-0shot"),
        *("hellaswag-0shot", "mmlu-0shot", "Truthful_QA-0shot", "jmmlu-0shot", "cmmlu-0shot"),
        "humaneval-0shot",
    }
    assert "humaneval-0shot and Truthful_QA-0shot alone could agree by chance" in part.evidence
    for defect in (whole, part):
        assert defect.treatment == "exclude gain"
        assert source.labels.set_index("line").loc[list(defect.rows), "method"].eq("base").all()
    assert "of Mistral-7B-v0.1 in 1 column, of Chinese-Mistral-7B-v0.1 in 3" in whole.evidence


def test_another_unit(defects: tuple[Defect, ...]) -> None:
    defect = of(defects, "odd scale")
    assert "between 0 and 0.18 in steps of 0.01" in defect.evidence
    assert "8 of 817 items" in defect.evidence


def test_fewer_grades_than_stated(defects: tuple[Defect, ...]) -> None:
    defect = of(defects, "stated number of items")
    assert len(defect.columns) == 9
    assert defect.evidence.startswith(
        "8,072 of 8,216 values of the parts (98 %) are means of 10 grades; of the rest, 136 of 9, "
        "7 of 8 and 1 of 7. Stated are 20 (160 over 8 parts)."
    )
    assert len(of(defects, "total differs from its parts").rows) == 4


def test_a_plain_win_count_with_unjudged_items(defects: tuple[Defect, ...]) -> None:
    defect = of(defects, "missing items")
    assert defect.evidence.startswith(
        "47 % of the values are k/805, as stated, where 8 % would be by chance. 91 % are k/n of "
        "some n from 798 to 805, and 39 % of some n from 806 to 813"
    )
    assert len(defect.rows) == 541


def test_base_models_that_fail_with_examples(
    source: SourceTable, defects: tuple[Defect, ...]
) -> None:
    defect = of(defects, "format learning", "BoolQ-5shot")
    assert len(defect.rows) == 10
    assert "Yi-1.5-9B" not in models(source, defect)
    assert models(source, of(defects, "format learning", "mbpp-0shot")) == ["Meta-Llama-3-8B"]


def test_holes_and_stubs(source: SourceTable, defects: tuple[Defect, ...]) -> None:
    arm = of(defects, "holes on one arm", "humaneval-0shot")
    assert (len(arm.columns), len(arm.rows)) == (10, 20)
    assert arm.where.startswith("Mistral-7B-v0.1 · lora: 10 columns")
    assert "20 of the 20 rows of this model and method" in arm.evidence
    few = of(defects, "holes on one arm", "alpaca_eval_v2-total")
    assert few.where == "Gemma2-9B · lora · all: 1 column (alpaca_eval_v2-total)"
    assert len(few.rows) == 4
    stub = of(defects, "stub column")
    assert stub.evidence == "Of 1,027 rows 33 have a score; 32 of these are 0."
    assert stub.treatment == "exclude score"


def test_what_fits(source: SourceTable) -> None:
    facts = passed_checks(source)
    counts = {"humaneval-0shot": 164, "mbpp_4shot": 257, "gsm8k-4shot": 1319, "math-0shot": 5000}
    for name, num_items in counts.items():
        assert any(f.startswith(f"{name}: all 1,007 values are k/{num_items:,}") for f in facts)
    for name in ("BoolQ-0shot: all 1,027 values are k/3,270", "nq-1shot: all 1,027 values are k/3"):
        assert any(fact.startswith(name) for fact in facts)
    for name, num_groups in (("mmlu-0shot", 57), ("jmmlu-0shot", 57), ("cmmlu-0shot", 67)):
        number = f"{source.values[name].notna().sum():,}"
        assert (
            f"{name}: all {number} values are plain means over {num_groups} scores of two decimals"
            in facts
        )
    assert "no two rows of one model have the same scores throughout" in facts
    assert (
        "mtbench-total: is the plain mean of its 8 parts in 934 of 1,027 rows, and the mean of all "
        "that is behind them in 1,023" in facts
    )


def test_gains_are_meaningless_where_the_base_is_of_another_kind(source: SourceTable) -> None:
    values = source.values["mmlu-5shot"]
    is_base = source.labels["method"] == "base"
    qwen = source.labels["model"] == "Qwen2.5-7B"
    assert isinstance(values, pd.Series)
    assert (values[qwen & is_base] * 5700 % 1).round(4).isin((0.0, 1.0)).all()
    assert not (values[qwen & ~is_base] * 5700 % 1).round(4).isin((0.0, 1.0)).any()
