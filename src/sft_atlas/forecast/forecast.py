"""What will a choice of data, method and size gain for a model, before it is trained?

In: the outcomes of earlier runs and queries. Out: for each query the expected gain with an interval
that holds for whole unseen models, or the reason why there is none; and the joint distribution of
all choices for one model, from which a decision takes probabilities and regret. Which candidate
makes the forecast is chosen by back-test, never by hand.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from sft_atlas.statistics.clusters import Floats, Ints


@dataclass(frozen=True, kw_only=True)
class BackTest:
    """How often forecasts held where the truth is known."""

    frame: pd.DataFrame
    """One row per scheme and candidate: scheme (`new model`, `new dataset`, `hole`), candidate,
    is_chosen, pairwise_accuracy, top1, top3, regret (in SD), random_regret, rmse (in SD),
    correlation, coverage (of 90 % intervals), worst_coverage, worst_group, width (in SD),
    num_problems, num_groups. The candidate `chosen` is the nested choice: for each group the
    candidate is chosen without it. A figure that does not exist is null."""
    chosen: Mapping[str, str]
    """Candidate by scheme: what a forecast uses."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """By scheme: why it could not be tested."""


@dataclass(frozen=True, kw_only=True)
class Joint:
    """Gaussian over the supported queries of one model, in fractions of the range of scores.

    `mean` is the effect relative to the mean choice of the same model and benchmark: what is common
    to all choices of a benchmark cancels in a comparison, and is not part of it.
    """

    rows: Ints
    """Places in `Forecast.frame`."""
    mean: Floats
    covariance: Floats
    """Shape (rows, rows): what other models missed by, when they were forecast from the rest;
    runs of this model that are known have (nearly) none."""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Answers to queries, in their order."""

    frame: pd.DataFrame
    """The columns of `QUERY`, and effect (relative to the mean choice of the model and benchmark),
    gain, low, high (90 %, of the gain; fractions of the range), is_supported, why_not (empty where
    supported), why_no_gain, why_no_interval, is_observed (this very run is in the evidence),
    num_models (that the forecast rests on), basis (in words). NaN where there is no number."""
    joint: Mapping[str, Joint]
    """By model."""
    method: str
    """The candidate that made it."""
    back_test: BackTest


def draws(joint: Joint, *, num_draws: int, seed: int = 0) -> Floats:
    """Draw from the joint distribution, shape (num_draws, rows)."""
    rng = np.random.default_rng([seed, 0xF0])
    values, vectors = np.linalg.eigh(joint.covariance)
    root = vectors * np.sqrt(np.clip(values, 0, None))
    sample: Floats = joint.mean + rng.standard_normal((num_draws, values.size)) @ root.T
    return sample
