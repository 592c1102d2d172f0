"""What is known, as arrays that a forecast can be computed from?

In: outcomes, base scores and properties of the data. Out: a `Panel`, values by model x setting x
dataset x benchmark in units of each benchmark's spread, and how they split into a level of each
model, setting and benchmark and an effect of the dataset. A forecast never needs more than that,
and a back-test hides parts of it. The unit is the standard deviation of gains on a benchmark, so
that benchmarks with small ranges count like others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import pandas as pd

from sft_atlas.forecast.outcomes import SETTING
from sft_atlas.statistics.clusters import Floats, Ints

PRIOR_MODELS: Final = 2.0
"""What is special to one setting of a dataset is shrunk as if so many models had shown nothing."""

NUM_SWEEPS: Final = 12


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Values on the grid of what was seen; NaN is not known or hidden."""

    models: tuple[str, ...]
    settings: tuple[tuple[object, ...], ...]
    """Values of `outcomes.SETTING`."""
    datasets: tuple[str, ...]
    benchmarks: tuple[str, ...]
    value: Floats
    """(model, setting, dataset, benchmark), scores in units of `scale`."""
    base: Floats
    """(model, benchmark), usable base scores in units of `scale`."""
    scale: Floats
    """(benchmark,), in fractions of the range of scores."""
    families: tuple[str, ...]
    groups: tuple[str, ...]
    """Of the datasets; empty where not known."""
    skills: tuple[str, ...]
    """Of the benchmarks."""
    properties: Floats
    """(model, dataset, benchmark, property)."""


@dataclass(frozen=True, kw_only=True)
class Effects:
    """A panel's values without what all datasets share."""

    level: Floats
    """(model, setting, benchmark): what an average dataset reaches."""
    effect: Floats
    """(model, setting, dataset, benchmark): value - level."""
    pooled: Floats
    """(model, dataset, benchmark): mean effect over settings."""
    special: Floats
    """(setting, dataset, benchmark): what a setting adds, shrunk towards 0."""


def gain_scale(outcomes: pd.DataFrame) -> "pd.Series[float]":
    """Standard deviation of each benchmark's gains over rows, as a fraction of the range.

    Where no gain can be formed, that of the values within models. A benchmark on which nothing
    differs has the scale 1: its forecast is 0 in any unit.
    """
    within = outcomes["value"] - outcomes.groupby(["model", "benchmark"])["value"].transform("mean")
    found: dict[str, float] = {}
    for name, rows in outcomes.assign(within=within).groupby("benchmark", sort=True):
        gains = rows["gain"].dropna()
        spread = gains.std() if len(gains) > 1 and gains.std() > 0 else rows["within"].std()
        found[str(name)] = float(spread) if spread > 0 else 1.0
    return pd.Series(found, dtype=float)


def make_panel(
    outcomes: pd.DataFrame,
    *,
    bases: pd.DataFrame | None = None,
    properties: pd.DataFrame | None = None,
    new_data: Mapping[str, str] | None = None,
    scale: Mapping[str, float] | None = None,
) -> Panel:
    """Arrange outcomes as arrays.

    `bases` has model, benchmark, base, family: base models that may have no runs yet. `properties`
    has model, data, benchmark and one column per property. `new_data` are datasets that nothing was
    trained on yet, and their groups.
    """
    added = dict(new_data or {})
    models = sorted({*outcomes["model"], *(() if bases is None else bases["model"])})
    settings = sorted(set(outcomes[list(SETTING)].itertuples(index=False, name=None)))
    datasets = sorted({*outcomes["data"], *added})
    benchmarks = sorted(set(outcomes["benchmark"]))
    units = gain_scale(outcomes) if scale is None else pd.Series(dict(scale), dtype=float)
    sizes: Floats = np.asarray(units.reindex(benchmarks), dtype=np.float64)
    places = [
        _places(outcomes["model"], models),
        _setting_places(outcomes, settings),
        _places(outcomes["data"], datasets),
        _places(outcomes["benchmark"], benchmarks),
    ]
    value = np.full([len(models), len(settings), len(datasets), len(benchmarks)], np.nan)
    value[tuple(places)] = outcomes["value"].to_numpy(dtype=np.float64) / sizes[places[3]]
    base = np.full([len(models), len(benchmarks)], np.nan)
    known = outcomes[["model", "benchmark", "base"]]
    if bases is not None:
        known = pd.concat([known, bases[["model", "benchmark", "base"]]])
    known = known[known["base"].notna() & known["benchmark"].isin(benchmarks)]
    at = _places(known["benchmark"], benchmarks)
    base[_places(known["model"], models), at] = known["base"].to_numpy(dtype=float) / sizes[at]
    frames = [outcomes[["model", "family"]]] + ([] if bases is None else [bases])
    known_groups = dict(
        zip(datasets, _labels(outcomes, "data", "data_group", datasets), strict=True)
    )
    return Panel(
        models=tuple(models),
        settings=tuple(settings),
        datasets=tuple(datasets),
        benchmarks=tuple(benchmarks),
        value=value,
        base=base,
        scale=sizes,
        families=_labels(pd.concat(frames), "model", "family", models),
        groups=tuple(added.get(name) or known_groups[name] for name in datasets),
        skills=_labels(outcomes, "benchmark", "skill", benchmarks),
        properties=_property_array(properties, models, datasets, benchmarks),
    )


