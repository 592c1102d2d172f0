"""LoRA against full: planted differences come out, absent ones do not, and no base row matters."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from analyze.planted import World, make_tables
from planted_grid import Labels, grid_rows, grid_tables
from sft_atlas.analyze.findings import Finding
from sft_atlas.analyze.method_differences import FINAL, KEPT
from sft_atlas.analyze.questions.answered import Answered
from sft_atlas.analyze.questions.methods import QUESTION, REVERSALS, methods_compared
from sft_atlas.evidence.tidy import tidy_tables
from sft_atlas.statistics.multiplicity import holm

SKILLS = ("math", "math", "code", "knowledge")


def scores(
    shift: list[float], *, num_models: int = 5, num_datasets: int = 6, noise: float = 0.01
) -> np.ndarray:
    """LoRA (second method) scores `shift` more on each benchmark."""
    rng = np.random.default_rng(7)
    shape = (num_models, num_datasets, len(shift), 2)
    effects = 0.5 + 0.05 * rng.normal(size=(num_models, num_datasets, len(shift), 1))
    values = effects + noise * rng.normal(size=shape)
    values[..., 1] += np.array(shift)
    return values


def tables(values: np.ndarray, **labels: object) -> object:
    base = np.full((values.shape[0], values.shape[2]), 0.4)
    names = Labels(methods=("full", "lora"), skills=SKILLS[: values.shape[2]], num_items=5000)
    return grid_tables(values, base, replace(names, **labels))  # type: ignore[arg-type]


def rows(answer: Answered, level: str, used: str = FINAL) -> pd.DataFrame:
    table = answer.tables["method_differences"]
    chosen = table[(table["level"] == level) & (table["epochs_used"] == used)]
    return chosen.set_index("benchmark" if level == "benchmark" else "skill")


def only(findings: tuple[Finding, ...], question: str) -> Finding:
    (found,) = (finding for finding in findings if finding.question == question)
    return found


def test_planted_differences_are_found_and_an_absent_one_is_equivalent() -> None:
    answer = methods_compared(tables(scores([0.05, -0.04, 0.0, 0.0], noise=0.005)))
    found = rows(answer, "benchmark")
    assert found.loc["b0", "difference"] == pytest.approx(0.05, abs=0.005)
    assert found.loc["b1", "difference"] == pytest.approx(-0.04, abs=0.005)
    assert found["verdict"].tolist() == ["different", "different", "equivalent", "equivalent"]
    assert (found["low"] < found["difference"]).all() and (found["p_adjusted"] >= 0).all()
    text = only(answer.findings, QUESTION).statement
    assert "By benchmark: lora is ahead on b0 +5" in text
    assert "full is ahead on b1 \N{MINUS SIGN}" in text
    assert text.endswith("equivalent within 1 point on b2, b3.")


def test_the_margin_and_the_number_of_tests_decide_what_counts_as_equivalent() -> None:
    values = scores([0.0, 0.0, 0.0, 0.0], noise=0.02)
    strict = methods_compared(tables(values), margin=0.0005)
    assert set(rows(strict, "benchmark")["verdict"]) == {"cannot tell"}
    assert "On none of 4 benchmarks can the data tell." in only(strict.findings, QUESTION).statement
    wide = rows(methods_compared(tables(values), margin=0.05), "benchmark")
    assert set(wide["verdict"]) == {"equivalent"}
    assert (wide["p_equivalence_adjusted"] >= wide["p_equivalence"]).all()


def test_base_rows_change_no_difference() -> None:
    values = scores([0.03, 0.0, 0.01, 0.0])
    right = methods_compared(tables(values)).tables["method_differences"]
    base = np.full((5, 4), np.nan)
    names = Labels(methods=("full", "lora"), skills=SKILLS, num_items=5000)
    wrong = methods_compared(grid_tables(values, base, names)).tables["method_differences"]
    pd.testing.assert_frame_equal(right, wrong)


def test_averages_are_over_skills_and_all_benchmarks() -> None:
    answer = methods_compared(tables(scores([0.04, 0.0, -0.02, 0.0])))
    single = rows(answer, "benchmark")["difference"]
    skills = rows(answer, "skill")["difference"]
    assert skills["math"] == pytest.approx(single[["b0", "b1"]].mean())
    assert skills["code"] == pytest.approx(single["b2"])
    average = rows(answer, "average").iloc[0]
    assert average["difference"] == pytest.approx(single.mean())
    assert only(answer.findings, QUESTION).estimate == pytest.approx(single.mean())


def test_a_cell_without_a_partner_or_a_score_is_no_pair() -> None:
    values = scores([0.02, 0.02, 0.02, 0.02])
    values[0, 0, 0, 1] = np.nan
    values[1, 1, :, 0] = np.nan
    answer = methods_compared(tables(values))
    assert rows(answer, "benchmark")["num_pairs"].sort_index().tolist() == [28, 29, 29, 29]
    # A mean needs all of its benchmarks.
    assert rows(answer, "average")["num_pairs"].tolist() == [28]


def test_no_pair_with_all_benchmarks_leaves_the_single_ones() -> None:
    values = scores([0.05, 0.05], num_models=6)
    values[:3, :, 0] = np.nan
    values[3:, :, 1] = np.nan
    finding = only(methods_compared(tables(values)).findings, QUESTION)
    assert finding.estimate is None and finding.interval is None
    assert finding.reason == "no pair has all of these benchmarks"
    assert "lora minus full: no pair of runs has all benchmarks. By benchmark: lora is ahead" in (
        finding.statement
    )


def test_epochs_of_a_run_count_as_one_pair() -> None:
    values = np.repeat(scores([0.02, 0.0, 0.0, 0.0])[..., None], 3, axis=4)
    values[:, :, 0, 1, 2] += 0.03
    answer = methods_compared(tables(values, epochs=(1, 5, 10)))
    final, kept = rows(answer, "benchmark"), rows(answer, "benchmark", KEPT)
    assert final["num_pairs"].tolist() == kept["num_pairs"].tolist() == [30] * 4
    assert (final["num_rows"].iloc[0], kept["num_rows"].iloc[0]) == (30, 90)
    gap = final.loc["b0", "difference"] - kept.loc["b0", "difference"]
    assert gap == pytest.approx(0.02)
    assert len([f for f in answer.findings if f.question == QUESTION]) == 2


def merged(values: np.ndarray, labels: Labels) -> pd.DataFrame:
    """Rows of one run per model on all data; `values` is (model, 1, benchmark, method)."""
    found = grid_rows(values, np.full((values.shape[0], values.shape[2]), 0.4), labels)
    is_run = found["method"] != "base"
    return found[is_run].assign(data="all", data_kind="all", samples=6000, block="all")


def test_a_leader_that_changes_with_merged_data_is_named() -> None:
    names = Labels(methods=("full", "lora"), skills=SKILLS, num_items=20_000)
    single = scores([0.05, 0.0, 0.03, 0.0], num_models=8, noise=0.004)
    whole = scores([-0.05, 0.0, 0.03, 0.0], num_models=8, num_datasets=1, noise=0.004)
    both = pd.concat(
        [grid_rows(single, np.full((8, 4), 0.4), names), merged(whole, names)], ignore_index=True
    )
    answer = methods_compared(tidy_tables(both))
    changes = answer.tables["method_reversals"].set_index("benchmark")
    assert changes["is_reversed"].to_dict() == {"b0": True, "b1": False, "b2": False, "b3": False}
    assert changes.loc["b0", "change"] == pytest.approx(-0.1, abs=0.01)
    assert changes.loc["b0", "p_adjusted"] < 0.05 < changes.loc["b2", "p_adjusted"]
    text = only(answer.findings, REVERSALS).statement
    assert "The leader changes on b0." in text
    assert text.endswith("Amount of data and kind of data change together here.")
    order = answer.tables["method_differences"]["data_kind"].unique()
    assert order.tolist() == ["each", "all"]


def test_nothing_is_found_where_nothing_is() -> None:
    rng = np.random.default_rng(3)
    frames = []
    num_studies = 30
    for number in range(num_studies):
        values = 0.5 + 0.02 * rng.normal(size=(4, 4, 4, 2))
        # The models differ in how LoRA suits them: the rows are not independent.
        values[..., 1] += 0.02 * rng.normal(size=(4, 1, 4))
        names = Labels(methods=("full", "lora"), samples=100 + number, num_items=5000)
        found = grid_rows(values, np.full((4, 4), 0.4), names)
        frames.append(found[found["method"] != "base"] if number else found)
    answer = methods_compared(tidy_tables(pd.concat(frames, ignore_index=True)))
    least = rows(answer, "benchmark").groupby("setting")["p_adjusted"].min()
    assert len(least) == num_studies
    assert (least <= 0.05).sum() <= 5  # 30 x 0.05 and three binomial errors


@pytest.mark.parametrize(
    ("num_models", "num_datasets", "bounded"), [(1, 1, False), (1, 4, True), (4, 1, True)]
)
def test_few_models_or_datasets(num_models: int, num_datasets: int, bounded: bool) -> None:
    values = scores([0.02, 0.0], num_models=num_models, num_datasets=num_datasets)
    answer = methods_compared(tables(values))
    found = rows(answer, "benchmark")
    assert found["low"].notna().all() == bounded
    finding = only(answer.findings, QUESTION)
    assert (finding.interval is not None) == bounded
    assert bool(finding.reason) != bounded
    if not bounded:
        assert set(found["reason"]) == {"one model and one dataset: nothing can be resampled"}
    assert ("One model: this says nothing about another." in finding.statement) == (num_models == 1)


def test_constant_scores_are_equivalent_by_their_items_alone() -> None:
    answer = methods_compared(tables(np.full((4, 4, 2, 2), 0.5)))
    found = rows(answer, "benchmark")
    assert found["difference"].tolist() == [0.0, 0.0]
    assert found["p_rows"].isna().all()
    assert (found["high"] > 0).all()


def test_one_method_alone_is_not_estimable() -> None:
    answer = methods_compared(grid_tables(np.full((2, 3, 2), 0.5), np.full((2, 2), 0.4)))
    (finding,) = answer.findings
    assert finding.estimate is None and finding.interval is None
    assert finding.statement == (
        "Not estimable: no two cells differ in the method alone, one full and one LoRA."
    )
    assert answer.tables["method_differences"].empty


def test_a_study_without_any_result_is_not_estimable() -> None:
    world = make_tables(World(num_models=2, num_datasets=2, num_failed=8))
    answer = methods_compared(world)
    assert only(answer.findings, QUESTION).estimate is None


def test_divergence_and_steps_are_compared_on_the_same_pairs() -> None:
    answer = methods_compared(make_tables(World(lora=-0.02)))
    traces = answer.tables["method_traces"].set_index("quantity")
    # The planted divergence of LoRA is three tenths of that of full fine-tuning.
    assert traces.loc["divergence", "factor"] == pytest.approx(0.3, rel=0.1)
    assert traces.loc["divergence", "low"] < 0.3 < traces.loc["divergence", "high"]
    assert traces.loc["steps", "factor"] == 1.0
    text = answer.findings[-1].statement
    assert "times the divergence from the base model on neutral text" in text
    assert "Seconds and memory are not in the tables" in text


def test_the_answer_is_the_same_twice() -> None:
    values = scores([0.02, 0.0, 0.0, 0.01])
    first, second = (methods_compared(tables(values)) for _ in range(2))
    assert first.findings == second.findings


def test_adjusted_tests_over_benchmarks_take_the_fewest_degrees_of_freedom() -> None:
    # Satterthwaite's are more here, and would claim too much in the far tail.
    found = rows(methods_compared(tables(scores([0.02] * 4, num_models=3))), "benchmark")
    assert (found["degrees_of_freedom"] > 2).any()
    ratio = found["difference"].abs() / found["standard_error"]
    expected = holm(2 * scipy.stats.t.sf(ratio, 2))
    np.testing.assert_allclose(found["p_adjusted"], expected)
