"""Estimate what measures cost: device seconds of one cell, or of a job about texts or weights.

In: the shapes and rates of a `CostModel`, which owns one of these. What a measure reads is known
from the study; nothing is fitted. Weight changes move bytes, text measures are forward passes,
spectra are decompositions, and comparisons of texts are products of their distances.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from sft_atlas.catalog.devices import find_device
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
from sft_atlas.study.spec import BenchmarkItems, CellSpec, MethodSpec, ModelSpec

if TYPE_CHECKING:
    from sft_atlas.study.cost import CostModel

_MATRICES: Final = 7
"""Of a layer whose changes are decomposed, as Llama has."""
_VALUE_FLOPS: Final = 4.0
"""Per row, column and shorter side: a change's singular values (Golub and Van Loan 2013, figure
8.6.1). An adapter's come from its factors, for next to nothing."""
_LEADING_FLOPS: Final = 4.0
"""The same for the leading vectors of the tuned matrix. All vectors of the base's are found once
for each base model, and left out."""
_ESTIMATES: Final = 8
"""From one layer's states in one pooling: four of dimension, a curve, groups, two likenesses."""
_ESTIMATE_FLOPS: Final = 8.0
"""Per pair of points, layer and dimension: distances and inner products of one pooling."""
SENTENCE_TOKENS: Final = 22.0
"""Median of the sentences of `neutral`."""
MAX_SENTENCES: Final = 2_000
"""Of which hidden states are described."""
COMPARED_TEXTS: Final = 2_000
"""Rows, and items, that are compared at most."""
HIDDEN_TOKENS: Final = 512
"""Of a text that `hidden` reads."""
PERMUTATIONS: Final = 1_000
WORD_DIMENSION: Final = 2_048
_UNKNOWN_TEXTS: Final = 500
_UNKNOWN_TEXT_TOKENS: Final = 200.0


def state_points(num_texts: float, tokens: float) -> tuple[float, ...]:
    """Return how many hidden states of a layer each pooling has: last, mean, and sentences.

    A set without more sentences than texts has no pooling of its own for them.
    """
    sentences = min(num_texts * tokens / SENTENCE_TOKENS, MAX_SENTENCES)
    return (num_texts, num_texts, sentences) if sentences > num_texts else (num_texts, num_texts)


