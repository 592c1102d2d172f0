"""Lay out a plan: what a study implies and costs, and how sure its scores will be.

Takes a `Plan` and what the caller knows beside it: free disk, and which items local benchmarks ask.
Returns something that Rich can print, or JSON with the keys of docs/cli.md.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sft_atlas.cli.progress import duration
from sft_atlas.study.budget import PlanCost, check_disk, judge_usd
from sft_atlas.study.certainty import DIVISORS, Certainty, certainties
from sft_atlas.study.resolution import Resolution
from sft_atlas.study.savings import Savings, evaluation_savings
from sft_atlas.study.study import Study
from sft_atlas.study.subset import Subset

if TYPE_CHECKING:
    from sft_atlas.study.assumption import Range
    from sft_atlas.study.plan import Plan


def plan_json(
    plan: "Plan",
    free_bytes: int,
    *,
    subsets: Mapping[str, Subset] | None = None,
) -> dict[str, Any]:
    """Return a plan with stable keys; hours are `[low, likely, high]` device hours.

    Args:
        plan: the plan.
        free_bytes: free space of the store's disk.
        subsets: which items are asked, for benchmarks whose items are on this machine.
    """
    cost, total = plan.cost, plan.total_cost
    savings = evaluation_savings(plan)
    return {
        "study": plan.study.name,
        "cells": plan.num_cells,
        "trajectories": plan.num_trajectories,
        "base_models": len(plan.bases),
        "cells_done": plan.num_done,
        "blocks": {
            block.name: {
                "cells": block.num_cells,
                "trajectories": block.num_trajectories,
                "trained": block.num_trained,
                "done": block.num_done,
                "missing": block.num_missing,
                "shared_with": dict(block.shared),
            }
            for block in plan.blocks
        },
        "jobs": plan.num_jobs,
        "device": plan.device,
        "training_hours": list(total.hours["train"]),
        "evaluation_hours": list(total.hours["evaluate"].plus(total.unscored_hours)),
        "missing": _cost_json(cost, plan.study),
        "whole_study": _cost_json(total, plan.study),
        "benchmarks": {
            found.benchmark: _certainty_json(found, (subsets or {}).get(found.benchmark))
            for found in certainties(plan.study, _counted(subsets))
        },
        "evaluation_savings": _savings_json(savings),
        "published": [asdict(figure) for figure in plan.study.published],
        "cannot_be_scored": {b.name: b.reason for b in plan.study.benchmarks if b.spec is None},
        "free_disk_bytes": free_bytes,
        "fits_on_disk": check_disk(cost, free_bytes) is None,
        "refusal": check_disk(cost, free_bytes),
        "assumptions": [asdict(assumption) for assumption in total.assumptions],
    }


def plan_page(
    plan: "Plan",
    free_bytes: int,
    *,
    subsets: Mapping[str, Subset] | None = None,
) -> RenderableType:
    """Lay out a plan: blocks, jobs, hours, certainty, and what the estimate takes for granted."""
    cost = plan.cost
    parts: list[RenderableType] = [
        Text(f"{plan.study.name}: {plan.study.about}", "bold"),
        _blocks_table(plan),
        Text(f"\nmissing jobs: {_jobs_text(plan)}"),
        _hours_table(plan),
        Text(
            f"\ntokens: {_count(cost.trained_tokens)} trained, "
            f"{_count(cost.scored_tokens)} scored, at most {_count(cost.decoded_tokens)} decoded\n"
            f"disk: {_bytes(cost.peak_disk_bytes)} at the most, {_bytes(cost.weights_bytes)} of it "
            f"weights, {_bytes(cost.measures_bytes)} measures; {_bytes(free_bytes)} free"
        ),
    ]
    if cost.judge_requests:
        parts.append(Text(_judge_text(cost, plan.study)))
    if plan.study.benchmarks:
        parts += [
            Text(),
            _certainty_table(certainties(plan.study, _counted(subsets))),
            Text(_CERTAINTY_NOTE, "dim"),
        ]
        parts += [Text(), *_savings_parts(plan)]
    for name, subset in (subsets or {}).items():
        parts.append(Text(f"items of {name}: {_subset_text(subset)}"))
    parts += _remarks(plan, free_bytes)
    assumed = _table("assumed", "value", "source")
    for assumption in plan.total_cost.assumptions:
        assumed.add_row(assumption.name, assumption.value, assumption.source)
    return Group(*parts, Text(), assumed)


_CERTAINTY_NOTE = (
    "SE: standard error in points, at scores of 50 %; detects: the smallest gain that a paired "
    "test at 5 % notices 4 times of 5, here and with fewer items (docs/certainty.md)"
)


def _cost_json(cost: PlanCost, study: Study) -> dict[str, Any]:
    return {
        "hours": {kind: list(hours) for kind, hours in cost.hours.items()},
        "hours_by_method": {
            method: {kind: list(hours) for kind, hours in kinds.items()}
            for method, kinds in cost.hours_by_method.items()
        },
        "total_hours": list(cost.total_hours),
        "measure_fraction": cost.measure_fraction,
        "unshared_training_hours": list(cost.unshared_train_hours),
        "unscored_hours": list(cost.unscored_hours),
        "trained_tokens": cost.trained_tokens,
        "scored_tokens": cost.scored_tokens,
        "decoded_tokens": cost.decoded_tokens,
        "judge": {
            "requests": cost.judge_requests,
            "prompt_tokens": cost.judge_prompt_tokens,
            "answer_tokens": cost.judge_answer_tokens,
            "usd": _judge_usd(cost, study),
        },
        "weights_bytes": cost.weights_bytes,
        "measures_bytes": cost.measures_bytes,
        "disk_bytes": cost.disk_bytes,
        "peak_disk_bytes": cost.peak_disk_bytes,
        "guessed_sizes": list(cost.guessed_sizes),
        "memory": [asdict(need) for need in cost.memory],
    }


def _certainty_json(found: Certainty, subset: Subset | None) -> dict[str, Any]:
    return {
        "items": found.num_items,
        "available": found.num_available,
        "is_guessed": found.is_guessed,
        **_resolution_json(found.resolution),
        "fewer": [
            {"divisor": f.divisor, "items": f.num_items, **_resolution_json(f.resolution)}
            for f in found.fewer
        ],
        "subset": None if subset is None else asdict(subset),
    }


def _resolution_json(found: Resolution | None) -> dict[str, Any]:
    return {
        "standard_error": None if found is None else found.standard_error,
        "gain_se": None if found is None else found.gain_se,
        "detectable_difference": None if found is None else found.detectable_difference,
    }


def _savings_json(savings: Savings) -> dict[str, Any]:
    return {
        "plain_hours": list(savings.plain_hours),
        "hours": list(savings.hours),
        "factor": savings.factor,
        "plain_hours_per_cell": savings.plain_cell_hours,
        "savings": [
            asdict(part) | {"hours_alone": list(part.hours_alone)} for part in savings.parts
        ],
    }


def _blocks_table(plan: "Plan") -> Table:
    blocks = _table("block", "cells", "trajectories", "done", "missing", "shared with")
    for block in plan.blocks:
        shared = ", ".join(f"{name} ({n})" for name, n in block.shared)
        counts = [block.num_cells, block.num_trajectories, block.num_done, block.num_missing]
        blocks.add_row(block.name, *map(str, counts), shared)
    total = [plan.num_cells, plan.num_trajectories, plan.num_done, plan.num_cells - plan.num_done]
    blocks.add_row("all, shared once", *map(str, total), "", style="bold")
    return blocks


def _jobs_text(plan: "Plan") -> str:
    optional = {"grade", "overlap"}
    counts = ((kind, n) for kind, n in plan.num_jobs.items() if n or kind not in optional)
    return ", ".join(f"{n} {kind}" for kind, n in counts)


def _hours_table(plan: "Plan") -> Table:
    table = _table(f"device time on {plan.device}", "low", "likely", "high")
    cost = plan.cost
    rows = {kind: hours for kind, hours in cost.hours.items() if hours.high}
    if "measure" in rows:
        share = f"measure ({cost.measure_fraction:.0%} of all)"
        rows = {share if kind == "measure" else kind: hours for kind, hours in rows.items()}
    rows["all that is missing"] = cost.total_hours
    if cost.unscored_hours.high:
        rows["benchmarks that cannot be scored yet"] = cost.unscored_hours
    rows["training, if nothing were shared"] = cost.unshared_train_hours
    for name, hours in rows.items():
        table.add_row(name, *_times(hours))
    return table


def _certainty_table(found: list[Certainty]) -> Table:
    fewer = [f"with 1/{divisor}" for divisor in DIVISORS]
    table = _table("benchmark", "items", "of", "SE", "detects", *fewer)
    for row in found:
        if row.resolution is None:
            texts = ["?", "?"]
        else:
            texts = [
                _points(row.resolution.standard_error),
                _points(row.resolution.detectable_difference),
            ]
        texts += [_points(f.resolution.detectable_difference) for f in row.fewer]
        available = f"about {row.num_available:,}" if row.is_guessed else f"{row.num_available:,}"
        table.add_row(row.benchmark, f"{row.num_items:,}", available, *texts)
    return table


def _savings_parts(plan: "Plan") -> list[RenderableType]:
    """Return one line, or a table where the study names what others published."""
    savings = evaluation_savings(plan)
    published = [figure for figure in plan.study.published if figure.kind == "evaluate"]
    if not published:
        times = f"{_time(savings.plain_hours.likely)}, {savings.factor:.1f} times as long"
        return [Text(f"evaluation without any saving would take {times} (docs/plan.md)")]
    title = f"evaluation of the whole study on {plan.device}"
    table = _table(title, "low", "likely", "high", "alone", "if missing", "source")
    table.add_row("no saving", *_times(savings.plain_hours))
    for part in savings.parts:
        if part.factor_alone < 1.005 and part.factor_last < 1.005:
            continue  # nothing in this study can make use of it
        factors = (f"{part.factor_alone:.2f} x", f"{part.factor_last:.2f} x")
        table.add_row(part.name, *_times(part.hours_alone), *factors, part.source)
    ours = (*_times(savings.hours), f"{savings.factor:.1f} x")
    table.add_row("all together", *ours, style="bold")
    cells = ", ".join(f"{name} {hours:.1f} h" for name, hours in savings.plain_cell_hours.items())
    parts: list[RenderableType] = [table, Text(f"a mean cell with no saving: {cells}")]
    for figure in published:
        share = figure.device_hours / savings.hours.likely
        there = figure.device_hours / savings.factor
        text = _published_text(figure.device_hours, figure.kind, figure.source)
        line = (
            f"{text}\n  this plan: 1/{share:.0f} of it; by the factor alone: {there:,.0f} h there"
        )
        parts.append(Text(line))
    return parts


def _remarks(plan: "Plan", free_bytes: int) -> list[RenderableType]:
    """Return what others published, and what a reader must not miss."""
    parts: list[RenderableType] = []
    for figure in plan.study.published:
        if figure.kind != "evaluate":
            parts.append(Text(_published_text(figure.device_hours, figure.kind, figure.source)))
    for benchmark in plan.study.benchmarks:
        if benchmark.spec is None:
            parts.append(Text(f"cannot be scored yet: {benchmark.name}, {benchmark.reason}"))
    if plan.cost.guessed_sizes:
        names = ", ".join(plan.cost.guessed_sizes)
        parts.append(Text(f"sizes are guessed for {names}: give `parameters` in the study"))
    refusal = check_disk(plan.cost, free_bytes)
    if refusal:
        parts.append(Text(f"does not fit: {refusal}", "bold red"))
    return parts


def _judge_text(cost: PlanCost, study: Study) -> str:
    text = (
        f"judge: {cost.judge_requests:,} requests, {_count(cost.judge_prompt_tokens)} tokens to "
        f"read, {_count(cost.judge_answer_tokens)} to write"
    )
    usd = _judge_usd(cost, study)
    return text if usd is None else f"{text}: about {usd:,.0f} US$"


def _judge_usd(cost: PlanCost, study: Study) -> float | None:
    judge = study.judge
    if judge is None or judge.usd_per_million_input is None:
        return None
    if judge.usd_per_million_output is None:
        return None
    return judge_usd(cost, judge.usd_per_million_input, judge.usd_per_million_output)


def _counted(subsets: Mapping[str, Subset] | None) -> dict[str, int]:
    return {name: subset.num_available for name, subset in (subsets or {}).items()}


def _subset_text(subset: Subset) -> str:
    text = f"{subset.num_items:,} of {subset.num_available:,}, digest {subset.digest[:12]}"
    if not subset.num_by_group:
        return text
    counts = subset.num_by_group.values()
    return f"{text}, {min(counts)} to {max(counts)} of each of {len(counts)} groups"


def _published_text(device_hours: float, kind: str, source: str) -> str:
    return f"published: {device_hours:,g} h to {kind}: {source}"


def _table(*names: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(name, overflow="fold")
    return table


def _times(hours: "Range") -> tuple[str, str, str]:
    return _time(hours.low), _time(hours.likely), _time(hours.high)


def _time(hours: float) -> str:
    return duration(hours * 3600) if hours < 24 else f"{hours:,.0f} h"


def _points(fraction: float) -> str:
    return f"{100 * fraction:.1f}"


def _count(value: float) -> str:
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.0f}"


def _bytes(value: float) -> str:
    return f"{_count(value)}B"
