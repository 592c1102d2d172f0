"""Make wide tables as publishers release them: scores that are counts, rounded as they are written.

A table made here is clean. Tests plant faults in it with `written_over`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sft_atlas.evidence.source import LABELS, Column, SourceTable

Form = Literal["percent", "fraction", "groups", "grades"]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How many of what a table has."""

    num_models: int = 6
    num_datasets: int = 8
    methods: Sequence[str] = ("full", "lora")
    holes: float = 0.0
    """Share of scores that are missing at random."""


@dataclass(frozen=True, kw_only=True)
class Test:
    """One column: `size` are items, groups or grades per part; `level` is the mean score."""

    __test__ = False

    name: str
    form: Form = "percent"
    size: int = 500
    level: float = 0.4
    num_parts: int = 0
    decimals: int = 2


TESTS = (
    Test(name="choice-0shot", size=3270, level=0.6),
    Test(name="choice-5shot", size=3270, level=0.7),
    Test(name="code", size=164, level=0.2),
    Test(name="hard", size=500, level=0.01),
    Test(name="sums", size=1319, level=0.3),
    Test(name="exam", form="groups", size=57, level=0.45),
    Test(name="exam-zh", form="groups", size=67, level=0.4),
    Test(name="exam-ja", form="groups", size=57, level=0.35),
    Test(name="wins", size=805, level=0.05),
    Test(name="talk", form="grades", size=20, num_parts=4, level=0.4),
    Test(name="whole", form="fraction", size=1838, level=0.5),
)


def release(
    rng: np.random.Generator, shape: Shape = Shape(), tests: Sequence[Test] = TESTS
) -> SourceTable:
    """Return a clean table: base rows first, then every model x dataset x method."""
    labels = _labels(shape)
    skill = _skill(rng, labels)
    columns: list[Column] = []
    scores: dict[str, NDArray[np.float64]] = {}
    for test in tests:
        logit = np.log(test.level / (1 - test.level)) + skill + rng.normal(0, 0.3, len(skill))
        chance = 1 / (1 + np.exp(-logit))
        for column, values in _measured(rng, test, chance):
            columns.append(column)
            scores[column.name] = values
    values = pd.DataFrame(scores)
    values = values.mask(rng.random(values.shape) < shape.holes)
    decimals = {test.name: test.decimals for test in tests}
    texts = values.apply(
        lambda known: known.map(
            lambda value: _text(value, decimals.get(str(known.name), 2), known.name, tests),
            na_action="ignore",
        )
    ).astype("string")
    read = texts.apply(lambda known: pd.to_numeric(known).astype("float64"))
    return SourceTable(
        name="planted",
        sha256="0" * 64,
        origin="planted",
        labels=labels,
        texts=texts,
        values=read,
        columns=tuple(columns),
    )


def written_over(
    source: SourceTable, name: str, values: "pd.Series[float]", *, decimals: int | None = 2
) -> SourceTable:
    """Replace scores of one column, by index; None decimals writes them unrounded, NaN blanks."""
    texts = source.texts[name].copy()
    for place, value in values.items():
        text = str(float(value)) if decimals is None else str(round(float(value), decimals))
        texts.loc[place] = pd.NA if pd.isna(value) else text
    known = pd.to_numeric(texts).astype("float64")
    return replace(
        source,
        texts=source.texts.assign(**{name: texts}),
        values=source.values.assign(**{name: known}),
    )


def copied(source: SourceTable, here: int, there: int, names: Sequence[str] = ()) -> SourceTable:
    """Write a row's scores over those of another, in some columns or all; rows are places."""
    for name in names or [column.name for column in source.columns]:
        text = source.texts[name].copy()
        text.iloc[there] = text.iloc[here]
        value = source.values[name].copy()
        value.iloc[there] = value.iloc[here]
        source = replace(
            source,
            texts=source.texts.assign(**{name: text}),
            values=source.values.assign(**{name: value}),
        )
    return source


def with_column(source: SourceTable, name: str, **facts: object) -> SourceTable:
    """Change what is stated about a column."""
    columns = [
        replace(column, **facts) if column.name == name else column  # type: ignore[arg-type]
        for column in source.columns
    ]
    return replace(source, columns=tuple(columns))


def _labels(shape: Shape) -> pd.DataFrame:
    rows: list[dict[str, object]] = []
    for m in range(shape.num_models):
        base = dict.fromkeys(("data", "data_kind", "method", "method_kind"), "base")
        rows.append({"model": f"m{m}", "epoch": 0, **base})
    for m in range(shape.num_models):
        for d in range(shape.num_datasets):
            for method in shape.methods:
                run = {"data": f"d{d}", "data_kind": "each", "method": method, "samples": 1000}
                more = {"method_kind": method, "schedule": "cosine", "epoch": 10, "seed": 0}
                rows.append({"model": f"m{m}", **run, **more})
    labels = pd.DataFrame(rows).reindex(columns=["line", *LABELS])
    return labels.assign(line=range(2, len(rows) + 2), family="", languages="en", block="")


def _skill(rng: np.random.Generator, labels: pd.DataFrame) -> NDArray[np.float64]:
    """Effects of model, data and method on every test, as log odds."""
    skill = np.zeros(len(labels))
    for name in ("model", "data", "method"):
        codes, found = pd.factorize(labels[name])
        skill += rng.normal(0, 0.6, len(found))[codes]
    return skill


def _measured(
    rng: np.random.Generator, test: Test, chance: NDArray[np.float64]
) -> list[tuple[Column, NDArray[np.float64]]]:
    scale = 1.0 if test.form in ("fraction", "grades") else 0.01
    column = Column(
        name=test.name,
        benchmark=test.name,
        skill="",
        language="en",
        metric="rating" if test.form == "grades" else "accuracy",
        scale=scale,
        num_items=test.size,
    )
    if test.form == "groups":
        items = rng.integers(100, 300, test.size)
        hits = rng.binomial(items, np.clip(chance[:, None] + rng.normal(0, 0.1, test.size), 0, 1))
        values = (np.round(100 * hits / items, 2)).sum(axis=1) / test.size
        return [(replace(column, num_items=int(items.sum()), num_groups=test.size), values)]
    if test.form == "grades":
        grades = 1 + rng.binomial(
            9, chance[:, None, None], (len(chance), test.num_parts, test.size)
        )
        parts = grades.mean(axis=2)
        total = replace(column, num_items=test.size * test.num_parts)
        found = [(total, np.round(parts.mean(axis=1), 2))]
        for place in range(test.num_parts):
            part = replace(column, name=f"{test.name}-{place}", num_items=None, in_mean=False)
            found.append((replace(part, part_of=test.name), np.round(parts[:, place], 2)))
        return found
    return [(column, rng.binomial(test.size, chance) / test.size / scale)]


def _text(value: float, decimals: int, name: object, tests: Sequence[Test]) -> str:
    form = next((test.form for test in tests if test.name == name), "grades")
    return str(value) if form in ("fraction", "groups") else str(round(value, decimals))
