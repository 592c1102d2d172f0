"""What is compared with what, when models, datasets or benchmarks are held against each other?

In: profiles of one setting and method. Out: for each kind of thing the correlations of all pairs
and the tests of its labels. Two models are compared over all dataset x benchmark entries, two
datasets over model x benchmark, two benchmarks over model x dataset; what is resampled are the
datasets, the models, or both.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import pandas as pd

from sft_atlas.analyze.pair_correlations import (
    LabelTest,
    PairCorrelations,
    cluster_order,
    label_test,
    pair_correlations,
)
from sft_atlas.analyze.profiles import Profiles
from sft_atlas.statistics.clusters import MIN_CLUSTERS, Floats
from sft_atlas.statistics.multiplicity import benjamini_hochberg

MODEL: Final = "model"
DATA: Final = "data"
BENCHMARK: Final = "benchmark"

LABELS: Final = {
    MODEL: {"same_family": "family", "same_language": "language"},
    DATA: {"same_group": "group"},
    BENCHMARK: {"same_skill": "skill", "same_language": "language"},
}
"""By kind: the column of the table of pairs, and the label that it is about."""


@dataclass(frozen=True, kw_only=True)
class Slice:
    """One setting and method."""

    setting: str
    method: str
    rows: pd.DataFrame
    profiles: Profiles

    @property
    def words(self) -> str:
        return f"{self.method}, {self.setting}"

    @property
    def cells(self) -> tuple[str, ...]:
        """Fingerprints of the cells that were compared."""
        kept = self.profiles
        rows = self.rows
        inside = rows[rows["model"].isin(kept.models) & rows["data"].isin(kept.datasets)]
        return tuple(dict.fromkeys(cell for cells in inside["cells"] for cell in cells))

    @property
    def left_out(self) -> str:
        """Say what was left out, as the end of a method."""
        names = self.profiles.left_out
        return f" Left out: {', '.join(names)}." if names else ""


@dataclass(frozen=True, kw_only=True)
class Test:
    """Of one label of one kind."""

    kind: str
    label: str
    found: LabelTest
    p_adjusted: float = 1.0
    """Over all labels of the slice, after Benjamini and Hochberg (1995)."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All pairs of models, of datasets or of benchmarks."""

    kind: str
    names: tuple[str, ...]
    table: pd.DataFrame
    correlations: PairCorrelations
    tests: tuple[Test, ...]


def compare(place: Slice, kind: str, *, num_resamples: int, seed: int) -> Comparison:
    """Correlate all pairs of one kind and test its labels."""
    names, values, weights = _vectors(place.profiles, kind, num_resamples, seed)
    found = pair_correlations(values, weights, seed=seed)
    labels = {}
    for column, label in LABELS[kind].items():
        known = _label_of(place.rows, kind, label)
        labels[column] = [known[name] for name in names]
    tests = []
    for column, label in LABELS[kind].items():
        test = label_test(found.estimates, labels[column], num_resamples=num_resamples, seed=seed)
        if test is not None:
            tests.append(Test(kind=kind, label=label, found=test))
    return Comparison(
        kind=kind,
        names=names,
        table=_pair_table(place, names, found, labels),
        correlations=found,
        tests=tuple(tests),
    )


def adjust(comparisons: Sequence[Comparison]) -> list[Test]:
    """Return the tests of all comparisons as one family."""
    tests = [test for comparison in comparisons for test in comparison.tests]
    adjusted = benjamini_hochberg(np.array([test.found.p_value for test in tests]))
    return [replace(test, p_adjusted=float(p)) for test, p in zip(tests, adjusted, strict=True)]


def _vectors(
    kept: Profiles, kind: str, num_resamples: int, seed: int
) -> tuple[tuple[str, ...], Floats, Floats | None]:
    """Return names, vectors (things, clusters, entries) and weights of resampled clusters."""
    values = kept.values
    num_models, num_datasets = values.shape[:2]
    rng = np.random.default_rng([seed, 0x1C])
    models, datasets = (
        rng.multinomial(size, np.full(size, 1 / size), size=num_resamples).astype(np.float64)
        if size >= MIN_CLUSTERS
        else None
        for size in (num_models, num_datasets)
    )
    if kind == MODEL:
        return kept.models, values, datasets
    if kind == DATA:
        return kept.datasets, values.transpose(1, 0, 2), models
    both = None
    if models is not None and datasets is not None:
        both = (models[:, :, None] * datasets[:, None, :]).reshape(num_resamples, -1)
    flat = values.reshape(num_models * num_datasets, values.shape[2]).T[:, :, None]
    return kept.benchmarks, flat, both


def _label_of(rows: pd.DataFrame, kind: str, label: str) -> dict[str, str]:
    """Label of each model, dataset or benchmark; "" where it is not known."""
    columns = {
        (MODEL, "family"): "family",
        (MODEL, "language"): "languages",
        (DATA, "group"): "data_group",
        (BENCHMARK, "skill"): "skill",
        (BENCHMARK, "language"): "language",
    }
    column = columns[kind, label]
    known = rows.drop_duplicates(kind).set_index(kind)[column].fillna("").astype(str)
    # The first of several languages is the one that a model was made for.
    return {str(name): value.split(";")[0] for name, value in known.items()}


def _pair_table(
    place: Slice,
    names: tuple[str, ...],
    found: PairCorrelations,
    labels: dict[str, list[str]],
) -> pd.DataFrame:
    size = len(names)
    order = cluster_order(found.estimates)
    first, second = np.divmod(np.arange(size * size), max(size, 1))
    table = pd.DataFrame(
        {
            "setting": place.setting,
            "method": place.method,
            "first": np.array(names, dtype=object)[first],
            "second": np.array(names, dtype=object)[second],
            "correlation": found.estimates.ravel(),
            "low": found.low.ravel(),
            "high": found.high.ravel(),
            "first_order": order[first],
            "second_order": order[second],
        }
    )
    for column, given in labels.items():
        array = np.array(given, dtype=object)
        same = pd.array(array[first] == array[second], dtype="boolean")
        same[(array[first] == "") | (array[second] == "")] = pd.NA
        table[column] = same
    return table
