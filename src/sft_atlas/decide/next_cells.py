"""Which runs should be made next, if the aim is to choose well?

In: what is believed of the choices for a model, which of them may be trained, and what each costs.
Out: runs in the order of what they are expected to add to the chosen score per GPU-hour, until the
budget is spent or nothing is worth its cost. The one decision: the outcome of every run on the list
is simulated before the next is chosen, so that two runs that would tell the same are not both on
it. What a run tells about other models is not counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sft_atlas.decide.beliefs import Worth, begin, standing, take, worth
from sft_atlas.statistics.clusters import Floats, Ints

ENOUGH: Final = 5e-4
"""A run that is expected to add less than so much (0.05 points) to the chosen score is not worth
making: the decision is stable."""

MAX_RUNS: Final = 50


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Runs that may be made for one model."""

    mean: Floats
    """(choice,): beliefs over all choices of the model, as `prior.Beliefs`."""
    covariance: Floats
    runs: tuple[tuple[int, ...], ...]
    """Places among the choices of what each run reveals: all its kept epochs."""
    gpu_hours: Floats
    """(run,); above 0."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One run of the list."""

    model: int
    """Place in the models that were given."""
    run: int
    """Place in its `Candidates.runs`."""
    gpu_hours: float
    gain: float
    """Expected rise of the score that the decision will reach, in fractions."""
    regret: float
    """Expected regret of this model's decision once the list so far is known."""


@dataclass(frozen=True, kw_only=True)
class NextCells:
    """The list, and why it ends."""

    steps: tuple[Step, ...]
    stopped: str
    """In words: the decision is stable, the budget is spent, or nothing is left."""
    regret_before: Floats
    """(model,): expected regret of deciding now."""
    regret_after: Floats
    """The same once every run on the list is known."""


def next_cells(
    models: Sequence[Candidates],
    *,
    budget_gpu_hours: float | None = None,
    enough: float = ENOUGH,
    max_runs: int = MAX_RUNS,
    seed: int = 0,
) -> NextCells:
    """List the runs that reduce expected regret most per GPU-hour, models together.

    Greedy: each time the run with the largest gain per hour among those that fit what is left of
    the budget (Frazier, Powell and Dayanik 2009, with the outcomes of earlier runs drawn).
    """
    states = [begin(one.mean, one.covariance) for one in models]
    gains = [_gains(one, state, seed) for one, state in zip(models, states, strict=True)]
    regret = np.array([_regret(one.mean, one.covariance, seed) for one in models])
    left, is_open = regret.copy(), [np.ones(len(one.runs), dtype=np.bool_) for one in models]
    rest = np.inf if budget_gpu_hours is None else budget_gpu_hours
    steps: list[Step] = []
    stopped = "no run is left"
    while len(steps) < max_runs:
        choice = _best(models, gains, is_open, rest, enough)
        if choice is None:
            stopped = _why_stopped(models, gains, is_open, enough)
            break
        model, run = choice
        one = models[model]
        for place in one.runs[run]:
            states[model] = take(states[model], place, seed=seed + len(steps))
        is_open[model][run] = False
        gain = float(gains[model][run])
        rest -= float(one.gpu_hours[run])
        left[model] = max(regret[model] - _risen(states[model], int(np.argmax(one.mean))), 0.0)
        gains[model] = _gains(one, states[model], seed + len(steps) + 1)
        hours = float(one.gpu_hours[run])
        steps.append(
            Step(model=model, run=run, gpu_hours=hours, gain=gain, regret=float(left[model]))
        )
    else:
        stopped = f"the list is cut at {max_runs} runs"
    return NextCells(steps=tuple(steps), stopped=stopped, regret_before=regret, regret_after=left)


def _gains(one: Candidates, state: Worth, seed: int) -> Floats:
    """Worth of each run: of the epoch of it that is worth most alone."""
    places: Ints = np.array(sorted({p for run in one.runs for p in run}), dtype=np.int64)
    found = worth(state, places, seed=seed).gains
    by_place = dict(zip(places.tolist(), found.tolist(), strict=True))
    return np.array([max(by_place[p] for p in run) for run in one.runs], dtype=np.float64)


def _risen(state: Worth, leader: int) -> float:
    """How far the score of the choice is expected to rise above the one made now."""
    return float((state.means.max(axis=1) - state.means[:, leader]).mean())


def _regret(mean: Floats, covariance: Floats, seed: int) -> float:
    if mean.size == 0:
        return 0.0
    return float(standing(mean, covariance, seed=seed).regret[int(np.argmax(mean))])


def _best(
    models: Sequence[Candidates],
    gains: Sequence[Floats],
    is_open: Sequence[NDArray[np.bool_]],
    rest: float,
    enough: float,
) -> tuple[int, int] | None:
    found: tuple[float, int, int] | None = None
    for model, one in enumerate(models):
        possible = is_open[model] & (one.gpu_hours <= rest) & (gains[model] >= enough)
        if not possible.any():
            continue
        rate = np.where(possible, gains[model] / one.gpu_hours, -1.0)
        run = int(np.argmax(rate))
        if found is None or rate[run] > found[0]:
            found = (float(rate[run]), model, run)
    return None if found is None else found[1:]


def _why_stopped(
    models: Sequence[Candidates],
    gains: Sequence[Floats],
    is_open: Sequence[NDArray[np.bool_]],
    enough: float,
) -> str:
    if not any(flags.any() for flags in is_open):
        return "no run is left"
    if any((gains[m][is_open[m]] >= enough).any() for m in range(len(models))):
        return "the budget is spent: no further run that is worth making fits it"
    return (
        "the decision is stable: no further run is expected to add "
        f"{100 * enough:.2g} points to the chosen score"
    )
