"""Say what the arms are and how each is run once: a whole grid, or cells drawn from it.

A run of an arm becomes records: what it took, for which grid, in which repeat. Arms of one process
have two threads unless they are found faster with one; arms of two processes have one thread each.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from os import getloadavg
from pathlib import Path
from typing import Any, Final, final

from training import llama_factory, ours, peers
from training.arms import ArmError, Command, Usage, num_bytes, python, run, write_request
from training.grid import (
    Cell,
    Grid,
    Trajectory,
    draw_cells,
    draw_trajectories,
)
from training.world import World

Record = dict[str, Any]


@final
@dataclass(frozen=True, kw_only=True)
class Choices:
    """What was found to be fastest for the peers that can be set up in several ways."""

    layout: str
    """One of `gates.LAYOUTS`."""
    layout_options: dict[str, bool]
    loop: dict[str, Any]
    """Of `plain.Loop`."""
    plain_threads: int


@final
@dataclass(frozen=True, kw_only=True)
class Bench:
    """What arms need to run."""

    world: World
    folder: Path
    """Where they write; emptied after each run."""
    choices: Choices
    num_cells: int
    """Sampled cells of a repeat."""
    llama_factory: Path | str
    """Its command, or why there is none."""

    def request(self, **content: Any) -> Path:
        path = self.folder / "request" / f"{len(list(self.folder.glob('request/*')))}.json"
        return write_request(path, world=self.world.folder, output=self.output, **content)

    @property
    def output(self) -> Path:
        return self.folder / "output"


RunArm = Callable[[Bench, Grid, int], list[Record]]


@final
@dataclass(frozen=True, kw_only=True)
class Arm:
    """A way to train a grid."""

    about: str
    run: RunArm
    grids: tuple[str, ...] = ("S",)
    shares_epochs: bool = False
    together: int = 1
    """Processes at a time."""
    most_repeats: int = 5
    """Of grid S."""


def train_sampled(way: str, share: int = 1) -> RunArm:
    """Return what trains drawn cells, one process after another; `share` divides their number."""

    def run_arm(bench: Bench, grid: Grid, repeat: int) -> list[Record]:
        cells = draw_cells(grid, repeat, max(1, bench.num_cells // share))
        return [cells_record(bench, [(cell, cell_command(bench, way, cell, 2))]) for cell in cells]

    return run_arm


def train_pairs(bench: Bench, grid: Grid, repeat: int) -> list[Record]:
    """Train two cells of one method, size and epoch at once, in a process of one thread each."""
    records = []
    for cell in draw_cells(grid, repeat, max(1, bench.num_cells // 2)):
        others = [
            other
            for other in grid.cells
            if other != cell
            and other.epoch == cell.epoch
            and other.trajectory.method == cell.trajectory.method
            and other.trajectory.samples == cell.trajectory.samples
        ]
        pair = (cell, others[repeat % len(others)])
        records.append(cells_record(bench, [(c, cell_command(bench, "tuned", c, 1)) for c in pair]))
    return records


def train_kept(bench: Bench, grid: Grid, repeat: int) -> list[Record]:
    """Train drawn cells one after another in one process, which knows how long each took."""
    cells = draw_cells(grid, repeat, bench.num_cells)
    content = [cell.to_json() for cell in cells]
    request = bench.request(cells=content, way="kept", num_threads=2)
    usage, record = run_once(bench, [python("peers", request, 2)])
    seconds = usage.answers[0]["cell_seconds"]
    record["cells"] = [_cell(bench, *pair) for pair in zip(cells, seconds, strict=True)]
    return [record | {"start_seconds": usage.seconds - sum(seconds)}]


def train_plain(num_processes: int) -> RunArm:
    """Return what trains a whole grid with the plain loop."""

    def run_arm(bench: Bench, grid: Grid, repeat: int) -> list[Record]:
        threads = bench.choices.plain_threads if num_processes == 1 else 1
        shares = _shares(bench.world, grid, num_processes)
        commands = [
            plain_command(bench, share, grid.epochs, threads, bench.choices.loop)
            for share in shares
        ]
        return [run_once(bench, commands)[1]]

    return run_arm


def train_ours(workers: int) -> RunArm:
    """Return what trains a whole grid as a user of this package would."""

    def run_arm(bench: Bench, grid: Grid, repeat: int) -> list[Record]:
        study = ours.write_study(
            bench.world, bench.output / "study.yaml", grid.trajectories, grid.epochs
        )
        store = bench.output / "store"
        return [run_once(bench, [ours.command(study, store, workers=workers)])[1]]

    return run_arm


def train_variant(variant: str) -> RunArm:
    """Return what trains drawn trajectories with this package in one process of one thread."""

    def run_arm(bench: Bench, grid: Grid, repeat: int) -> list[Record]:
        drawn = draw_trajectories(grid, repeat)
        trajectories = [asdict(t) for t in drawn]
        epochs = list(grid.epochs)
        request = bench.request(trajectories=trajectories, epochs=epochs, variant=variant)
        usage, record = run_once(bench, [python("ours", request, 1)])
        return [record | {"seconds": usage.answers[0]["seconds"], "wall_seconds": usage.seconds}]

    return run_arm


def train_plain_variant(**changes: Any) -> RunArm:
    """Return what trains the same trajectories with the plain loop in one process of one thread."""

    def run_arm(bench: Bench, grid: Grid, repeat: int) -> list[Record]:
        drawn, loop = draw_trajectories(grid, repeat), bench.choices.loop | changes
        usage, record = run_once(bench, [plain_command(bench, drawn, grid.epochs, 1, loop)])
        return [record | {"seconds": usage.answers[0]["seconds"], "wall_seconds": usage.seconds}]

    return run_arm


_EVERY: Final = ("S", "S-single", "XS", "M")
_MECHANISM: Final = "one of each method, one process of one thread, without start-up: "

ARMS: Final[dict[str, Arm]] = {
    "A": Arm(about="TRL, a process per cell, its defaults", run=train_sampled("stock", 2)),
    "B": Arm(about="TRL, a process per cell, set up for this machine", run=train_sampled("tuned")),
    "C": Arm(about="transformers' Trainer and PEFT, model and tokens kept", run=train_kept),
    "D": Arm(
        about="plain loop, one process", run=train_plain(1), shares_epochs=True, most_repeats=3
    ),
    "E-B": Arm(about="B, two processes of one thread", run=train_pairs, grids=_EVERY, together=2),
    "E-D": Arm(
        about="D, two processes of one thread",
        run=train_plain(2),
        grids=_EVERY,
        shares_epochs=True,
        together=2,
    ),
    "F": Arm(
        about="LLaMA-Factory, a process per cell, set up likewise",
        run=train_sampled("llama-factory", 2),
    ),
    "G": Arm(
        about="ours, two workers of one thread",
        run=train_ours(2),
        grids=_EVERY,
        shares_epochs=True,
        together=2,
    ),
    "G-1": Arm(
        about="ours, one worker of one thread",
        run=train_ours(1),
        shares_epochs=True,
        most_repeats=1,
    ),
}
"""Arms that train whole grids, or cells drawn from them."""

MECHANISMS: Final[dict[str, Arm]] = {
    **{
        f"ours, {name}": Arm(about=_MECHANISM + about, run=train_variant(name), most_repeats=2)
        for name, about in ours.VARIANTS.items()
    },
    "plain": Arm(about=_MECHANISM + "the plain loop", run=train_plain_variant(), most_repeats=2),
    "plain, head at targets": Arm(
        about=_MECHANISM + "the plain loop, logits at supervised tokens alone",
        run=train_plain_variant(head_at_targets=True),
        most_repeats=2,
    ),
}
"""Arms that train the same few trajectories of grid S, to tell what each mechanism brings."""


def cell_command(bench: Bench, way: str, cell: Cell, num_threads: int) -> Command:
    if way == "llama-factory":
        if isinstance(bench.llama_factory, str):
            raise ArmError(bench.llama_factory)
        peers.write_datasets(bench.world, [cell])
        return llama_factory.command_of(
            bench.llama_factory, bench.world, cell, bench.output, num_threads
        )
    if way == "tuned":
        peers.write_datasets(bench.world, [cell])
    request = bench.request(
        cells=[cell.to_json()],
        way=way,
        layout=bench.choices.layout_options,
        num_threads=num_threads,
    )
    return python("peers", request, num_threads)


def plain_command(
    bench: Bench,
    trajectories: Sequence[Trajectory],
    epochs: Sequence[int],
    num_threads: int,
    loop: dict[str, Any],
) -> Command:
    wanted = [{"trajectory": asdict(t), "epochs": list(epochs)} for t in trajectories]
    request = bench.request(wanted=wanted, loop=loop, num_threads=num_threads)
    return python("plain", request, num_threads)


def _shares(world: World, grid: Grid, num: int) -> list[list[Trajectory]]:
    """Split a grid between processes: the longest first, to the one with the least to do."""
    shares: list[list[Trajectory]] = [[] for _ in range(num)]
    loads = [0] * num
    sized = [(_num_tokens(world, t), number, t) for number, t in enumerate(grid.trajectories)]
    for tokens, _, trajectory in sorted(sized, reverse=True):
        place = loads.index(min(loads))
        shares[place].append(trajectory)
        loads[place] += tokens
    return shares


def _num_tokens(world: World, t: Trajectory) -> int:
    return count_tokens(world.folder, t.model, t.dataset, t.samples)[0]


@cache
def count_tokens(folder: Path, model: str, dataset: str, samples: int) -> tuple[int, int]:
    """Return an epoch's tokens, and those of them that are supervised."""
    found = World(folder).samples(model, dataset, samples)
    return found.num_tokens(), found.num_supervised()


