"""Parse the command line, call the verbs of `api`, and print what they return.

Exit codes: 0 done, 1 some jobs failed or are left, 2 the user's input is wrong. No flag changes
what is learned: only the study file does.
"""

import sys
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from sft_atlas import api
from sft_atlas.cli import (
    benchmarks_page,
    drift_page,
    import_page,
    pages,
    plan_page,
    recommend_page,
    run_command,
)
from sft_atlas.cli.options import (
    AnswerFormat,
    AsJson,
    Budget,
    Evidence,
    Measure,
    Results,
    StoreFolder,
    Study,
    TableFormat,
    Wanted,
)
from sft_atlas.cli.output import json_text, write_file
from sft_atlas.cli.output import print_content as _print
from sft_atlas.decide.weights import parse_budget, parse_weights
from sft_atlas.errors import Error
from sft_atlas.store.table_names import TableName
from sft_atlas.strict_yaml import did_you_mean

app = typer.Typer(
    add_completion=True,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
miniature_app = typer.Typer(no_args_is_help=True, help="The built-in miniature world.")
app.add_typer(miniature_app, name="miniature")

_TABLES = get_args(TableName)


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(metadata.version("sft-atlas"))
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    """Run controlled studies of supervised fine-tuning from one file."""


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Name of the study.")], as_json: AsJson = False
) -> None:
    """Write a commented starter study NAME.yaml."""
    path = api.new(name)
    _print({"study": str(path)} if as_json else f"{path}: edit it, then `sft-atlas plan {path}`.")


