"""What will a choice of data, method and size gain for a model, before it is trained?

In: the tables of earlier runs and queries. Out: for each query the expected gain with an interval
that holds for whole unseen models, or the reason why there is none; and the joint distribution of
all choices for one model, from which a decision takes probabilities and regret. Which candidate
makes the forecast is chosen by back-test, never by hand; runs of the model that are known correct
it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sft_atlas.errors import Error
from sft_atlas.forecast.back_test import (
    BASELINES,
    HOLES,
    NEW_DATA,
    NEW_MODEL,
    BackTest,
    back_test_panel,
    new_data_reason,
    untested,
)
from sft_atlas.forecast.candidates import effects_of_data
from sft_atlas.forecast.known import known_outcomes, known_panel
from sft_atlas.forecast.outcomes import QUERY, SETTING, over_settings
from sft_atlas.forecast.panel import Panel, gain_scale, hide, split
from sft_atlas.forecast.posterior import MAX_ENTRIES, Places, condition
from sft_atlas.forecast.support import why_not
from sft_atlas.forecast.told import Told, at_measured_level, prior, tell_models
from sft_atlas.statistics.clusters import Floats, Ints
from sft_atlas.store.tables import Tables

NO_RUNS: Final = "no run on a single dataset has a score"
NO_BASE: Final = "its base model has no usable score on this benchmark"
NO_LIFT: Final = (
    "no other model has a usable base score on this benchmark: nothing tells how far runs lie "
    "above the base model"
)


@dataclass(frozen=True, kw_only=True)
class Joint:
    """Gaussian over the supported queries of one model, in fractions of the range of scores.

    Effects are relative to the mean of the model's supported queries on the same benchmark: what is
    common to all choices cancels in a comparison, and is no part of it. A weighted mix of
    benchmarks is a linear map of it.
    """

    rows: Ints
    """Places in `Forecast.frame`."""
    mean: Floats
    covariance: Floats
    """(rows, rows); runs of this model that are known have (nearly) none about each other."""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Answers to queries, in their order."""

    frame: pd.DataFrame
    """The columns of `QUERY`, and effect (relative, as in `Joint`), gain, low, high (90 %, of the
    gain), all fractions of the range of scores; is_supported, why_not (empty where supported),
    why_no_gain, why_no_interval, is_observed (this very run is in the evidence: its own gain),
    num_models (other models with a run on this dataset), scheme (the back-test that speaks for this
    query). NaN where there is no number."""
    joint: Mapping[str, Joint]
    """By model."""
    method: Mapping[str, str]
    """Candidate by scheme."""
    back_test: BackTest


def forecast(
    tables: Tables,
    queries: pd.DataFrame,
    *,
    features: pd.DataFrame | None = None,
    families: Mapping[str, str] | None = None,
    tested: BackTest | None = None,
    seed: int = 0,
) -> Forecast:
    """Forecast queries, each a row with the columns of `QUERY`.

    `features` are properties of data (see `known.known_panel`), `families` those of models that
    have no runs. `tested` is a back-test of the same tables, if one was made. Raises `Error` where
    columns are missing.
    """
    absent = [name for name in QUERY if name not in queries]
    if absent:
        raise Error(
            f"queries: no column {', '.join(absent)}; a query has {', '.join(QUERY)}. Add them."
        )
    asked = queries[list(QUERY)].reset_index(drop=True)
    names = list(asked["benchmark"].unique())
    rows = final = known_outcomes(tables, benchmarks=names)
    if not _holds(rows, asked):
        # Epochs that are no run's last are kept ones, or were never seen at all.
        rows = known_outcomes(tables, benchmarks=names, only_final=False)
    if rows.empty:
        return _nothing(asked)
    new = {str(name): (families or {}).get(str(name), "") for name in asked["model"].unique()}
    panel = known_panel(tables, rows, new_models=new, features=features, scale=gain_scale(final))
    test = tested or back_test(tables, features=features, seed=seed)
    gap = new_data_reason(test)
    records = [
        {str(name): value for name, value in record.items()} for record in asked.to_dict("records")
    ]
    reasons = [why_not(panel, record, new_data_reason=gap) for record in records]
    frame = asked.assign(
        effect=np.nan,
        gain=np.nan,
        low=np.nan,
        high=np.nan,
        is_supported=[not reason for reason in reasons],
        why_not=reasons,
        why_no_gain="",
        why_no_interval="",
        is_observed=False,
        num_models=0,
        scheme="",
    )
    joint = {}
    for model, part in frame[frame["is_supported"]].groupby("model", sort=False):
        joint[str(model)] = _fill(frame, part.index.to_numpy(np.int64), panel, str(model), test)
    return Forecast(frame=frame, joint=joint, method=dict(test.chosen), back_test=test)


