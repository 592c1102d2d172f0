"""Estimate what one job costs: device seconds, as low, likely and high.

It is arithmetic over FLOPs, bytes and kernel launches: 6N FLOPs per trained token (full) or 4N
(LoRA), 2N per scored token, N the weights in matrix products (Kaplan et al. 2020, sec. 2.1), and
attention. What no file states comes from the scenarios of `assumption`, or, where the device was
measured, from its profile; what finished runs took corrects the rest.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Final

from sft_atlas.catalog.cards import ModelCard
from sft_atlas.catalog.devices import find_device
from sft_atlas.study.asking import HERE, Machine, Reading, Way, asking_seconds, reading_seconds
from sft_atlas.study.assumption import NOTHING, Range, Scenario, scenarios
from sft_atlas.study.correction import Correction, correction_from
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
from sft_atlas.study.profile import Profile, assumed_profile
from sft_atlas.study.questions import Questions, questions_of
from sft_atlas.study.shape import adapter_weights
from sft_atlas.study.spec import (
    BenchmarkSpec,
    DatasetSpec,
    DataSpec,
    MethodSpec,
    ModelSpec,
    TrajectorySpec,
)
from sft_atlas.study.study import Study, StudyBenchmark
from sft_atlas.study.training_cost import TimedRun, TrainingCost

UNKNOWN_PARAMETERS = 7_000_000_000
"""Weights of a base model whose size nothing states."""

UNKNOWN_SAMPLE_TOKENS = 300.0
"""Mean tokens of a sample of a dataset whose card does not state it."""

_SMALL_MODEL = 100_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleShape:
    """Samples of one dataset as one base model's tokenizer cuts them."""

    tokens: float
    """Mean tokens of a sample."""
    supervised_fraction: float


@dataclass(frozen=True, kw_only=True)
class Known:
    """What was measured, where an estimate otherwise rests on cards and assumptions."""

    profile: Profile | None = None
    """Of the device that runs use here."""
    samples: Mapping[tuple[str, str], SampleShape] = field(default_factory=dict)
    """By names of base model and dataset."""
    runs: tuple[TimedRun, ...] = ()
    """Finished runs of the study."""


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


NOTHING_KNOWN: Final = Known()


class CostModel:
    """Costs jobs of one study on one device; equal work is computed once."""

    def __init__(self, study: Study, device: str, known: Known = NOTHING_KNOWN) -> None:
        self.study = study
        self.known = known
        self.profile = _profile_of(device, known)
        self.device = self.profile.device
        self.scenarios = scenarios(self.profile.measured_values)
        self.peak_flops = self.profile.peak_flops(study.precision)
        self.machine = Machine(self.device, self.peak_flops)
        self.trainings = TrainingCost(self)
        self._questions = {
            b.spec.fingerprint: questions_of(b) for b in study.benchmarks if b.spec is not None
        }
        self._known: dict[tuple[object, ...], Range] = {}
        self._data_tokens: dict[str, float] = {}
        self._train_jobs: dict[tuple[object, ...], JobCost] = {}
        self.measures = MeasureCost(self)
        self.measure_sizes = MeasureSize(self)

    @cached_property
    def correction(self) -> Correction:
        """What finished runs on this device say of the others."""
        return correction_from(self.trainings.compared())

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
        return self.trainings.seconds(trajectory, epochs, num_kept)

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
        pairs = zip(seconds, self.scenarios, strict=True)
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
            values = (seconds(*subject, scenario) for scenario in self.scenarios)
            self._known[key] = Range(*values)
        return self._known[key]

    def _scores(
        self, model: ModelSpec, benchmarks: tuple[BenchmarkSpec, ...], scenario: Scenario
    ) -> float:
        card, (machine, seen) = self.card(model), self._reader(model, scenario)
        return sum(
            asking_seconds(self._questions[b.fingerprint], card, machine, seen) for b in benchmarks
        )

    def _answers(
        self, model: ModelSpec, benchmark: StudyBenchmark, way: Way, scenario: Scenario
    ) -> float:
        asked, card = questions_of(benchmark), self.card(model)
        machine, seen = self._reader(model, scenario)
        return asking_seconds(asked, card, machine, seen, way)

    def _reader(self, model: ModelSpec, scenario: Scenario) -> tuple[Machine, Scenario]:
        """Return how fast a base model reads: as its score was measured, or as others do."""
        speed = self.profile.speed(model.fingerprint, "score", self.study.precision)
        if speed is None:
            return self.machine, scenario
        seconds = speed.token_seconds * scenario.speed_factor
        layer_seconds = speed.pass_seconds / self.card(model).layers
        device = self.device.model_copy(update={"forward_layer_seconds": layer_seconds})
        # Padding was part of the batches that were measured.
        measured = {"padding_factor": 1.0, "layer_factor": scenario.speed_factor}
        utilisation = speed.token_flops / (seconds * self.peak_flops)
        return (
            Machine(device, self.peak_flops),
            replace(scenario, score_utilisation=utilisation, **measured),
        )

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


def _profile_of(device: str, known: Known) -> Profile:
    if known.profile is not None and known.profile.device.name == device:
        return known.profile
    return assumed_profile(find_device(device))


def default_device(study: Study, known: Known = NOTHING_KNOWN) -> str:
    """Return the device that was measured, else `cpu-core` where every base model is small enough
    for it, else `h100`. A processor that was measured stands for no larger study.
    """
    cards = [model.card for model in study.models]
    is_small = all(card is not None and card.parameters < _SMALL_MODEL for card in cards)
    profile = known.profile
    if profile is not None and (is_small or profile.device.kind == "gpu"):
        return profile.device.name
    return "cpu-core" if is_small else "h100"


def _prepare(job: PrepareJob, scenario: Scenario) -> float:
    return scenario.job_seconds + job.num_samples / scenario.prepare_samples_per_second
