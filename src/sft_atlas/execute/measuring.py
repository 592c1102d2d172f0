"""Measure a live model, or a dataset through one: which stage function answers which wish?

A cell's states and distributions are compared with its base model's, so the base is measured first,
by whichever job of it comes first, while its pristine weights are in memory.
"""

from collections.abc import Iterable
from typing import assert_never

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sft_atlas.measure.drift import measure_drift
from sft_atlas.measure.forgetting import measure_forgetting
from sft_atlas.measure.likelihood import measure_likelihood
from sft_atlas.measure.representation import measure_representation
from sft_atlas.measure.spectrum import measure_spectrum
from sft_atlas.model.load import BaseModel
from sft_atlas.store.store import Store
from sft_atlas.study.measure import (
    CellMeasure,
    DriftMeasure,
    ForgettingMeasure,
    LikelihoodMeasure,
    RepresentationMeasure,
    SpectrumMeasure,
    base_measures,
)
from sft_atlas.study.spec import CellSpec, ModelSpec


def lacks_measures(store: Store, cell: CellSpec, measures: Iterable[CellMeasure]) -> bool:
    """Tell whether a cell lacks one of these measures."""
    key, layout = cell.fingerprint, store.layout
    return not all(store.has(layout.measure(key, measure.fingerprint)) for measure in measures)


def measure_base(
    store: Store,
    base: BaseModel,
    measures: Iterable[CellMeasure],
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Publish what its cells are compared with; the live model is the base afterwards."""
    cell = base_cell(base.spec)
    wanted = base_measures(measures)
    if lacks_measures(store, cell, wanted):
        base.reset()
        for measure in wanted:
            measure_cell(store, cell, measure, base=base, model=base.model, tokenizer=tokenizer)


def measure_cell(
    store: Store,
    cell: CellSpec,
    measure: CellMeasure,
    *,
    base: BaseModel,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Publish one measure of the cell whose weights the live model has, an adapter merged."""
    if isinstance(measure, DriftMeasure):
        measure_drift(store, cell, measure, base=base)
    elif isinstance(measure, SpectrumMeasure):
        measure_spectrum(store, cell, measure, base=base)
    elif isinstance(measure, LikelihoodMeasure):
        measure_likelihood(store, cell, measure, model=model, tokenizer=tokenizer)
    elif isinstance(measure, ForgettingMeasure):
        measure_forgetting(store, cell, measure, model=model, tokenizer=tokenizer)
    elif isinstance(measure, RepresentationMeasure):
        measure_representation(store, cell, measure, model=model, tokenizer=tokenizer)
    else:
        assert_never(measure)


def base_cell(model: ModelSpec) -> CellSpec:
    """Return a base model as a cell."""
    return CellSpec(model=model, trajectory=None, epoch=0)