def back_test(
    tables: Tables,
    *,
    features: pd.DataFrame | None = None,
    pool_settings: bool = False,
    only_final: bool = True,
    seed: int = 0,
) -> BackTest:
    """Say how often forecasts from these tables would have held.

    A problem is a model, a setting and a benchmark, its choices are datasets. With `pool_settings`
    a dataset's outcomes are averaged over settings first.
    """
    rows = known_outcomes(tables, only_final=only_final)
    if rows.empty:
        return untested(NO_RUNS)
    if pool_settings:
        rows = over_settings(rows)
    return back_test_panel(known_panel(tables, rows, features=features), seed=seed)


def draws(joint: Joint, *, num_draws: int, seed: int = 0) -> Floats:
    """Draw from the joint distribution, shape (num_draws, rows)."""
    rng = np.random.default_rng([seed, 0xF0])
    values, vectors = np.linalg.eigh(joint.covariance)
    root = vectors * np.sqrt(np.clip(values, 0, None))
    sample: Floats = joint.mean + rng.standard_normal((num_draws, values.size)) @ root.T
    return sample


def posterior_of(
    panel: Panel, told: Told, model: int, places: Places, effects: Floats
) -> tuple[Floats, Floats]:
    """Mean and covariance of values (units of the panel's scale) of some choices for one model.

    `told` was made without the model's runs; those that the panel shows correct it. `effects`
    (setting, dataset, benchmark) is what the chosen candidate foretold.
    """
    place = told.models.index(model)
    usable = np.isfinite(panel.value[model]) & np.isfinite(effects)
    usable &= np.isfinite(told.levels.shift)[:, None] & np.isin(
        np.arange(len(panel.benchmarks)), places.benchmark
    )
    known = np.argwhere(usable)
    # Runs in the settings and on the data that are asked for tell the most.
    far = 2 - np.isin(known[:, 0], places.setting) - 1 * np.isin(known[:, 1], places.dataset)
    known = known[np.sort(np.argsort(far, kind="stable")[:MAX_ENTRIES])]
    both = Places(
        setting=np.concatenate([places.setting, known[:, 0]]),
        dataset=np.concatenate([places.dataset, known[:, 1]]),
        benchmark=np.concatenate([places.benchmark, known[:, 2]]),
    )
    level, common, differing = prior(panel, told, place, both)
    mean = level + effects[both.setting, both.dataset, both.benchmark]
    size = places.setting.size
    rest = np.arange(size, mean.size)
    values = panel.value[model][tuple(known.T)]
    mean = at_measured_level(panel, told, place, both, mean, rest, values)
    mean, covariance = condition(mean, common + differing, rest, values)
    return mean[:size], covariance[:size, :size]


def _holds(rows: pd.DataFrame, asked: pd.DataFrame) -> bool:
    """Tell whether every setting that is asked for is among the outcomes."""
    known = set(rows[list(SETTING)].itertuples(index=False, name=None))
    return set(asked[list(SETTING)].itertuples(index=False, name=None)) <= known


def _nothing(asked: pd.DataFrame) -> Forecast:
    numbers = dict.fromkeys(("effect", "gain", "low", "high"), np.nan)
    words = {"why_not": NO_RUNS, "why_no_gain": "", "why_no_interval": "", "scheme": ""}
    frame = asked.assign(**numbers, is_supported=False, is_observed=False, num_models=0, **words)
    return Forecast(frame=frame, joint={}, method={}, back_test=untested(NO_RUNS))


