"""Make the tables of a grid from plain arrays, through the same door as imported results."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sft_atlas.evidence.tidy import tidy_tables
from sft_atlas.store.tables import Tables

RELEASED = Path(__file__).parents[2] / "shared" / "data" / "results" / "evaluation_result.csv"
"""The released table of Harada et al. 2025; tests that read it are skipped where it is absent."""


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What a grid's models, datasets and benchmarks are; names are m0, d0, b0, ..."""

    families: Sequence[str] = ()
    languages: Sequence[str] = ()
    data_groups: Sequence[str] = ()
    skills: Sequence[str] = ()
    methods: Sequence[str] = ("full",)
    """Those that begin with `lora` are LoRA."""
    samples: int = 1000
    schedule: str = "cosine"
    epochs: Sequence[int] = (10,)
    num_items: int | None = 1000


def grid_tables(
    scores: NDArray[np.float64], base: NDArray[np.float64], labels: Labels = Labels()
) -> Tables:
    """Return tables of single-dataset runs.

    `scores` is (model, dataset, benchmark), then perhaps (..., method), then perhaps (..., epoch);
    what is not given is the same for all. NaN is a missing score. `base` is (model, benchmark).
    """
    return tidy_tables(grid_rows(scores, base, labels))


def grid_rows(
    scores: NDArray[np.float64], base: NDArray[np.float64], labels: Labels = Labels()
) -> pd.DataFrame:
    """Return the rows that `grid_tables` makes tables of; those of several grids may be joined."""
    full = scores.reshape(*scores.shape, *([1] * (5 - scores.ndim)))
    full = np.broadcast_to(full, (*scores.shape[:3], len(labels.methods), len(labels.epochs)))
    rows: list[dict[str, object]] = []
    for m in range(scores.shape[0]):
        model = {
            "model": f"m{m}",
            "family": labels.families[m] if labels.families else "",
            "languages": labels.languages[m] if labels.languages else "en",
        }
        for b in range(scores.shape[2]):
            test = {
                "benchmark": f"b{b}",
                "skill": labels.skills[b] if labels.skills else "",
                "language": "en",
                "metric": "accuracy",
                "in_mean": True,
                "num_items": labels.num_items,
            }
            base_run = dict.fromkeys(("data", "data_kind", "method", "method_kind"), "base")
            rows.append(model | base_run | {"epoch": 0, "block": "", "score": base[m, b]} | test)
            rows += [model | run | test for run in _runs(full[m, :, b], labels)]
    table = pd.DataFrame(rows)
    missing = np.where(table["score"].isna(), "not scored", None)
    return table.assign(reason=missing, base_reason=None, standard_error=np.nan)


def _runs(scores: NDArray[np.float64], labels: Labels) -> Iterator[dict[str, object]]:
    """Labels and score of each (dataset, method, epoch)."""
    for (d, k, e), score in np.ndenumerate(scores):
        method = labels.methods[k]
        yield {
            "data": f"d{d}",
            "data_kind": "each",
            "data_group": labels.data_groups[d] if labels.data_groups else "",
            "samples": labels.samples,
            "method": method,
            "method_kind": "lora" if method.startswith("lora") else "full",
            "schedule": labels.schedule,
            "horizon_epochs": max(labels.epochs),
            "epoch": labels.epochs[e],
            "seed": 0,
            "block": "single",
            "score": score,
        }
