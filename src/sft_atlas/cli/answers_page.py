"""Lay out the answers of a study in words: for a terminal, as Markdown, as JSON.

In: Findings, what was found wrong with imported results, and the verdicts on the paper's claims.
Out: the same sentences in each form, so that a page, a document and a program agree.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from sft_atlas.render.export_text import markdown_escaped
from sft_atlas.render.short import certainty

if TYPE_CHECKING:
    from sft_atlas.analyze.analysis import Analysis
    from sft_atlas.analyze.findings import Finding
    from sft_atlas.evidence.imported import Imported

_STYLES = {"clear": "bold green", "open": "yellow", "note": "dim", "not estimable": "red"}


def answers_json(found: "Analysis", imported: "Imported | None") -> dict[str, Any]:
    """Return all answers with stable keys; tables are left to `table`."""
    return {
        "main_setting": found.main_setting,
        "answers": [asdict(item) | {"certainty": certainty(item)} for item in _all(found)],
        "defects": [asdict(defect) for defect in imported.defects] if imported else [],
        "checks": list(imported.checks) if imported else [],
    }


def answers_page(found: "Analysis", imported: "Imported | None") -> RenderableType:
    """Return question by question, each answer with its certainty."""
    parts: list[RenderableType] = []
    for question, items in _by_question(_all(found)):
        parts.append(Text(question, style="bold"))
        for item in items:
            name = certainty(item)
            line = Text("  ")
            line.append(f"{name}: ", style=_STYLES[name])
            line.append(_said(item))
            parts.append(line)
        parts.append(Text(""))
    if imported and imported.defects:
        parts.append(Text("What is wrong with the table", style="bold"))
        parts += [Text(f"  {defect.kind}: {defect.where}") for defect in imported.defects]
    return Group(*parts)


def answers_markdown(found: "Analysis", imported: "Imported | None", name: str) -> str:
    """Return a document: defects first, because they decide what the answers mean."""
    command = f"sft-atlas answers {name.replace('`', '')} --format markdown"
    lines = [f"# What {markdown_escaped(name)} says", "", f"Made by `{command}`.", ""]
    if imported:
        lines += _source_lines(imported)
    lines += [*_claim_lines(found), "## Answers", ""]
    lines += [
        "Gains are in percentage points. Brackets are 95 % intervals that resample models and "
        "datasets. **clear**: the interval, and a test where one was made, leave out 0; **open**: "
        "they do not.",
        "",
    ]
    for question, items in _by_question(_all(found)):
        lines += [f"### {markdown_escaped(question)}", ""]
        for item in items:
            lines.append(f"* **{certainty(item)}** {markdown_escaped(_said(item))}")
            lines.append(
                f"  *{markdown_escaped(item.method)} n = {item.n:,}; a row is a {item.unit}.*"
            )
        lines.append("")
    return "\n".join(lines)


def _all(found: "Analysis") -> list["Finding"]:
    more = [item for answered in found.answered.values() for item in answered.findings]
    return [*found.findings, *more]


def _by_question(items: Sequence["Finding"]) -> Iterator[tuple[str, list["Finding"]]]:
    for question in dict.fromkeys(item.question for item in items):
        yield question, [item for item in items if item.question == question]


def _source_lines(imported: "Imported") -> list[str]:
    counts = imported.counts()
    file = imported.origin.rsplit("/", 1)[-1].replace("`", "'")
    lines = [
        f"Source: `{file}` (SHA-256 `{imported.sha256}`): {counts['num_models']} models, "
        f"{counts['num_cells']:,} fine-tuned cells, {counts['num_benchmarks']} score columns, "
        f"{counts['num_scores']:,} scores.",
        "",
        "## What is wrong with the table",
        "",
    ]
    for i, defect in enumerate(imported.defects, 1):
        lines += [
            f"{i}. **{defect.kind}** {markdown_escaped(defect.where)}",
            f"   * Evidence: {markdown_escaped(defect.evidence)}",
            f"   * Effect: {markdown_escaped(defect.effect)}",
            f"   * What is done: {markdown_escaped(defect.what_is_done)}",
        ]
    if not imported.defects:
        lines.append("Nothing was found.")
    lines += ["", "Checked and found right:", ""]
    return [*lines, *(f"* {markdown_escaped(check)}" for check in imported.checks), ""]


def _claim_lines(found: "Analysis") -> list[str]:
    """The verdicts on the paper's claims, as a table."""
    paper = found.answered.get("paper")
    if paper is None or paper.tables["paper_findings"].empty:
        return []
    rows = paper.tables["paper_findings"].to_dict("records")
    return [
        "## The paper's claims, judged by these results",
        "",
        "| about | claim | verdict | because |",
        "| --- | --- | --- | --- |",
        *(
            "| "
            + " | ".join(
                markdown_escaped(str(row[key])) for key in ("part", "claim", "verdict", "because")
            )
            + " |"
            for row in rows
        ),
        "",
    ]


def _said(item: "Finding") -> str:
    """The statement, without words that its certainty has said already."""
    return item.statement.removeprefix("Not estimable: ")
