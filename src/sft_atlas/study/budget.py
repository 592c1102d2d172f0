"""Add up what a plan costs: device hours, tokens, weights, disk and memory; refuse what cannot fit.

Hours are given with their low, likely and high ends and with every assumption named. Weights and
checkpoints follow from sizes alone, so the disk is known well enough to refuse a plan by.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sft_atlas.study.asking import decodes, read_tokens
from sft_atlas.study.assumed import all_assumptions
from sft_atlas.study.assumption import NOTHING, Assumption, Range
from sft_atlas.study.cost import CostModel, JobCost
from sft_atlas.study.job import EvaluateJob, GradeJob, Job, PrepareJob, TrainJob
from sft_atlas.study.measure import CellMeasure, SpectrumMeasure
from sft_atlas.study.questions import JUDGEMENT_TOKENS, judge_prompt_tokens, questions_of
from sft_atlas.study.spec import BenchmarkSpec, CellSpec, MethodSpec, ModelSpec

BASE = "base"
"""What stands for the method of a base model."""

_ITEM_BYTES = 200
"""One scored item in a compressed table."""

_CHECKPOINT_BYTES = 12
"""Per trained weight: float32 master weight and two moments."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryNeed:
    """Least device memory of one base model under one method, at one example per pass."""

    model: str
    method: str
    num_bytes: int
    fits: bool
    tokens_per_pass: int
    """Padded tokens of a training pass that would fill the device; 0 where not even one fits."""


@dataclass(frozen=True, kw_only=True)
class PlanCost:
    """What a list of jobs costs on one device."""

    device: str
    hours: dict[str, Range]
    """Device hours by kind of work: prepare, measure, train, evaluate."""
    hours_by_method: dict[str, dict[str, Range]]
    """The same by method, and `base` for base models."""
    unshared_train_hours: Range
    """Training hours if every cell were a run of its own."""
    unscored_hours: Range
    """Device hours of the benchmarks that this version cannot score; not part of `hours`."""
    trained_tokens: float
    scored_tokens: float
    """Prompt and option tokens that evaluation reads; shared beginnings count once."""
    decoded_tokens: float
    """At most; tokens decoded if every answer ran to its limit."""
    judge_requests: int
    """Requests to judges, without those that have to be repeated."""
    judge_prompt_tokens: float
    """Tokens that judges read."""
    judge_answer_tokens: float
    """Tokens that judges write."""
    weights_bytes: int
    """Published cells."""
    stated_weights_bytes: int
    """The part of them that rests on no guessed size."""
    disk_bytes: int
    """Weights, scores, measures, tokenised rows and kept checkpoints, when all is done."""
    measures_bytes: int
    """The part of it that is measures, and what base models keep for them."""
    peak_disk_bytes: int
    """The same and two checkpoints of the largest run of each worker, while running."""
    stated_peak_disk_bytes: int
    """The part of it that rests on no guessed size; equal to it where nothing is guessed."""
    guessed_sizes: tuple[str, ...]
    """Base models whose size nothing states, where a job trains them."""
    memory: tuple[MemoryNeed, ...]
    assumptions: tuple[Assumption, ...]

    @property
    def total_hours(self) -> Range:
        """Device hours of all work together."""
        return _sum(self.hours.values())

    @property
    def measure_fraction(self) -> float:
        """Part of the likely time that measures take, in [0, 1]; 0 where nothing is missing."""
        total = self.total_hours.likely
        return self.hours["measure"].likely / total if total else 0.0


