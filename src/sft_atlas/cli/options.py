"""Which arguments and options do several verbs share?

One meaning and one help text each, so that `--json` or `--store` is the same thing everywhere.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

Study = Annotated[Path, typer.Argument(help="The study file.", show_default=False)]
Results = Annotated[
    Path,
    typer.Argument(help="The study file, or the name of imported results.", show_default=False),
]
StoreFolder = Annotated[Path, typer.Option("--store", help="Folder of results.")]
Budget = Annotated[
    str | None, typer.Option(help="GPU-hours to spend, e.g. 20gpuh.", metavar="GPUH")
]
Evidence = Annotated[
    list[str] | None,
    typer.Option(
        help="Imported results or study files, once for each; default: all that was imported."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON (docs/cli.md lists the keys).")]
Wanted = Annotated[str, typer.Option("--for", help="Benchmarks and weights, e.g. gsm8k=2,mmlu=1.")]


class AnswerFormat(StrEnum):
    """How `answers` writes its sentences."""

    text = "text"
    markdown = "markdown"
    json = "json"


class TableFormat(StrEnum):
    """How `table` writes its rows."""

    csv = "csv"
    parquet = "parquet"
    json = "json"
    markdown = "markdown"
    latex = "latex"
