"""Say which share of a thread's matrix-product speed a training step reaches on model M.

Between two steps the same thread multiplies square matrices for a moment; a step is compared with
the moments around it. Counted are the products that the step cannot do without: 6 x tokens x
weights of the layers' matrices (4 x for LoRA, whose base has no gradients) and the same factor for
the head, at supervised positions alone. Attention, norms, adapters and the optimizer count as time
and not as work.

    python -m training.ceiling REQUEST.json
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch

from training import ours
from training.grid import SIZES, Trajectory
from training.plain import Loop, train_trajectories
from training.world import World, epoch_steps

SIDES: Final = (512, 1024)
BURST_SECONDS: Final = 0.1
FACTORS: Final = {"full": 6, "lora": 4}


class Ceiling:
    """Products per second (multiply and add are two) of square matrices, burst by burst."""

    def __init__(self) -> None:
        self._pairs = {side: (torch.randn(side, side), torch.randn(side, side)) for side in SIDES}
        self._outs = {side: torch.empty(side, side) for side in SIDES}
        self.rates: list[float] = []

    def burst(self) -> None:
        """Multiply for a moment; the better size counts."""
        rates = []
        for side, (a, b) in self._pairs.items():
            torch.mm(a, b, out=self._outs[side])
            started, done = time.perf_counter(), 0
            while time.perf_counter() - started < BURST_SECONDS / len(SIDES):
                torch.mm(a, b, out=self._outs[side])
                done += 1
            rates.append(2 * side**3 * done / (time.perf_counter() - started))
        self.rates.append(max(rates))


def step_flops(method: str, model: str, num_tokens: int, num_supervised: int) -> float:
    size = SIZES[model]
    head = size.vocab_size * size.hidden_size * num_supervised
    return float(FACTORS[method] * (size.num_body_weights * num_tokens + head))


def shares(
    method: str, model: str, seconds: list[float], steps: list[tuple[int, int]], rates: list[float]
) -> list[float]:
    """Return each step's share; rates[i] was measured before step i and rates[i + 1] after it."""
    return [
        step_flops(method, model, *step) / taken / ((before + after) / 2)
        for step, taken, before, after in zip(steps, seconds, rates, rates[1:], strict=False)
    ]


def plain_steps(
    world: World, trajectory: Trajectory, output: Path, loop: Loop, between: Callable[[], None]
) -> tuple[list[float], list[tuple[int, int]]]:
    """Time the plain loop's steps as `ours.time_steps` does."""
    marks: list[float] = []
    ends: list[float] = []

    def on_step(_step: int, _loss: float) -> None:
        ends.append(time.perf_counter())
        between()
        marks.append(time.perf_counter())

    train_trajectories(world, [(trajectory, (2,))], output, loop, on_step=on_step)
    samples = world.samples(trajectory.model, trajectory.dataset, trajectory.samples)
    steps = [
        (
            sum(len(samples.ids[i]) for i in chosen),
            sum(len(samples.ids[i]) - samples.prompt_lengths[i] for i in chosen),
        )
        for epoch in (1, 2)
        for chosen in epoch_steps(trajectory.samples, epoch)
    ]
    return [end - mark for mark, end in zip(marks, ends[1:], strict=False)], steps[1:]


def measure(request: dict[str, Any]) -> dict[str, Any]:
    world, output = World(Path(request["world"])), Path(request["output"])
    found: dict[str, Any] = {}
    for content in request["trajectories"]:
        trajectory = Trajectory(**content)
        method, model = trajectory.method, trajectory.model
        study = ours.write_study(world, output / f"{method}.yaml", [trajectory], (1, 2))
        ceiling = Ceiling()
        timed = ours.time_steps(study, output / f"store-{method}", between=ceiling.burst)
        found[f"ours, {method}"] = _summary(method, model, *timed, ceiling.rates)
        ceiling = Ceiling()
        loop = Loop(**request["loop"])
        timed = plain_steps(world, trajectory, output / "plain", loop, ceiling.burst)
        found[f"plain, {method}"] = _summary(method, model, *timed, ceiling.rates)
    return found


def _summary(
    method: str,
    model: str,
    seconds: list[float],
    steps: list[tuple[int, int]],
    rates: list[float],
) -> dict[str, Any]:
    values = shares(method, model, seconds, steps, rates)
    return {
        "share": round(statistics.median(values), 4),
        "range": [round(min(values), 4), round(max(values), 4)],
        "num_steps": len(values),
        "ceiling_gflops": round(statistics.median(rates) / 1e9, 1),
    }


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    print(json.dumps(measure(request)))


if __name__ == "__main__":
    main()
