"""Say which cells the arms train: sizes of models and data, methods, and the grids made of them.

A trajectory is one training run at a constant rate; each of its kept epochs is a cell. Arms that
share nothing train every cell from the base model.
"""

import random
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, Final, NamedTuple, Self

BATCH_SAMPLES: Final = 16
RANK: Final = 8
ALPHA: Final = 16
MAX_TOKENS: Final = 512
CLIP_NORM: Final = 1.0
ADAMW: Final = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}

DATASETS: Final = ("first", "second", "third")
RATES: Final = {"full": (3e-4, 1e-3), "lora": (1e-3, 3e-3)}


class Size(NamedTuple):
    """Shape of a Llama with a tied head."""

    hidden_size: int
    num_layers: int
    intermediate_size: int
    vocab_size: int

    @property
    def num_body_weights(self) -> int:
        """Weights of the layers' matrices: what each token is multiplied with."""
        return self.num_layers * (
            4 * self.hidden_size**2 + 3 * self.hidden_size * self.intermediate_size
        )


SIZES: Final = {
    "XS": Size(64, 2, 256, 4096),
    "S": Size(128, 4, 512, 4096),
    "M": Size(256, 6, 1024, 8192),
}


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """One training run."""

    model: str
    method: str
    dataset: str
    samples: int
    rate: float

    @property
    def name(self) -> str:
        return f"{self.model}-{self.method}-{self.dataset}-{self.samples}-{self.rate:g}"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A trajectory after some epochs."""

    trajectory: Trajectory
    epoch: int

    @property
    def name(self) -> str:
        return f"{self.trajectory.name}-epoch{self.epoch}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self.trajectory) | {"epoch": self.epoch}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """Return what `to_json` wrote."""
        rest = {key: value for key, value in content.items() if key != "epoch"}
        return cls(trajectory=Trajectory(**rest), epoch=content["epoch"])


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Trajectories with the epochs that become cells."""

    name: str
    about: str
    trajectories: tuple[Trajectory, ...]
    epochs: tuple[int, ...]

    @property
    def cells(self) -> list[Cell]:
        return [Cell(trajectory=t, epoch=e) for t, e in product(self.trajectories, self.epochs)]


def make_grids(samples: tuple[int, int]) -> dict[str, Grid]:
    """Return the grids by name; `samples` are the two sizes of the data sets."""
    few, many = samples
    whole = _trajectories("S", samples, RATES)
    one_rate = {method: rates[:1] for method, rates in RATES.items()}
    grids = (
        Grid(
            name="S",
            about="2 methods x 3 data sets x 2 sizes x 2 rates x epochs 1 to 4",
            trajectories=whole,
            epochs=(1, 2, 3, 4),
        ),
        Grid(
            name="S-single",
            about="the same for one epoch: nothing to share",
            trajectories=whole,
            epochs=(1,),
        ),
        Grid(
            name="XS",
            about="2 methods x 3 data sets x epochs 1 to 4, the larger size",
            trajectories=_trajectories("XS", (many,), one_rate),
            epochs=(1, 2, 3, 4),
        ),
        Grid(
            name="M",
            about="2 methods x 3 data sets x epochs 1 to 4, the smaller size",
            trajectories=_trajectories("M", (few,), one_rate),
            epochs=(1, 2, 3, 4),
        ),
    )
    return {grid.name: grid for grid in grids}


def _trajectories(
    model: str, samples: tuple[int, ...], rates: dict[str, tuple[float, ...]]
) -> tuple[Trajectory, ...]:
    return tuple(
        Trajectory(model=model, method=method, dataset=dataset, samples=size, rate=rate)
        for method in rates
        for dataset, size, rate in product(DATASETS, samples, rates[method])
    )


def draw_cells(grid: Grid, repeat: int, num: int) -> list[Cell]:
    """Draw cells for one repeat: balanced over method, size and epoch, another set each repeat.

    Strata are walked in a fixed shuffled order, `num` at a time, so that the repeats together cover
    all strata as evenly as their number allows; within a stratum the draw is seeded by the repeat.
    """
    strata: dict[tuple[str, int, int], list[Cell]] = {}
    for cell in grid.cells:
        key = (cell.trajectory.method, cell.trajectory.samples, cell.epoch)
        strata.setdefault(key, []).append(cell)
    # Methods alternate, and each method's strata come in a seeded order: any even number is fair.
    rng = random.Random(f"strata {grid.name}")
    by_method = [
        rng.sample(keys, len(keys))
        for method in RATES
        if (keys := [key for key in strata if key[0] == method])
    ]
    walk = [key for group in zip(*by_method, strict=True) for key in group]
    picked = [walk[(repeat * num + i) % len(walk)] for i in range(num)]
    draw = random.Random(f"cells {grid.name} {repeat}")
    return [draw.choice(strata[key]) for key in picked]


def draw_trajectories(grid: Grid, repeat: int) -> tuple[Trajectory, ...]:
    """Draw one trajectory of each method for one repeat; the methods' sizes differ and change."""
    draw = random.Random(f"trajectories {grid.name} {repeat}")
    sizes = sorted({t.samples for t in grid.trajectories})
    return tuple(
        draw.choice(
            [
                t
                for t in grid.trajectories
                if t.method == method and t.samples == sizes[(repeat + place) % len(sizes)]
            ]
        )
        for place, method in enumerate(RATES)
    )