def hide(panel: Panel, *, models: Sequence[int] = (), datasets: Sequence[int] = ()) -> Panel:
    """Return the panel as it was before these models or datasets were run."""
    value = panel.value.copy()
    value[list(models)] = np.nan
    value[:, :, list(datasets)] = np.nan
    return replace(panel, value=value)


def split(panel: Panel) -> Effects:
    """Split values into levels and effects by alternating means.

    The effect of a dataset on a benchmark is shared by settings while levels are found, so that a
    setting that lacks a dataset does not shift its level.
    """
    value = panel.value
    shared = np.zeros(value.shape[2:])
    for _ in range(NUM_SWEEPS):
        level = nan_mean(value - shared, axis=2)
        shared = np.nan_to_num(nan_mean(value - level[:, :, None], axis=(0, 1)))
        shared -= shared.mean(axis=0)
    effect = value - level[:, :, None]
    rough = nan_mean(effect, axis=1)
    count = np.isfinite(effect).sum(axis=0)
    extra = np.nan_to_num(nan_mean(effect - rough[:, None], axis=0))
    special = extra * count / (count + PRIOR_MODELS)
    return Effects(
        level=level,
        effect=effect,
        pooled=nan_mean(effect - special, axis=1),
        special=special,
    )


def own_skill(panel: Panel) -> Floats:
    """(dataset, benchmark): 1 where the data was made for the skill that the benchmark tests."""
    groups, skills = np.array(panel.groups, dtype=str), np.array(panel.skills, dtype=str)
    is_own: Floats = ((groups[:, None] == skills) & (skills != "")).astype(np.float64)
    return is_own


def nan_mean(values: Floats, axis: int | tuple[int, ...]) -> Floats:
    """Mean over the values that are not NaN; NaN, without a warning, where there is none."""
    is_there = np.isfinite(values)
    count = is_there.sum(axis=axis)
    total = np.where(is_there, values, 0.0).sum(axis=axis)
    mean: Floats = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return mean


def _places(values: "pd.Series[str]", names: Sequence[str]) -> Ints:
    index = pd.Index(list(names), dtype=object)
    places = index.get_indexer(pd.Index(values, dtype=object))
    return places.astype(np.int64)


def _setting_places(outcomes: pd.DataFrame, settings: Sequence[tuple[object, ...]]) -> Ints:
    known = pd.MultiIndex.from_tuples(settings, names=list(SETTING))
    places = known.get_indexer(pd.MultiIndex.from_frame(outcomes[list(SETTING)]))
    return places.astype(np.int64)


def _labels(frame: pd.DataFrame, key: str, label: str, names: Sequence[str]) -> tuple[str, ...]:
    found = frame.drop_duplicates(key).set_index(key)[label].reindex(list(names)).fillna("")
    return tuple(str(value) for value in found)


def _property_array(properties: pd.DataFrame | None, *names: Sequence[str]) -> Floats:
    shape = [len(part) for part in names]
    if properties is None:
        return np.empty([*shape, 0])
    keys = ["model", "data", "benchmark"]
    columns = [name for name in properties if name not in keys]
    table = np.full([*shape, len(columns)], np.nan)
    rows = properties
    for key, known in zip(keys, names, strict=True):
        rows = rows[rows[key].isin(list(known))]
    places = tuple(_places(rows[key], known) for key, known in zip(keys, names, strict=True))
    table[places] = rows[columns].to_numpy(dtype=np.float64)
    return table