def total_cost(
    model: CostModel, jobs: Sequence[tuple[Job, JobCost]], *, num_workers: int = 1
) -> PlanCost:
    """Add up jobs; what is unknown is filled by named assumptions."""
    tally = _Tally(model)
    for job, cost in jobs:
        tally.add(job, cost)
    disk = tally.weights + tally.checkpoints + tally.rows + tally.scores + tally.measures
    stated_disk = disk - tally.guessed_bytes
    return PlanCost(
        device=model.device.name,
        hours={kind: seconds.times(1 / 3600) for kind, seconds in tally.by_kind().items()},
        hours_by_method={
            method: {kind: seconds.times(1 / 3600) for kind, seconds in kinds.items()}
            for method, kinds in tally.seconds.items()
        },
        unshared_train_hours=tally.unshared.times(1 / 3600),
        unscored_hours=tally.unscored.times(1 / 3600),
        trained_tokens=tally.trained_tokens,
        scored_tokens=tally.scored_tokens,
        decoded_tokens=tally.decoded_tokens,
        judge_requests=tally.judge_requests,
        judge_prompt_tokens=tally.judge_prompt_tokens,
        judge_answer_tokens=tally.judge_requests * JUDGEMENT_TOKENS,
        weights_bytes=tally.weights,
        stated_weights_bytes=tally.weights - tally.guessed_weights,
        disk_bytes=disk,
        measures_bytes=tally.measures,
        peak_disk_bytes=disk + num_workers * 2 * tally.largest_checkpoint,
        stated_peak_disk_bytes=stated_disk + num_workers * 2 * tally.largest_stated_checkpoint,
        guessed_sizes=tuple(tally.guessed),
        memory=tuple(_memory_need(model, m, method) for m, method in tally.runs.values()),
        assumptions=tuple(all_assumptions(model)),
    )


def check_disk(cost: PlanCost, free_bytes: int) -> str | None:
    """Return why a plan cannot fit on a disk, or None where it does.

    What rests on a guessed size refuses nothing: the plan's assumptions name it.
    """
    if cost.stated_peak_disk_bytes <= free_bytes:
        return None
    beside = ""
    if cost.guessed_sizes:
        beside = f", beside what {', '.join(cost.guessed_sizes)} of unknown size will need"
    return (
        f"the plan needs {_gigabytes(cost.stated_peak_disk_bytes)} on the disk "
        f"({_gigabytes(cost.stated_weights_bytes)} of them weights){beside}, and "
        f"{_gigabytes(free_bytes)} are free; expected room for all of it. Keep fewer epochs, use "
        f"LoRA, or name a larger disk with --store."
    )


def judge_usd(cost: PlanCost, usd_per_million_input: float, usd_per_million_output: float) -> float:
    """Return what judges will cost at given prices, without requests that have to be repeated."""
    read = cost.judge_prompt_tokens * usd_per_million_input
    return (read + cost.judge_answer_tokens * usd_per_million_output) / 1e6


