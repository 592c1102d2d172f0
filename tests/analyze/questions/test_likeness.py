"""Likeness follows planted groups and nothing else, and agrees with plain correlation and PCA."""

from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from sklearn.decomposition import PCA

from planted_grid import Labels, grid_tables
from sft_atlas.analyze.pair_correlations import label_test, pair_correlations
from sft_atlas.analyze.profiles import mean_effects, profiles, single_runs
from sft_atlas.analyze.questions.components import component_shares
from sft_atlas.analyze.questions.likeness import likeness
from sft_atlas.store.tables import Tables

FAMILIES = ("f", "f", "g", "g", "h", "h", "i", "j")
NOUNS = ("model", "dataset", "benchmark")
LANGUAGES = ("en", "zh;en", "en", "ja", "zh;en", "en", "ja", "zh")


def world(
    *, family: float = 0.0, noise: float = 0.02, seed: int = 0, num_models: int = 8
) -> Tables:
    """Models share an answer to data; those of a family share one more, `family` strong."""
    rng = np.random.default_rng(seed)
    shared = 0.05 * rng.normal(size=(1, 6, 5))
    kin = {name: family * rng.normal(size=(6, 5)) for name in dict.fromkeys(FAMILIES)}
    own = noise * rng.normal(size=(num_models, 6, 5))
    base = rng.uniform(0.2, 0.5, size=(num_models, 5))
    effect = shared + own + np.array([kin[name] for name in FAMILIES[:num_models]])
    labels = Labels(
        families=FAMILIES[:num_models],
        languages=LANGUAGES[:num_models],
        data_groups=("code", "code", "math", "math", "general", ""),
        skills=("code", "math", "math", "general", ""),
    )
    return grid_tables(0.3 + base[:, None, :] + effect, base, labels)


def label(tables: Tables, kind: str, name: str) -> pd.Series:
    rows = likeness(tables, num_resamples=200).tables["likeness_labels"]
    return rows[(rows["kind"] == kind) & (rows["label"] == name)].iloc[0]


def test_correlations_are_those_of_centred_and_scaled_scores() -> None:
    tables = world(family=0.03)
    scores = tables.scores[tables.scores["method"] != "base"]
    wide = scores.pivot_table(index="model", columns=["benchmark", "data"], values="score")
    wide = wide.T.groupby(level="benchmark").transform(lambda part: part - part.mean()).T
    spread = np.sqrt((wide**2).T.groupby(level="benchmark").mean().mean(axis=1))
    scaled = wide / spread.reindex(wide.columns.get_level_values("benchmark")).to_numpy()
    expected = np.corrcoef(scaled.to_numpy())
    table = likeness(tables, num_resamples=10).tables["model_likeness"]
    found = table.pivot(index="first", columns="second", values="correlation")
    np.testing.assert_allclose(found.loc[wide.index, wide.index], expected, atol=1e-10)


def test_components_are_those_of_scikit_learn() -> None:
    values = profiles(single_runs(world(family=0.03))).values
    found = component_shares(values, num_resamples=10)
    assert found is not None
    matrix = values.reshape(values.shape[0], -1).T
    expected = PCA().fit(matrix).explained_variance_ratio_.cumsum()
    np.testing.assert_allclose(found.cumulative, expected, atol=1e-10)
    assert found.num_needed == int((expected < 0.9).sum()) + 1


def test_a_family_that_answers_alike_is_found() -> None:
    row = label(world(family=0.05), "model", "family")
    assert row["same"] > row["different"] + 0.2
    assert row["low"] > 0
    assert row["p_adjusted"] <= 0.05
    assert (row["num_same"], row["num_different"]) == (3, 25)


def test_a_language_that_does_not_matter_is_not_found() -> None:
    row = label(world(family=0.05), "model", "language")
    # Only the first of several languages counts: en, zh, en, ja, zh, en, ja, zh.
    assert row["num_same"] == 7
    assert row["p_value"] > 0.05


@pytest.mark.slow
def test_labels_without_meaning_are_found_as_often_as_the_level_says() -> None:
    p_values = [
        row["p_value"]
        for seed in range(150)
        for _, row in likeness(world(seed=seed), num_resamples=10)
        .tables["likeness_labels"]
        .query("kind == 'model'")
        .iterrows()
    ]
    assert 0.01 <= np.mean(np.array(p_values) <= 0.05) <= 0.09


def test_benchmarks_and_datasets_know_their_groups() -> None:
    tables = likeness(world(), num_resamples=10).tables
    data = tables["data_likeness"].set_index(["first", "second"])
    assert bool(data.loc[("d0", "d1"), "same_group"])
    assert not bool(data.loc[("d0", "d2"), "same_group"])
    assert pd.isna(data.loc[("d0", "d5"), "same_group"])
    tests = tables["benchmark_likeness"].set_index(["first", "second"])
    assert bool(tests.loc[("b1", "b2"), "same_skill"])
    assert bool(tests.loc[("b0", "b3"), "same_language"])


def test_alike_models_stand_side_by_side() -> None:
    table = likeness(world(family=0.15), num_resamples=10).tables["model_likeness"]
    places = table.drop_duplicates("first").set_index("first")["first_order"]
    assert sorted(places) == list(range(8))
    assert abs(places["m0"] - places["m1"]) == 1
    assert abs(places["m2"] - places["m3"]) == 1


