"""Turn what was measured into seconds for a whole grid, with intervals, and into ratios.

Arms that run a whole grid have one value per repeat: their median. Arms that train sampled cells
have a model of a cell's seconds: start + tokens x (seconds per token of its method), fitted with
factors that are not negative (Lawson and Hanson 1974), and summed over the grid's cells. Intervals
are percentile bootstraps over repeats; a ratio draws the same repeats for both its arms, because
arms of one repeat met the same machine.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

NUM_DRAWS: Final = 2000

Measured = Mapping[str, Any]
"""One record of `train.py`: a whole grid's `seconds`, or a sample's `cells` with theirs."""


@final
@dataclass(frozen=True, kw_only=True)
class Work:
    """What a grid's cells are to an arm that trains each of them: (method, tokens) of each."""

    cells: tuple[tuple[str, int], ...]
    together: int = 1
    """Cells that train at the same time, each in its process."""


@final
@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Seconds for a grid."""

    seconds: float
    low: float
    high: float
    num_repeats: int
    num_cells: int | None
    """Sampled cells; None where the whole grid was run."""
    draws: NDArray[np.float64]
    repeats: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "seconds": round(self.seconds, 2),
            "interval": [round(self.low, 2), round(self.high, 2)],
            "num_repeats": self.num_repeats,
            "num_sampled_cells": self.num_cells,
        }


def estimate(records: Sequence[Measured], work: Work) -> Estimate:
    """Estimate an arm's seconds for a grid from its records of that grid."""
    by_repeat: dict[int, list[Measured]] = {}
    for record in records:
        by_repeat.setdefault(record["repeat"], []).append(record)
    repeats = tuple(sorted(by_repeat))
    draws = np.empty(NUM_DRAWS)
    for i, chosen in enumerate(draw_repeats(repeats)):
        draws[i] = _value([r for repeat in chosen for r in by_repeat[repeat]], work)
    low, high = np.quantile(draws, [0.025, 0.975])
    is_sampled = "cells" in records[0]
    return Estimate(
        seconds=_value(records, work),
        low=float(low),
        high=float(high),
        num_repeats=len(repeats),
        num_cells=sum(len(r["cells"]) for r in records) if is_sampled else None,
        draws=draws,
        repeats=repeats,
    )


def ratio(numerator: Estimate, denominator: Estimate) -> dict[str, Any]:
    """Return how many times longer one arm takes than another, with its interval."""
    low, high = np.quantile(numerator.draws / denominator.draws, [0.025, 0.975])
    value = numerator.seconds / denominator.seconds
    return {"ratio": round(value, 2), "interval": [round(float(low), 2), round(float(high), 2)]}


def draw_repeats(repeats: Sequence[int]) -> list[list[int]]:
    """Return the repeats of each bootstrap draw; the same for all arms with these repeats."""
    rng = np.random.default_rng(0)
    places = rng.integers(0, len(repeats), (NUM_DRAWS, len(repeats)))
    return [[repeats[place] for place in line] for line in places]


def _value(records: Sequence[Measured], work: Work) -> float:
    if "cells" not in records[0]:
        return float(np.median([record["seconds"] for record in records]))
    cells = [cell for record in records for cell in record["cells"]]
    per_cell = fit_cells(
        [(cell["method"], cell["tokens"]) for cell in cells], [cell["seconds"] for cell in cells]
    )
    # Processes that keep the model start once; the others have their start in each cell.
    start = float(np.median([record.get("start_seconds", 0.0) for record in records]))
    total = sum(per_cell.predict(method, tokens) for method, tokens in work.cells)
    return start + total / work.together


@final
@dataclass(frozen=True)
class CellModel:
    """Seconds of a cell."""

    start: float
    per_token: Mapping[str, float]

    def predict(self, method: str, num_tokens: int) -> float:
        return self.start + self.per_token[method] * num_tokens


def fit_cells(cells: Sequence[tuple[str, int]], seconds: Sequence[float]) -> CellModel:
    """Fit a cell model; a method that was not sampled has the other's factor.

    >>> model = fit_cells([("full", 10), ("full", 20), ("lora", 10), ("lora", 20)], [3, 5, 2, 3])
    >>> round(model.start, 6), {name: round(f, 6) for name, f in model.per_token.items()}
    (1.0, {'full': 0.2, 'lora': 0.1})
    """
    methods = sorted({method for method, _ in cells})
    columns = [[float(tokens) * (method == m) for method, tokens in cells] for m in methods]
    design = np.array([[1.0] * len(cells), *columns]).T
    # Tokens count by the ten thousand: columns of one order of size.
    scale = np.array([1.0] + [max(max(column), 1.0) for column in columns])
    found, _ = nnls(design / scale, np.asarray(seconds, dtype=float))
    start, *factors = (found / scale).tolist()
    per_token = dict(zip(methods, factors, strict=True))
    for method in {"full", "lora"} - per_token.keys():
        per_token[method] = max(factors)
    return CellModel(start, per_token)