class _Tally:
    def __init__(self, model: CostModel) -> None:
        self.model = model
        self.seconds: dict[str, dict[str, Range]] = defaultdict(
            lambda: defaultdict(lambda: NOTHING)
        )
        self.runs: dict[tuple[str, str], tuple[ModelSpec, MethodSpec]] = {}
        self.unshared = NOTHING
        self.unscored = NOTHING
        self.trained_tokens = self.scored_tokens = self.decoded_tokens = 0.0
        self.judge_requests, self.judge_prompt_tokens = 0, 0.0
        self.weights = self.checkpoints = self.rows = self.scores = self.largest_checkpoint = 0
        self.measures = 0
        self.decomposed: set[str] = set()
        self.guessed_weights = self.guessed_bytes = self.largest_stated_checkpoint = 0
        self.guessed: dict[str, None] = {}
        study = model.study
        self._questions = {
            b.spec.fingerprint: questions_of(b) for b in study.benchmarks if b.spec is not None
        }
        self._silent = [b for b in study.benchmarks if b.spec is None]

    def add(self, job: Job, cost: JobCost) -> None:
        method = BASE
        if isinstance(job, TrainJob):
            method = job.trajectory.method.name
            self._add_training(job)
        elif isinstance(job, EvaluateJob):
            if job.cell.trajectory is not None:
                method = job.cell.trajectory.method.name
            self._add_scores(job.cell.model, job.benchmarks, 1)
            self._add_measures(job.cell, job.measures)
        elif isinstance(job, GradeJob):
            self._add_judgements(job.benchmarks)
        elif isinstance(job, PrepareJob):
            tokens = job.num_samples * self.model.sample_tokens(job.dataset)
            self.rows += round(4 * tokens + 20 * job.num_samples)
        else:
            self.measures += self.model.measure_sizes.job(job)
        kinds = self.seconds[method]
        for kind, seconds in (
            ("prepare", cost.prepare),
            ("measure", cost.measure),
            ("train", cost.train),
            ("evaluate", cost.evaluate),
        ):
            kinds[kind] = kinds[kind].plus(seconds)

    def by_kind(self) -> dict[str, Range]:
        kinds = ("prepare", "measure", "train", "evaluate")
        return {k: _sum(method[k] for method in self.seconds.values()) for k in kinds}

    def _add_training(self, job: TrainJob) -> None:
        trajectory = job.trajectory
        spec, method = trajectory.model, trajectory.method
        self.runs.setdefault((spec.name, method.name), (spec, method))
        self.trained_tokens += job.keep_epochs[-1] * self.model.data_tokens(trajectory.data)
        for epoch in job.keep_epochs:
            self.unshared = self.unshared.plus(self.model.training(trajectory, epoch, 1))
        weights = len(job.keep_epochs) * self.model.cell_bytes(spec, method)
        checkpoint = _CHECKPOINT_BYTES * self.model.trained_weights(spec, method)
        kept = checkpoint if job.keep_checkpoint else 0
        self.weights += weights
        self.checkpoints += kept
        self.largest_checkpoint = max(self.largest_checkpoint, checkpoint)
        if self.model.is_guessed(spec):
            self.guessed[spec.name] = None
            self.guessed_weights += weights
            self.guessed_bytes += weights + kept
        else:
            self.largest_stated_checkpoint = max(self.largest_stated_checkpoint, checkpoint)
        self._add_scores(spec, job.benchmarks, len(job.keep_epochs))
        for cell in job.cells:
            self._add_measures(cell, job.measures_of(cell))

    def _add_measures(self, cell: CellSpec, measures: Sequence[CellMeasure]) -> None:
        sizes = self.model.measure_sizes
        num_bytes = sizes.cell(cell, measures)
        is_decomposed = any(isinstance(measure, SpectrumMeasure) for measure in measures)
        if is_decomposed and cell.model.name not in self.decomposed:
            self.decomposed.add(cell.model.name)
            num_bytes += sizes.vectors(cell.model)
        self.measures += num_bytes
        if self.model.is_guessed(cell.model):
            self.guessed_bytes += num_bytes

    def _add_scores(
        self, spec: ModelSpec, benchmarks: Sequence[BenchmarkSpec], num_cells: int
    ) -> None:
        for benchmark in benchmarks:
            asked = self._questions[benchmark.fingerprint]
            self.scored_tokens += num_cells * read_tokens(asked)
            if decodes(asked):
                num_texts = num_cells * asked.num_items * asked.num_turns
                self.decoded_tokens += num_texts * asked.max_new_tokens
            self.scores += num_cells * asked.num_items * _ITEM_BYTES
        for silent in self._silent:
            seconds = self.model.answers(spec, silent).times(num_cells)
            self.unscored = self.unscored.plus(seconds)

    def _add_judgements(self, benchmarks: Sequence[BenchmarkSpec]) -> None:
        for benchmark in benchmarks:
            asked = self._questions[benchmark.fingerprint]
            num_requests = asked.num_items * asked.num_judgements
            self.judge_requests += num_requests
            self.judge_prompt_tokens += num_requests * judge_prompt_tokens(asked)


def _memory_need(model: CostModel, spec: ModelSpec, method: MethodSpec) -> MemoryNeed:
    """Count weights and optimizer state, and one longest example's activations and logits.

    Full: 16 bytes per weight (weight, gradient, two moments). LoRA: 6 per frozen weight (float32,
    and a bfloat16 copy for the products) and 16 per adapter weight. Activations: 34 bytes per
    token, layer and hidden unit (Korthikanti et al. 2022, eq. 1, without attention scores).
    """
    card, trained = model.card(spec), model.trained_weights(spec, method)
    frozen = 0 if method.lora is None else 6 * card.parameters
    state = 16 * trained + frozen
    per_token = 34 * card.layers * card.hidden_size + 8 * card.vocab_size
    num_bytes = state + per_token * model.study.max_tokens
    return MemoryNeed(
        model=spec.name,
        method=method.name,
        num_bytes=num_bytes,
        fits=num_bytes <= model.device.memory_bytes,
        tokens_per_pass=max(0, int((model.device.memory_bytes - state) // per_token)),
    )


def _sum(ranges: Iterable[Range]) -> Range:
    total = NOTHING
    for item in ranges:
        total = total.plus(item)
    return total


def _gigabytes(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:,.1f} GB"