def test_wrong_base_scores_change_nothing() -> None:
    tables = world()
    wrong = tables.scores.assign(base_score=np.nan, gain=np.nan)
    changed = Tables(
        cells=tables.cells,
        scores=wrong,
        drift=tables.drift,
        datasets=tables.datasets,
        curves=tables.curves,
    )
    before, after = (likeness(one, num_resamples=20) for one in (tables, changed))
    for name in ("model_likeness", "data_likeness", "benchmark_likeness", "components"):
        pd.testing.assert_frame_equal(before.tables[name], after.tables[name])


def test_a_model_with_a_hole_is_left_out_and_named() -> None:
    tables = world()
    hole = (tables.scores["model"] == "m2") & (tables.scores["data"] == "d1")
    tables.scores.loc[hole, "score"] = np.nan
    answer = likeness(tables, num_resamples=20)
    assert "m2" not in set(answer.tables["model_likeness"]["first"])
    assert answer.findings[0].method.endswith("Left out: m2 (lacks 5 scores).")
    assert answer.tables["components"]["num_models"].iloc[0] == 7


def test_a_benchmark_that_nobody_was_scored_on_is_left_out() -> None:
    tables = world()
    tables.scores.loc[tables.scores["benchmark"] == "b3", "score"] = np.nan
    answer = likeness(tables, num_resamples=20)
    assert set(answer.tables["benchmark_likeness"]["first"]) == {"b0", "b1", "b2", "b4"}
    assert answer.tables["model_likeness"]["first"].nunique() == 8


def test_mean_effects_average_over_models_and_then_benchmarks() -> None:
    tables = world()
    table = mean_effects(tables).set_index(["data", "benchmark"])
    scores = tables.scores[tables.scores["method"] != "base"]
    means = scores.groupby(["data", "benchmark"])["score"].mean().unstack()
    expected = means - means.mean()
    assert table.loc[("d1", "b2"), "effect"] == pytest.approx(expected.loc["d1", "b2"])
    assert table.loc[("d1", ""), "effect"] == pytest.approx(expected.loc["d1"].mean())
    gains = scores.groupby(["data", "benchmark"])["gain"].mean()
    assert table.loc[("d1", "b2"), "gain"] == pytest.approx(gains["d1", "b2"])
    assert table.loc[("d1", ""), "num_gains"] == 8


def test_tables_of_an_own_study_are_answered(planted: ModuleType) -> None:
    answer = likeness(planted.make_tables(), num_resamples=50)
    assert set(answer.tables["components"]["method"]) == {"full", "lora"}
    statements = [finding.statement for finding in answer.findings]
    assert len(statements) == len(set(statements))
    assert not any("nan" in text.lower() for text in statements)


@pytest.mark.parametrize(
    ("tables", "reasons"),
    [
        (
            grid_tables(np.full((3, 4, 2), np.nan), np.full((3, 2), 0.1)),
            ["there are no final scores of runs on one dataset"] * 3,
        ),
        (
            grid_tables(np.full((3, 4, 2), 0.5), np.full((3, 2), 0.1)),
            [
                *(f"there is no pair of {noun}s whose scores vary" for noun in NOUNS),
                "no label is shared by some of the compared things and not by others",
                "the scores do not vary between datasets",
            ],
        ),
        (
            world(num_models=1),
            ["fewer than two models have all scores", "fewer than two models have all scores"],
        ),
    ],
    ids=["nothing scored", "constant", "one model"],
)
def test_what_cannot_be_told_has_a_reason(tables: Tables, reasons: list[str]) -> None:
    answer = likeness(tables, num_resamples=20)
    assert [finding.reason for finding in answer.findings if finding.reason] == reasons
    for finding in answer.findings:
        assert (finding.estimate is None) == bool(finding.reason)
        assert "nan" not in finding.statement.lower()


def test_empty_tables_have_their_columns() -> None:
    full = world()
    empty = Tables(
        cells=full.cells.iloc[:0],
        scores=full.scores.iloc[:0],
        drift=full.drift,
        datasets=full.datasets,
        curves=full.curves,
    )
    answer = likeness(empty)
    assert all(table.empty for table in answer.tables.values())
    assert {"first", "second", "correlation", "same_family"} <= set(answer.tables["model_likeness"])
    assert [finding.statement for finding in answer.findings] == [
        "Not estimable: there are no final scores of runs on one dataset."
    ] * 3


def test_same_seed_gives_the_same_answer() -> None:
    first, second = (likeness(world(), num_resamples=30, seed=4) for _ in range(2))
    for name, table in first.tables.items():
        pd.testing.assert_frame_equal(table, second.tables[name])


@pytest.mark.parametrize("shape", [(0, 3, 2), (2, 0, 2), (2, 3, 0)], ids=str)
def test_where_holes_leave_nothing_nothing_is_compared(shape: tuple[int, int, int]) -> None:
    found = pair_correlations(np.zeros(shape), np.ones((5, shape[1])))
    assert found.mean is None and np.isnan(found.estimates).all()
    assert label_test(found.estimates, [""] * shape[0]) is None
