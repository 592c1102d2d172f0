"""What does LoRA lose, move and cost against full fine-tuning?

In: the tables `forgetting`, `drift` and `curves`. Out: factors, LoRA over full, on pairs of final
cells that differ in nothing else. What was not measured has a Finding that says so. The one
decision: such quantities span orders of magnitude, so that their logarithms are averaged.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from sft_atlas.analyze.findings import Finding, plural
from sft_atlas.analyze.gains import labelled_cells
from sft_atlas.analyze.questions.answered import Answered
from sft_atlas.statistics.clusters import codes, two_way_mean

if TYPE_CHECKING:
    from sft_atlas.store.tables import Tables

QUESTION: Final = "What does LoRA lose and cost against full fine-tuning?"

WORDS: Final = {
    "divergence": "divergence from the base model on neutral text (KL per token)",
    "weight_change": "relative change of the weights",
    "trained_tokens": "tokens trained on",
    "steps": "optimizer steps",
}
_ABSENT: Final = {
    "divergence": "no texts were measured for forgetting",
    "weight_change": "no weight changes are in the tables",
    "trained_tokens": "no training curves are in the tables",
    "steps": "no training curves are in the tables",
}
_FIXED: Final = ["model", "data", "samples", "schedule", "epochs", "epoch", "seed"]
_COLUMNS: Final = (
    *("setting", "first", "second", "quantity", "factor", "low", "high", "num_pairs"),
    *("num_models", "num_datasets"),
)


def method_traces(tables: "Tables") -> Answered:
    """Compare what LoRA and full fine-tuning leave behind, as factors on matched pairs.

    Table `method_traces`: setting, first (full), second (LoRA), quantity (`divergence`: KL(base ||
    cell) per token of neutral text; `weight_change`: Frobenius norm of the change over that of the
    weights, whole model; `trained_tokens` and `steps` up to the end of the run), factor (second
    over first, geometric mean over pairs), low and high (95 %, two-way clustered on the logarithm),
    num_pairs, num_models, num_datasets.
    """
    labels = labelled_cells(tables.cells)
    final = labels[labels["is_final"].astype(bool)]
    measured = _measured(tables, final)
    kinds = final.drop_duplicates("method").set_index("method")["method_kind"]
    rows: list[dict[str, object]] = []
    cells: list[str] = []
    for first in kinds.index[kinds == "full"]:
        for second in kinds.index[kinds == "lora"]:
            pairs = _pairs(measured, first, second)
            cells += [*pairs["cell_first"], *pairs["cell_second"]]
            for (setting, quantity), part in pairs.groupby(["setting", "quantity"], sort=False):
                place = {"setting": setting, "first": first, "second": second}
                rows.append(place | {"quantity": quantity} | _factor(part))
    table = pd.DataFrame(rows, columns=list(_COLUMNS))
    has_both = {"full", "lora"} <= set(kinds)
    findings = _findings(table, tuple(dict.fromkeys(cells))) if has_both else ()
    return Answered(findings=findings, tables={"method_traces": table})


def _measured(tables: "Tables", final: pd.DataFrame) -> pd.DataFrame:
    """One row per final cell and quantity: the labels and `log`, the natural logarithm."""
    frames = []
    if not tables.forgetting.empty:
        kl = tables.forgetting[["cell", "kl_per_token"]]
        frames.append(kl.set_axis(["cell", "value"], axis=1).assign(quantity="divergence"))
    if not tables.drift.empty:
        total = tables.drift.loc[_is_whole(tables.drift), ["cell", "relative"]]
        frames.append(total.set_axis(["cell", "value"], axis=1).assign(quantity="weight_change"))
    if not tables.curves.empty:
        runs = tables.curves.groupby("trajectory")
        found = {"steps": runs["step"].max()}
        if "num_tokens" in tables.curves:
            found["trained_tokens"] = runs["num_tokens"].sum()
        for name, values in found.items():
            ends = final[["cell", "trajectory"]].merge(
                values.rename("value"), left_on="trajectory", right_index=True
            )
            frames.append(ends[["cell", "value"]].assign(quantity=name))
    if not frames:
        return pd.DataFrame(columns=[*final.columns, "quantity", "log"])
    rows = final.merge(pd.concat(frames, ignore_index=True), on="cell")
    value = rows["value"].astype(float)
    return rows[value > 0].assign(log=np.log(value[value > 0]))


def _is_whole(drift: pd.DataFrame) -> "pd.Series[bool]":
    """Rows about the whole model: `kind` is total and no layer is named."""
    return (drift["kind"] == "total") & drift["layer"].isna()


def _pairs(measured: pd.DataFrame, first: str, second: str) -> pd.DataFrame:
    keys = [*_FIXED, "quantity"]
    left = measured.loc[measured["method"] == first, [*keys, "setting", "cell", "log"]]
    right = measured.loc[measured["method"] == second, [*keys, "cell", "log"]]
    pairs = left.merge(right, on=keys, suffixes=("_first", "_second"))
    return pairs.assign(difference=pairs["log_second"] - pairs["log_first"])


def _factor(pairs: pd.DataFrame) -> dict[str, object]:
    mean = two_way_mean(
        pairs["difference"].to_numpy(dtype=np.float64),
        models=codes(pairs["model"]),
        datasets=codes(pairs["data"]),
        degrees="effective",
    )
    bounds = (None, None) if mean.interval is None else np.exp(mean.interval)
    return {
        "factor": float(np.exp(mean.estimate)),
        "low": bounds[0],
        "high": bounds[1],
        "num_pairs": mean.num_rows,
        "num_models": mean.num_models,
        "num_datasets": mean.num_datasets,
    }


def _findings(table: pd.DataFrame, cells: tuple[str, ...]) -> tuple[Finding, ...]:
    absent = [name for name in WORDS if name not in set(table["quantity"])]
    reasons = "; ".join(dict.fromkeys(_ABSENT[name] for name in absent))
    cost = (
        " Seconds and memory are not in the tables; per trained token LoRA takes 4 N operations "
        "and full fine-tuning 6 N, N the weights in matrix products."
    )
    method = (
        "Mean difference of logarithms on pairs of final cells that differ in the method alone, "
        "shown as a factor; two-way cluster-robust interval over models and datasets."
    )
    if table.empty:
        text = f"Not estimable: {reasons}.{cost}"
        return (_finding(text, None, None, 0, "pair of cells", method, (), reasons),)
    findings = []
    for keys, rows in table.groupby(["setting", "first", "second"], sort=False):
        setting, first, second = map(str, keys)
        found = {str(row["quantity"]): row for row in rows.to_dict("records")}
        shown = "; ".join(
            f"{_amount(found[name])} the {WORDS[name]}" for name in WORDS if name in found
        )
        missing = [name for name in WORDS if name not in found]
        why = "; ".join(dict.fromkeys(_ABSENT[name] for name in missing))
        if "steps" in found and "trained_tokens" in missing:
            why = why.replace(_ABSENT["trained_tokens"], "the training curves count no tokens")
        main = found.get("divergence") or next(iter(found.values()))
        interval = _log_interval(main)
        clusters = (
            f"{plural(main['num_models'], 'model')}, {plural(main['num_datasets'], 'dataset')}"
        )
        findings.append(
            _finding(
                f"{setting}: {second} against {first}: {shown}."
                + (f" Not measured: {why}." if why else "")
                + cost,
                float(np.log(main["factor"])),
                interval,
                int(main["num_pairs"]),
                f"pair of cells ({clusters})",
                method,
                cells,
                "" if interval else "too few models or datasets for an interval",
            )
        )
    return tuple(findings)


def _finding(
    text: str,
    estimate: float | None,
    interval: tuple[float, float] | None,
    n: int,
    unit: str,
    method: str,
    rows: tuple[str, ...],
    reason: str,
) -> Finding:
    return Finding(
        question=QUESTION,
        statement=text,
        estimate=estimate,
        interval=interval,
        scale="difference",
        n=n,
        unit=unit,
        method=method,
        rows=rows,
        reason=reason,
    )


def _amount(row: Mapping[Any, Any]) -> str:
    if pd.isna(row["low"]) or row["low"] == row["high"]:
        return f"{row['factor']:.3g} times"
    return f"{row['factor']:.3g} [{row['low']:.3g}, {row['high']:.3g}] times"


def _log_interval(row: Mapping[Any, Any]) -> tuple[float, float] | None:
    if pd.isna(row["low"]) or row["low"] == row["high"]:
        return None
    return float(np.log(row["low"])), float(np.log(row["high"]))
