"""Loose scores become one table, and a column has one unit."""

from pathlib import Path

import numpy as np
import pytest

from sft_atlas.errors import DataError
from sft_atlas.evidence.run_labels import BenchmarkEntry, read_run_labels
from sft_atlas.evidence.wide import (
    LooseScore,
    digest_files,
    find_unit,
    make_column,
    source_name,
    wide_table,
)


def score(model: str, column: str, value: float, **facts: float) -> LooseScore:
    return LooseScore(
        model=model,
        column=column,
        text=repr(value),
        value=value,
        where=f"{model}.json",
        error=facts.get("error"),
        num_items=int(facts["num_items"]) if "num_items" in facts else None,
    )


def test_scores_find_their_places_and_the_later_one_counts(tmp_path: Path) -> None:
    entry = BenchmarkEntry(skill="math", items=50)
    columns = [
        make_column(name, entry, unit="fraction", metric="acc", in_mean=True) for name in "ab"
    ]
    found = [
        score("x", "a", 0.1, error=0.01, num_items=20),
        score("y", "b", 0.4),
        score("x", "a", 0.2),
    ]
    table = wide_table(found, columns, read_run_labels(None), origin=tmp_path, sha256="0" * 64)
    np.testing.assert_array_equal(table.values, [[0.2, np.nan], [np.nan, 0.4]])
    assert table.texts.to_numpy().tolist() == [["0.2", None], [None, "0.4"]]
    assert table.errors is not None
    assert table.errors.isna().all(axis=None)
    assert table.labels["model"].tolist() == ["x", "y"]
    assert table.notes == (
        "no file says what the models were trained on, so all 2 are taken for base models and "
        "there is no gain; name one with --labels",
    )


@pytest.mark.parametrize(
    ("values", "unit"),
    [((0.1, 1.0), "fraction"), ((0.0, 1.0), "fraction"), ((0.0, 45.1, 1.0), "percent")],
    ids=["fractions", "none-and-all", "percent"],
)
def test_the_unit_follows_from_the_numbers(values: tuple[float, ...], unit: str) -> None:
    assert find_unit("a", [score(f"m{v}", "a", v) for v in values]) == unit


def test_a_column_of_two_units_is_refused() -> None:
    mixed = [score("x", "a", 0.412), score("y", "a", 45.1), score("z", "b", 50.0)]
    with pytest.raises(DataError) as error:
        find_unit("a", mixed)
    assert str(error.value) == (
        "x.json: 'a' is 0.412 here and 45.1 in y.json; expected fractions of 1 or percentages "
        "throughout. Say `unit: percent` or `unit: fraction` under `benchmarks` in a file of "
        "labels."
    )


def test_a_rating_keeps_its_scale() -> None:
    column = make_column("mt", BenchmarkEntry(), unit="rating", metric="score", in_mean=True)
    assert (column.metric, column.scale) == ("rating", 1.0)


def test_a_digest_knows_names_and_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    paths = [tmp_path / "a", tmp_path / "b"]
    first = digest_files(paths, tmp_path)
    assert first == digest_files(paths, tmp_path)
    assert first != digest_files(paths[:1], tmp_path)
    (tmp_path / "a").write_text("c")
    assert first != digest_files(paths, tmp_path)


@pytest.mark.parametrize(
    ("origin", "name"),
    [("runs/My results (2)", "My-results-2"), ("/", "imported"), ("評価", "imported")],
    ids=["words", "root", "letters"],
)
def test_a_folder_gives_a_name_that_can_be_kept(origin: str, name: str) -> None:
    assert source_name(Path(origin)) == name
