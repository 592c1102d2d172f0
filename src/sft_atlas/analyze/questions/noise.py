"""How much of a score is the luck of a training run, and how much that of the items?

In: cells that agree in everything but the seed. Out: the spread between seeds, what the items
explain of it, and the smallest difference that such a study can see. The one decision: where no
cell was run twice nothing is guessed: the answer says that the two cannot be told apart.
"""

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
from scipy.stats import chi2, norm

from sft_atlas.analyze.cell_scores import cell_scores
from sft_atlas.analyze.findings import Finding, not_estimable, plural
from sft_atlas.analyze.gains import AVERAGE
from sft_atlas.analyze.questions.answered import Answered
from sft_atlas.statistics.clusters import LEVEL

if TYPE_CHECKING:
    from sft_atlas.store.tables import Tables

QUESTION: Final = "How much is luck?"
POWER: Final = 0.8
"""Chance with which a difference of the detectable size is found."""

_REPLICATE: Final = ["model", "data", "samples", "schedule", "epochs", "epoch", "method"]
_COLUMNS: Final = (
    *("benchmark", "skill", "in_mean", "metric", "range", "num_settings", "num_runs"),
    *("degrees_of_freedom", "total_sd", "total_low", "total_high", "item_sd", "seed_sd"),
    *("seed_low", "seed_high", "detectable", "seeds_for_a_point", "reason"),
)
_METHOD: Final = (
    "Variance of final scores between seeds of the same model, data, method and setting, pooled "
    "over settings, minus the mean squared standard error over items; interval from the "
    "chi-square distribution. Detectable: found at 5 % (two-sided) in 80 % of studies."
)


def noise_floor(tables: "Tables", *, num_resamples: int = 1000, seed: int = 0) -> Answered:
    """Tell the luck of a training run from that of the items, where cells were run more than once.

    Replicates agree in model, data, samples, schedule, epochs and method and differ in the seed
    alone; final epochs. The variance between them, pooled over settings, is that of a run's luck on
    these items. The mean squared standard error over items is what a fresh draw of items would add;
    their difference (never below 0) is the variance of the seed alone. Its interval comes from the
    chi-square distribution of the pooled variance: it takes scores of a setting as normal with the
    same variance in all settings. Seeds that answer the same items share the luck of the items, so
    that the difference is then a lower end of the seed's variance and the whole variance between
    seeds its upper end. The detectable difference is that of two recipes, one run each, on the same
    items: (z(0.975) + z(0.8)) x sqrt(2) x the standard deviation between runs. Without replicates
    it is formed from the items alone, as if each run had its own, and leaves out the luck of
    training.

    Table `noise_floor`: benchmark (empty: mean over the benchmarks that count), skill, in_mean,
    metric, range, num_settings (with at least two seeds), num_runs, degrees_of_freedom, total_sd
    with total_low and total_high (standard deviation between seeds, fraction of the range, 95 %),
    item_sd (root mean squared error over items; null where not known), seed_sd with seed_low and
    seed_high, detectable, seeds_for_a_point (runs of each recipe that detect one point; null
    without replicates), reason (why something is null).
    """
    scores = cell_scores(tables)
    final = scores[scores["is_final"].astype(bool)]
    if final.empty:
        reason = "no final cell has a score"
        empty = pd.DataFrame(columns=list(_COLUMNS))
        return Answered(findings=(_not_estimable(reason),), tables={"noise_floor": empty})
    both = pd.concat([_averaged(final), final[_USED]], ignore_index=True)
    table = _floor(both)
    return Answered(findings=(_finding(table, final),), tables={"noise_floor": table})


_FACTS: Final = ["benchmark", "skill", "in_mean", "metric", "range"]
_USED: Final = [*_REPLICATE, "seed", "cell", *_FACTS, "value", "value_se"]


