"""How does a study become one HTML file that needs nothing else?

In: tables, their analysis, and what is known about the study beyond them. Out: a page with style,
scripts, charts and data inline. A content security policy with the scripts' hashes forbids every
other script and every request, so that a name in a study file can never become code; all text goes
through Jinja2's escaping.
"""

import base64
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files as package_files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import pandas as pd

from sft_atlas import files
from sft_atlas.analyze.analysis import Analysis, analyze
from sft_atlas.analyze.findings import Finding
from sft_atlas.analyze.likelihood_map import MapTables
from sft_atlas.evidence.defect import Defect
from sft_atlas.render.appendix import appendix
from sft_atlas.render.charts import chart_specs
from sft_atlas.render.coverage import block_coverage, failures, ungained, unscored
from sft_atlas.render.exhibit_payload import exhibit_payload
from sft_atlas.render.exhibits import MAX_ANSWERS, MAX_SHOWN, Section, shown
from sft_atlas.render.families import Entry, families
from sft_atlas.render.figures import write_figures
from sft_atlas.render.map_words import map_words
from sft_atlas.render.payload import make_payload
from sft_atlas.render.question_sections import all_findings, question_sections
from sft_atlas.render.sentinels import find_sentinels
from sft_atlas.render.short import certainty, opening
from sft_atlas.render.study_charts import study_charts
from sft_atlas.render.theme import themes
from sft_atlas.render.trust import find_leaks, share_text, sharpness

if TYPE_CHECKING:
    from sft_atlas.store.tables import Tables


@dataclass(frozen=True, kw_only=True)
class ReportMeta:
    """What the page says about a study that its tables do not."""

    study: str
    """The study's name; the page's title."""
    description: str = ""
    notice: str = ""
    """A warning shown above everything, such as that models and tasks are synthetic."""
    study_file: str = ""
    """The study file's text, shown as it is."""
    made: str = ""
    """When the report was made, as text."""
    provenance: Sequence[tuple[str, str]] = field(default_factory=tuple)
    """(what, value) pairs: versions, digests, machine."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Tables that only some studies have; the page leaves out what is empty."""

    groups: pd.DataFrame = field(default_factory=pd.DataFrame)
    """`store.tables.groups_table`"""
    overlaps: pd.DataFrame | None = None
    """`store.overlaps.overlap_table`; None: the page says nothing about overlaps."""
    map: MapTables = field(default_factory=MapTables)
    """`analyze.likelihood_map.map_tables`"""
    defects: tuple[Defect, ...] | None = None
    """What is wrong with an imported table; None: the results are not imported."""
    checks: tuple[str, ...] = ()
    """What was tested of an imported table and found right, as sentences."""


def write_report(
    tables: "Tables",
    meta: ReportMeta,
    path: Path,
    *,
    analysis: Analysis | None = None,
    evidence: Evidence | None = None,
    figures: Path | None = None,
) -> Path:
    """Write the page and return its path; analyses the tables unless that was done before.

    With `figures`, every chart and table is also written as files in that folder.
    """
    found = analysis or analyze(tables)
    page = render_report(tables, meta, found, evidence)
    files.write_atomic(path, page.encode())
    if figures is not None:
        write_figures([study_charts(found, tables), *question_sections(found)], figures)
    return path


