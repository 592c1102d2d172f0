"""Lay out what the verbs return: tables for people, bytes for files.

Each function takes plain data and returns something that Rich can print, or JSON with the keys of
docs/cli.md.
"""

import io
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sft_atlas.cli.progress import duration
from sft_atlas.cli.time_page import progress_json, progress_parts

if TYPE_CHECKING:
    import pandas as pd

    from sft_atlas.data.inspect import Inspection
    from sft_atlas.execute.rounds import RunResult
    from sft_atlas.machine import Check
    from sft_atlas.store.cell_view import CellView
    from sft_atlas.store.status import Failure, Status

_BARS = " ▁▂▃▄▅▆▇█"

MAX_NAMED = 3
"""Failed cells that are named where several failed for one reason."""

_SHOWN_NUMBERS = ("score", "score_low", "score_high", "gain", "gain_low", "gain_high")
"""Columns of a table for people; the intervals are 95 %."""


def run_json(result: "RunResult") -> dict[str, Any]:
    """Return a run's result with stable keys."""
    return asdict(result) | {"is_complete": result.is_complete}


def run_page(result: "RunResult", study: Path, store: Path) -> RenderableType:
    """Say what a run did and what to do next."""
    lines = [f"{result.num_done} jobs done in {duration(result.seconds)}."]
    if result.set_aside:
        lines.append(
            f"{len(result.set_aside)} damaged results were moved to quarantine/ and made anew."
        )
    if result.num_left:
        lines.append(f"{result.num_left} jobs are left: run the same command to go on.")
    problems = result.num_failed + result.num_blocked
    if problems:
        lines.append(
            f"{result.num_failed} jobs failed, {result.num_blocked} wait for a failed one."
        )
    if result.num_failed_before:
        lines.append(
            f"{result.num_failed_before} jobs failed in an earlier run and were left alone: "
            f"`--only failed` tries them again."
        )
    where = "" if store == Path("store") else f" --store {store}"
    if problems or result.num_failed_before:
        lines.append(f"Why: sft-atlas status {study}{where}")
    lines.append(f"Report: sft-atlas report {study}{where}")
    return Text("\n".join(lines))


def status_json(status: "Status", study: Path) -> dict[str, Any]:
    """Return a status with stable keys; each failure has the command that tries it again."""
    failures = [asdict(f) | {"retry": _retry(status, study, f)} for f in status.failures]
    progress = None if status.progress is None else progress_json(status.progress)
    return asdict(status) | {"failures": failures, "progress": progress}


def status_page(status: "Status", study: Path) -> RenderableType:
    """Lay out how far each block is, the failed cells, and the time that is left."""
    table = _table("block", "planned", "done", "running", "failed", "missing")
    for block in status.blocks:
        kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(block.failed.items()))
        counts = [block.planned, block.done, block.running, kinds or 0, block.missing]
        table.add_row(block.block, *map(str, counts))
    parts: list[RenderableType] = [table]
    alike: dict[tuple[str, str], list[Failure]] = {}
    for failure in status.failures:
        alike.setdefault((failure.kind, failure.message), []).append(failure)
    parts += [Text(_failure_text(status, study, failures)) for failures in alike.values()]
    parts += [Text(f"running: process {h['pid']} on {h['host']}") for h in status.running]
    if status.progress is not None:
        parts += progress_parts(status.progress)
    return Group(*parts)


def _failure_text(status: "Status", study: Path, failures: Sequence["Failure"]) -> str:
    """Say a reason once, however many cells it stopped: no sandbox stops all of them."""
    first = failures[0]
    names = [f"{failure.cell[:12]} {failure.description}".strip() for failure in failures]
    more = len(names) - MAX_NAMED
    if more > 0:
        names = [*names[:MAX_NAMED], f"and {more:,} more"]
    retry = _retry(status, study, first) if len(failures) == 1 else _retry(status, study, None)
    return f"\n{', '.join(names)}: {first.kind}\n  {first.message}\n  try again: {retry}"


def _retry(status: "Status", study: Path, failure: "Failure | None") -> str:
    """Return the command that tries one failed cell again; None: all of them."""
    words = ["sft-atlas", "run", study, "--store", status.store, "--only"]
    name = "" if failure is None else failure.cell[:12]
    return shlex.join(map(str, [*words, name or "failed"]))


