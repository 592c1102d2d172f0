"""Measure a live model, or a dataset through one: which stage function answers which wish?

A cell's states and distributions are compared with its base model's, so the base is measured first,
by whichever job of it comes first, while its pristine weights are in memory.
"""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Final, assert_never

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sft_atlas.data.selection import item_texts, selected_texts
from sft_atlas.errors import Error, StoreError
from sft_atlas.execute.faults import kept, raise_faults
from sft_atlas.measure.drift import measure_drift
from sft_atlas.measure.embed import Embed, build_embed, remember_last
from sft_atlas.measure.forgetting import measure_forgetting
from sft_atlas.measure.likelihood import measure_likelihood
from sft_atlas.measure.representation import measure_representation
from sft_atlas.measure.similarity import measure_similarity
from sft_atlas.measure.spectrum import measure_spectrum
from sft_atlas.model.load import BaseModel
from sft_atlas.store.store import Store
from sft_atlas.study.job import SimilarityJob
from sft_atlas.study.measure import (
    CellMeasure,
    DriftMeasure,
    Embedder,
    ForgettingMeasure,
    LikelihoodMeasure,
    RepresentationMeasure,
    SpectrumMeasure,
    base_measures,
)
from sft_atlas.study.spec import CellSpec, base_cell

_REMEMBERED_SETS: Final = 12
"""Sets of at most 2,000 vectors that are kept between jobs; 16 MB each for words."""


def lacks_measures(store: Store, cell: CellSpec, measures: Iterable[CellMeasure]) -> bool:
    """Tell whether a cell lacks one of these measures."""
    key, layout = cell.fingerprint, store.layout
    return not all(store.has(layout.measure(key, measure.fingerprint)) for measure in measures)


def measure_base(
    store: Store,
    base: BaseModel,
    measures: Iterable[CellMeasure],
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, Error]:
    """Publish what its cells are compared with; the live model is the base afterwards.

    Returns why a measure could not be made, by its fingerprint; one's fault costs no other.
    """
    cell = base_cell(base.spec)
    faults: dict[str, Error] = {}
    wanted = base_measures(measures)
    if not lacks_measures(store, cell, wanted):
        return faults
    base.reset()
    for measure in wanted:
        own: list[Error] = []
        with kept(own):
            measure_cell(store, cell, measure, base=base, model=base.model, tokenizer=tokenizer)
        if own:
            faults[measure.fingerprint] = own[0]
    return faults


def refuse_without_base(
    cell: CellSpec, measure: CellMeasure, base_faults: Mapping[str, Error]
) -> None:
    """Raise StoreError where a measure compares a cell with a base that could not be measured."""
    fault = base_faults.get(measure.fingerprint)
    is_compared = isinstance(measure, (ForgettingMeasure, RepresentationMeasure))
    if is_compared and fault is not None and cell.trajectory is not None:
        raise StoreError(
            f"{measure.kind} of {cell.model.name}: its base model, which cells are compared with, "
            f"could not be measured: {fault}"
        )


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


def compare_texts(store: Store, job: SimilarityJob, embed: Embed) -> None:
    """Publish how close a dataset is to each benchmark of a job; one's fault costs no other.

    Raises:
        DataError: if rows or items cannot be read or compared, after all pairs were tried.
    """
    first = job.pairs[0]
    rows = selected_texts(
        first.dataset, num_samples=first.num_samples, subset_seed=first.subset_seed
    )
    faults: list[Error] = []
    for pair in job.pairs:
        with kept(faults):
            items = item_texts(pair.benchmark)
            measure_similarity(store, pair, rows=rows, items=items, embed=embed)
    raise_faults(faults)


def hidden_embed(
    embedder: Embedder, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Embed:
    """Return the embedder of a base model's hidden states; it reads the live model when called."""
    build = build_embed(embedder, model=model, tokenizer=tokenizer)
    return remember_last(build, num_sets=_REMEMBERED_SETS)


@cache
def modelless_embed(embedder: Embedder) -> Embed:
    """Return an embedder for the life of the process: a benchmark meets every dataset.

    Raises:
        StudyError: if the embedder is not at hand.
    """
    return remember_last(build_embed(embedder), num_sets=_REMEMBERED_SETS)
