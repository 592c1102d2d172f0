"""Synergies that were planted are found, those of one model are not, and nothing is in noise."""

from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from planted_grid import Labels, grid_tables
from sft_atlas.analyze.questions.answered import Answered
from sft_atlas.analyze.questions.synergies import synergies
from sft_atlas.store.tables import Tables


def world(
    *,
    num_models: int = 8,
    num_datasets: int = 6,
    num_benchmarks: int = 5,
    pair: float = 0.0,
    own: float = 0.03,
    noise: float = 0.01,
    methods: tuple[str, ...] = ("full", "lora"),
    seed: int = 0,
) -> Tables:
    """Scores with `pair` added for dataset 1 on benchmark 2; `own` is one model's own deviation."""
    rng = np.random.default_rng(seed)
    shape = (num_models, num_datasets, num_benchmarks)
    base = rng.uniform(0.2, 0.6, size=(num_models, num_benchmarks))
    effect = 0.05 * rng.normal(size=(num_datasets, 1)) + own * rng.normal(size=shape)
    effect[:, 1:2, 2:3] += pair
    scores = base[:, None, :] + effect
    spread = scores[..., None] + noise * rng.normal(size=(*shape, len(methods)))
    return grid_tables(spread, base, Labels(methods=methods))


def lasting(answer: Answered) -> set[tuple[str, str]]:
    table = answer.tables["synergies"]
    found = table[table["persists"].astype(bool)]
    return set(zip(found["data"], found["benchmark"], strict=True))


def share(answer: Answered, table: str, source: str) -> float:
    rows = answer.tables[table].set_index("source")
    return float(rows.loc[source, "share"])


def test_a_planted_synergy_is_found_with_its_size() -> None:
    answer = synergies(world(pair=0.15), num_resamples=100)
    assert ("d1", "b2") in lasting(answer)
    # What is above the mean of its benchmark puts the benchmark's other datasets below it.
    assert all(data == "d1" or benchmark == "b2" for data, benchmark in lasting(answer))
    row = answer.tables["synergies"].iloc[0]
    assert (row["data"], row["benchmark"]) == ("d1", "b2")
    # Beyond the dataset's and the benchmark's means: 0.15 x (1 - 1/6) x (1 - 1/5).
    assert row["unshrunk"] == pytest.approx(0.1, abs=0.02)
    assert 0.06 < row["effect"] < row["unshrunk"]
    assert row["low"] > 0
    assert (row["num_models"], row["num_same_sign"]) == (8, 8)
    assert row["false_sign_rate"] == row["p_value"] / 2 < 1e-5
    assert answer.findings[2].statement.startswith(
        f"{len(lasting(answer))} of 30 pairs of dataset and benchmark have an effect that holds "
        "over models, beyond what the dataset does on average. Largest, in points: d1 on b2 +"
    )


def test_an_effect_of_one_model_alone_does_not_persist() -> None:
    tables = world(own=0.005, noise=0.002)
    jump = (tables.scores["model"] == "m3") & (tables.scores["data"] == "d1")
    jump &= tables.scores["benchmark"] == "b2"
    tables.scores.loc[jump, "score"] += 0.3
    answer = synergies(tables, num_resamples=100)
    assert lasting(answer) == set()
    table = answer.tables["synergies"].set_index(["data", "benchmark"])
    assert table.loc[("d1", "b2"), "strongest_model"] == "m3"


def test_false_discoveries_are_held_where_there_are_no_synergies() -> None:
    false = [len(lasting(synergies(world(seed=seed), num_resamples=20))) for seed in range(6)]
    # At 5 %, more than 2 of 6 worlds hold any in fewer than 1 % of repetitions.
    assert sum(count > 0 for count in false) <= 2


@pytest.mark.slow
def test_false_discoveries_are_held_in_many_worlds() -> None:
    false = [len(lasting(synergies(world(seed=seed), num_resamples=10))) for seed in range(300)]
    assert np.mean([count > 0 for count in false]) <= 0.06


@pytest.mark.slow
def test_intervals_of_effects_cover_the_truth() -> None:
    hits = []
    for seed in range(100):
        rng = np.random.default_rng([seed, 5])
        shared = 0.04 * rng.normal(size=(6, 5)) + 0.05 * rng.normal(size=(6, 1))
        base = rng.uniform(0.3, 0.5, size=(8, 5))
        scores = base[:, None, :] + shared + 0.03 * rng.normal(size=(8, 6, 5))
        tables = grid_tables(
            scores[..., None] + 0.01 * rng.normal(size=(8, 6, 5, 2)),
            base,
            Labels(methods=("full", "lora")),
        )
        table = synergies(tables, num_resamples=10).tables["synergies"]
        wide = table.assign(scale=table["effect"] / table["effect_sd"]).pivot(
            index="data", columns="benchmark", values=["low", "high", "scale"]
        )
        scale = wide["scale"].to_numpy()
        # Effects are centred in standard deviations of the benchmark.
        truth = shared / scale
        truth = truth - truth.mean(axis=0) - truth.mean(axis=1, keepdims=True) + truth.mean()
        low, high = wide["low"].to_numpy(), wide["high"].to_numpy()
        hits.append((low <= truth * scale) & (truth * scale <= high))
    assert 0.93 <= np.mean(hits) <= 0.97


