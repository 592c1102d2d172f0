"""Find the fastest set-up of TRL and of the plain loop on this machine before they are timed.

Each candidate does one epoch of the same full and LoRA runs several times; the smallest
training time counts, without start-up. TRL may only be laid out in a way that passed its gates.
"""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from training.arms import ArmError, run
from training.gates import LAYOUTS, SAME_STEPS, Gate
from training.grid import Cell
from training.protocol import Bench, Choices, cell_command, plain_command

DEFAULTS = Choices(layout="padded", layout_options={}, loop={}, plain_threads=1)


def tune(
    bench: Bench, cells: Sequence[Cell], gates: Sequence[Gate], *, num_rounds: int = 2
) -> tuple[Choices, Any]:
    """Return what is fastest, and the seconds of all candidates."""
    layouts = {name: LAYOUTS[name] for name in LAYOUTS if _passed(f"TRL {name}", gates)}
    if not layouts:
        raise ArmError("no layout of TRL passed its gates")
    trl = {name: _trl_seconds(bench, cells, layouts[name], num_rounds) for name in layouts}
    layout = min(trl, key=trl.__getitem__)
    loops: dict[tuple[int, bool, int], float] = {}
    for size in (4, 8, 16):
        loops[size, True, 1] = _plain_seconds(bench, cells, (size, True, 1), num_rounds)
    size = min(loops, key=loops.__getitem__)[0]
    for is_fused, num_threads in ((False, 1), (True, 2)):
        way = (size, is_fused, num_threads)
        loops[way] = _plain_seconds(bench, cells, way, num_rounds)
    size, is_fused, num_threads = min(loops, key=loops.__getitem__)
    choices = Choices(
        layout=layout,
        layout_options=LAYOUTS[layout],
        loop={"micro_batch_samples": size, "is_fused": is_fused},
        plain_threads=num_threads,
    )
    told = {
        f"micro-batches of {n}, {'fused' if f else 'plain'} AdamW, {t} threads": round(value, 2)
        for (n, f, t), value in loops.items()
    }
    shutil.rmtree(bench.folder, ignore_errors=True)
    return choices, {"TRL": {k: round(v, 2) for k, v in trl.items()}, "plain loop": told}


def _passed(arm: str, gates: Sequence[Gate]) -> bool:
    asked = [gate for gate in gates if gate.arm == arm and gate.is_passed is not None]
    assert asked or arm not in SAME_STEPS, "every layout has a gate"
    return all(gate.is_passed for gate in asked)


def _trl_seconds(
    bench: Bench, cells: Sequence[Cell], options: dict[str, bool], num_rounds: int
) -> float:
    chosen = replace(bench, choices=replace(DEFAULTS, layout_options=options))
    total = 0.0
    for cell in cells:
        found = []
        for _ in range(num_rounds):
            command = cell_command(chosen, "tuned", cell, 2)
            (answer,) = run([command], bench.folder / "logs" / "tune").answers
            found += answer["cell_seconds"]
        total += min(found)
    return total


def _plain_seconds(
    bench: Bench, cells: Sequence[Cell], way: tuple[int, bool, int], num_rounds: int
) -> float:
    size, is_fused, num_threads = way
    loop = {"micro_batch_samples": size, "is_fused": is_fused}
    total = 0.0
    for cell in cells:
        found = []
        for _ in range(num_rounds):
            command = plain_command(bench, [cell.trajectory], [cell.epoch], num_threads, loop)
            (answer,) = run([command], bench.folder / "logs" / "tune").answers
            found.append(answer["seconds"])
        total += min(found)
    return total
