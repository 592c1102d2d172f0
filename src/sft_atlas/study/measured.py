"""Turn a study's `measures` into exactly what is measured of which cell."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, final

from sft_atlas.catalog.cards import TextsCard, find_texts
from sft_atlas.errors import CatalogError, StudyError
from sft_atlas.strict_yaml import Lines
from sft_atlas.study.entries import entry_source
from sft_atlas.study.measure import (
    CellMeasure,
    DriftMeasure,
    Embedder,
    ForgettingMeasure,
    LikelihoodMeasure,
    Measures,
    QuestionSet,
    RepresentationMeasure,
    SpectrumMeasure,
    TextFile,
)
from sft_atlas.study.schema import EmbedderEntry, MeasuresEntry, StudyFile, TextsEntry
from sft_atlas.study.source import source_from_card
from sft_atlas.study.spec import BenchmarkSpec, distinct_items
from sft_atlas.study.study import StudyModel

_DEFAULT_TEXTS = "neutral"


@final
class ResolvedMeasures(NamedTuple):
    """What a study measures, and the card of its neutral texts where they have one."""

    measures: Measures
    texts: TextsCard | None


def resolve_measures(
    file: StudyFile,
    *,
    models: Sequence[StudyModel],
    benchmarks: Sequence[BenchmarkSpec],
    lines: Lines,
) -> ResolvedMeasures:
    """Return the measures of a study file; a likelihood vector needs benchmarks with questions."""
    entry, folder = file.measures, lines.path.absolute().parent
    measured: list[tuple[bool | str, CellMeasure]] = [
        (entry.drift, DriftMeasure()),
        (entry.spectrum, SpectrumMeasure()),
    ]
    if items := tuple(distinct_items(benchmarks)):
        questions = QuestionSet(
            benchmarks=items, per_benchmark=entry.likelihood_items, template=file.template
        )
        likelihood = LikelihoodMeasure(texts=questions, max_tokens=file.max_tokens)
        measured.append((entry.likelihoods, likelihood))
    card = None
    if entry.texts is not None or entry.forgetting or entry.representations:
        texts, card = _neutral_texts(entry, models, folder, lines)
        measured += [
            (entry.forgetting, ForgettingMeasure(texts=texts, max_tokens=file.max_tokens)),
            (entry.representations, RepresentationMeasure(texts=texts, max_tokens=file.max_tokens)),
        ]
    measures = Measures(
        dataset=entry.dataset,
        dataset_samples=entry.dataset_samples,
        description=entry.description,
        overlap=entry.overlap,
        embedders=tuple(
            _embedder(item, folder, lines.where("measures", "similarity", i))
            for i, item in enumerate(entry.similarity)
        ),
        every=tuple(measure for kept, measure in measured if kept in (True, "every")),
        last=tuple(measure for kept, measure in measured if kept == "last"),
        updates=entry.updates,
    )
    return ResolvedMeasures(measures, card)


def _neutral_texts(
    entry: MeasuresEntry, models: Sequence[StudyModel], folder: Path, lines: Lines
) -> tuple[TextFile, TextsCard | None]:
    given = entry.texts
    if isinstance(given, TextsEntry):
        where = lines.where("measures", "texts")
        source = entry_source(given, folder, where)
        if source.path is None and source.hub is None:
            raise StudyError(
                f"{where}: names neither path nor hub; add one, or write a name alone."
            )
        return TextFile(
            source=source,
            field=given.field,
            limit=given.limit,
            max_bytes=given.max_bytes,
            name=given.name,
        ), None
    try:
        card = find_texts(given if given is not None else _suited_texts(models, lines))
    except CatalogError as error:
        raise StudyError(f"{lines.where('measures', 'texts')}: {error}") from error
    file = TextFile(source=source_from_card(card.source), field=card.field, name=card.name)
    return file, card


def _suited_texts(models: Sequence[StudyModel], lines: Lines) -> str:
    """Return the text set that suits all base models' vocabularies."""
    suited = {m.spec.name: _DEFAULT_TEXTS if m.card is None else m.card.texts for m in models}
    if len(set(suited.values())) > 1:
        wishes = ", ".join(f"{name} {texts}" for name, texts in suited.items())
        raise StudyError(
            f"{lines.where('models')}: no one set of neutral texts suits all base models "
            f"({wishes}); name one under measures: {{texts: ...}}."
        )
    return next(iter(suited.values()))


def _embedder(item: str | EmbedderEntry, folder: Path, where: str) -> Embedder:
    if isinstance(item, EmbedderEntry):
        source = entry_source(item, folder, where)
        if source.path is None and source.hub is None:
            raise StudyError(f"{where}: names neither path nor hub of a model; add one.")
        return Embedder(kind="sentence-transformers", source=source, name=item.name)
    return Embedder(kind="hidden" if item == "hidden" else "words", name=item)
