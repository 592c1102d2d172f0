"""What a dataset gives to the mixture: planted gifts come out, and limits are said."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from planted_grid import Labels, grid_rows, grid_tables
from sft_atlas.analyze.findings import Finding
from sft_atlas.analyze.questions.left_out import AGREEMENT, QUESTION, left_out, left_out_pairs
from sft_atlas.evidence.tidy import tidy_tables
from sft_atlas.store.tables import Tables

GIFTS = np.array([0.06, 0.0, -0.04, 0.0, 0.01])


def study(
    *,
    num_models: int = 1,
    gifts: np.ndarray = GIFTS,
    noise: float = 0.002,
    num_items: int | None = 5000,
    methods: tuple[str, ...] = ("full",),
    name: str = "without-{}",
) -> Tables:
    """All of the datasets, and all but one; the second benchmark gets half of each gift."""
    rng = np.random.default_rng(11)
    size = (num_models, len(gifts), 2, len(methods))
    share = np.array([1.0, 0.5])[:, None]
    without = 0.5 - gifts[None, :, None, None] * share + noise * rng.normal(size=size)
    whole = 0.5 + noise * rng.normal(size=(num_models, 1, 2, len(methods)))
    labels = Labels(methods=methods, num_items=num_items, skills=("math", "code"))
    base = np.full((num_models, 2), 0.3)
    part = grid_rows(without, base, labels)
    is_run = part["method"] != "base"
    names = [name.format(data) for data in part["data"]]
    part = part.assign(
        data=np.where(is_run, names, part["data"]),
        data_kind=np.where(is_run, "leave-one-out", "base"),
        samples=np.where(is_run, 4000, None),
    )
    merged = grid_rows(whole, base, labels)
    merged = merged[merged["method"] != "base"]
    merged = merged.assign(data="all", data_kind="all", samples=5000)
    return tidy_tables(pd.concat([part, merged], ignore_index=True))


def means(tables: Tables) -> pd.DataFrame:
    table = left_out(tables).tables["left_out"]
    return table[table["benchmark"] == ""].set_index("dataset")


def finding(tables: Tables, question: str = QUESTION) -> Finding:
    return next(found for found in left_out(tables).findings if found.question == question)


@pytest.mark.parametrize("name", ["without-{}", "all-but-{}"])
def test_planted_gifts_are_found_with_one_model(name: str) -> None:
    found = means(study(name=name))
    assert found["difference"].to_numpy() == pytest.approx(0.75 * GIFTS, abs=0.004)
    assert (found["unit"] == "items").all()
    assert list(found.index[found["p_adjusted"] <= 0.05]) == ["d0", "d2"]
    # One percentage point is less than the items can tell.
    assert ((found["low"] < 0.75 * GIFTS) & (found["high"] > 0.75 * GIFTS)).all()


def test_the_sentence_names_most_and_least_and_what_cannot_be_told_apart() -> None:
    answer = finding(study())
    assert answer.statement.startswith(
        "full: datasets that clearly raise the mean over benchmarks by being in the mixture: "
        "1 of 5; that clearly lower it: 1. Most: d0 +4."
    )
    assert "least: d2 \N{MINUS SIGN}" in answer.statement
    clear = (
        "2 clear effects on single benchmarks; largest: d0 on b0 +6.3, d2 on b0 \N{MINUS SIGN}3.6"
    )
    assert clear in answer.statement
    assert answer.statement.endswith(
        "The run with all data has 5,000 samples, the others 4,000: what a dataset gives and what "
        "more samples give cannot be told apart. One model and one run each: the intervals know "
        "the items alone, not another model nor the luck of a run."
    )
    assert answer.estimate is not None and answer.is_clear


def test_several_models_are_what_the_interval_resamples() -> None:
    tables = study(num_models=6, noise=0.02)
    found = means(tables)
    assert (found["unit"] == "models").all() and (found["num_models"] == 6).all()
    pairs = left_out_pairs(tables)
    first = pairs[pairs["dataset"] == "d0"].groupby("model")["difference"].mean()
    assert found.loc["d0", "difference"] == pytest.approx(first.mean())
    error = first.std(ddof=1) / np.sqrt(6)
    assert found.loc["d0", "standard_error"] == pytest.approx(error)
    assert "One model" not in finding(tables).statement


def test_relative_gifts_do_not_depend_on_the_one_run_on_all_data() -> None:
    tables = study()
    lucky = tables.scores["score"] + 0.1 * (tables.scores["data"] == "all")
    other = Tables(
        cells=tables.cells,
        scores=tables.scores.assign(score=lucky),
        drift=tables.drift,
        datasets=tables.datasets,
        curves=tables.curves,
    )
    one, two = means(tables), means(other)
    assert two["difference"].to_numpy() == pytest.approx(one["difference"].to_numpy() + 0.1)
    assert two["relative"].to_numpy() == pytest.approx(one["relative"].to_numpy())


def test_two_methods_tell_what_is_more_than_the_luck_of_a_run() -> None:
    planted = finding(study(methods=("full", "lora")), AGREEMENT)
    assert planted.estimate is not None and planted.estimate > 0.95
    luck = finding(study(methods=("full", "lora"), gifts=np.zeros(5), noise=0.02), AGREEMENT)
    assert luck.estimate is not None and luck.estimate < 0.8
    assert luck.interval is None and luck.reason


def test_a_pair_needs_equal_choices_and_at_least_as_many_samples() -> None:
    tables = study()
    fewer = tables.cells["data"].eq("all").map({True: 3000, False: 4000})
    cells = tables.cells.assign(num_samples=fewer.astype("Int64"))
    shrunk = Tables(
        cells=cells,
        scores=tables.scores,
        drift=tables.drift,
        datasets=tables.datasets,
        curves=tables.curves,
    )
    assert left_out_pairs(shrunk).empty


def test_unknown_item_errors_give_no_interval_with_one_model() -> None:
    tables = study(num_items=None)
    assert set(means(tables)["reason"]) == {"the error over items is not known"}
    answer = finding(tables)
    assert answer.interval is None and answer.reason == "the error over items is not known"
    assert means(study(num_items=None, num_models=3))["low"].notna().all()


def test_no_such_run_is_not_estimable() -> None:
    answer = left_out(grid_tables(np.full((2, 3, 2), 0.5), np.full((2, 2), 0.4)))
    (found,) = answer.findings
    assert found.statement == (
        "Not estimable: no run on all datasets has a partner that leaves one of them out."
    )
    assert answer.tables["left_out"].empty


def test_chance_alone_is_rarely_called_clear() -> None:
    rng = np.random.default_rng(2)
    frames = []
    for number in range(20):
        # A study of its own: one model, ten datasets, scores that are luck of the items alone.
        labels = Labels(num_items=400)
        part = grid_rows(rng.binomial(400, 0.5, (1, 10, 3)) / 400, np.full((1, 3), 0.3), labels)
        is_run = part["method"] != "base"
        part = part.assign(
            data=np.where(is_run, "without-" + part["data"], "base"),
            data_kind=np.where(is_run, "leave-one-out", "base"),
        )
        whole = grid_rows(rng.binomial(400, 0.5, (1, 1, 3)) / 400, np.full((1, 3), 0.3), labels)
        whole = whole[whole["method"] != "base"].assign(data="all", data_kind="all")
        both = pd.concat([part, whole], ignore_index=True)
        is_run = both["method"] != "base"
        frames.append(both.assign(samples=np.where(is_run, 100 + number, None)))
    rows = pd.concat(frames, ignore_index=True)
    rows = rows.drop_duplicates(["model", "data", "samples", "benchmark", "method"])
    table = left_out(tidy_tables(rows)).tables["left_out"]
    least = table[table["benchmark"] == ""].groupby("setting")["p_adjusted"].min()
    assert len(least) == 20
    assert (least <= 0.05).sum() <= 4  # 20 x 0.05 and three binomial errors


def test_base_models_alone_are_not_estimable() -> None:
    tables = study()
    (found,) = left_out(
        dataclasses.replace(tables, scores=tables.scores[tables.scores["method"] == "base"])
    ).findings
    assert found.reason and found.estimate is None