def cells_record(bench: Bench, commands: Sequence[tuple[Cell, Command]]) -> Record:
    usage, record = run_once(bench, [command for _, command in commands])
    pairs = zip((cell for cell, _ in commands), usage.command_seconds, strict=True)
    return record | {"cells": [_cell(bench, cell, seconds) for cell, seconds in pairs]}


def _cell(bench: Bench, cell: Cell, seconds: float) -> Record:
    tokens = cell.epoch * _num_tokens(bench.world, cell.trajectory)
    method = cell.trajectory.method
    return {"name": cell.name, "method": method, "tokens": tokens, "seconds": round(seconds, 3)}


def run_once(bench: Bench, commands: Sequence[Command]) -> tuple[Usage, Record]:
    """Run an arm once and empty its folder."""
    load = getloadavg()[0]
    try:
        usage = run(commands, bench.folder / "logs" / "arm")
        written = num_bytes(bench.output)
    finally:
        shutil.rmtree(bench.output, ignore_errors=True)
        shutil.rmtree(bench.folder / "request", ignore_errors=True)
    return usage, {
        "seconds": round(usage.seconds, 3),
        "cpu_seconds": round(usage.cpu_seconds, 2),
        "peak_mib": round(usage.peak_bytes / 2**20),
        "written_mb": round(written / 1e6, 2),
        "load_average": round(load, 2),
    }