def _fill(frame: pd.DataFrame, rows: Ints, panel: Panel, model: str, test: BackTest) -> Joint:
    """Write the forecasts of one model's supported queries into the frame."""
    number = panel.models.index(model)
    places = _places(frame.loc[rows], panel)
    has_runs = bool(np.isfinite(panel.value[number]).any())
    scheme = HOLES if _is_half_known(panel, number) else NEW_MODEL
    told = tell_models(panel, [number])
    candidate = test.chosen.get(scheme, BASELINES[scheme])
    effects = told.effects[candidate][0]
    is_new = _never_run(np.delete(panel.value, number, axis=0))
    effects = _with_new_data(panel, number, effects, is_new, test)
    mean, covariance = posterior_of(panel, told, number, places, effects)
    covariance *= test.variance_ratios.get(candidate, 1.0)
    observed = panel.value[number][places.setting, places.dataset, places.benchmark]
    is_observed = np.asarray(np.isfinite(observed), dtype=np.bool_)
    mean = np.where(is_observed, observed, mean)
    has_level = np.isfinite(told.levels.lift[0])
    has_level |= np.isfinite(panel.value[number]).any(axis=(0, 1))
    why_no_gain = np.where(np.isfinite(panel.base[number]), "", NO_BASE).astype(object)
    why_no_gain[np.isfinite(panel.base[number]) & ~has_level] = NO_LIFT
    base = np.where(has_level, panel.base[number], np.nan)[places.benchmark]
    scale = panel.scale[places.benchmark]
    schemes = np.where(is_new[places.dataset], NEW_DATA, scheme)
    margin = np.array([test.margins.get(str(name), np.inf) for name in schemes])
    why_no_interval = [
        _why_no_interval(bool(seen), str(name), width, has_runs, str(why), test)
        for seen, name, width, why in zip(
            is_observed, schemes, margin, why_no_gain[places.benchmark], strict=True
        )
    ]
    margin = np.where(np.array(why_no_interval) == "", margin, np.nan)
    centring = _centring(places.benchmark)
    unit = scale[:, None] * scale
    joint = Joint(
        rows=rows,
        mean=centring @ mean * scale,
        covariance=centring @ covariance @ centring.T * unit,
    )
    frame.loc[rows, "effect"] = joint.mean
    frame.loc[rows, "gain"] = (mean - base) * scale
    frame.loc[rows, "low"] = (mean - base - margin) * scale
    frame.loc[rows, "high"] = (mean - base + margin) * scale
    frame.loc[rows, "why_no_gain"] = why_no_gain[places.benchmark]
    frame.loc[rows, "why_no_interval"] = why_no_interval
    frame.loc[rows, "is_observed"] = is_observed
    frame.loc[rows, "num_models"] = _num_others(panel, number)[places.dataset]
    frame.loc[rows, "scheme"] = schemes
    return joint


def _is_half_known(panel: Panel, model: int) -> bool:
    """Tell whether a model has at least half the runs of a usual one, as in the back-test of holes.

    With fewer the intervals are those of a new model, which are wider.
    """
    runs = np.isfinite(panel.value).any(axis=3).sum(axis=(1, 2))
    others = np.delete(runs, model)
    return bool(2 * runs[model] >= np.median(others[others > 0]))


def _never_run(value: Floats) -> NDArray[np.bool_]:
    """Tell of each dataset whether no run on it is visible."""
    seen = np.isfinite(value).any(axis=(0, 1, 3))
    return np.asarray(~seen, dtype=np.bool_)


def _num_others(panel: Panel, model: int) -> Ints:
    """Number of other models with a run on each dataset."""
    others = np.delete(panel.value, model, axis=0)
    found: Ints = np.isfinite(others).any(axis=(1, 3)).sum(axis=0, dtype=np.int64)
    return found


def _with_new_data(
    panel: Panel, model: int, effects: Floats, is_new: NDArray[np.bool_], test: BackTest
) -> Floats:
    """Fill in the effects of datasets that no other model was trained on."""
    if not is_new.any() or NEW_DATA not in test.chosen:
        return effects
    targets = np.flatnonzero(is_new)
    hidden = [int(target) for target in targets]
    visible = hide(panel, datasets=hidden)
    found = effects_of_data(visible, split(visible), hidden)[test.chosen[NEW_DATA]]
    filled = effects.copy()
    filled[:, targets] = found[model]
    return filled


def _why_no_interval(
    is_observed: bool, scheme: str, margin: float, has_runs: bool, no_gain: str, test: BackTest
) -> str:
    if is_observed:
        return "this run is in the evidence; its own interval comes from its items"
    if scheme == NEW_DATA and not has_runs:
        return "a new dataset on a new model was never tested"
    if no_gain:
        return no_gain
    if scheme in test.reasons:
        return f"not tested: {test.reasons[scheme]}"
    return "" if np.isfinite(margin) else "too few groups were left out to set its width"


def _places(queries: pd.DataFrame, panel: Panel) -> Places:
    settings = list(queries[list(SETTING)].itertuples(index=False, name=None))
    return Places(
        setting=np.array([panel.settings.index(s) for s in settings], dtype=np.int64),
        dataset=np.array([panel.datasets.index(d) for d in queries["data"]], dtype=np.int64),
        benchmark=np.array(
            [panel.benchmarks.index(b) for b in queries["benchmark"]], dtype=np.int64
        ),
    )


def _centring(benchmark: Ints) -> Floats:
    """Matrix that subtracts from each entry the mean of its benchmark's entries."""
    same = benchmark[:, None] == benchmark
    centring: Floats = np.eye(benchmark.size) - same / same.sum(axis=1, keepdims=True)
    return centring