@app.command()
def plan(
    study: Study,
    store: Annotated[
        Path | None,
        typer.Option("--store", help="Plan against this store and refuse what cannot fit."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Device card to estimate time on, e.g. h100.")
    ] = None,
    budget: Budget = None,
    wanted: Annotated[
        str | None, typer.Option("--for", help="With --budget: weights, as in `recommend`.")
    ] = None,
    evidence: Evidence = None,
    as_json: AsJson = False,
) -> None:
    """Say what a study implies: cells, trajectories, jobs, time, disk; and what is stored
    already. With --budget and --for: which runs to make first.
    """
    if (budget is None) != (wanted is None):
        raise typer.BadParameter("--budget and --for are given together, or neither.")
    if budget is None or wanted is None:
        planned = api.plan(study, store=store, device=device)
        free = api.free_bytes(store or api.DEFAULT_STORE)
        lay_out = plan_page.plan_json if as_json else plan_page.plan_page
        _print(lay_out(planned, free, subsets=api.subsets(planned.study)))
        return
    proposal = api.next_cells(
        study,
        parse_weights(wanted),
        budget_gpu_hours=parse_budget(budget),
        evidence=evidence or [],
        store=store or api.DEFAULT_STORE,
        device=device,
    )
    show = recommend_page.proposal_json if as_json else recommend_page.proposal_page
    _print(show(proposal))


@app.command()
def recommend(
    model: Annotated[str, typer.Option(help="The base model, by its name in the evidence.")],
    wanted: Wanted,
    budget: Budget = None,
    evidence: Evidence = None,
    family: Annotated[str, typer.Option(help="Of a model that the evidence lacks.")] = "",
    device: Annotated[str, typer.Option(help="Device card to estimate time on.")] = "h100",
    store: StoreFolder = api.DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Say what to train a model with: data, method, samples, epochs; how sure that is, what it
    costs, and what would change the answer.
    """
    found = api.recommend(
        model,
        parse_weights(wanted),
        evidence=evidence or [],
        store=store,
        budget_gpu_hours=None if budget is None else parse_budget(budget),
        family=family,
        device=device,
    )
    lay_out = recommend_page.recommendation_json if as_json else recommend_page.recommendation_page
    _print(lay_out(found))


app.command()(run_command.run)


@app.command()
def status(study: Study, store: StoreFolder = api.DEFAULT_STORE, as_json: AsJson = False) -> None:
    """Say how far a study is, and which cells failed and why."""
    found = api.status(study, store=store)
    _print(pages.status_json(found, study) if as_json else pages.status_page(found, study))


@app.command()
def inspect(
    study: Study,
    dataset: Annotated[str, typer.Option(help="A dataset of the study.")],
    model: Annotated[str, typer.Option(help="A base model of the study: whose tokenizer.")],
    num_examples: Annotated[int, typer.Option("--examples", min=1, help="How many to show.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Show examples as the model sees them: what is supervised, lengths, what is dropped and
    why.
    """
    found = api.inspect(study, dataset=dataset, model=model, num_examples=num_examples)
    _print(asdict(found) if as_json else pages.inspection_page(found))


@app.command()
def show(
    cell: Annotated[str, typer.Argument(help="First characters of a cell's fingerprint.")],
    store: StoreFolder = api.DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Show everything known of one cell."""
    view = api.show(cell, store=store)
    _print(asdict(view) if as_json else pages.cell_page(view))


@app.command()
def table(
    study: Results,
    store: StoreFolder = api.DEFAULT_STORE,
    of: Annotated[str, typer.Option(help=f"Which table: {', '.join(_TABLES)}.")] = "scores",
    format: Annotated[TableFormat, typer.Option(help="How to write it.")] = TableFormat.csv,
    output: Annotated[Path | None, typer.Option(help="File to write; default: print.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a tidy table: scores and gains, one row per cell and benchmark, or a measure."""
    kind = TableFormat.json if as_json else format
    if of not in _TABLES:
        raise typer.BadParameter(f"no table {of!r}; {did_you_mean(of, _TABLES)}")
    content = pages.table_bytes(api.table(study, store=store, of=cast(TableName, of)), kind.value)
    if output is None and kind is TableFormat.parquet:
        raise typer.BadParameter("parquet is binary; name a file with --output.")
    if output is None:
        sys.stdout.write(content.decode())
    else:
        write_file(output, content)


@app.command()
def answers(
    study: Results,
    store: StoreFolder = api.DEFAULT_STORE,
    format: Annotated[AnswerFormat, typer.Option(help="How to write them.")] = AnswerFormat.text,
    output: Annotated[Path | None, typer.Option(help="File to write; default: print.")] = None,
    as_json: AsJson = False,
) -> None:
    """Answer the questions of a study, or of imported results, in words with their certainty."""
    kind = AnswerFormat.json if as_json else format
    if output is not None and kind is AnswerFormat.text:
        raise typer.BadParameter("text is for a terminal; use --format markdown or json.")
    from sft_atlas.cli import answers_page

    found, imported = api.answered(study, store=store)
    if kind is AnswerFormat.text:
        _print(answers_page.answers_page(found, imported))
        return
    if kind is AnswerFormat.json:
        content = json_text(answers_page.answers_json(found, imported))
    else:
        content = answers_page.answers_markdown(found, imported, str(study))
    typer.echo(content) if output is None else write_file(output, content.encode())


@app.command()
def report(
    study: Results,
    store: StoreFolder = api.DEFAULT_STORE,
    output: Annotated[
        Path | None, typer.Option(help="File to write; default: report-STUDY.html.")
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option(help="Folder for every chart (PNG, SVG, PDF, Vega-Lite, CSV) and table."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write one self-contained HTML file that works from disk without a network."""
    path = api.report(study, store=store, output=output, figures=figures).absolute()
    known = {"report": str(path)} | ({"figures": str(figures.absolute())} if figures else {})
    _print(known if as_json else "\n".join(f"{name}: {place}" for name, place in known.items()))


@app.command("import")
def import_results(
    kind: Annotated[
        str, typer.Argument(help="What wrote it: massive-sft, lm-eval, opencompass, eval-results.")
    ],
    source: Annotated[
        str, typer.Argument(help="A file or folder, or the address of a file.", show_default=False)
    ],
    store: StoreFolder = api.DEFAULT_STORE,
    name: Annotated[
        str | None, typer.Option(help="What to call the results; default: the source's name.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="YAML file: what each model was trained on.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Read results that others measured, say what is wrong with them, and keep them as tables."""
    found = api.import_results(kind, source, store=store, name=name, labels=labels)
    if as_json:
        _print(import_page.import_json(found))
    else:
        _print(import_page.import_page(found, store))


@app.command()
def drift(
    base: Annotated[Path, typer.Argument(help="Folder of the base model.", show_default=False)],
    tuned: Annotated[
        Path, typer.Argument(help="Folder of the tuned model or adapter.", show_default=False)
    ],
    spectrum: Annotated[
        bool,
        typer.Option("--spectrum", help="Also singular values and intruder dimensions (slow)."),
    ] = False,
    output: Annotated[Path | None, typer.Option(help="CSV or Parquet file of all rows.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say how far a tuned model moved from its base, by layer and kind of matrix; no study needed.

    Both folders are read once, side by side, in little memory.
    """
    found = api.drift(base, tuned)
    spectra = api.spectra(base, tuned) if spectrum else []
    if output is not None:
        kind = "parquet" if output.suffix == ".parquet" else "csv"
        rows = drift_page.drift_frame(found, spectra)
        write_file(output, pages.table_bytes(rows, kind))
    if as_json:
        _print(drift_page.drift_json(found, spectra))
    else:
        _print(drift_page.drift_page(found, spectra))


@app.command()
def benchmarks(
    name: Annotated[str | None, typer.Argument(help="One benchmark, to see all of it.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the benchmarks that a study can name: what they ask, where their items are, licence."""
    listed = api.benchmarks(name)
    if name is None:
        lay_out = benchmarks_page.benchmarks_json if as_json else benchmarks_page.benchmarks_page
        _print(lay_out(listed))
    else:
        (one,) = listed
        show_one = benchmarks_page.benchmark_json if as_json else benchmarks_page.benchmark_page
        _print(show_one(one))


@app.command()
def doctor(
    study: Annotated[Path | None, typer.Argument(help="With --measure: its base models.")] = None,
    measure: Measure = False,
    store: StoreFolder = api.DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Say what this machine can do, and what is missing for what; --measure: how fast it is."""
    checks = api.doctor(study, store=store, measure=measure)
    _print([asdict(check) for check in checks] if as_json else pages.doctor_page(checks))


@miniature_app.command("build")
def miniature_build(
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("miniature"),
    only: Annotated[list[str] | None, typer.Option(help="Only these base models.")] = None,
) -> None:
    """Make the miniature world anew: corpus, base models, instruction sets, benchmarks
    (minutes).
    """
    for path in api.build_miniature(out, only=only, report=lambda line: typer.echo(line, err=True)):
        typer.echo(path)


def main() -> None:
    """Run the command line; a user's error prints one message and exits with 2."""
    try:
        app()
    except Error as error:
        typer.echo(f"sft-atlas: {error}", err=True)
        sys.exit(2)
