"""Train a grid with this package (arm G): by its command line, or in one process with one of its
mechanisms off.

    python -m training.ours REQUEST.json

The command reads a generated study, tokenises the texts, trains in worker processes and publishes
every cell in a store. In one process the same plan is followed through the package's functions, so
that a mechanism that has no option can be left out; there is one thread and no coordinator.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from unittest import mock

from training.arms import Command
from training.grid import ALPHA, BATCH_SAMPLES, CLIP_NORM, MAX_TOKENS, RANK, Trajectory
from training.world import World

MEASURES: Final = (
    "{dataset: false, description: false, overlap: false, similarity: [], drift: false, "
    "likelihoods: false, forgetting: false, representations: false}"
)

VARIANTS: Final = {
    "alone": "one run at a time, in one process",
    "stacked": "four runs in one model",
    "padded": "alone, samples padded",
    "padded, head everywhere": "alone, samples padded, logits at every position",
    "unshared": "alone, a run for each epoch",
}
"""What `train_in_process` may leave out, by name."""


def write_study(
    world: World,
    path: Path,
    trajectories: Sequence[Trajectory],
    epochs: Sequence[int],
    *,
    keep_every: bool = True,
) -> Path:
    """Write a study of these trajectories; what is no full product becomes a block each."""
    models = sorted({t.model for t in trajectories})
    datasets = sorted({t.dataset for t in trajectories})
    methods = sorted({(t.method, t.rate) for t in trajectories})
    lines = [f"study: {path.stem}", f"template: question-answer\nmax_tokens: {MAX_TOKENS}"]
    lines += ["precision: float32", "models:"]
    lines += [f"  - {{name: {m}, path: {json.dumps(str(world.model(m)))}}}" for m in models]
    lines += ["datasets:"]
    lines += [f"  - {{name: {d}, path: {json.dumps(str(world.rows(d)))}}}" for d in datasets]
    lines += ["methods:"]
    for method, rate in methods:
        lora = f", rank: {RANK}, alpha: {ALPHA}" if method == "lora" else ""
        lines.append(
            f"  {_method(method, rate)}: {{learning_rate: {rate:e}, "
            f"batch_samples: {BATCH_SAMPLES}, clip_norm: {CLIP_NORM}{lora}}}"
        )
    lines += ["blocks:"]
    for t in trajectories:
        lines.append(
            f"  {t.name.replace('.', '_')}: {{data: each, datasets: [{t.dataset}], "
            f"models: [{t.model}], samples: {t.samples}, "
            f"methods: [{_method(t.method, t.rate)}], schedule: constant, "
            f"epochs: {max(epochs)}, keep: {'every' if keep_every else 'last'}}}"
        )
    lines += [f"measures: {MEASURES}"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def _method(method: str, rate: float) -> str:
    return f"{method}-{rate:g}".replace(".", "_")


def command(study: Path, store: Path, *, workers: int, stack: int | None = None) -> Command:
    """Return the command that a user types; each worker has one thread."""
    arguments = [sys.executable, "-m", "sft_atlas", "run", str(study), "--store", str(store)]
    arguments += ["--workers", str(workers), "--json"]
    arguments += [] if stack is None else ["--stack", str(stack)]
    return Command(arguments, 1)


def folders_by_cell(study: Path, store: Path) -> dict[tuple[str, int], Path]:
    """Return the published cells' folders by (block, epoch)."""
    from sft_atlas import api
    from sft_atlas.store.store import open_store

    layout = open_store(store).layout
    return {
        (block, planned.cell.epoch): layout.cell(planned.cell.fingerprint)
        for planned in api.plan(study, store=store).cells
        for block in planned.blocks
    }


