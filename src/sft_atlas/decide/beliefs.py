"""What is believed of all choices for one model, before and after some of them are trained?

In: mean and covariance of what each choice would score on a weighted mix of benchmarks. Out: how
probable each is to be the best, what choosing it is expected to give away, and what one more run
would be worth. The one decision: everything is asked of the same Gaussian, so that probability,
regret and the value of a run cannot contradict each other.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.special import ndtri

from sft_atlas.statistics.clusters import Floats, Ints

NUM_DRAWS: Final = 4000
NUM_STEPS: Final = 400
"""Draws by which the value of a run is formed; the new one's outcome is stratified."""

SAME: Final = 1e-12


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How choices compare, in the order of the beliefs."""

    best_probability: Floats
    """Adds to 1; equal choices share."""
    regret: Floats
    """Expected lead of the best choice over this one, in units of the mean."""


def draw(mean: Floats, covariance: Floats, *, num_draws: int, seed: int) -> Floats:
    """Draw outcomes of all choices together, shape (num_draws, choices)."""
    rng = np.random.default_rng([seed, 0xDEC])
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(np.clip(values, 0, None))
    sample: Floats = mean + rng.standard_normal((num_draws, mean.size)) @ root.T
    return sample


def standing(
    mean: Floats, covariance: Floats, *, num_draws: int = NUM_DRAWS, seed: int = 0
) -> Standing:
    """Compare choices by drawing from the beliefs."""
    outcomes = draw(mean, contrasts(covariance), num_draws=num_draws, seed=seed)
    top = outcomes.max(axis=1, keepdims=True)
    # What is equal to the best but for rounding is as good.
    is_best = outcomes >= top - SAME * np.maximum(1.0, np.abs(top))
    shares = is_best / is_best.sum(axis=1, keepdims=True)
    return Standing(best_probability=shares.mean(axis=0), regret=(top - outcomes).mean(axis=0))


def contrasts(covariance: Floats) -> Floats:
    """Covariance of choices relative to their mean: what all share says nothing about which."""
    rows = covariance - covariance.mean(axis=0)
    centred: Floats = rows - rows.mean(axis=1, keepdims=True)
    return (centred + centred.T) / 2


def shift_of(covariance: Floats, place: int) -> Floats:
    """How far one standard deviation of a run's outcome moves the mean of every choice."""
    variance = float(covariance[place, place])
    if variance <= SAME:
        return np.zeros(covariance.shape[0])
    shift: Floats = covariance[place] / np.sqrt(variance)
    return shift


def after(covariance: Floats, shift: Floats) -> Floats:
    """Covariance once the run that moves means by `shift` is known."""
    left: Floats = covariance - np.outer(shift, shift)
    return left


@dataclass(frozen=True, kw_only=True)
class Worth:
    """What runs are worth beyond those already taken."""

    gains: Floats
    """Expected rise of the score of the best-looking choice, by candidate."""
    means: Floats
    """(draws, choices): what would be believed after the runs already taken."""
    covariance: Floats


def begin(mean: Floats, covariance: Floats) -> Worth:
    """State before any further run."""
    return Worth(
        gains=np.zeros(0),
        means=np.broadcast_to(mean, (NUM_STEPS, mean.size)),
        covariance=covariance,
    )


def worth(state: Worth, candidates: Ints, *, seed: int = 0) -> Worth:
    """Value the outcome of each candidate's run: the rise of E[max of means] that it brings.

    Frazier, Powell and Dayanik 2009 call it the knowledge gradient; outcomes of runs already taken
    are drawn, the candidate's is stratified.
    """
    rng = np.random.default_rng([seed, 0x0A7])
    steps = ndtri((np.arange(NUM_STEPS) + 0.5) / NUM_STEPS)
    steps = rng.permutation(steps)[:, None]
    # Relative to the choice that looks best now: what moves all alike has no worth, and its
    # variance would drown the rest.
    leader = int(np.argmax(state.means.mean(axis=0)))
    now = (state.means.max(axis=1) - state.means[:, leader]).mean()
    gains = []
    for place in candidates:
        shift = shift_of(state.covariance, int(place))
        moved = state.means + steps * shift
        gains.append((moved.max(axis=1) - moved[:, leader]).mean() - now)
    return Worth(
        gains=np.maximum(np.array(gains, dtype=np.float64), 0.0),
        means=state.means,
        covariance=state.covariance,
    )


def take(state: Worth, place: int, *, seed: int = 0) -> Worth:
    """State once a run was taken whose outcome is not known yet."""
    rng = np.random.default_rng([seed, 0x7A6])
    steps = ndtri((np.arange(NUM_STEPS) + 0.5) / NUM_STEPS)
    shift = shift_of(state.covariance, place)
    return Worth(
        gains=np.zeros(0),
        means=state.means + rng.permutation(steps)[:, None] * shift,
        covariance=after(state.covariance, shift),
    )
