"""Estimate what one job costs: device seconds, as low, likely and high.

It is arithmetic over FLOPs, bytes and kernel launches, with no fitted constant: 6N FLOPs per
trained token (full) or 4N (LoRA), 2N per scored token, N the weights in matrix products (Kaplan et
al. 2020, sec. 2.1), and attention. What no file states comes from the scenarios of `assumption`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from sft_atlas.catalog.cards import ModelCard
from sft_atlas.catalog.devices import find_device
from sft_atlas.study.asking import HERE, Machine, Reading, Way, asking_seconds, reading_seconds
from sft_atlas.study.assumption import NOTHING, Range, Scenario, scenarios
from sft_atlas.study.job import (
    DescribeJob,
    EvaluateJob,
    GradeJob,
    Job,
    MeasureJob,
    OverlapJob,
    PrepareJob,
    SimilarityJob,
    TrainJob,
    UpdatesJob,
)
from sft_atlas.study.measure_cost import MeasureCost
from sft_atlas.study.measure_size import MeasureSize
from sft_atlas.study.model_folder import sized_card
from sft_atlas.study.passes import MICRO_BATCH_TOKENS
from sft_atlas.study.questions import Questions, questions_of
from sft_atlas.study.shape import adapter_weights, attention_flops, matmul_weights
from sft_atlas.study.spec import (
    BenchmarkSpec,
    DatasetSpec,
    DataSpec,
    MethodSpec,
    ModelSpec,
    TrajectorySpec,
)
from sft_atlas.study.study import Study, StudyBenchmark

UNKNOWN_PARAMETERS = 7_000_000_000
"""Weights of a base model whose size nothing states."""

UNKNOWN_SAMPLE_TOKENS = 300.0
"""Mean tokens of a sample of a dataset whose card does not state it."""

_SMALL_MODEL = 100_000_000
_OPTIMIZER_BYTES = 28
"""Read and written per trained weight and step: weight, gradient and two moments, float32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobCost:
    """One job's device seconds by kind of work; a train job also evaluates and measures."""

    prepare: Range = NOTHING
    measure: Range = NOTHING
    train: Range = NOTHING
    evaluate: Range = NOTHING

    @property
    def seconds(self) -> Range:
        """All its work together; the scheduler orders jobs by the likely value."""
        return self.prepare.plus(self.measure).plus(self.train).plus(self.evaluate)


