"""The released table is read as its release and paper describe it."""

import numpy as np
import pandas as pd
import pytest

from planted_grid import RELEASED
from sft_atlas.analyze.gains import cell_gains, common_benchmarks
from sft_atlas.evidence.imported import Imported, import_results

pytestmark = pytest.mark.skipif(not RELEASED.exists(), reason="the released table is not here")


@pytest.fixture(scope="module")
def found() -> Imported:
    return import_results("massive-sft", RELEASED)


def test_the_numbers_of_models_and_scores(found: Imported) -> None:
    counts = found.counts()
    assert (counts["num_models"], counts["num_base_cells"]) == (11, 11)
    assert (counts["num_cells"], counts["num_missing_cells"]) == (1016, 14)
    assert (counts["num_benchmarks"], counts["num_scores"]) == (30, 29612)


def test_each_block_has_the_cells_that_were_planned_for_evaluated_models(found: Imported) -> None:
    tuned = found.tables.cells[found.tables.cells["method"] != "base"]
    sizes = tuned.groupby(["block", "method"]).size().to_dict()
    assert sizes == {
        ("all-10k-cosine", "full"): 110,
        ("all-10k-cosine", "lora"): 110,
        ("each-1k-constant", "full"): 300,
        ("each-1k-cosine", "full"): 110,
        ("each-1k-cosine", "lora"): 110,
        ("each-20k-constant", "full"): 270,
        ("leave-one-out-9k-cosine", "full"): 10,
        ("leave-one-out-9k-cosine", "lora"): 10,
    }
    # 1,070 planned are these and the 40 of a model that was trained and not evaluated.
    assert len(tuned) + 40 == 1070


def test_the_absent_cells_are_those_that_failed_and_three_last_epochs(found: Imported) -> None:
    cells = found.tables.cells
    absent = cells[cells["state"] == "missing"]
    keys = absent[["model", "data", "method", "epoch"]].to_numpy().tolist()
    assert sorted(map(str, keys)) == sorted(
        map(
            str,
            [["Gemma2-9B", "all", "full", epoch] for epoch in range(1, 11)]
            + [["Gemma2-9B", "magicoder", "full", 10]]
            + [[m, "lima", "full", 10] for m in ("OLMo-7B-hf", "Qwen2.5-7B", "LLM-jp-3-7B")],
        )
    )


def test_means_are_over_the_twelve_tasks_of_the_paper(found: Imported) -> None:
    scores = found.tables.scores
    names = set(scores.loc[scores["in_mean"].astype(bool), "benchmark"])
    assert len(names) == 12
    assert set(common_benchmarks(cell_gains(found.tables))) <= names
    languages = scores.drop_duplicates("benchmark").set_index("benchmark")["language"]
    assert languages.drop(["cmmlu-0shot", "jmmlu-0shot"]).unique().tolist() == ["en"]


def test_missing_scores_are_those_of_the_release(found: Imported) -> None:
    scores = found.released.scores
    done = scores[(scores["state"] == "done") & scores["score"].isna()]
    by_benchmark = done.groupby("benchmark").size()
    assert by_benchmark["LongBench-v2-0shot"] == 994
    assert by_benchmark["alpaca_eval_v2-total"] == 4
    others = by_benchmark.drop(["LongBench-v2-0shot", "alpaca_eval_v2-total"])
    assert set(others) == {20}
    assert len(others) == 10
    few_shot = done[done["benchmark"].isin(others.index)]
    assert set(few_shot["model"]) == {"Mistral-7B-v0.1"}
    assert set(few_shot["method"]) == {"lora"}


def test_released_scores_are_the_numbers_of_the_file_in_fractions(found: Imported) -> None:
    raw = pd.read_csv(RELEASED)
    scores = found.released.scores
    for name, scale in (("gsm8k-0shot", 100), ("mtbench-total", 1), ("Truthful_QA-0shot", 1)):
        have = scores.loc[(scores["benchmark"] == name) & (scores["state"] == "done"), "score"]
        np.testing.assert_allclose(np.sort(have.dropna()) * scale, np.sort(raw[name].dropna()))


def test_the_total_of_ratings_has_the_error_of_its_eight_parts(found: Imported) -> None:
    scores = found.tables.scores
    total = scores[(scores["benchmark"] == "mtbench-total") & scores["score"].notna()]
    parts = scores[scores["benchmark"].str.startswith("mtbench-") & scores["score"].notna()]
    parts = parts[parts["benchmark"] != "mtbench-total"].groupby("cell")["score"]
    expected = total["cell"].map(parts.std() / np.sqrt(8))
    np.testing.assert_allclose(total["standard_error"], expected)


def test_a_stub_column_is_left_out_and_unmixed_scores_are_possible(found: Imported) -> None:
    scores = found.tables.scores
    stub = scores[scores["benchmark"] == "LongBench-v2-0shot"]
    assert stub["score"].isna().all()
    unmixed = scores.loc[scores["benchmark"] == "mmlu-5shot", "score"].dropna()
    assert len(unmixed) == 1007
    assert 0 < unmixed.min() < unmixed.max() < 0.71


def test_gains_of_copied_base_rows_are_not_formed(found: Imported) -> None:
    scores = found.tables.scores
    copied = scores[scores["model"].isin(["Chinese-Mistral-7B-v0.1", "Mistral-7B-v0.1"])]
    assert copied["gain"].notna().mean() < 0.05
    fine = scores[scores["model"].isin(["Qwen2.5-7B", "Meta-Llama-3-8B", "Yi-1.5-9B"])]
    fine = fine[fine["score"].notna()]
    assert fine["gain"].notna().all()
