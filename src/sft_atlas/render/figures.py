"""How do a report's charts and tables become files for a paper, without a browser?

In: sections. Out: one folder with, for each chart, PNG, SVG, PDF, the Vega-Lite specification with
its data inside and the data as CSV, and for each table CSV, LaTeX and Markdown. A chart that offers
choices is drawn once for each value of the first of them, at most `MAX_DRAWN` times, the others as
the page first shows them; its CSV holds the rows of all. Files of the same name are replaced,
others are left alone.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import pandas as pd

from sft_atlas import files
from sft_atlas.errors import StudyError
from sft_atlas.render.exhibits import Chart, Section, Table
from sft_atlas.render.export_text import csv_text, latex_text, markdown_text
from sft_atlas.render.theme import THEMES, chart_config

WIDTH: Final = 760
"""Pixels that a chart may take at 100 %: a page's text width at 300 dots per inch when doubled."""
MAX_DRAWN: Final = 12

_DRAWING_ONLY: Final = ("order", "x_order", "y_order", "strength", "is_faded", "ink")


@dataclass(frozen=True, kw_only=True)
class _Drawing:
    """One chart at one choice."""

    name: str
    spec: Mapping[str, Any]


def write_figures(sections: Iterable[Section], folder: Path) -> list[Path]:
    """Write all files and return their paths in the order of the page.

    Raises:
        StudyError: if the extra `figures` is not installed, or the folder cannot be made.
    """
    drawn_by = converter()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StudyError(
            f"{folder}: this folder cannot be made ({error.strerror}); a writable place was "
            "expected. Name another with --figures."
        ) from error
    written = []
    for section in sections:
        for chart in section.charts:
            written += _write_chart(chart, folder, drawn_by)
        for table in section.tables:
            written += _write_table(table, folder)
    return written


def portable(chart: Chart, rows: pd.DataFrame) -> dict[str, Any]:
    """Return a specification that any Vega-Lite renderer draws: data, size and colours inside."""
    spec = {key: value for key, value in chart.form.items() if key != "usermeta"}
    theme, size = THEMES["light"], chart.form.get("usermeta", {})
    spec["params"] = [
        {**param, "value": theme.get(param["name"], param.get("value"))}
        for param in spec.get("params", ())
    ]
    spec["datasets"] = {"rows": _records(rows)}
    spec["config"] = chart_config("light") | {"background": theme["page"]}
    if "step" in size:
        spec["height"] = size["step"] * rows[size["step_field"]].nunique()
    if "column_field" in size:
        columns = rows[size["column_field"]].nunique()
        room = (WIDTH - 150) // columns
        spec["width"] = columns * max(size["min_column"], min(size["max_column"], room))
    elif spec.get("width") == "container":
        spec |= {"width": WIDTH, "autosize": {"type": "fit-x", "contains": "padding"}}
    return spec


def _write_chart(chart: Chart, folder: Path, drawn_by: ModuleType) -> list[Path]:
    data = chart.rows.drop(columns=[n for n in _DRAWING_ONLY if n in chart.rows])
    written = [_write(folder / f"{chart.name}.csv", csv_text(data).encode())]
    for drawing in islice(_drawings(chart), MAX_DRAWN):
        text = json.dumps(drawing.spec, ensure_ascii=False, allow_nan=False)
        svg = drawn_by.vegalite_to_svg(text)
        for suffix, content in (
            (".vl.json", text.encode()),
            (".svg", svg.encode()),
            (".png", drawn_by.svg_to_png(svg, scale=2)),
            (".pdf", drawn_by.svg_to_pdf(svg)),
        ):
            written.append(_write(folder / f"{drawing.name}{suffix}", content))
    return written


def _write_table(table: Table, folder: Path) -> list[Path]:
    texts = {
        ".csv": csv_text(table.rows),
        ".tex": latex_text(table),
        ".md": markdown_text(table),
    }
    place = f"table-{table.name}"
    return [_write(folder / f"{place}{end}", text.encode()) for end, text in texts.items()]


def _drawings(chart: Chart) -> Iterator[_Drawing]:
    """Draw what the page shows first, then the other choices in their order."""
    if not chart.choices:
        yield _Drawing(name=chart.name, spec=portable(chart, chart.rows))
        return
    seen: set[str] = set()
    for key, rows in _by_first_choice(chart):
        name = f"{chart.name}--{_slug(key)}" if seen else chart.name
        while name in seen:
            name += "-2"
        seen.add(name)
        yield _Drawing(name=name, spec=portable(chart, rows))


def _by_first_choice(chart: Chart) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield the rows of each value of the first choice, others as the page first shows them."""
    first, *others = chart.choices
    values = list(dict.fromkeys(chart.rows[first.column]))
    values.sort(key=lambda value: first.first not in ("", value))
    for value in values:
        rows = chart.rows[chart.rows[first.column] == value]
        for choice in others:
            known = rows[choice.column]
            wanted = choice.first if choice.first in set(known) else known.iloc[0]
            rows = rows[known == wanted]
        yield str(value), rows


def _records(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as plain JSON values, null where nothing is known."""
    return [
        {str(key): None if pd.isna(value) else value for key, value in row.items()}
        for row in rows.astype(object).to_dict("records")
    ]


def _slug(text: str) -> str:
    """Make a name of a file; letters of every script stay, signs become hyphens.

    >>> _slug("full, 1,000 samples / 日本語")
    'full-1-000-samples-日本語'
    """
    return re.sub(r"\W+", "-", text).strip("-")[:120]


def _write(path: Path, content: bytes) -> Path:
    files.write_atomic(path, content)
    return path


def converter() -> ModuleType:
    """Return what draws charts without a browser.

    Raises:
        StudyError: if the extra `figures` is not installed.
    """
    try:
        import vl_convert
    except ImportError as error:
        raise StudyError(
            "--figures: charts need the package vl-convert-python, which is not installed; a "
            "converter was expected. Install it with `pip install 'sft-atlas[figures]'`, or save "
            "single charts from the report's page."
        ) from error
    module: ModuleType = vl_convert
    return module