def render_report(
    tables: "Tables", meta: ReportMeta, analysis: Analysis, evidence: Evidence | None = None
) -> str:
    """Return the page as text."""
    known = evidence or Evidence()
    overlaps, setting = known.overlaps, analysis.main_setting
    findings, sections = all_findings(analysis), question_sections(analysis)
    payload = make_payload(tables, analysis, known.map, findings=findings)
    return _template().render(
        meta=meta,
        **_inlined(),
        payload=compressed_json(payload | exhibit_payload(sections)),
        axes=_axes(tables),
        lines=opening(findings),
        questions=_questions(findings, sections),
        sections=sections,
        absent=_absent(analysis, tables) if known.defects is not None else (),
        answers=_placed(findings, sections),
        max_shown=MAX_SHOWN,
        max_answers=MAX_ANSWERS,
        defects=known.defects,
        checks=known.checks,
        appendix=appendix(analysis.answered),
        coverage=block_coverage(tables.cells),
        failures=failures(tables.cells),
        unscored=unscored(tables.cells, tables.scores),
        ungained=ungained(tables.scores),
        sentinels=find_sentinels(tables.scores),
        sharpness=sharpness(tables.scores),
        leaks=None if overlaps is None else find_leaks(overlaps, tables.cells),
        families=families(known.groups, tables.scores, tables.cells, setting=setting),
        model_map=map_words(known.map),
        counts=_counts(tables),
        analysis=analysis,
        licences=[(name, _asset(f"{name}.LICENSE")) for name in _LIBRARIES],
    )


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(lambda name: _asset(name)),
    )
    environment.filters |= {
        **{"entry": _entry_text, "share": share_text, "certainty": certainty},
        "shown": shown,
    }
    return environment.get_template("template.html.j2")


def _inlined() -> Mapping[str, Any]:
    """Return what is the same on every page: style, libraries, scripts and their hashes."""
    script = _script()
    return {
        "csp_hashes": " ".join(_csp_hash(text) for text in (*_libraries(), script)),
        "style": _asset("report.css"),
        "libraries": _libraries(),
        "script": script,
        "specs": _specs(),
        "themes": embedded_json(themes()),
    }


def embedded_json(value: object) -> str:
    """Return JSON that is safe inside a script element.

    >>> embedded_json({"name": "</script>"})
    '{"name":"\\\\u003c/script\\\\u003e"}'
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def compressed_json(value: object) -> str:
    """Return JSON that was deflated and written as base64: a third of its size, and safe anywhere.

    >>> zlib.decompress(base64.b64decode(compressed_json({"name": "</script>"})))
    b'{"name":"</script>"}'
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(zlib.compress(text.encode(), 6)).decode()


_LIBRARIES = ("vega", "vega-lite", "vega-embed")
_SCRIPTS = (
    "data.js",
    "charts.js",
    "exports.js",
    "exhibits.js",
    "table.js",
    "map.js",
    "properties.js",
    "depth.js",
    "forgetting.js",
    "page.js",
)


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis of the study: its name and its values with what is known of each."""

    name: str
    values: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question with its Findings and their places in the payload."""

    text: str
    answers: tuple[tuple[int, Finding], ...]


def _entry_text(entry: Entry | None, is_rating: bool) -> tuple[str, str]:
    """Return a score and its interval as a table shows them."""
    if entry is None or entry.score is None:
        return "\N{EM DASH}", ""
    scale, digits = (1, 2) if is_rating else (100, 1)
    interval = ""
    if entry.low is not None and entry.high is not None:
        interval = f"[{scale * entry.low:.{digits}f}, {scale * entry.high:.{digits}f}]"
    return f"{scale * entry.score:.{digits}f}", interval


@cache
def _specs() -> str:
    """Charts have no data of their own: they are the same on every page."""
    return embedded_json(chart_specs())


@cache
def _asset(name: str) -> str:
    return (package_files("sft_atlas.render") / "assets" / name).read_text(encoding="utf-8")


@cache
def _libraries() -> tuple[str, ...]:
    """The chart libraries without their pointers to source maps, which no reader has."""
    texts = (_asset(f"{name}.min.js") for name in _LIBRARIES)
    return tuple(text.split("\n//# sourceMappingURL=")[0] for text in texts)


@cache
def _script() -> str:
    parts = "\n".join(_asset(name) for name in _SCRIPTS)
    return f'(async () => {{\n"use strict";\n{parts}\n}})();'


