"""Clean tables raise no alarm, whatever their shape, and degenerate ones no error."""

from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest

from planted_release import TESTS, Shape, Test, release, written_over
from sft_atlas.evidence.defects import find_defects, passed_checks
from sft_atlas.evidence.source import SourceTable

SHAPES = (
    Shape(num_models=5, num_datasets=6, holes=0.02),
    Shape(num_models=3, num_datasets=3, methods=("full",)),
    Shape(num_models=2, num_datasets=4, holes=0.2),
    Shape(num_models=1, num_datasets=5),
    Shape(num_models=8, num_datasets=1, holes=0.1),
)
SMALL = (
    *(Test(name=f"t{size}", size=size, level=1.5 / size) for size in (10, 12, 20, 30, 50)),
    Test(name="easy", size=25, level=0.9),
    Test(name="talk", form="grades", size=10, num_parts=3, level=0.2),
)
FRACTIONS = (
    *(Test(name=f"f{size}", form="fraction", size=size) for size in (12, 70, 164, 1319, 10042)),
    Test(name="hard", form="fraction", size=300, level=0.01),
    Test(name="form-0shot", size=1319),
    Test(name="form-5shot", size=1319, level=0.5),
)
ROUGH = tuple(Test(name=f"r{size}", size=size, decimals=1) for size in (70, 164, 1319, 10042))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", SHAPES, ids=[f"shape{i}" for i in range(len(SHAPES))])
@pytest.mark.parametrize(
    "tests", [TESTS, SMALL, FRACTIONS, ROUGH], ids=["mixed", "small", "fractions", "rough"]
)
def test_a_clean_table_raises_no_alarm(tests: tuple[Test, ...], shape: Shape, seed: int) -> None:
    assert find_defects(release(np.random.default_rng(seed), shape, tests)) == ()


def faulty() -> SourceTable:
    source = release(np.random.default_rng(0), Shape(), TESTS)
    base = pd.Series([source.values["sums"].iloc[0]], index=[1])
    for name in ("sums", "exam", "exam-zh", "exam-ja", "whole"):
        base = pd.Series([source.values[name].iloc[0]], index=[1])
        source = written_over(source, name, base, decimals=None)
    source = written_over(source, "code", pd.Series(np.nan, index=range(6, 22)))
    return written_over(source, "hard", pd.Series([-3.0], index=[40]))


def test_the_same_table_gives_the_same_defects() -> None:
    first, second = find_defects(faulty()), find_defects(faulty())
    assert first == second
    assert [defect.kind for defect in first] == [
        "copied row",
        "impossible score",
        "holes on one arm",
    ]


def test_every_text_is_a_sentence_without_gaps() -> None:
    for defect in find_defects(faulty()):
        for name in ("evidence", "effect", "what_is_done"):
            text = getattr(defect, name)
            assert text[0].isupper() or text[0].isdigit()
            assert text.endswith(".")
            assert not any(bad in text for bad in ("nan", "inf", "  ", "None", "{"))
        assert len(fields(defect)) == 8


def test_rows_in_another_order_have_the_same_defects() -> None:
    source = faulty()
    order = np.random.default_rng(1).permutation(len(source.values))
    moved = replace(
        source,
        labels=source.labels.iloc[order].reset_index(drop=True),
        texts=source.texts.iloc[order].reset_index(drop=True),
        values=source.values.iloc[order].reset_index(drop=True),
    )

    def known(found: SourceTable) -> set[tuple[str, tuple[str, ...], frozenset[int]]]:
        return {(d.kind, d.columns, frozenset(d.rows)) for d in find_defects(found)}

    assert known(moved) == known(source)


def empty(source: SourceTable) -> SourceTable:
    return replace(
        source,
        labels=source.labels.iloc[:0],
        texts=source.texts.iloc[:0],
        values=source.values.iloc[:0],
    )


def blank(source: SourceTable) -> SourceTable:
    return replace(
        source,
        texts=source.texts.mask(source.texts.notna()),
        values=source.values.mask(source.values.notna()),
    )


def columnless(source: SourceTable) -> SourceTable:
    return replace(source, columns=(), texts=source.texts[[]], values=source.values[[]])


def one_row(source: SourceTable) -> SourceTable:
    return replace(
        source,
        labels=source.labels.iloc[:1],
        texts=source.texts.iloc[:1],
        values=source.values.iloc[:1],
    )


@pytest.mark.parametrize("cut", [empty, blank, columnless, one_row])
def test_a_degenerate_table_has_no_defects(cut: object) -> None:
    source = release(np.random.default_rng(0), Shape(num_models=2, num_datasets=2), TESTS)
    assert callable(cut)
    assert find_defects(cut(source)) == ()
    assert all("nan" not in text for text in passed_checks(cut(source)))


def test_rows_that_are_all_zero_and_labels_that_are_blank_are_no_error() -> None:
    source = release(np.random.default_rng(0), Shape(num_models=2, num_datasets=2), TESTS)
    for column in source.columns:
        source = written_over(source, column.name, source.values[column.name] * 0 + 1)
    labels = source.labels.assign(schedule=None, samples=None, data_kind=None)
    found = find_defects(replace(source, labels=labels))
    assert {defect.kind for defect in found} <= {"constant column", "odd scale"}


def test_facts_are_in_the_order_of_the_columns() -> None:
    facts = passed_checks(release(np.random.default_rng(0), Shape(), TESTS))
    assert [fact.split(":")[0] for fact in facts][:4] == [
        "choice-0shot",
        "choice-5shot",
        "code",
        "sums",
    ]
    assert "talk: is the plain mean of its 4 parts in 102 of 102 rows" in facts
