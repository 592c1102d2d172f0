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
from sft_atlas.study.source import Source, source_from_card
from sft_atlas.study.spec import BenchmarkSpec, distinct_items
from sft_atlas.study.study import StudyModel

_DEFAULT_TEXTS = "neutral"
_FIELD = "text"


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
    where = lines.where("measures", "texts")
    given = TextsEntry(name=entry.texts) if isinstance(entry.texts, str) else entry.texts
    if given is not None and (given.path is not None or given.hub is not None):
        source = entry_source(given, folder, where)
        return _text_file(given, source, given.field or _FIELD), None
    try:
        card = find_texts(_suited_texts(models, lines) if given is None else given.name)
    except CatalogError as error:
        raise StudyError(f"{where}: {error}") from error
    if given is not None and given.field is not None:
        raise StudyError(f"{where}: field belongs to a file of your own; add path, or remove it.")
    named = given or TextsEntry(name=card.name)
    return _text_file(named, source_from_card(card.source), card.field), card


def _text_file(entry: TextsEntry, source: Source, field: str) -> TextFile:
    return TextFile(
        source=source,
        field=field,
        limit=entry.limit,
        max_bytes=entry.max_bytes,
        name=entry.name,
    )


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
