"""What does the whole study say? One call from tables to answers.

The one decision: every table that the report draws is made here, by the same functions and seed as
the Findings, so that a chart and a sentence can never disagree.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import pandas as pd

from sft_atlas.analyze import findings as words
from sft_atlas.analyze import relations, traces
from sft_atlas.analyze.associations import associations, property_points
from sft_atlas.analyze.data_properties import Predictor, data_properties
from sft_atlas.analyze.dimension_profile import dimension_profile, scan_profile
from sft_atlas.analyze.findings import Finding
from sft_atlas.analyze.forgetting import forgetting_associations, forgetting_points
from sft_atlas.analyze.gains import cell_gains, common_benchmarks, gain_map, mean_gains
from sft_atlas.analyze.layers import layer_profile
from sft_atlas.analyze.questions.answered import Answered
from sft_atlas.analyze.questions.doses import samples_and_epochs
from sft_atlas.analyze.questions.languages import cross_lingual
from sft_atlas.analyze.questions.left_out import left_out
from sft_atlas.analyze.questions.likeness import likeness
from sft_atlas.analyze.questions.methods import methods_compared
from sft_atlas.analyze.questions.noise import noise_floor
from sft_atlas.analyze.questions.synergies import synergies
from sft_atlas.analyze.questions.together import properties_together
from sft_atlas.analyze.rivals import compare_predictors
from sft_atlas.analyze.spectra import spectrum_profile, update_groups, update_pairs

if TYPE_CHECKING:
    from sft_atlas.store.tables import Tables


QUESTIONS: Final = {
    "synergies": synergies,
    "likeness": likeness,
    "together": properties_together,
    "methods": methods_compared,
    "doses": samples_and_epochs,
    "left_out": left_out,
    "languages": cross_lingual,
    "noise": noise_floor,
}
"""What is asked of every study, in the order of the report; each takes the tables, `num_resamples`
and `seed`."""


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
    predictors: tuple[Predictor, ...]
    """Properties of the data that are measured, in the report's order."""
    points: pd.DataFrame
    """`associations.property_points`"""
    associations: pd.DataFrame
    """`associations.associations`"""
    rivals: pd.DataFrame
    """`rivals.compare_predictors`"""
    layers: pd.DataFrame
    """`layers.layer_profile`"""
    dimensions: pd.DataFrame
    """`dimension_profile.dimension_profile`"""
    scans: pd.DataFrame
    """`dimension_profile.scan_profile`"""
    forgetting: pd.DataFrame
    """`forgetting.forgetting_points`"""
    forgetting_associations: pd.DataFrame
    """`forgetting.forgetting_associations`"""
    spectra: pd.DataFrame
    """`spectra.spectrum_profile`"""
    update_pairs: pd.DataFrame
    """`spectra.update_pairs`"""
    update_groups: pd.DataFrame
    """`spectra.update_groups`"""
    main_setting: str
    """The setting that single answers are about; empty without any gain."""
    common_benchmarks: tuple[str, ...]
    """What a mean over benchmarks is taken over."""
    num_left_out: int
    """Cells without such a mean, because a common benchmark is missing."""
    answered: Mapping[str, Answered] = field(default_factory=dict)
    """The questions of `analyze.questions`, of the forecast and of the decision, by short name."""


def analyze(
    tables: "Tables",
    *,
    questions: Collection[str] = tuple(QUESTIONS),
    num_resamples: int = 1000,
    seed: int = 0,
) -> Analysis:
    """Answer the study's questions; deterministic for given tables, `num_resamples` and `seed`.

    `questions`: which of `QUESTIONS` to answer; what gains and measures say is always answered.
    """
    gains = cell_gains(tables)
    means = mean_gains(gains)
    properties = data_properties(tables.datasets, tables.descriptions, tables.similarities)
    predictors = properties.predictors
    points = property_points(gains, means, properties)
    related = associations(
        points, predictors, num_resamples=num_resamples, num_permutations=num_resamples, seed=seed
    )
    rivals = compare_predictors(points, predictors, num_resamples=num_resamples, seed=seed)
    layers = layer_profile(tables, means, num_resamples=num_resamples, seed=seed)
    lost = forgetting_points(tables, means)
    lost_related = forgetting_associations(lost, num_resamples=num_resamples, seed=seed)
    pairs = update_pairs(tables)
    answers = [
        *words.own_skill_findings(gains),
        *words.best_data_findings(means),
        *words.loss_findings(gains),
        *relations.perplexity_findings(related, points, gains),
        *relations.rival_findings(rivals, points, gains, predictors),
        *relations.layer_findings(layers, gains, means),
        *traces.dimension_findings(tables, gains),
        *traces.forgetting_findings(lost, gains),
        *traces.lost_findings(lost_related, lost, gains),
    ]
    return Analysis(
        findings=tuple(answers),
        gains=gains,
        means=means,
        gain_map=gain_map(gains),
        predictors=predictors,
        points=points,
        associations=related,
        rivals=rivals,
        layers=layers.table,
        dimensions=dimension_profile(tables),
        scans=scan_profile(tables),
        forgetting=lost,
        forgetting_associations=lost_related,
        spectra=spectrum_profile(tables),
        update_pairs=pairs,
        update_groups=update_groups(pairs, tables),
        main_setting=words.main_setting(gains) if not gains.empty else "",
        common_benchmarks=tuple(common_benchmarks(gains)),
        num_left_out=int(gains["cell"].nunique() - len(means)),
        answered={
            name: ask(tables, num_resamples=num_resamples, seed=seed)
            for name, ask in QUESTIONS.items()
            if name in questions
        },
    )
