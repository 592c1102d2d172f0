"""What does the whole study say? One call from tables to answers.

The one decision: every table that the report draws is made here, by the same functions and seed as
the Findings, so that a chart and a sentence can never disagree.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from sft_atlas.analyze import findings as words
from sft_atlas.analyze import relations
from sft_atlas.analyze.associations import associations, perplexity_points
from sft_atlas.analyze.epochs import epoch_curves
from sft_atlas.analyze.findings import Finding
from sft_atlas.analyze.gains import cell_gains, common_benchmarks, gain_map, mean_gains
from sft_atlas.analyze.layers import layer_profile

if TYPE_CHECKING:
    from sft_atlas.store.tables import Tables


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """The answers, and the tables that they and the charts rest on (columns: the functions that
    make them).
    """

    findings: tuple[Finding, ...]
    gains: pd.DataFrame
    """`gains.cell_gains`"""
    means: pd.DataFrame
    """`gains.mean_gains`"""
    gain_map: pd.DataFrame
    """`gains.gain_map`"""
    points: pd.DataFrame
    """`associations.perplexity_points`"""
    associations: pd.DataFrame
    """`associations.associations`"""
    layers: pd.DataFrame
    """`layers.layer_profile`"""
    epochs: pd.DataFrame
    """`epochs.epoch_curves`"""
    main_setting: str
    """The setting that single answers are about; empty without any gain."""
    common_benchmarks: tuple[str, ...]
    """What a mean over benchmarks is taken over."""
    num_left_out: int
    """Cells without such a mean, because a common benchmark is missing."""


def analyze(tables: "Tables", *, num_resamples: int = 1000, seed: int = 0) -> Analysis:
    """Answer the study's questions; deterministic for given tables, `num_resamples` and `seed`."""
    gains = cell_gains(tables)
    means = mean_gains(gains)
    points = perplexity_points(gains, means, tables.datasets)
    related = associations(
        points, num_resamples=num_resamples, num_permutations=num_resamples, seed=seed
    )
    layers = layer_profile(tables, means, num_resamples=num_resamples, seed=seed)
    answers = [
        *words.own_skill_findings(gains),
        *words.best_data_findings(means),
        *words.loss_findings(gains),
        *words.method_findings(gains, means),
        *words.sample_findings(gains, means),
        *words.epoch_findings(means),
        *relations.perplexity_findings(related, points, gains),
        *relations.layer_findings(layers, gains, means),
    ]
    return Analysis(
        findings=tuple(answers),
        gains=gains,
        means=means,
        gain_map=gain_map(gains),
        points=points,
        associations=related,
        layers=layers.table,
        epochs=epoch_curves(gains, means),
        main_setting=words.main_setting(gains) if not gains.empty else "",
        common_benchmarks=tuple(common_benchmarks(gains)),
        num_left_out=int(gains["cell"].nunique() - len(means)),
    )
