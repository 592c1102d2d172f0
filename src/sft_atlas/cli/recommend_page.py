"""Lay out a recommendation, and the runs that a budget should buy.

In: a `Recommendation` or a `Proposal`. Out: something that Rich can print, or JSON with the keys of
docs/cli.md. Gains are percentage points on the page and fractions in JSON; what is not known is
null, never 0.
"""

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    import pandas as pd

    from sft_atlas.decide.proposal import Proposal
    from sft_atlas.decide.recommend import Recommendation

MAX_ROWS: Final = 8
NO: Final = "\N{EN DASH}"
MINUS: Final = "\N{MINUS SIGN}"

Row = Mapping[str, Any]


def recommendation_json(found: "Recommendation") -> dict[str, Any]:
    """Return a recommendation with stable keys."""
    return {
        "model": found.model,
        "is_new_model": found.is_new_model,
        "weights": dict(found.weights),
        "answer": answer(found),
        "choices": list(records(found.choices)),
        "by_benchmark": list(records(found.by_benchmark)),
        "best_probability_by": list(records(found.by_factor)),
        "changes_with_weights": list(records(found.flips)),
        "next_runs": list(records(found.next_runs)),
        "next_stopped": found.next_stopped,
        "unsupported": list(records(found.unsupported)),
        "why_no_gain": found.why_no_gain,
        "why_no_interval": found.why_no_interval,
        "cost_basis": found.cost_basis,
        "budget_gpu_hours": found.budget_gpu_hours,
        "sources": list(found.sources),
        "num_models": found.num_models,
        "reason": found.reason,
        "notes": list(found.notes),
        "method": found.method,
    }


def proposal_json(found: "Proposal") -> dict[str, Any]:
    """Return a proposal with stable keys."""
    return {
        "weights": dict(found.weights),
        "budget_gpu_hours": found.budget_gpu_hours,
        "gpu_hours": found.gpu_hours,
        "planned_gpu_hours": found.planned_gpu_hours,
        "runs": list(records(found.runs)),
        "by_model": list(records(found.by_model)),
        "precision": list(records(found.precision)),
        "unsupported": list(records(found.unsupported)),
        "stopped": found.stopped,
        "reason": found.reason,
    }


def answer(found: "Recommendation") -> str:
    """Say in one sentence what to train, and how sure that is."""
    mix = ", ".join(f"{name} {100 * share:.0f} %" for name, share in found.weights.items())
    if found.reason:
        return f"{found.model} for {mix}: no recommendation: {found.reason}."
    top = next(records(found.choices))
    value, low, high = ("gain", "low", "high")
    over = "over the base model"
    if top["gain"] is None:
        value, low, high = ("effect", "effect_low", "effect_high")
        over = "over the mean choice"
    known = _interval(top, low, high) + (", measured" if top["is_observed"] else "")
    best = _probable(found, "data")
    return (
        f"{found.model} for {mix}: train on {_choice(top)}: {_points(top[value])} points {over} "
        f"({known}). It is the best choice with probability {_percent(top['best_probability'])}, "
        f"and gives away {_points(top['regret'], signed=False)} points on average; the best data "
        f"is {best}."
    )


def recommendation_page(found: "Recommendation") -> RenderableType:
    """Say what to train, what else could be, and what would change the answer."""
    parts: list[RenderableType] = [Text(answer(found)), Text()]
    if not found.reason:
        parts += [_choices_table(found), Text()]
        parts += _what_changes(found)
    sources = ", ".join(found.sources) or "the tables given"
    parts.append(Text(f"evidence: {sources}; {found.num_models} other models", style="dim"))
    parts += [Text(f"note: {note}", style="dim") for note in found.notes]
    for why in dict.fromkeys((found.why_no_gain, found.why_no_interval)):
        if why and not found.reason:
            parts.append(Text(f"note: {why}", style="dim"))
    if len(found.unsupported):
        count = len(found.unsupported)
        first = next(records(found.unsupported))
        words = f"not ranked: {count} choices, such as {_choice(first)}: {first['why_not']}"
        parts.append(Text(words, style="dim"))
    return Group(*parts)


def proposal_page(found: "Proposal") -> RenderableType:
    """List the runs to make first, and what they buy."""
    mix = ", ".join(f"{name} {100 * share:.0f} %" for name, share in found.weights.items())
    head = Text(f"\nFor {mix}, within {found.budget_gpu_hours:g} GPU-hours", style="bold")
    parts: list[RenderableType] = [head]
    if found.reason:
        parts.append(Text(f"no proposal: {found.reason}."))
    else:
        table = _table("run", "epochs", *_RIGHT_RUN)
        for row in records(found.runs):
            table.add_row(
                Text(f"{row['model']}: {_short(row)}"),
                _epochs(row["epochs"]),
                f"{row['gpu_hours']:.2f}",
                _points(row["gain"]),
                _points(row["regret"], signed=False),
            )
        hours = f"{found.gpu_hours:.1f} of {found.planned_gpu_hours:.1f} planned GPU-hours"
        units = "worth: expected rise of the chosen score; worth and regret in points"
        parts += [table, Text(f"{hours}; {found.stopped}."), Text(units, style="dim"), Text()]
        if len(found.unsupported):
            first = next(records(found.unsupported))
            count = len(found.unsupported)
            parts.append(Text(f"without a forecast: {count} runs; {first['why_not']}", style="dim"))
    parts.append(Text("Expected 95 % interval of each question, before anything is trained"))
    parts.append(_precision_table(found))
    return Group(*parts)