class MeasureCost:
    """Costs the measures of one study on one device."""

    def __init__(self, model: "CostModel") -> None:
        self._model = model
        # Whatever a study's precision is, everything is measured in float32.
        self._machine = Machine(model.device, model.device.float32_flops)
        # What numpy and files do is done beside the device, and the device waits.
        self._core_flops = find_device("cpu-core").float32_flops
        self._asked = {b.spec.name: b for b in model.study.benchmarks if b.spec is not None}

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

        What only looks at texts counts where the device is a processor's core. Comparing weights
        always counts: it reads all of them while the device waits.
        """
        if isinstance(job, SimilarityJob) and job.model is not None:
            key = ("similarity", job.model.name, job.fingerprint, len(job.pairs))
            return self._model.once(key, self._hidden_similarity, job)
        if isinstance(job, UpdatesJob):
            return self._model.once((job.kind, job.fingerprint), self._updates, job)
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
            return publish + self._spectrum(model, method, scenario)
        num_texts, tokens = self.texts(measure.texts)
        length = min(tokens, float(measure.max_tokens))
        is_scored = not isinstance(measure, RepresentationMeasure)
        reading = Reading(num_texts, length, 0.0, length if is_scored else 1.0)
        card = self._model.card(model)
        seconds = publish + reading_seconds(reading, card, self._machine, scenario)
        if isinstance(measure, RepresentationMeasure):
            clouds = state_points(num_texts, length)
            pairs = sum(num_points**2 for num_points in clouds)
            flops = _ESTIMATE_FLOPS * pairs * (card.layers + 1) * card.hidden_size
            seconds += flops / (self._core_flops * scenario.estimate_fraction)
            estimates = len(clouds) * _ESTIMATES * (card.layers + 1)
            seconds += estimates * scenario.estimate_seconds
        return seconds

    def texts(self, texts: TextSet) -> tuple[float, float]:
        """Return how many texts a set has, and their mean tokens."""
        if isinstance(texts, QuestionSet):
            return self._questions(texts)
        card = self._model.study.texts
        if card is None:
            return float(texts.limit or _UNKNOWN_TEXTS), _UNKNOWN_TEXT_TOKENS
        return float(min(texts.limit or card.num_texts, card.num_texts)), card.tokens_per_text

    def _questions(self, texts: QuestionSet) -> tuple[float, float]:
        num_texts = tokens = 0.0
        for items in texts.benchmarks:
            if items.name not in self._asked:
                continue
            questions = self._model.questions(self._asked[items.name])
            count = float(min(texts.per_benchmark, questions.num_available))
            num_texts += count
            tokens += count * (questions.prompt_tokens + questions.answer_tokens)
        return num_texts, tokens / max(num_texts, 1.0)

    def _drift(self, model: ModelSpec, method: MethodSpec | None, scenario: Scenario) -> float:
        assert method is not None, "a base model does not drift"
        # Both weights are read in float32, and their difference is written and read again.
        moved = 16 * self._model.trained_weights(model, method)
        traffic = moved / (self._machine.device.bandwidth * scenario.bandwidth_fraction)
        issue = 2 * self._model.card(model).layers * self._machine.device.forward_layer_seconds
        return self._machine.overlapped(traffic, issue * scenario.layer_factor)

    def _spectrum(self, model: ModelSpec, method: MethodSpec | None, scenario: Scenario) -> float:
        card = self._model.card(model)
        is_full = method is not None and method.lora is None
        flops = (_VALUE_FLOPS if is_full else 0.0) + _LEADING_FLOPS
        flops *= matmul_weights(card) * card.hidden_size
        seconds = flops / (self._machine.peak_flops * scenario.estimate_fraction)
        return seconds + 2 * _MATRICES * card.layers * scenario.estimate_seconds

    def _hidden_similarity(self, job: SimilarityJob, scenario: Scenario) -> float:
        assert job.model is not None, "hidden states are some model's"
        card = self._model.card(job.model)
        num_rows = min(job.pairs[0].num_samples, COMPARED_TEXTS)
        lengths = [(float(num_rows), self._model.sample_tokens(job.dataset))]
        lengths += [self.items(pair.benchmark) for pair in job.pairs]
        seconds = self._model.loading_in(job.model, scenario)
        for num_texts, tokens in lengths:
            reading = Reading(num_texts, min(tokens, HIDDEN_TOKENS), 0.0, 0.0)
            seconds += reading_seconds(reading, card, self._machine, scenario)
        if self._model.device.kind == "gpu":
            return seconds
        return seconds + self._comparisons(job, card.hidden_size, scenario)

    def items(self, benchmark: BenchmarkItems) -> tuple[float, float]:
        """Return how many of a benchmark's items are compared with rows, and their mean tokens."""
        if benchmark.name not in self._asked:
            return float(_UNKNOWN_TEXTS), _UNKNOWN_TEXT_TOKENS
        questions = self._model.questions(self._asked[benchmark.name])
        return float(min(questions.num_available, COMPARED_TEXTS)), questions.prompt_tokens

    def _comparisons(self, job: SimilarityJob, dimension: int, scenario: Scenario) -> float:
        """Return the seconds of the permutation tests on all distances."""
        num_rows = min(job.pairs[0].num_samples, COMPARED_TEXTS)
        totals = [num_rows + self.items(pair.benchmark)[0] for pair in job.pairs]
        flops = sum(2.0 * total**2 * (PERMUTATIONS + dimension) for total in totals)
        return flops / (self._core_flops * scenario.score_utilisation)

    def _updates(self, job: UpdatesJob, scenario: Scenario) -> float:
        """Return the seconds of reading the base and each cell twice, once for its digest, and of
        the inner products of all pairs of full models' changes in float64.
        """
        methods = [cell.trajectory.method for cell in job.cells if cell.trajectory is not None]
        stored = sum(self._model.cell_bytes(job.model, method) for method in methods)
        parameters = self._model.card(job.model).parameters
        seconds = (2 * stored + 2 * parameters) / scenario.load_bytes_per_second
        num_full = sum(method.lora is None for method in methods)
        flops = 2.0 * parameters * num_full**2
        seconds += flops / (self._core_flops / 2 * scenario.score_utilisation)
        return seconds + scenario.job_seconds + len(methods) * scenario.benchmark_seconds

    def _on_core(self, job: DescribeJob | SimilarityJob, scenario: Scenario) -> float:
        seconds = scenario.job_seconds
        if isinstance(job, DescribeJob):
            return seconds + job.num_samples / scenario.texts_per_second
        num_texts = float(min(job.pairs[0].num_samples, COMPARED_TEXTS))
        num_texts += sum(self.items(pair.benchmark)[0] for pair in job.pairs)
        seconds += num_texts / scenario.texts_per_second
        return seconds + self._comparisons(job, WORD_DIMENSION, scenario)
