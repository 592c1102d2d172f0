"""How much more does LoRA score than full fine-tuning on pairs that differ in nothing else?

In: the tables of a study. Out: the pairs, the tests of their mean difference by setting, kind of
data and benchmark, and how the difference shifts from single datasets to merged ones. The one
decision: epochs of a run are averaged before anything is tested; they are no independent runs.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
from scipy.special import stdtr
from scipy.stats import wilcoxon

from sft_atlas.analyze.cell_scores import cell_scores
from sft_atlas.analyze.gains import AVERAGE
from sft_atlas.statistics.clusters import Floats, codes
from sft_atlas.statistics.equivalence import Equivalence, equivalence, verdict
from sft_atlas.statistics.multiplicity import holm

if TYPE_CHECKING:
    from sft_atlas.store.tables import Tables

FINAL: Final = "final epoch"
KEPT: Final = "mean of kept epochs"
CLEAR: Final = ("different", "different but small")
COMPARISON: Final = ["setting", "data_kind", "first", "second", "epochs_used"]

_FIXED: Final = ["model", "data", "samples", "schedule", "epochs", "epoch", "seed", "benchmark"]
_FACTS: Final = ["setting", "data_kind", "is_final", "skill", "metric", "in_mean", "range"]
_COLUMNS: Final = (
    *COMPARISON,
    *("level", "benchmark", "skill", "metric", "range", "difference", "standard_error"),
    *("degrees_of_freedom", "low", "high", "inner_low", "inner_high", "margin", "p_value"),
    *("p_adjusted", "p_equivalence", "p_equivalence_adjusted", "verdict", "share_ahead"),
    *("num_pairs", "num_rows", "num_models", "num_datasets", "p_rows", "reason"),
)


def method_pairs(tables: "Tables") -> pd.DataFrame:
    """Return one row per pair of cells and benchmark.

    Columns: model, data, samples, schedule, epochs, epoch, seed, benchmark, setting, data_kind,
    is_final, skill, metric, in_mean, range, first and second (methods), cell_first, cell_second,
    run (both trajectories), difference (second minus first, fraction of the range) and error (over
    items, of two independent samples; NaN where not known).
    """
    scores = cell_scores(tables)
    kinds = scores.drop_duplicates("method").set_index("method")["method_kind"]
    values = ["cell", "trajectory", "value", "value_se"]
    frames = []
    for full in kinds.index[kinds == "full"]:
        for lora in kinds.index[kinds == "lora"]:
            left = scores.loc[scores["method"] == full, [*_FIXED, *_FACTS, *values]]
            right = scores.loc[scores["method"] == lora, [*_FIXED, *values]]
            found = left.merge(right, on=_FIXED, suffixes=("_first", "_second"))
            frames.append(found.assign(first=full, second=lora))
    names = [*_FIXED, *_FACTS, "first", "second", "cell_first", "cell_second", "run"]
    if not frames:
        return pd.DataFrame(columns=[*names, "difference", "error"])
    pairs = pd.concat(frames, ignore_index=True)
    # Single datasets first: they are what most readers ask about.
    pairs = pairs.sort_values("data_kind", key=_kind_place, kind="stable", ignore_index=True)
    pairs = pairs.assign(
        run=pairs["trajectory_first"] + pairs["trajectory_second"],
        difference=pairs["value_second"] - pairs["value_first"],
        error=np.hypot(pairs["value_se_first"], pairs["value_se_second"]),
    )
    return pd.DataFrame(pairs[[*names, "difference", "error"]])


def _kind_place(kinds: "pd.Series[str]") -> "pd.Series[int]":
    order = {kind: place for place, kind in enumerate(("each", "all", "leave-one-out"))}
    return kinds.map(order).fillna(len(order)).astype(int)


def method_differences(pairs: pd.DataFrame, *, margin: float) -> pd.DataFrame:
    """Test the mean difference of each comparison at each level; columns: `methods_compared`."""
    rows: list[dict[str, object]] = []
    for place, levels in _comparisons(pairs):
        for level, groups in levels:
            found = [label | _tested(part, margin) for label, part in groups]
            rows += [place | {"level": level} | row for row in _adjusted(found)]
    return pd.DataFrame(rows, columns=list(_COLUMNS))


Groups = list[tuple[dict[str, object], pd.DataFrame]]


def _comparisons(
    pairs: pd.DataFrame,
) -> Iterator[tuple[dict[str, object], list[tuple[str, Groups]]]]:
    """Yield each comparison with the groups of rows that are tested at each level."""
    for keys, rows in pairs.groupby(COMPARISON[:4], sort=False):
        place = dict(zip(COMPARISON[:4], keys, strict=True))
        chosen = [(FINAL, rows[rows["is_final"].astype(bool)])]
        if rows.groupby("run")["epoch"].nunique().gt(1).any():
            chosen.append((KEPT, rows))
        for name, part in chosen:
            if not part.empty:
                yield place | {"epochs_used": name}, _levels(part)


def _levels(rows: pd.DataFrame) -> list[tuple[str, Groups]]:
    counted = rows[rows["in_mean"].astype(bool)]
    share = counted.groupby("benchmark", sort=False)["run"].nunique() / max(
        rows["run"].nunique(), 1
    )
    common = counted[counted["benchmark"].isin(share.index[share >= 0.5])]
    skills: Groups = [
        ({"benchmark": AVERAGE, "skill": str(skill)}, _averaged(part))
        for skill, part in common[common["skill"] != ""].groupby("skill", sort=False)
    ]
    average: Groups = []
    if not common.empty:
        average = [({"benchmark": AVERAGE, "skill": ""}, _averaged(common))]
    return [
        ("average", average),
        ("skill", skills),
        ("benchmark", _by_benchmark(counted)),
        ("variant", _by_benchmark(rows[~rows["in_mean"].astype(bool)])),
    ]


def _by_benchmark(rows: pd.DataFrame) -> Groups:
    return [
        ({"benchmark": str(name), "skill": str(part["skill"].iloc[0])}, part)
        for name, part in rows.groupby("benchmark", sort=False)
    ]


def _averaged(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean over benchmarks of each pair of cells; a pair that lacks one is left out."""
    size = rows["benchmark"].nunique()
    errors = (rows["error"] ** 2).fillna(np.inf)
    keys = ["run", "model", "data", "epoch", "cell_first", "cell_second"]
    means = rows.assign(squared=errors).groupby(keys, sort=False, as_index=False)
    table = means.agg(
        difference=("difference", "mean"), squared=("squared", "sum"), size=("difference", "size")
    )
    error = np.sqrt(table["squared"]) / size
    table = table.assign(error=error.replace(np.inf, np.nan), metric="mean", range=1.0)
    return table[table["size"] == size]


