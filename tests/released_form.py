"""Write tables in the form of the release that `sft-atlas import massive-sft` reads."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

KEYS = ("model_name", "data_name", "lora", "epoch", "data_size", "lr_strategy")

Row = Sequence[object]


def base_row(model: str, *scores: object) -> Row:
    return (model, "pretrain", "None", 0, "0.0", "", *scores)


def tuned_row(
    model: str,
    data: str,
    *scores: object,
    lora: bool = False,
    epoch: int = 10,
    samples: int = 1000,
    schedule: str = "cosine",
) -> Row:
    return (model, data, str(lora).lower(), epoch, f"{samples}.0", schedule, *scores)


def write_released(
    path: Path,
    scores: Sequence[str],
    rows: Sequence[Row],
    *,
    separator: str = ",",
    encoding: str = "utf-8",
) -> Path:
    """Write rows of `base_row` and `tuned_row`; `scores` names their score columns."""
    with path.open("w", encoding=encoding, newline="") as stream:
        writer = csv.writer(stream, delimiter=separator)
        writer.writerow([*KEYS, *scores])
        writer.writerows(rows)
    return path


def write_grid(path: Path, *, num_models: int = 4, num_data: int = 5, seed: int = 0) -> Path:
    """Write a clean grid of single-dataset runs: counts of right items of three benchmarks."""
    rng = np.random.default_rng(seed)
    sizes = {"gsm8k-0shot": 1319, "humaneval-0shot": 164, "BoolQ-0shot": 3270}

    def scores(level: float) -> list[str]:
        counts = [(rng.binomial(size, level), size) for size in sizes.values()]
        return [f"{round(100 * count / size, 2)}" for count, size in counts]

    rows: list[Row] = []
    for m in range(num_models):
        level = 0.2 + 0.1 * m
        rows.append(base_row(f"m{m}", *scores(level)))
        rows += [
            tuned_row(f"m{m}", f"d{d}", *scores(level + 0.02 * d), lora=lora)
            for d in range(num_data)
            for lora in (False, True)
        ]
    return write_released(path, list(sizes), rows)
