"""Parse `run`: what of a study to do, and with how many processes, models and bytes."""

import typer
from rich.console import Console

from sft_atlas import api
from sft_atlas.cli import pages
from sft_atlas.cli.options import (
    ActivationCheckpointing,
    AsJson,
    Compile,
    DevicesPerRun,
    DryRun,
    Memory,
    Only,
    Stack,
    StoreFolder,
    Study,
    UntilSe,
    Workers,
)
from sft_atlas.cli.output import print_content
from sft_atlas.cli.progress import run_view
from sft_atlas.execute.placement import TrainingWishes
from sft_atlas.study.job import job_title


def run(  # noqa: PLR0913 - an option is an argument
    study: Study,
    store: StoreFolder = api.DEFAULT_STORE,
    workers: Workers = None,
    only: Only = None,
    until_se: UntilSe = None,
    stack: Stack = None,
    memory: Memory = None,
    devices_per_run: DevicesPerRun = 1,
    activation_checkpointing: ActivationCheckpointing = False,
    compile: Compile = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Do what is missing of a study. Ctrl-C stops cleanly, a second time at once."""
    terms = only or []
    if dry_run:
        selection = api.select(study, store=store, only=terms)
        jobs = [job_title(task.job) for task in selection.tasks]
        content = {"jobs": jobs, "failed_before": selection.num_failed_before}
        print_content(content if as_json else jobs or "nothing to do")
        return
    console = Console(stderr=True)
    result = api.run(
        study,
        store=store,
        workers=workers,
        only=terms,
        until_se=until_se,
        training=TrainingWishes(
            stack=stack,
            memory_gib=memory,
            devices_per_run=devices_per_run,
            activation_checkpointing=activation_checkpointing,
            compile=compile,
        ),
        view=lambda tasks: run_view(console, tasks),
    )
    print_content(pages.run_json(result) if as_json else pages.run_page(result, study, store))
    if not result.is_complete:
        raise typer.Exit(1)