def inspection_page(found: "Inspection") -> RenderableType:
    """Show examples with the supervised part marked."""
    facts = _table("what", "number")
    numbers = asdict(found)
    for name in ("examples", "dropped", "dataset", "model", "template", "token_length_quantiles"):
        numbers.pop(name)
    for name, value in numbers.items():
        facts.add_row(name, f"{value:,}")
    lengths = ", ".join(f"{float(q):.0%}: {v:.0f}" for q, v in found.token_length_quantiles.items())
    title = f"{found.dataset} for {found.model}, template {found.template}"
    parts: list[RenderableType] = [Text(title, "bold"), facts, Text(f"tokens per sample {lengths}")]
    for example in found.examples:
        head = (
            f"\nrow {example.row}: {example.num_prompt_tokens} prompt tokens, "
            f"{example.num_answer_tokens} supervised" + (", cut" if example.is_truncated else "")
        )
        marked = Text("[supervised:] ", "bold green") + Text(example.supervised, "green")
        parts += [Text(head, "bold"), Text(example.unsupervised, "dim") + marked]
    if found.dropped:
        parts.append(Text("\nnot trained on:", "bold"))
    parts += [Text(f"{row.where}: {row.reason}") for row in found.dropped]
    return Group(*parts)


def cell_page(view: "CellView") -> RenderableType:
    """Show one cell: spec, loss curve, scores with intervals, drift, provenance, files."""
    name = view.provenance.get("cell", "base model")
    parts: list[RenderableType] = [Text(f"cell {view.cell}: {name}", "bold")]
    facts = _table("what", "value")
    for name, value in _flatten(view.spec | {"result": view.result, "training": view.training}):
        facts.add_row(name, str(value))
    parts.append(facts)
    if view.curve:
        losses = [step["loss"] for step in view.curve]
        parts.append(
            Text(
                f"\nloss {losses[0]:.3f} {sparkline(losses)} {losses[-1]:.3f}, "
                f"{len(losses)} of its steps"
            )
        )
    parts += _score_tables(view.scores)
    if view.drift:
        relative = [row["relative"] or 0.0 for row in view.drift if row["layer"] is not None]
        parts.append(
            Text(
                f"weight change by layer (relative) {sparkline(relative)} "
                f"{min(relative):.4f} to {max(relative):.4f}"
            )
        )
    parts += [Text(f"{kind}: {text}") for kind, text in _measure_texts(view.measures)]
    for name, value in view.provenance.items():
        parts.append(Text(f"{name}: {value}", "dim"))
    parts += [
        Text(f"{view.folder}/{name} {size:,} bytes", "dim") for name, size in view.files.items()
    ]
    return Group(*parts)


