"""Time the training of grids against what one would use without this package.

    make bench-train                                  # all, and its part of docs/benchmarks.md
    python benchmarks/train.py --arms B G --grid S    # these again; the rest stays as it was
    python benchmarks/train.py --quick                # does everything run?

Arms are run in turn within each repeat, each in processes of its own, without a network. Before
anything is timed, gates tell whether the arms do the same work. An arm that fails is reported with
its words and the rest goes on; the file is written after each run.
"""

import argparse
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Final, final

from datasets import disable_progress_bars
from training import llama_factory
from training.arms import ArmError, python, run, write_request
from training.gates import Gate
from training.grid import DATASETS, RATES, Cell, Grid, Trajectory, make_grids
from training.page import write_part
from training.protocol import ARMS, MECHANISMS, Arm, Bench, Choices, Record
from training.summary import summarise
from training.tuning import DEFAULTS, tune
from training.world import World, make_world
from transformers.utils import logging

ROOT: Final = Path(__file__).parents[1]
RESULT: Final = ROOT / "benchmarks" / "results" / "train.json"
KEPT: Final = ROOT / ".bench"


@final
@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides the figures."""

    samples: tuple[int, int] = (64, 256)
    repeats: int = 5
    other_repeats: int = 3
    """Of all grids but S."""
    num_cells: int = 2
    """Cells that a sampled arm trains in a repeat."""


QUICK: Final = Settings(samples=(16, 32), repeats=1, other_repeats=1)


class Results:
    """The file of results, written as they come."""

    def __init__(self, path: Path, settings: Settings) -> None:
        self.path = path
        self.content: dict[str, Any] = {"settings": json.loads(json.dumps(asdict(settings)))}
        if path.is_file():
            found = json.loads(path.read_text())
            if found["settings"] == self.content["settings"]:
                self.content = found
        self.content["machine"] = machine()
        self.content.setdefault("records", [])
        self.content.setdefault("failures", {})

    def forget(self, arms: Sequence[str], grids: Sequence[str]) -> None:
        """Drop what is measured again."""
        self.content["records"] = [
            r for r in self.content["records"] if r["arm"] not in arms or r["grid"] not in grids
        ]
        for arm in arms:
            for grid in grids:
                self.content["failures"].pop(f"{arm} on {grid}", None)

    def write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(record) for record in self.content["records"]]
        rest = {k: v for k, v in self.content.items() if k != "records"}
        records = ",\n  ".join(lines)
        # A record a line: hundreds of them stay readable, and differ by lines.
        text = json.dumps(rest, indent=1)[:-2] + f',\n "records": [\n  {records}\n ]\n}}\n'
        self.path.write_text(text)


def machine() -> dict[str, Any]:
    packages = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")
    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "num_cores": len(os.sched_getaffinity(0)),
        "load_average": round(os.getloadavg()[0], 2),
        **{name: metadata.version(name) for name in packages},
    }


def say(*words: object) -> None:
    print(*words, file=sys.stderr, flush=True)


def gate_cells(settings: Settings) -> list[Cell]:
    """Return one full and one LoRA cell of two epochs."""
    return [
        Cell(
            trajectory=Trajectory(
                model="S", method=m, dataset=DATASETS[0], samples=settings.samples[0], rate=rates[0]
            ),
            epoch=2,
        )
        for m, rates in RATES.items()
    ]


def ask_gates(bench: Bench, cells: Sequence[Cell]) -> list[Gate]:
    binary = bench.llama_factory if isinstance(bench.llama_factory, Path) else None
    folder = bench.folder / "gates"
    shutil.rmtree(folder, ignore_errors=True)
    request = write_request(
        folder / "request.json",
        world=bench.world.folder,
        output=folder,
        cells=[cell.to_json() for cell in cells],
        llama_factory=binary,
    )
    (answer,) = run([python("gates", request, 1)], bench.folder / "logs" / "gates").answers
    shutil.rmtree(folder, ignore_errors=True)
    return [Gate(**gate) for gate in answer["gates"]]


GATED: Final = {"C": "Trainer + PEFT", "F": "LLaMA-Factory", "G": "ours", "G-1": "ours"}
"""Which gates an arm must pass; B and E-B take a layout that did."""


def refused(arm: str, gates: Sequence[Gate]) -> str | None:
    """Return why an arm is not timed."""
    name = "ours" if arm.startswith("ours") else GATED.get(arm)
    failed = [g for g in gates if g.arm == name and g.is_passed is False]
    return f"gate not passed: {failed[0].about}: {failed[0].found}" if failed else None


def measure(
    bench: Bench,
    grids: dict[str, Grid],
    arms: dict[str, Arm],
    settings: Settings,
    results: Results,
) -> None:
    """Run all arms on all their grids, repeat by repeat."""
    gates = [Gate(**gate) for gate in results.content["gates"]]
    for repeat in range(settings.repeats):
        for name, grid in grids.items():
            for arm in arms:
                limit = arms[arm].most_repeats if name == "S" else settings.other_repeats
                if name in arms[arm].grids and repeat < limit:
                    _measure_once(bench, grid, arm, arms[arm], repeat, results, gates)
        results.content["summary"] = summarise(bench.world, grids, results.content["records"])
        results.write()


def _measure_once(
    bench: Bench,
    grid: Grid,
    name: str,
    arm: Arm,
    repeat: int,
    results: Results,
    gates: Sequence[Gate],
) -> None:
    key = f"{name} on {grid.name}"
    if key in results.content["failures"]:
        return
    started = time.perf_counter()
    try:
        reason = refused(name, gates)
        if reason:
            raise ArmError(reason)
        found: list[Record] = arm.run(bench, grid, repeat)
    except ArmError as error:
        results.content["failures"][key] = str(error)
        say(f"{key}: {error}")
    else:
        labels = {"arm": name, "grid": grid.name, "repeat": repeat}
        results.content["records"] += [labels | record for record in found]
        seconds = [record["seconds"] for record in found]
        say(f"{key}, repeat {repeat}: {seconds} s (took {time.perf_counter() - started:.0f})")
    results.write()


def find_llama_factory(is_wanted: bool) -> Path | str:
    if not is_wanted:
        return "not asked for"
    try:
        return llama_factory.install(KEPT / "llama-factory").resolve()
    except ArmError as error:
        return str(error)


def measure_ceiling(bench: Bench, few: int) -> dict[str, Any]:
    trajectories = [
        Trajectory(model="M", method=m, dataset=DATASETS[0], samples=few, rate=rates[0])
        for m, rates in RATES.items()
    ]
    request = bench.request(trajectories=[asdict(t) for t in trajectories], loop=bench.choices.loop)
    try:
        (answer,) = run([python("ceiling", request, 1)], bench.folder / "logs" / "ceiling").answers
    except ArmError as error:
        say(f"ceiling: {error}")
        return {}
    return answer


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    every = [*ARMS, *MECHANISMS]
    parser.add_argument("--arms", nargs="+", choices=every, default=every)
    parser.add_argument("--grid", nargs="+", choices=[*make_grids((1, 2))], dest="grids")
    parser.add_argument("--repeats", type=int, help="at most; some arms have fewer")
    parser.add_argument("--samples", type=int, nargs=2, help="two sizes, multiples of 16, to 1024")
    parser.add_argument("--quick", action="store_true", help="a smoke run; writes to .bench")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--again", action="store_true", help="ask gates and tune again")
    return parser.parse_args()


def settings_of(arguments: argparse.Namespace) -> Settings:
    settings = QUICK if arguments.quick else Settings()
    if arguments.samples:
        few, many = sorted(arguments.samples)
        settings = replace(settings, samples=(few, many))
    if arguments.repeats:
        others = min(arguments.repeats, settings.other_repeats)
        settings = replace(settings, repeats=arguments.repeats, other_repeats=others)
    return settings


def main() -> None:
    arguments = parse()
    settings = settings_of(arguments)
    started = time.perf_counter()
    output = arguments.output or (KEPT / "quick.json" if arguments.quick else RESULT)
    results = Results(output, settings)
    world = World(KEPT / "train")
    logging.disable_progress_bar()
    disable_progress_bars()
    make_world(world, settings.samples)
    grids = make_grids(settings.samples)
    chosen = {name: grid for name, grid in grids.items() if name in (arguments.grids or grids)}
    arms = {n: arm for n, arm in (ARMS | MECHANISMS).items() if n in arguments.arms}
    binary = find_llama_factory("F" in arms and not (arguments.quick and not _has_llama()))
    bench = Bench(
        world=world,
        folder=KEPT / "runs",
        choices=DEFAULTS,
        num_cells=settings.num_cells,
        llama_factory=binary,
    )
    content = results.content
    if arguments.again or "gates" not in content or "choices" not in content:
        say("gates")
        cells = gate_cells(settings)[: 1 if arguments.quick else None]
        gates = ask_gates(bench, cells)
        content["gates"] = [asdict(gate) for gate in gates]
        for gate in gates:
            say(f"  {gate.is_passed} {gate.arm}, {gate.about}: {gate.found}")
        choices, content["tuning"] = tune(
            bench, cells, gates, num_rounds=1 if arguments.quick else 2
        )
        content["choices"] = asdict(choices)
        say(f"tuned: {content['tuning']}")
    bench = replace(bench, choices=Choices(**content["choices"]))
    results.forget(list(arms), list(chosen))
    if not arguments.grids or "M" in arguments.grids:
        content["ceiling"] = measure_ceiling(bench, settings.samples[0])
        say(content["ceiling"])
    try:
        measure(bench, chosen, arms, settings, results)
    except KeyboardInterrupt:
        say("interrupted: what was measured until now is summarised")
    content["summary"] = summarise(world, grids, content["records"])
    minutes = round((time.perf_counter() - started) / 60, 1)
    # Measuring some of it again says nothing of how long all of it takes.
    content["minutes"] = max(minutes, content.get("minutes", 0.0))
    results.write()
    if output == RESULT:
        write_part(ROOT / "docs" / "benchmarks.md", content)
    say(f"{minutes} minutes; {output}")


def _has_llama() -> bool:
    return (KEPT / "llama-factory" / "works").is_file()


if __name__ == "__main__":
    main()
