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
Measure = Annotated[
    bool,
    typer.Option("--measure", help="Time this machine, and a study's base models, for its plans."),
]
Wanted = Annotated[str, typer.Option("--for", help="Benchmarks and weights, e.g. gsm8k=2,mmlu=1.")]

Workers = Annotated[
    int | None, typer.Option(min=1, help="Processes; by default one per GPU or core.")
]
Only = Annotated[
    list[str] | None,
    typer.Option(help="Only jobs that match: failed, a block, model, dataset, method or cell."),
]
UntilSe = Annotated[
    float | None,
    typer.Option(
        help="Add items for all cells alike until every gain's standard error is below POINTS.",
        metavar="POINTS",
    ),
]
Stack = Annotated[
    int | None,
    typer.Option(
        min=1, help="Most training runs in one model at a time; 1: each alone. Default: what pays."
    ),
]
Memory = Annotated[
    float | None,
    typer.Option(
        min=0.1,
        help="Memory that each process may train in; default: a share of what is free.",
        metavar="GIB",
    ),
]
DevicesPerRun = Annotated[int, typer.Option(min=1, help="Devices that share one training run.")]
ActivationCheckpointing = Annotated[
    bool,
    typer.Option(
        "--activation-checkpointing",
        help="Compute activations again in place of keeping them: slower, in far less memory.",
    ),
]
Compile = Annotated[bool, typer.Option("--compile", help="Compile models before they train.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="List the jobs and do none.")]


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
