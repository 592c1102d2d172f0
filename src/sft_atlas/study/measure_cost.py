"""Estimate what measures cost: device seconds of one cell, or of a job about texts or weights.

In: the shapes and rates of a `CostModel`, which owns one of these. What a measure reads is known
from the study; nothing is fitted. Weight changes move bytes, text measures are forward passes,
spectra are singular value decompositions.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from sft_atlas.study.asking import Machine, Reading, reading_seconds
from sft_atlas.study.assumption import NOTHING, Range, Scenario
from sft_atlas.study.job import DescribeJob, SimilarityJob, UpdatesJob
from sft_atlas.study.measure import (
    CellMeasure,
    DriftMeasure,
    QuestionSet,
    RepresentationMeasure,
    SpectrumMeasure,
    TextSet,
)
from sft_atlas.study.shape import matmul_weights
from sft_atlas.study.spec import CellSpec, MethodSpec, ModelSpec

if TYPE_CHECKING:
    from sft_atlas.study.cost import CostModel

_SVD_FLOPS: Final = 20.0
"""Per row, column and shorter side of a matrix, with both sides of singular vectors (Golub and
Van Loan 2013, figure 8.6.1)."""
_SVD_UTILISATION: Final = 0.1
"""Of the peak: bidiagonalisation is bound by memory."""
_DECOMPOSITIONS: Final = 2
"""Of one matrix: its change, and the tuned matrix."""
_ESTIMATOR_FLOPS: Final = 16.0
"""Per pair of points and dimension: distances, alignment and clusters of two poolings."""
_UNKNOWN_TEXTS: Final = 500
_UNKNOWN_TEXT_TOKENS: Final = 200.0
_TEXTS_PER_SECOND: Final = 5_000.0
"""Texts that a core splits, hashes and compares in a second."""


class MeasureCost:
    """Costs the measures of one study on one device."""

    def __init__(self, model: "CostModel") -> None:
        self._model = model
        # Whatever a study's precision is, everything is measured in float32.
        self._machine = Machine(model.device, model.device.float32_flops)

    def cell(self, cell: CellSpec, measures: Iterable[CellMeasure]) -> Range:
        """Return the seconds of measuring one cell whose model is in memory."""
        total = NOTHING
        method = None if cell.trajectory is None else cell.trajectory.method
        for measure in measures:
            name = "" if method is None else method.name
            key = ("cell measure", cell.model.name, name, measure.fingerprint)
            total = total.plus(self._model.once(key, self._cell, cell.model, method, measure))
        return total

    def job(self, job: DescribeJob | SimilarityJob | UpdatesJob) -> Range:
        """Return the seconds of a job about texts or stored weights.

        What needs no accelerator counts where the device is a processor's core.
        """
        if isinstance(job, SimilarityJob) and job.model is not None:
            key = ("similarity", job.model.name, job.dataset.name, len(job.pairs))
            return self._model.once(key, self._hidden_similarity, job)
        if self._model.device.kind == "gpu":
            return NOTHING
        return self._model.once((job.kind, job.fingerprint), self._on_core, job)

    def _cell(
        self, model: ModelSpec, method: MethodSpec | None, measure: CellMeasure, scenario: Scenario
    ) -> float:
        publish = scenario.benchmark_seconds
        if isinstance(measure, DriftMeasure):
            return publish + self._drift(model, method, scenario)
        if isinstance(measure, SpectrumMeasure):
            return publish + self._spectrum(model)
        num_texts, tokens = self._texts(measure.texts)
        length = min(tokens, float(measure.max_tokens))
        is_scored = not isinstance(measure, RepresentationMeasure)
        reading = Reading(num_texts, length, 0.0, length if is_scored else 1.0)
        card = self._model.card(model)
        seconds = publish + reading_seconds(reading, card, self._machine, scenario)
        if isinstance(measure, RepresentationMeasure):
            flops = _ESTIMATOR_FLOPS * num_texts**2 * (card.layers + 1) * card.hidden_size
            seconds += flops / (self._machine.peak_flops * _SVD_UTILISATION)
        return seconds

    def _texts(self, texts: TextSet) -> tuple[float, float]:
        """Return how many texts a set has, and their mean tokens."""
        if isinstance(texts, QuestionSet):
            return self._questions(texts)
        card = self._model.study.texts
        if card is None:
            return float(texts.limit or _UNKNOWN_TEXTS), _UNKNOWN_TEXT_TOKENS
        return float(min(texts.limit or card.num_texts, card.num_texts)), card.tokens_per_text

    def _questions(self, texts: QuestionSet) -> tuple[float, float]:
        num_texts = tokens = 0.0
        asked = {b.spec.name: b for b in self._model.study.benchmarks if b.spec is not None}
        for items in texts.benchmarks:
            if items.name not in asked:
                continue
            questions = self._model.questions(asked[items.name])
            count = float(min(texts.per_benchmark, questions.num_available))
            num_texts += count
            tokens += count * (questions.prompt_tokens + questions.answer_tokens)
        return num_texts, tokens / max(num_texts, 1.0)

    def _drift(self, model: ModelSpec, method: MethodSpec | None, scenario: Scenario) -> float:
        assert method is not None, "a base model does not drift"
        # Both weights are read in float32, and their difference is written and read again.
        moved = 16 * self._model.trained_weights(model, method)
        traffic = moved / (self._machine.device.bandwidth * scenario.bandwidth_fraction)
        issue = 8 * self._model.card(model).layers * self._machine.device.forward_layer_seconds
        return self._machine.overlapped(traffic, issue * scenario.layer_factor)

    def _spectrum(self, model: ModelSpec) -> float:
        card = self._model.card(model)
        flops = _DECOMPOSITIONS * _SVD_FLOPS * matmul_weights(card) * card.hidden_size
        return flops / (self._machine.peak_flops * _SVD_UTILISATION)

    def _hidden_similarity(self, job: SimilarityJob, scenario: Scenario) -> float:
        assert job.model is not None, "hidden states are some model's"
        length = self._model.sample_tokens(job.dataset)
        rows = Reading(job.pairs[0].num_samples, length, 0.0, 1.0)
        items = Reading(float(_UNKNOWN_TEXTS * len(job.pairs)), _UNKNOWN_TEXT_TOKENS, 0.0, 1.0)
        card = self._model.card(job.model)
        readings = [reading_seconds(r, card, self._machine, scenario) for r in (rows, items)]
        return sum(readings) + scenario.job_seconds

    def _on_core(self, job: DescribeJob | SimilarityJob | UpdatesJob, scenario: Scenario) -> float:
        if isinstance(job, UpdatesJob):
            num_pairs = len(job.cells) * (len(job.cells) + 1) / 2
            flops = 2 * self._model.card(job.model).parameters * num_pairs
            rate = self._machine.peak_flops * scenario.score_utilisation
            return scenario.job_seconds + flops / rate
        if isinstance(job, SimilarityJob):
            num_texts = job.pairs[0].num_samples * len(job.pairs)
        else:
            num_texts = job.num_samples
        return scenario.job_seconds + num_texts / _TEXTS_PER_SECOND
