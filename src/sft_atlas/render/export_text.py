"""How is a table written for a spreadsheet, for a paper and for a page of notes?

In: a `Table`. Out: its text as CSV, LaTeX (booktabs) or Markdown. A CSV holds every row and every
number in full with a plain minus; the other two hold what the page shows. A text that a spreadsheet
would run as a formula gets an apostrophe before it, because names come from other people's files.
"""

import csv
import io
import re
from typing import Any, Final

import pandas as pd

from sft_atlas.render.exhibits import NOTHING, Table, is_absent, shown

_FORMULA: Final = re.compile(r"^[=+\-@\t\r]")
_LATEX: Final = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",
    "]": "{]}",
    "\N{MINUS SIGN}": "$-$",
    NOTHING: "---",
}
# The brackets of an interval are no link: neither a number nor a closing bracket alone begins one.
_MARKDOWN: Final = re.compile(r"([\\|`*_<>#~]|\[(?![-+\d\u2212])|\](?=[(\[:]))")


def csv_text(rows: pd.DataFrame) -> str:
    """Return rows as CSV with a header; numbers in full, absent values empty."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\r\n")
    writer.writerow([_csv_value(str(name)) for name in rows.columns])
    columns = [rows[name].tolist() for name in rows.columns]
    writer.writerows([[_csv_value(value) for value in row] for row in zip(*columns, strict=True)])
    return file.getvalue()


def latex_text(table: Table) -> str:
    """Return the table for LaTeX with the package booktabs."""
    align = "".join("l" if column.kind in ("text", "yes") else "r" for column in table.columns)
    head = " & ".join(latex_escaped(column.title) for column in table.columns)
    body = [" & ".join(latex_escaped(text) for text in row) + r" \\" for row in _texts(table)]
    lines = [
        "% Needs \\usepackage{booktabs}.",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{latex_escaped(table.title)}}}",
        rf"\label{{tab:{re.sub('[^a-z0-9-]', '-', table.name)}}}",
        rf"\begin{{tabular}}{{{align}}}",
        *(r"\toprule", rf"{head} \\", r"\midrule"),
        *body,
        *(r"\bottomrule", r"\end{tabular}", r"\end{table}"),
    ]
    return "\n".join(lines) + "\n"


def markdown_text(table: Table) -> str:
    """Return the table as GitHub's Markdown; numbers are aligned to the right."""
    marks = ["---" if column.kind in ("text", "yes") else "--:" for column in table.columns]
    rows = [[column.title for column in table.columns], *_texts(table)]
    lines = [" | ".join(markdown_escaped(text) for text in row) for row in rows]
    lines.insert(1, " | ".join(marks))
    return "\n".join(f"| {line} |" for line in lines) + "\n"


def _texts(table: Table) -> list[list[str]]:
    columns = [
        [shown(value, column) for value in table.rows[column.key].tolist()]
        for column in table.columns
    ]
    return [list(row) for row in zip(*columns, strict=True)]


def _csv_value(value: Any) -> Any:
    if is_absent(value):
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return inert(value)


def inert(value: Any) -> Any:
    """Put an apostrophe before a text that a spreadsheet would run as a formula.

    >>> inert("=1+1"), inert("lima"), inert(-0.5)
    ("'=1+1", 'lima', -0.5)
    """
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def latex_escaped(text: str) -> str:
    r"""Keep a text from being read as LaTeX.

    >>> print(latex_escaped("50 % of gsm8k_0"))
    50 \% of gsm8k\_0
    """
    return "".join(_LATEX.get(sign, sign) for sign in " ".join(text.split()))


def markdown_escaped(text: str) -> str:
    r"""Keep a text from being read as Markdown or HTML.

    >>> print(markdown_escaped("<b> | gsm8k_0 [0.1, 0.2] [a](b)"))
    \<b\> \| gsm8k\_0 [0.1, 0.2] \[a\](b)
    """
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))