def _tested(rows: pd.DataFrame, margin: float) -> dict[str, object]:
    """Test one mean difference; epochs of a pair of runs are averaged first."""
    runs = rows
    if rows["run"].duplicated().any():
        # Epochs answer the same items: their errors do not average out.
        groups = rows.assign(error=rows["error"].fillna(np.inf)).groupby("run", sort=False)
        runs = groups.agg(
            model=("model", "first"),
            data=("data", "first"),
            difference=("difference", "mean"),
            error=("error", "mean"),
        )
    facts: dict[str, object] = {
        "metric": rows["metric"].iloc[0] if len(rows) else "mean",
        "range": float(rows["range"].iloc[0]) if len(rows) else 1.0,
        "num_rows": len(rows),
        "num_pairs": len(runs),
        "margin": margin,
    }
    if runs.empty:
        return facts | {"verdict": "cannot tell", "reason": "no pair has all of these benchmarks"}
    errors = runs["error"].to_numpy(dtype=np.float64)
    found = equivalence(
        runs["difference"].to_numpy(dtype=np.float64),
        models=codes(runs["model"]),
        datasets=codes(runs["data"]),
        margin=margin,
        item_errors=errors if np.isfinite(errors).all() else None,
        limit=1.0,
    )
    values = rows["difference"].to_numpy(dtype=np.float64)
    return facts | _numbers(found) | {"share_ahead": (values > 0).mean(), "p_rows": _naive(values)}


def _numbers(found: Equivalence) -> dict[str, object]:
    low, high = found.interval or (None, None)
    inner_low, inner_high = found.inner_interval or (None, None)
    several = max(found.num_models, found.num_datasets) > 1
    reason = "all pairs agree, and the error over items is not known"
    reason = reason if several else "one model and one dataset: nothing can be resampled"
    if found.standard_error is not None:
        reason = "too few models or datasets: an interval would hold every possible difference"
    return {
        "difference": found.difference,
        "standard_error": found.standard_error,
        "degrees_of_freedom": found.degrees_of_freedom,
        "low": low,
        "high": high,
        "inner_low": inner_low,
        "inner_high": inner_high,
        "p_value": found.p_difference,
        "p_equivalence": found.p_equivalence,
        "num_models": found.num_models,
        "num_datasets": found.num_datasets,
        "reason": reason if found.interval is None else None,
    }


def _naive(values: Floats) -> float | None:
    return float(wilcoxon(values, method="approx").pvalue) if np.any(values != 0) else None