def _csp_hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def _absent(analysis: Analysis, tables: "Tables") -> tuple[str, ...]:
    """Name the sections of measures that imported results do not have; a study says why not."""
    frames = {
        "properties": analysis.points,
        "layers": analysis.layers,
        "dimension": analysis.dimensions,
        "forgetting": analysis.forgetting,
        "directions": analysis.spectra,
        "losses": tables.curves,
    }
    return tuple(name for name, frame in frames.items() if frame.empty)


def _questions(findings: Sequence[Finding], sections: Sequence[Section]) -> list[Question]:
    """Return the questions that have no section of their own."""
    elsewhere = {i for answers in _placed(findings, sections).values() for i, _ in answers}
    here = [(i, item) for i, item in enumerate(findings) if i not in elsewhere]
    return [
        Question(text=text, answers=tuple(pair for pair in here if pair[1].question == text))
        for text in dict.fromkeys(item.question for _, item in here)
    ]


def _placed(
    findings: Sequence[Finding], sections: Sequence[Section]
) -> dict[str, list[tuple[int, Finding]]]:
    """Return each section's Findings with their places among all."""
    places = {id(finding): i for i, finding in enumerate(findings)}
    return {
        section.name: [(places[id(item)], item) for item in section.findings]
        for section in sections
    }


def _axes(tables: "Tables") -> list[Axis]:
    """Read the axes of the grid off the cells, each value with its facts."""
    cells = tables.cells
    if cells.empty:
        return []
    trained = cells[cells["method"] != "base"]
    axes = [
        ("Base models", _facts(cells, "model", ("family", "languages"))),
        ("Data", _facts(trained, "data", ("data_group",))),
        ("Benchmarks", _benchmark_facts(tables.scores)),
        ("Methods", _facts(trained, "method", ("method_kind",))),
        ("Samples", _plain(trained["samples"], "{:,.0f}")),
        ("Schedules", _plain(trained["schedule"], "{}")),
        ("Kept epochs", _plain(trained["epoch"].sort_values(), "{:g}")),
        ("Seeds", _plain(trained["seed"], "{:g}")),
    ]
    return [Axis(name=name, values=values) for name, values in axes if values]


def _facts(cells: pd.DataFrame, name: str, facts: Sequence[str]) -> tuple[tuple[str, str], ...]:
    rows = cells.drop_duplicates(name)
    described = []
    for row in rows.to_dict("records"):
        known = [str(row[fact]) for fact in facts if pd.notna(row[fact]) and str(row[fact])]
        label = str(row[name])
        described.append((label, " · ".join(fact for fact in known if fact != label)))
    return tuple(described)


def _benchmark_facts(scores: pd.DataFrame) -> tuple[tuple[str, str], ...]:
    if scores.empty:
        return ()
    items = scores.groupby("benchmark", sort=False)["num_items"].max()
    described = []
    for row in scores.drop_duplicates("benchmark").to_dict("records"):
        name = str(row["benchmark"])
        known = [
            str(row[fact]) for fact in ("skill", "metric") if pd.notna(row[fact]) and row[fact]
        ]
        if pd.notna(items[name]):
            known.append(f"{int(items[name]):,} items")
        described.append((name, " · ".join(known)))
    return tuple(described)


def _plain(values: "pd.Series[Any]", form: str) -> tuple[tuple[str, str], ...]:
    return tuple((form.format(value), "") for value in values.dropna().unique())


def _counts(tables: "Tables") -> dict[str, int]:
    cells = tables.cells
    if cells.empty:
        return dict.fromkeys(("models", "data", "benchmarks", "cells", "done", "trajectories"), 0)
    trained = cells[cells["method"] != "base"]
    return {
        "models": cells["model"].nunique(),
        "data": trained["data"].nunique(),
        "benchmarks": 0 if tables.scores.empty else tables.scores["benchmark"].nunique(),
        "cells": len(trained),
        "done": int((trained["state"] == "done").sum()),
        "trajectories": trained["trajectory"].nunique(),
    }