_RIGHT_RUN: Final = (">GPUh", ">worth", ">regret left")


def _precision_table(found: "Proposal") -> Table:
    table = _table(
        "question", ">pairs planned", ">half-width (points)", ">proposed", ">half-width (points)"
    )
    for row in records(found.precision):
        table.add_row(
            Text(str(row["question"]) + (f" ({row['why']})" if row["why"] else "")),
            str(row["planned_pairs"]),
            _half(row["half_width"]),
            str(row["proposed_pairs"]),
            _half(row["proposed_half_width"]),
        )
    return table


def _choices_table(found: "Recommendation") -> Table:
    has_gain = any(row["gain"] is not None for row in records(found.choices))
    value = "gain" if has_gain else "effect"
    low, high = ("low", "high") if has_gain else ("effect_low", "effect_high")
    table = _table(">#", "choice", f">{value}", "90 %", ">best", ">regret", ">GPUh", "")
    for row in list(records(found.choices))[:MAX_ROWS]:
        hours = row["gpu_hours"]
        remarks = ["measured"] if row["is_observed"] else []
        remarks += ["over budget"] if row["fits_budget"] is False else []
        table.add_row(
            str(row["rank"]),
            Text(_short(row)),
            _points(row[value]),
            _interval(row, low, high),
            _percent(row["best_probability"]),
            _points(row["regret"], signed=False),
            NO if hours is None else f"{hours:.2f}",
            ", ".join(remarks),
        )
    return table


def _what_changes(found: "Recommendation") -> list[RenderableType]:
    """What would change the answer: weights, budget, one more run."""
    parts: list[RenderableType] = [Text("What would change the answer", style="bold")]
    for row in records(found.flips):
        parts.append(
            Text(
                f"  weight of {row['benchmark']} {100 * row['weight']:.0f} % \N{RIGHTWARDS ARROW} "
                f"{100 * row['flips_at']:.0f} %: {row['becomes']}"
            )
        )
    if not len(found.flips) and len(found.weights) > 1:
        parts.append(Text("  weights: none would"))
    if found.budget_gpu_hours is not None:
        rows = [row for row in records(found.choices) if row["fits_budget"] is False]
        top = next(records(found.choices))
        better = [row for row in rows if (row["effect"] or 0) > (top["effect"] or 0)]
        if better:
            best = max(better, key=lambda row: row["effect"])
            parts.append(
                Text(f"  budget: {best['gpu_hours']:.1f} GPU-hours would buy {_choice(best)}")
            )
    for row in records(found.next_runs):
        hours = "" if row["gpu_hours"] is None else f" for {row['gpu_hours']:.2f} GPU-hours"
        parts.append(Text(f"  one more run: {_choice(row)}: {_points(row['gain'])} points{hours}"))
    parts += [Text(f"  more runs: {found.next_stopped}"), Text()]
    if found.cost_basis:
        parts.append(Text(f"cost: {found.cost_basis}", style="dim"))
    return parts


def records(frame: "pd.DataFrame") -> Iterator[dict[str, Any]]:
    """Yield rows as plain Python values; NaN and infinity are None."""
    names = [str(name) for name in frame.columns]
    for row in frame.itertuples(index=False, name=None):
        yield {name: _plain(value) for name, value in zip(names, row, strict=True)}


def _plain(value: Any) -> Any:
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _probable(found: "Recommendation", factor: str) -> str:
    rows = [row for row in records(found.by_factor) if row["factor"] == factor][:2]
    return ", ".join(f"{row['value']} ({_percent(row['best_probability'])})" for row in rows)


def _choice(row: Row) -> str:
    words = f"{row['data']}, {row['method']}, {row['samples']:,} samples, {row['schedule']}"
    return words + (f", epoch {row['epoch']}" if "epoch" in row else "")


def _short(row: Row) -> str:
    samples = f"{row['samples'] / 1000:g}k" if row["samples"] >= 1000 else str(row["samples"])
    words = f"{row['data']} {row['method']} {samples} {row['schedule']}"
    return words + (f" ep {row['epoch']}" if "epoch" in row else "")


def _epochs(epochs: list[int]) -> str:
    return str(epochs[0]) if len(epochs) == 1 else f"{epochs[0]}\N{EN DASH}{epochs[-1]}"


def _interval(row: Row, low: str, high: str) -> str:
    if row[low] is None or row[high] is None:
        return "no interval"
    return f"[{_points(row[low])}, {_points(row[high])}]"


def _points(value: float | None, *, signed: bool = True) -> str:
    if value is None:
        return NO
    text = f"{100 * value:+.1f}" if signed else f"{100 * value:.1f}"
    return text.replace("-", MINUS) if float(text) else "0.0"


def _half(value: float | None) -> str:
    return NO if value is None else f"\N{PLUS-MINUS SIGN}{100 * value:.1f}"


def _percent(value: float) -> str:
    """Probabilities come of draws: none is shown as certain."""
    if value >= 0.995:
        return "> 99 %"
    if value < 0.005:
        return "< 1 %"
    return f"{100 * value:.0f} %"


def _table(*titles: str) -> Table:
    """A bare table; a title that begins with `>` is of a right-aligned column."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in titles:
        table.add_column(
            title.removeprefix(">"),
            justify="right" if title.startswith(">") else "left",
            overflow="fold",
        )
    return table