def _adjusted(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """Adjust both tests over the rows of one family, and put their answers into a word.

    A family of several takes the fewest degrees of freedom: it needs the far tail, which
    Satterthwaite's approximation does not hold (`dose_curves.p_of`; 12 benchmarks, 3 models x 9
    datasets: a false claim in 9 to 18 % of null studies with his degrees, in at most 1 % with
    these).
    """
    for name in ("p_value", "p_equivalence"):
        known = [_far_p(row, name) if len(rows) > 1 else row.get(name) for row in rows]
        adjusted = holm(np.array([np.nan if p is None else p for p in known], dtype=np.float64))
        for row, p in zip(rows, adjusted, strict=True):
            row[name.replace("p_value", "p") + "_adjusted"] = None if np.isnan(p) else float(p)
    for row in rows:
        row["verdict"] = verdict(_p(row, "p_adjusted"), _p(row, "p_equivalence_adjusted"))
    return rows


def _far_p(row: Mapping[str, Any], name: str) -> float | None:
    """Return a p-value of `equivalence` with the smaller number of clusters less one degrees."""
    p_value, error = _p(row, name), row.get("standard_error")
    if p_value is None or error is None:
        return p_value
    counts = [int(row[count]) for count in ("num_models", "num_datasets")]
    freedom = min(count for count in counts if count > 1) - 1
    size = abs(float(row["difference"]))
    if name == "p_value":
        return float(2 * stdtr(freedom, -size / float(error)))
    return float(stdtr(freedom, (size - float(row["margin"])) / float(error)))


def _p(row: Mapping[str, object], name: str) -> float | None:
    found: Any = row.get(name)
    return None if found is None else float(found)


def method_reversals(pairs: pd.DataFrame, table: pd.DataFrame, *, margin: float) -> pd.DataFrame:
    """Compare the difference after merged data with that after single datasets, models paired.

    `table` is that of `method_differences`; columns: `methods_compared`.
    """
    names = ["setting", "other_setting", "first", "second", "benchmark", "change", "low", "high"]
    names += ["p_value", "p_adjusted", "num_models", "is_reversed"]
    final = pairs[pairs["is_final"].astype(bool) & pairs["in_mean"].astype(bool)]
    rows: list[dict[str, object]] = []
    for (first, second), part in final.groupby(["first", "second"], sort=False):
        single, merged = (_main(part, kind) for kind in ("each", "all"))
        if single.empty or merged.empty:
            continue
        place = {"setting": single["setting"].iloc[0], "first": first, "second": second}
        place["other_setting"] = merged["setting"].iloc[0]
        means = [
            found.groupby(["benchmark", "model"], sort=False)["difference"].mean()
            for found in (single, merged)
        ]
        change = (means[1] - means[0]).dropna()
        verdicts = _verdicts(table, place)
        found: list[dict[str, object]] = []
        for benchmark, values in change.groupby(level="benchmark", sort=False):
            size = np.arange(len(values))
            tested = equivalence(
                values.to_numpy(), models=size, datasets=0 * size, margin=margin, limit=2.0
            )
            low, high = tested.interval or (None, None)
            row: dict[str, object] = {"benchmark": benchmark, "change": tested.difference}
            row |= {"low": low, "high": high}
            row |= {"p_value": tested.p_difference, "num_models": tested.num_models}
            signs = verdicts.get(str(benchmark), (0.0, 0.0))
            found.append(row | {"is_reversed": signs[0] * signs[1] < 0})
        rows += [place | row for row in _adjusted(found)]
    return pd.DataFrame(rows, columns=names)


def _main(rows: pd.DataFrame, kind: str) -> pd.DataFrame:
    """Rows of one kind of data, of the setting with the most pairs."""
    of_kind = rows[rows["data_kind"] == kind]
    counts = of_kind["setting"].value_counts()
    return of_kind[of_kind["setting"] == (counts.index[0] if len(counts) else "")]


def _verdicts(table: pd.DataFrame, place: Mapping[str, object]) -> dict[str, tuple[float, float]]:
    """Sign of each clear difference at the final epoch, after single and after merged data."""
    rows = table[(table["level"] == "benchmark") & (table["epochs_used"] == FINAL)]
    rows = rows[(rows["first"] == place["first"]) & (rows["second"] == place["second"])]
    signs = []
    for setting, kind in (("setting", "each"), ("other_setting", "all")):
        part = rows[(rows["setting"] == place[setting]) & (rows["data_kind"] == kind)]
        is_clear = part["verdict"].isin(CLEAR)
        signs.append(
            dict(zip(part["benchmark"], np.sign(part["difference"]) * is_clear, strict=True))
        )
    return {str(name): (signs[0][name], signs[1].get(name, 0.0)) for name in signs[0]}