class CostModel:
    """Costs jobs of one study on one device; equal work is computed once."""

    def __init__(self, study: Study, device: str) -> None:
        self.study = study
        self.device = find_device(device)
        is_half = study.precision == "bfloat16"
        self.peak_flops = self.device.peak_flops if is_half else self.device.float32_flops
        self.machine = Machine(self.device, self.peak_flops)
        self._questions = {
            b.spec.fingerprint: questions_of(b) for b in study.benchmarks if b.spec is not None
        }
        self._known: dict[tuple[object, ...], Range] = {}
        self._data_tokens: dict[str, float] = {}
        self._train_jobs: dict[tuple[object, ...], JobCost] = {}
        self.measures = MeasureCost(self)
        self.measure_sizes = MeasureSize(self)

    def job(self, job: Job) -> JobCost:
        """Return what a job costs; what needs no device has no device seconds."""
        if isinstance(job, (GradeJob, OverlapJob)):
            return JobCost()
        if isinstance(job, (DescribeJob, SimilarityJob, UpdatesJob)):
            return JobCost(measure=self.measures.job(job))
        if isinstance(job, PrepareJob):
            return JobCost(prepare=self.once(("prepare", job.num_samples), _prepare, job))
        if isinstance(job, MeasureJob):
            about = ("measure", job.model.name, job.dataset.name, job.num_samples)
            return JobCost(measure=self.once(about, self._measure, job))
        if isinstance(job, EvaluateJob):
            measure = self.measures.cell(job.cell, job.measures)
            scores = self.scores(job.cell.model, job.benchmarks)
            return JobCost(evaluate=scores.plus(self.loading(job.cell.model)), measure=measure)
        run = job.trajectory
        key: tuple[object, ...] = (
            run.model.name,
            run.data.canonical,
            run.method.name,
            job.keep_epochs,
            *(measure.fingerprint for measure in (*job.measures, *job.last_measures)),
            *(benchmark.fingerprint for benchmark in job.benchmarks),
        )
        if key not in self._train_jobs:
            self._train_jobs[key] = self._train_job(job)
        return self._train_jobs[key]

    def _train_job(self, job: TrainJob) -> JobCost:
        model, count = job.trajectory.model, len(job.keep_epochs)
        measure = NOTHING
        for cell in job.cells:
            measure = measure.plus(self.measures.cell(cell, job.measures_of(cell)))
        return JobCost(
            train=self.training(job.trajectory, job.keep_epochs[-1], count),
            evaluate=self.scores(model, job.benchmarks).times(count),
            measure=measure,
        )

    def training(self, trajectory: TrajectorySpec, epochs: int, num_kept: int) -> Range:
        """Return the seconds of a run of some epochs, of which a number is published."""
        run = trajectory
        key = ("train", run.model.name, run.data.canonical, run.method.name, epochs, num_kept)
        return self.once(key, self._training, run, epochs, num_kept)

    def scores(self, model: ModelSpec, benchmarks: tuple[BenchmarkSpec, ...]) -> Range:
        """Return the seconds of scoring one cell on benchmarks."""
        key = ("scores", model.name, *(b.fingerprint for b in benchmarks))
        return self.once(key, self._scores, model, benchmarks)

    def answers(
        self,
        model: ModelSpec,
        benchmark: StudyBenchmark,
        *,
        way: Way = HERE,
        is_adapter: bool = False,
    ) -> Range:
        """Return the seconds of one benchmark on one cell, also where it cannot be scored yet."""
        merged = replace(way, merges_adapters=True)
        key = ("answers", model.name, benchmark.name, merged)
        seconds = self.once(key, self._answers, model, benchmark, merged)
        if way.merges_adapters or not is_adapter:
            return seconds
        pairs = zip(seconds, scenarios(), strict=True)
        return Range(*(value * scenario.unmerged_factor for value, scenario in pairs))

    def loading(self, model: ModelSpec) -> Range:
        """Return the seconds of beginning a job and bringing a base model into memory."""
        return self.once(("load", model.name), self.loading_in, model)

    def questions(self, benchmark: StudyBenchmark) -> Questions:
        """Return how much a scorable benchmark asks."""
        assert benchmark.spec is not None
        return self._questions[benchmark.spec.fingerprint]

    def card(self, model: ModelSpec) -> ModelCard:
        """Return a model's card, or a guess of `UNKNOWN_PARAMETERS` weights."""
        known = self.study.model_by_name[model.name].card
        return known or sized_card(model.name, UNKNOWN_PARAMETERS)

    def is_guessed(self, model: ModelSpec) -> bool:
        """Tell whether nothing states a model's size."""
        return self.study.model_by_name[model.name].card is None

    def sample_tokens(self, dataset: DatasetSpec) -> float:
        """Return the mean tokens of a dataset's samples, cut at the study's longest."""
        card = self.study.dataset_by_name[dataset.name].card
        tokens = UNKNOWN_SAMPLE_TOKENS
        if card is not None and card.tokens_per_sample > 0:
            tokens = card.tokens_per_sample
        return min(tokens, float(self.study.max_tokens))

    def data_tokens(self, data: DataSpec) -> float:
        """Return the tokens of one epoch over some data."""
        if data.canonical not in self._data_tokens:
            tokens = [part.num_samples * self.sample_tokens(part.dataset) for part in data.parts]
            self._data_tokens[data.canonical] = sum(tokens)
        return self._data_tokens[data.canonical]

    def trained_weights(self, model: ModelSpec, method: MethodSpec) -> int:
        """Return how many weights an optimizer step moves."""
        card = self.card(model)
        return card.parameters if method.lora is None else adapter_weights(card, method.lora)

    def cell_bytes(self, model: ModelSpec, method: MethodSpec) -> int:
        """Return the size of one published cell: all weights, or an adapter in float32."""
        is_half = method.lora is None and self.study.precision == "bfloat16"
        return self.trained_weights(model, method) * (2 if is_half else 4)

    def once(
        self, key: tuple[object, ...], seconds: Callable[..., float], *subject: object
    ) -> Range:
        """Return what a function gives in each scenario; equal keys are computed once."""
        if key not in self._known:
            values = (seconds(*subject, scenario) for scenario in scenarios())
            self._known[key] = Range(*values)
        return self._known[key]

    def _training(
        self, trajectory: TrajectorySpec, epochs: int, num_kept: int, scenario: Scenario
    ) -> float:
        model, method, data = trajectory.model, trajectory.method, trajectory.data
        card, device = self.card(model), self.device
        weights, trained = matmul_weights(card), self.trained_weights(model, method)
        tokens = self.data_tokens(data) * scenario.token_factor * scenario.padding_factor
        length = tokens / data.num_samples
        steps = math.ceil(data.num_samples / method.batch_samples)
        pass_tokens = MICRO_BATCH_TOKENS["cuda" if device.kind == "gpu" else "cpu"]
        passes = steps * math.ceil(method.batch_samples * length / pass_tokens)
        # The gradient of a frozen base's weights is never formed: 4N in place of 6N.
        flops = (6 if method.lora is None else 4) * weights + 3 * attention_flops(card, length)
        compute = tokens * flops / (self.peak_flops * scenario.train_utilisation)
        issue = passes * card.layers * device.train_layer_seconds * scenario.layer_factor
        moved = steps * _OPTIMIZER_BYTES * trained + passes * 6 * weights
        traffic = moved / (device.bandwidth * scenario.bandwidth_fraction)
        seconds = epochs * (self.machine.overlapped(compute, issue) + traffic)
        saved = num_kept * self.cell_bytes(model, method) / scenario.save_bytes_per_second
        load = self.loading_in(model, scenario)
        return seconds * (1 + scenario.checkpoint_fraction) + saved + load

    def _scores(
        self, model: ModelSpec, benchmarks: tuple[BenchmarkSpec, ...], scenario: Scenario
    ) -> float:
        card = self.card(model)
        return sum(
            asking_seconds(self._questions[b.fingerprint], card, self.machine, scenario)
            for b in benchmarks
        )

    def _answers(
        self, model: ModelSpec, benchmark: StudyBenchmark, way: Way, scenario: Scenario
    ) -> float:
        asked, card = questions_of(benchmark), self.card(model)
        return asking_seconds(asked, card, self.machine, scenario, way)

    def _measure(self, job: MeasureJob, scenario: Scenario) -> float:
        length = self.sample_tokens(job.dataset)
        # Whatever a study's precision is, its datasets are measured in float32.
        machine = Machine(self.device, self.device.float32_flops)
        reading = Reading(job.num_samples, length, 0.0, length)
        scoring = reading_seconds(reading, self.card(job.model), machine, scenario)
        return scoring + self.loading_in(job.model, scenario)

    def loading_in(self, model: ModelSpec, scenario: Scenario) -> float:
        """Return `loading` in one scenario."""
        num_bytes = 2 * self.card(model).parameters
        return scenario.job_seconds + num_bytes / scenario.load_bytes_per_second


def default_device(study: Study) -> str:
    """Return `cpu-core` where every base model is small enough for it, else `h100`."""
    cards = [model.card for model in study.models]
    is_small = all(card is not None and card.parameters < _SMALL_MODEL for card in cards)
    return "cpu-core" if is_small else "h100"


def _prepare(job: PrepareJob, scenario: Scenario) -> float:
    return scenario.job_seconds + job.num_samples / scenario.prepare_samples_per_second