def train_in_process(study: Path, store: Path, variant: str) -> None:
    """Do a study's preparations and training runs one after another in this process."""
    from sft_atlas import api
    from sft_atlas.data.batches import TrainingRows
    from sft_atlas.data.prepared import prepare
    from sft_atlas.model.load import load_base
    from sft_atlas.store.store import open_store
    from sft_atlas.study.job import PrepareJob, TrainJob
    from sft_atlas.train.loop import Entrant, TrainPlacement, train_together

    opened = open_store(store, create=True)
    plan = api.plan(study, store=store)
    jobs = [planned.job for planned in plan.jobs]
    rows = {
        (job.dataset.name, job.num_samples): prepare(opened, job)
        for job in jobs
        if isinstance(job, PrepareJob)
    }
    entrants: dict[tuple[str, bool], list[Entrant]] = {}
    for job in jobs:
        if isinstance(job, TrainJob):
            spec = job.trajectory
            (part,) = spec.data.parts
            own = TrainingRows([_rows_of(rows, part.dataset.name, part.num_samples)])
            group = (spec.model.fingerprint, spec.method.lora is not None)
            entrants.setdefault(group, []).append(Entrant(job=job, rows=own))
    placement = TrainPlacement(
        stack_runs=4 if variant == "stacked" else 1,
        pack=not variant.startswith("padded"),
    )
    base = None
    with _head_everywhere(variant.endswith("head everywhere")):
        for group in entrants.values():
            spec = group[0].job.trajectory.model
            if base is None or base.spec.fingerprint != spec.fingerprint:
                base = load_base(spec)
            train_together(group, store=opened, base=base, placement=placement, on_end=_raise)


def _rows_of(rows: dict[tuple[str, int], Any], dataset: str, num_samples: int) -> Any:
    # The larger size was prepared alone if both are wanted: the smaller is its prefix.
    sizes = [size for name, size in rows if name == dataset and size >= num_samples]
    return rows[dataset, min(sizes)].prefix(num_samples)


def _raise(_job: Any, end: Any) -> None:
    if isinstance(end, Exception):
        raise end


@contextmanager
def _head_everywhere(is_wanted: bool) -> Iterator[None]:
    """Compute logits of every position, as transformers' own loss does, and drop most of them."""
    if not is_wanted:
        yield
        return
    import torch

    from sft_atlas.model import training_pass

    def logits(model: Any, batch: Any) -> Any:
        lines, columns = torch.nonzero(batch.labels[:, 1:] != -100, as_tuple=True)
        every = model(input_ids=batch.input_ids, use_cache=False).logits
        return every[lines, columns], batch.labels[lines, columns + 1], lines

    with mock.patch.object(training_pass, "padded_logits", logits):
        yield


def time_steps(
    study: Path, store: Path, *, between: Callable[[], None]
) -> tuple[list[float], list[tuple[int, int]]]:
    """Train a study of one trajectory; returns (seconds of each step, (tokens, supervised)).

    `between` runs between steps and is not timed.
    """
    from sft_atlas import api
    from sft_atlas.data.batches import TrainingRows, iter_steps
    from sft_atlas.data.prepared import prepare
    from sft_atlas.model.load import load_base
    from sft_atlas.store.store import open_store
    from sft_atlas.study.job import PrepareJob, TrainJob
    from sft_atlas.train.loop import Observers, train

    opened = open_store(store, create=True)
    jobs = [planned.job for planned in api.plan(study, store=store).jobs]
    (wish,) = [job for job in jobs if isinstance(job, PrepareJob)]
    (job,) = [job for job in jobs if isinstance(job, TrainJob)]
    rows = TrainingRows([prepare(opened, wish)])
    marks: list[float] = []
    ends: list[float] = []

    def on_step(_done: int, _all: int) -> None:
        ends.append(time.perf_counter())
        between()
        marks.append(time.perf_counter())

    base = load_base(job.trajectory.model)
    train(job, store=opened, base=base, rows=rows, observers=Observers(on_step=on_step))
    steps = [
        (int(rows.lengths[chosen].sum()), rows.num_supervised(chosen))
        for epoch in range(1, job.keep_epochs[-1] + 1)
        for chosen in iter_steps(rows, batch_samples=BATCH_SAMPLES, seed=0, epoch=epoch)
    ]
    # The first step warms up: it has no mark before it.
    seconds = [end - mark for mark, end in zip(marks, ends[1:], strict=False)]
    return seconds, steps[1:]


def main() -> None:
    import torch

    request = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    world, output = World(Path(request["world"])), Path(request["output"])
    trajectories = [Trajectory(**content) for content in request["trajectories"]]
    variant, epochs = request["variant"], request["epochs"]
    started = time.perf_counter()
    if variant == "unshared":
        for epoch in epochs:
            folder = output / f"epoch{epoch}"
            study = write_study(
                world, folder / "study.yaml", trajectories, [epoch], keep_every=False
            )
            train_in_process(study, folder / "store", variant)
    else:
        study = write_study(world, output / "study.yaml", trajectories, epochs)
        train_in_process(study, output / "store", variant)
    print(json.dumps({"seconds": time.perf_counter() - started}))


if __name__ == "__main__":
    main()
