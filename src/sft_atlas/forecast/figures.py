"""How good were forecasts of choices whose outcomes are known?

In: true and forecast values of the choices of each problem (one model, setting and benchmark; the
choices are datasets). Out: how often two choices were put in the right order ("decision accuracy",
DataDecide: Magnusson et al. 2025), how often the choice was the best or among the best three, and
what choosing by the forecast cost. Truth that ties counts in no pair; a forecast that ties where
the truth does not is wrong.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from sft_atlas.statistics.clusters import Floats

MIN_CHOICES: Final = 4
"""Fewest choices of a problem for a share of choices in the best three."""

TIE: Final = 1e-9


@dataclass(frozen=True, kw_only=True)
class Problems:
    """Sums over problems, so that parts can be added; see `figures`."""

    num_right: float
    num_pairs: float
    num_best: float
    num_best_three: float
    num_of_four: float
    regret: float
    random_regret: float
    num_problems: float


def score_problems(truth: Floats, guess: Floats, known: Floats | None = None) -> Problems:
    """Compare forecasts with the truth.

    `truth` and `guess` are (problem, choice); NaN is no choice. `known` marks (as 1) choices whose
    outcome is known and is used in place of the forecast; pairs of two known choices do not count.
    """
    is_known = np.zeros(truth.shape) if known is None else known
    is_there = np.isfinite(truth) & np.isfinite(guess)
    told = np.where(is_known > 0, truth, guess)
    first, second = np.triu_indices(truth.shape[1], k=1)
    both = is_there[:, first] & is_there[:, second]
    both &= (is_known[:, first] * is_known[:, second]) == 0
    gap = np.where(both, truth[:, first] - truth[:, second], 0.0)
    told_gap = np.where(both, told[:, first] - told[:, second], 0.0)
    differs = np.abs(gap) > TIE
    counts = is_there.sum(axis=1)
    asked = (counts >= 2) & (is_there & (is_known == 0)).any(axis=1)
    actual = np.where(is_there, truth, -np.inf)[asked]
    chosen = np.where(is_there, told, -np.inf)[asked].argmax(axis=1)
    reached = actual[np.arange(chosen.size), chosen]
    best = actual.max(axis=1, initial=-np.inf)
    better = (actual > reached[:, None] + TIE).sum(axis=1)
    of_four = counts[asked] >= MIN_CHOICES
    mean = np.where(is_there, truth, 0.0)[asked].sum(axis=1) / counts[asked]
    return Problems(
        num_right=float(((gap * told_gap > 0) & differs & (np.abs(told_gap) > TIE)).sum()),
        num_pairs=float(differs.sum()),
        num_best=float((better == 0).sum()),
        num_best_three=float(((better < 3) & of_four).sum()),
        num_of_four=float(of_four.sum()),
        regret=float((best - reached).sum()),
        random_regret=float((best - mean).sum()),
        num_problems=float(asked.sum()),
    )


def add(parts: list[Problems]) -> Problems:
    """Add the sums of several sets of problems."""
    names = Problems.__dataclass_fields__
    return Problems(**{name: sum(getattr(part, name) for part in parts) for name in names})


def pairwise_accuracy(problems: Problems) -> float | None:
    """Share of pairs in the right order; None where no two outcomes differ."""
    return problems.num_right / problems.num_pairs if problems.num_pairs else None


def figures(problems: Problems) -> dict[str, float | int | None]:
    """Return shares and means; None where there is nothing to average."""
    count = problems.num_problems
    return {
        "pairwise_accuracy": pairwise_accuracy(problems),
        "top1": problems.num_best / count if count else None,
        "top3": problems.num_best_three / problems.num_of_four if problems.num_of_four else None,
        "regret": problems.regret / count if count else None,
        "random_regret": problems.random_regret / count if count else None,
        "num_problems": int(count),
    }