def _averaged(final: pd.DataFrame) -> pd.DataFrame:
    """Mean over the benchmarks that count of each cell that has all of them."""
    counted = final[final["in_mean"].astype(bool)]
    share = counted.groupby("benchmark")["cell"].nunique() / max(counted["cell"].nunique(), 1)
    counted = counted[counted["benchmark"].isin(share.index[share >= 0.5])]
    size = counted["benchmark"].nunique()
    work = counted.assign(squared=(counted["value_se"] ** 2).fillna(np.inf))
    means = work.groupby([*_REPLICATE, "seed", "cell"], sort=False, as_index=False).agg(
        value=("value", "mean"), squared=("squared", "sum"), size=("value", "size")
    )
    means = means[means["size"] == size]
    error = (np.sqrt(means["squared"]) / max(size, 1)).replace(np.inf, np.nan)
    names = {"benchmark": AVERAGE, "skill": "", "metric": "mean"}
    return means.assign(value_se=error, in_mean=True, range=1.0, **names)[_USED]


def _floor(rows: pd.DataFrame) -> pd.DataFrame:
    """Pool the variance between seeds over settings, for each benchmark."""
    work = rows.assign(item_variance=rows["value_se"] ** 2)
    settings = work.groupby([*_FACTS, *_REPLICATE], sort=False, as_index=False).agg(
        variance=("value", "var"),
        items=("item_variance", "mean"),
        known=("item_variance", "count"),
        size=("seed", "nunique"),
        rows=("seed", "size"),
    )
    settings["items"] = settings["items"].where(settings["known"] == settings["rows"])
    lines: list[dict[str, object]] = []
    for keys, part in settings.groupby(_FACTS, sort=False):
        several = part[part["size"] > 1]
        facts = dict(zip(_FACTS, keys, strict=True))
        lines.append(facts | (_alone(part) if several.empty else _parts(several)))
    return pd.DataFrame(lines, columns=list(_COLUMNS))


def _alone(settings: pd.DataFrame) -> dict[str, object]:
    """No setting was run twice: the items alone."""
    items = settings["items"].to_numpy(dtype=np.float64)
    known = bool(np.isfinite(items).all())
    item_sd = float(np.sqrt(items.mean())) if known else None
    return {
        "num_settings": 0,
        "num_runs": 0,
        "item_sd": item_sd,
        "detectable": None if item_sd is None else _detectable(item_sd),
        "reason": "no setting was run with a second seed",
    }


def _parts(settings: pd.DataFrame) -> dict[str, object]:
    free = settings["size"].to_numpy(dtype=np.float64) - 1
    total = float(free.sum())
    variance = float((free * settings["variance"].to_numpy(dtype=np.float64)).sum() / total)
    tails = chi2.ppf([(1 + LEVEL) / 2, (1 - LEVEL) / 2], total)
    low, high = (total * variance / tails).tolist()
    items = float((free * settings["items"].to_numpy(dtype=np.float64)).sum() / total)
    found: dict[str, object] = {
        "num_settings": len(settings),
        "num_runs": int(settings["size"].sum()),
        "degrees_of_freedom": total,
        "total_sd": float(np.sqrt(variance)),
        "total_low": float(np.sqrt(low)),
        "total_high": float(np.sqrt(high)),
        "detectable": _detectable(float(np.sqrt(variance))),
        "seeds_for_a_point": int(np.ceil(2 * variance * (_FACTOR / 0.01) ** 2)) or 1,
    }
    if not np.isfinite(items):
        return found | {"reason": "the error over items is not known"}
    return found | {
        "item_sd": float(np.sqrt(items)),
        "seed_sd": float(np.sqrt(max(variance - items, 0.0))),
        "seed_low": float(np.sqrt(max(low - items, 0.0))),
        "seed_high": float(np.sqrt(max(high - items, 0.0))),
    }


_FACTOR: Final = float(norm.ppf((1 + LEVEL) / 2) + norm.ppf(POWER))


def _detectable(deviation: float) -> float:
    """Smallest difference of two runs that is found with `POWER`."""
    return float(_FACTOR * np.sqrt(2) * deviation)