def _measure_texts(measures: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Name each measure with the numbers of its result that stand for themselves."""
    for kind, result in measures.items():
        shown = [
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in result.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        ]
        if shown:
            yield kind, ", ".join(shown)


def _score_tables(scores: Sequence[dict[str, Any]]) -> list[RenderableType]:
    """Lay out scores with their intervals and what speaks against them, judges, and groups."""
    table = _table("benchmark", "score", "95 % interval", "gain", "95 % interval", "items", "note")
    for row in scores:
        gain = "" if row["gain"] is None else f"{row['gain']:+.3f}"
        table.add_row(
            row["benchmark"],
            "" if row["score"] is None else f"{row['score']:.3f}",
            _interval_text(row["interval"], ".3f"),
            gain,
            _interval_text(row["gain_interval"], "+.3f"),
            f"{row['num_scored']}/{row['num_items']}",
            "; ".join(score_notes(row)),
        )
    parts: list[RenderableType] = [Text(), table]
    parts += [Text(f"\n{_judge_text(row)}") for row in scores if "judge" in row]
    for row in scores:
        if row["groups"]:
            groups = _table(f"groups of {row['benchmark']}", "score", "95 % interval", "items")
            for group in row["groups"]:
                low_high = (group["score_low"], group["score_high"])
                interval = None if low_high[0] is None else low_high
                shown = "" if group["score"] is None else f"{group['score']:.3f}"
                items = f"{group['num_scored']}/{group['num_items']}"
                groups.add_row(group["group"], shown, _interval_text(interval, ".3f"), items)
            parts += [Text(), groups]
    return parts


def score_notes(row: dict[str, Any]) -> list[str]:
    """Say in words what keeps a score of `CellView.scores` from being taken at face value."""
    num_items, num_scored = row["num_items"], row["num_scored"]
    chance = f" ({row['chance']:.3f})" if row.get("chance") is not None else ""
    counted = [
        ("num_truncated", num_items, "prompts without their start"),
        ("num_cut", num_items, "answers cut off at the limit"),
        ("num_unfollowed", num_scored, "answers not in the form that is asked for"),
    ]
    notes = [row["reason"]] if row["reason"] else []
    for flag in row["flags"]:
        if flag == "base at chance":
            notes.append(f"base not above chance{chance}")
        elif flag.startswith("identical to"):
            notes.append(f"all answers are {flag}")
    notes += [f"{row[name]} of {n} {what}" for name, n, what in counted if row.get(name)]
    if num_scored:
        notes += [f"{n} items not scored: {why}" for why, n in row["unscored"].items()]
    if row["gain_reason"]:
        # One that follows from the score's own is not said twice.
        notes += [] if row["score"] is None else [f"gain: {row['gain_reason']}"]
    return notes


def _judge_text(row: dict[str, Any]) -> str:
    """Say who judged a benchmark, what was lost of it, and what it cost."""
    answered = [name for name in row["answered_by"] if name != row["judge"]]
    names = f" (answered by {', '.join(answered)})" if answered else ""
    cost = "no price is known" if row["usd"] is None else f"${row['usd']:.2f}"
    tokens = row["input_tokens"] + row["output_tokens"] + row["lost_tokens"]
    text = (
        f"{row['benchmark']}: judged by {row['judge']}{names}: {row['num_judgments']:,} judgments, "
        f"{row['num_unparsed']:,} without a readable verdict, {row['num_failed']:,} failed; "
        f"{tokens:,} tokens, {cost}"
    )
    if row.get("turn_scores"):
        means = ", ".join(f"{mean:.2f}" for mean in row["turn_scores"])
        text += f"; mean rating by turn {means}"
    if "num_flipped" in row:
        text += f"; {row['num_flipped']:,} verdicts changed with the order"
    if row.get("length_controlled") is not None:
        error = row["length_controlled_error"]
        margin = "" if error is None else f" \u00b1 {error:.3f}"
        text += f"; at equal length {row['length_controlled']:.3f}{margin}"
    return text


def _interval_text(interval: Sequence[float] | None, form: str) -> str:
    return "" if interval is None else f"{interval[0]:{form}} to {interval[1]:{form}}"


def doctor_page(checks: Sequence["Check"]) -> RenderableType:
    """Lay out what was found, worst last."""
    table = _table("what", "status", "found", "needed for", "to change it")
    order = {"ok": 0, "limited": 1, "missing": 2}
    for check in sorted(checks, key=lambda c: order[c.status]):
        table.add_row(check.name, check.status, check.found, check.needed_for, check.fix)
    return table


def table_bytes(frame: "pd.DataFrame", kind: str) -> bytes:
    """Write a table as csv, parquet, json (records), markdown or latex (booktabs); nulls stay
    empty, and names are text wherever they are read: no formula, no markup.
    """
    if kind == "csv":
        from sft_atlas.render.export_text import inert

        texts = frame.select_dtypes(exclude="number").columns
        frame = frame.assign(**{name: frame[name].map(inert) for name in texts})
        return frame.to_csv(index=False).encode()
    if kind == "json":
        return frame.to_json(orient="records", force_ascii=False, indent=1).encode()
    if kind == "parquet":
        buffer = io.BytesIO()
        frame.to_parquet(buffer, index=False)
        return buffer.getvalue()
    columns = ["model", "data", "method", "samples", "epoch", "seed", "benchmark"]
    numbers = list(_SHOWN_NUMBERS)
    if not {*columns, *numbers} <= set(frame.columns):
        columns, numbers = [], list(frame.columns)
    chosen = frame[columns + numbers].astype(object)
    rows = [[_cell_text(v) for v in row] for row in chosen.where(chosen.notna(), None).to_numpy()]
    return (_markdown if kind == "markdown" else _latex)(columns + numbers, rows).encode()


def sparkline(values: Sequence[float]) -> str:
    """Draw values as bars of eight heights.

    >>> sparkline([0.0, 1.0, 0.5])
    '▁█▄'
    """
    low, high = min(values), max(values)
    scale = (high - low) or 1.0
    return "".join(_BARS[1 + int((value - low) / scale * 7)] for value in values)


def _table(*names: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(name, overflow="fold")
    return table


def _flatten(value: Any, path: str = "") -> Iterable[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flatten(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for number, item in enumerate(value):
            yield from _flatten(item, f"{path}[{number}]")
    elif value not in (None, [], "", False):
        yield path, value


def _cell_text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _markdown(names: list[str], rows: list[list[str]]) -> str:
    from sft_atlas.render.export_text import markdown_escaped

    escaped = [[markdown_escaped(text) for text in row] for row in [names, *rows]]
    lines = [escaped[0], ["---"] * len(names), *escaped[1:]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _latex(names: list[str], rows: list[list[str]]) -> str:
    from sft_atlas.render.export_text import latex_escaped

    def line(cells: Iterable[str]) -> str:
        return " & ".join(map(latex_escaped, cells)) + r" \\"

    left = sum(name not in _SHOWN_NUMBERS for name in names)
    layout = "l" * left + "r" * (len(names) - left)
    body = "\n".join(line(row) for row in rows)
    return (
        f"\\begin{{tabular}}{{{layout}}}\n\\toprule\n{line(names)}\n\\midrule\n{body}\n"
        f"\\bottomrule\n\\end{{tabular}}\n"
    )