def test_shares_are_those_that_were_planted() -> None:
    tables = world(num_models=12, num_datasets=10, num_benchmarks=8, own=0.04, noise=0.02)
    answer = synergies(tables, num_resamples=100)
    rows = answer.tables["data_shares"].set_index("source")
    total = 0.05**2 + 0.04**2 + 0.02**2
    for source, planted in (("model:data:benchmark", 0.04**2), ("residual", 0.02**2)):
        row = rows.loc[source]
        assert row["low"] <= planted / total <= row["high"]
    assert rows["share"].sum() == pytest.approx(1)
    assert share(answer, "data_shares", "data:benchmark") < 0.02
    whole = answer.tables["variance_shares"]
    assert set(whole["outcome"]) == {"gain"}
    assert whole["share"].sum() == pytest.approx(1)
    assert (
        (whole["low"] <= whole["share"] + 1e-9) & (whole["share"] <= whole["high"] + 1e-9)
    ).all()


def test_base_models_change_nothing_but_the_shares_that_name_models() -> None:
    tables = world(pair=0.1)
    wrong = tables.scores.copy()
    is_one = wrong["model"] == "m2"
    wrong.loc[is_one, ["base_score", "gain"]] = np.nan
    wrong.loc[is_one & (wrong["method"] == "base"), "score"] = np.nan
    changed = Tables(
        cells=tables.cells,
        scores=wrong,
        drift=tables.drift,
        datasets=tables.datasets,
        curves=tables.curves,
    )
    before, after = (synergies(one, num_resamples=50) for one in (tables, changed))
    for name in ("synergies", "data_shares"):
        pd.testing.assert_frame_equal(before.tables[name], after.tables[name])
    rows = [one.tables["variance_shares"]["num_rows"].iloc[0] for one in (before, after)]
    assert rows == [480, 420]


def test_without_a_second_run_the_models_own_part_is_not_told_from_noise() -> None:
    answer = synergies(world(pair=0.15, methods=("full",)), num_resamples=50)
    rows = answer.tables["variance_shares"].set_index("source")
    assert rows.loc["model:data:benchmark", "reason"] == (
        "each level has one row: it cannot be told apart from the residual"
    )
    assert pd.isna(rows.loc["model:data:benchmark", "share"])
    assert answer.findings[0].statement.endswith(
        "No model, dataset and benchmark has a second recipe or seed: what is one model's own on "
        "one benchmark and the noise of a single run cannot be told apart."
    )
    assert ("d1", "b2") in lasting(answer)


def test_epochs_are_no_replicates() -> None:
    rng = np.random.default_rng(0)
    scores = rng.uniform(0.3, 0.6, size=(4, 3, 4, 1, 3))
    base = rng.uniform(0.2, 0.4, size=(4, 4))
    answer = synergies(grid_tables(scores, base, Labels(epochs=(1, 2, 3))), num_resamples=20)
    assert answer.tables["variance_shares"]["num_rows"].iloc[0] == 48


def test_tables_of_an_own_study_are_answered(planted: ModuleType) -> None:
    answer = synergies(planted.make_tables(), num_resamples=50)
    own = {("knowledge-set", "knowledge-test"), ("math-set", "math-test")}
    assert own <= lasting(answer)
    assert all(finding.estimate is not None for finding in answer.findings)


@pytest.mark.parametrize(
    ("tables", "reasons"),
    [
        (
            grid_tables(np.full((3, 4, 2), np.nan), np.full((3, 2), 0.1)),
            ["no benchmark's scores differ between the datasets of a model"] * 3,
        ),
        (
            grid_tables(np.full((3, 4, 2), 0.5), np.full((3, 2), 0.1)),
            ["no benchmark's scores differ between the datasets of a model"] * 3,
        ),
        (
            world(num_datasets=1),
            ["no benchmark's scores differ between the datasets of a model"] * 3,
        ),
        (
            world(num_models=1),
            ["", "there is one model only", "1 model cannot show what holds over more"],
        ),
        (world(num_models=2), ["", "", "2 models cannot show what holds over more"]),
        (world(num_benchmarks=1), ["", "", "its groups are those of data"]),
    ],
    ids=["nothing scored", "constant", "one dataset", "one model", "two models", "one benchmark"],
)
def test_what_cannot_be_told_has_a_reason(tables: Tables, reasons: list[str]) -> None:
    answer = synergies(tables, num_resamples=20)
    assert [finding.reason for finding in answer.findings] == reasons
    for finding in answer.findings:
        assert (finding.estimate is None) == bool(finding.reason)
        assert "nan" not in finding.statement.lower()
        if finding.reason:
            assert finding.statement == f"Not estimable: {finding.reason}."


def test_empty_tables_have_their_columns() -> None:
    full = world()
    empty = Tables(
        cells=full.cells.iloc[:0],
        scores=full.scores.iloc[:0],
        drift=full.drift,
        datasets=full.datasets,
        curves=full.curves,
    )
    answer = synergies(empty)
    assert {name: len(table) for name, table in answer.tables.items()} == {
        "variance_shares": 0,
        "data_shares": 0,
        "synergies": 0,
    }
    assert "persists" in answer.tables["synergies"]
    assert all(finding.reason for finding in answer.findings)


def test_same_seed_gives_the_same_answer() -> None:
    first, second = (synergies(world(), num_resamples=30, seed=4) for _ in range(2))
    for name, table in first.tables.items():
        pd.testing.assert_frame_equal(table, second.tables[name])