def _finding(table: pd.DataFrame, final: pd.DataFrame) -> Finding:
    counted = table[table["in_mean"].astype(bool) & (table["benchmark"] != AVERAGE)]
    means = table[table["benchmark"] == AVERAGE].to_dict("records")
    replicated = counted[counted["num_settings"] > 0]
    cells = tuple(dict.fromkeys(str(cell) for cell in final["cell"]))
    if replicated.empty:
        return _without_replicates(counted, means, final, cells)
    row = means[0] if means and means[0]["num_settings"] else replicated.to_dict("records")[0]
    name = "the mean over benchmarks" if row["benchmark"] == AVERAGE else str(row["benchmark"])
    if not row["total_sd"] > 0:
        return _not_estimable(f"all seeds score the same on {name}: they may be one run")
    # Seeds that answer the same items share their luck: the whole spread may be the seed's.
    interval = None
    if pd.notna(row["seed_sd"]):
        interval = (float(row["seed_low"]), float(row["total_high"]))
    parts = "the error over items is not known, so that seeds and items cannot be told apart"
    if interval is not None:
        parts = (
            f"items explain up to {_points(row['item_sd'])} of it, which leaves the seed "
            f"{_points(row['seed_sd'])} to {_points(row['total_sd'])} {_range(*interval)}"
        )
    return Finding(
        question=QUESTION,
        statement=(
            f"Runs that differ in the seed alone spread by {_points(row['total_sd'])} points "
            f"{_range(row['total_low'], row['total_high'])} (standard deviation) on {name}; "
            f"{parts}. One run of each of two recipes tells them apart from "
            f"{_points(row['detectable'])} points on (in {POWER:.0%} of studies); one point takes "
            f"{plural(int(row['seeds_for_a_point']), 'run')} of each. {_extremes(replicated)}"
        ),
        estimate=None if interval is None else float(row["seed_sd"]),
        interval=interval,
        scale="points",
        n=int(row["num_runs"]),
        unit=f"run ({plural(int(row['num_settings']), 'setting')} with several seeds)",
        method=_METHOD,
        rows=cells,
        reason="" if interval is not None else "the error over items is not known",
    )


def _without_replicates(
    counted: pd.DataFrame,
    means: list[dict[Any, Any]],
    final: pd.DataFrame,
    cells: tuple[str, ...],
) -> Finding:
    text = (
        "0 replicated cells: no setting was run with a second seed, so the luck of a training run "
        "cannot be separated from the effect of a model, a dataset or a method."
    )
    known = counted[counted["detectable"].notna()].sort_values("detectable")
    if not known.empty:
        shown = f"{_least(known, -1)}, and {_least(known, 0)}"
        text += f" Items alone, each run with its own, hide differences of two runs below {shown}."
    if means and pd.notna(means[0]["detectable"]):
        text += (
            f" On the mean over benchmarks they hide those below {_points(means[0]['detectable'])} "
            "points."
        )
    return Finding(
        question=QUESTION,
        statement=text,
        estimate=None,
        interval=None,
        scale="points",
        n=0,
        unit=f"run ({plural(final['cell'].nunique(), 'final cell')}, each run once)",
        method=_METHOD,
        rows=cells,
        reason="no setting was run with a second seed",
    )


def _least(rows: pd.DataFrame, place: int) -> str:
    row = rows.iloc[place]
    return f"{_points(row['detectable'])} points on {row['benchmark']}"


def _extremes(rows: pd.DataFrame) -> str:
    """Name the benchmarks on which runs spread most and least."""
    if len(rows) < 2:
        return ""
    order = rows.sort_values("total_sd")
    shown = [
        f"{row['benchmark']} ({_points(row['total_sd'])})"
        for row in (order.iloc[-1], order.iloc[0])
    ]
    return f"Runs spread most on {shown[0]}, least on {shown[1]}."


def _points(value: Any) -> str:
    return f"{100 * float(value):.2g}" if value < 0.01 else f"{100 * float(value):.1f}"


def _range(low: float, high: float) -> str:
    return f"[{_points(low)}, {_points(high)}]"


def _not_estimable(reason: str) -> Finding:
    return not_estimable(QUESTION, reason, scale="points", unit="run", method=_METHOD)
