"""Say exactly what a cell is: frozen wishes whose fingerprints name everything in the store.

A Spec holds what decides the numbers and nothing else. Names, paths and devices are labels: they
travel along, and no fingerprint sees them. Text forms are cached on each object, because a grid
shares its models, data and methods between very many trajectories.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from sft_atlas.identity import added, canonical_json, fingerprint_text, unhashed
from sft_atlas.study.method import LoraSpec as LoraSpec
from sft_atlas.study.method import MethodSpec as MethodSpec
from sft_atlas.study.method import ScheduleSpec as ScheduleSpec
from sft_atlas.study.source import RowForm as RowForm
from sft_atlas.study.source import Source as Source

TRAIN_VERSION = 2
"""Raised when the training loop's numbers change; old cells then keep their old names."""

SCORER_VERSION = 2
"""Raised when the scorer's numbers change."""

OVERLAP_VERSION = 1
"""Raised when the rules change by which a training row is found to hold an item."""

Precision = Literal["float32", "bfloat16"]
BadRows = Literal["fail", "quarantine"]
Engine = Literal["torch", "vllm"]
"""What runs a model while it is scored."""


NO_SOURCE = Source()


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A base model: whose weights and tokenizer a trajectory starts from."""

    source: Source
    name: str = unhashed()
    family: str = unhashed("")
    languages: tuple[str, ...] = unhashed(())

    @cached_property
    def canonical(self) -> str:
        return canonical_json(self)

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint_text(self.canonical)


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """One instruction dataset and how its rows become prompt and answer."""

    source: Source
    shape: str = "auto"
    """One of `data.shapes.SHAPES`, or `auto`."""
    fields: tuple[tuple[str, str], ...] = ()
    """(role, column) pairs for rows of no known shape; role is `prompt` or `answer`."""
    first_turn_only: bool = False
    where: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Keep only rows whose column holds one of these values."""
    drop_answers: tuple[str, ...] = ()
    """Drop rows whose answer is exactly one of these."""
    on_bad_rows: BadRows = "fail"
    num_quarantined: int | None = None
    """Malformed rows left out under `quarantine`; counted when the study is resolved."""
    drop_overlap: tuple["BenchmarkItems", ...] = added(())
    """Leave out rows that overlap with the items of these benchmarks."""
    name: str = unhashed()
    group: str = unhashed("")


@dataclass(frozen=True, kw_only=True)
class DataPart:
    """How many samples of one dataset go into a cell's data."""

    dataset: DatasetSpec
    num_samples: int


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """The training data of a trajectory: seeded prefixes of one or more datasets."""

    parts: tuple[DataPart, ...]
    subset_seed: int = 0
    """Seed of the row order; a subset is a prefix of it, the same for all models."""
    name: str = unhashed()
    """`alpaca`, `all`, `all-but-alpaca`, or the name of a mixture."""
    kind: str = unhashed("each")
    """`each`, `all`, `leave-one-out` or `mixture`."""
    samples: int = unhashed(0)
    """The `samples` value of the block: per dataset, or the total of a mixture."""

    @cached_property
    def canonical(self) -> str:
        return canonical_json(self)

    @cached_property
    def num_samples(self) -> int:
        return sum(part.num_samples for part in self.parts)


@dataclass(frozen=True, kw_only=True)
class TrajectorySpec:
    """One training run. Its kept epochs are cells; it is the unit of statistics."""

    model: ModelSpec
    data: DataSpec
    method: MethodSpec
    schedule: ScheduleSpec
    horizon_epochs: int | None
    """Epochs the schedule is laid out for; None where the schedule does not know its end."""
    template: str
    max_tokens: int
    """Longest example in tokens, prompt and answer together; longer ones are cut at the end."""
    seed: int
    """Seed of sample order and adapter initialisation."""
    precision: Precision
    """Type that weights are stored in and a GPU computes in."""
    master_precision: Precision = added("float32")
    """Type that weights and the optimizer's state are held in while they are trained; bfloat16 only
    where `precision` is."""
    version: int = TRAIN_VERSION

    @cached_property
    def fingerprint(self) -> str:
        # Spelled out in sorted key order so that the cached texts of the shared parts are reused;
        # a test proves it equal to canonical_json(self).
        horizon = "null" if self.horizon_epochs is None else str(self.horizon_epochs)
        masters = (
            ""
            if self.master_precision == "float32"
            else f'"master_precision":{canonical_json(self.master_precision)},'
        )
        text = (
            f'{{"data":{self.data.canonical},"horizon_epochs":{horizon},{masters}'
            f'"max_tokens":{self.max_tokens},"method":{self.method.canonical},'
            f'"model":{self.model.canonical},"precision":{canonical_json(self.precision)},'
            f'"schedule":{self.schedule.canonical},"seed":{self.seed},'
            f'"template":{canonical_json(self.template)},"version":{self.version}}}'
        )
        return fingerprint_text(text)


@dataclass(frozen=True, kw_only=True)
class CellSpec:
    """One model of the study: a trajectory at an epoch, or a base model at epoch 0."""

    model: ModelSpec
    trajectory: TrajectorySpec | None
    """None for the base model itself."""
    epoch: int

    @cached_property
    def fingerprint(self) -> str:
        if self.trajectory is None:
            return fingerprint_text(f'{{"epoch":0,"model":{self.model.canonical}}}')
        return fingerprint_text(
            f'{{"epoch":{self.epoch},"trajectory":"{self.trajectory.fingerprint}"}}'
        )

    @property
    def description(self) -> str:
        """The cell in words: model, data, method, samples, epoch, seed."""
        if self.trajectory is None:
            return f"{self.model.name} base"
        run = self.trajectory
        return (
            f"{run.model.name} {run.data.name} {run.method.name} {run.schedule.kind} "
            f"{run.data.samples} samples epoch {self.epoch} seed {run.seed}"
        )


def base_cell(model: ModelSpec) -> CellSpec:
    """Return a base model as a cell."""
    return CellSpec(model=model, trajectory=None, epoch=0)


@dataclass(frozen=True, kw_only=True)
class BenchmarkDefinition:
    """How one item becomes a question and how its answer is judged; read from a benchmark file."""

    kind: Literal["choice", "generate", "execute", "judge"]
    """choice: compare the log-likelihoods of given options. All others decode greedily; then
    generate compares the text, execute runs it as a program, and judge asks another model."""
    prompt: str
    """Text with `{field}` or `{field.index}` places."""
    follow_ups: tuple[str, ...] = ()
    """judge: later turns of the conversation, with places."""
    wrap: bool = True
    """Put the prompt into the study's template."""
    answer: str | None = None
    """generate: text with places, or the one place whose field lists all accepted answers."""
    wrong: str | None = None
    """generate, bleu_accuracy: the place whose field lists false answers."""
    choices: str | tuple[str, ...] | None = None
    """choice: the one place whose field lists the options, or each option's text with places."""
    label: str | None = None
    """choice: the field with the index of the right option, counted from 0."""
    program: str | None = None
    """execute: the program, a text with places and `{completion}`, what the model wrote."""
    tests: str | None = None
    """execute: statements that raise if the program is wrong, a text with places."""
    metric: str
    """One of `study.benchmark.METRICS` of the kind."""
    pattern: str | None = None
    """generate: regular expression; the last match's first group is the answer."""
    max_new_tokens: int = 64
    stop: tuple[str, ...] = ()
    """Decoding ends before the first of these texts, or at the end-of-sequence token."""
    id: str | None = None
    """The field that names an item; None: `id` where all items have one, else their position."""
    group: str | None = None
    """The field that says which subject or category an item belongs to."""
    cluster: str | None = None
    """The field whose equal values mark items that are not independent, such as a passage."""
    average: Literal["items", "groups"] = "items"
    """`groups` is the unweighted mean of the groups' means."""
    version: int = 1


@dataclass(frozen=True, kw_only=True)
class BenchmarkItems:
    """The questions of a benchmark, however they are asked."""

    definition: BenchmarkDefinition
    items: Source
    version: int = OVERLAP_VERSION
    name: str = unhashed("")

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint_text(canonical_json(self))


@dataclass(frozen=True, kw_only=True)
class LmEvalDefinition:
    """A task of lm-evaluation-harness: its prompts, filters and metric."""

    kind: Literal["lm-eval"] = "lm-eval"
    task: str
    package: str
    """Version of the package that defines the task, such as `0.4.13`."""
    file: Source | None = None
    """A task file of one's own; None for a task of the package."""
    data: tuple[tuple[str, Source], ...] = ()
    """(split, file) pairs that replace the task's own data."""
    functions: tuple[str, ...] = ()
    """Python functions that a task file of one's own may call."""
    metric: str = ""
    """Which of the task's metrics is the score; empty: the first one."""
    max_new_tokens: int = 0
    """Limit of decoding where the task has none; 0 where it compares likelihoods."""
    group: str | None = None
    cluster: str | None = None
    average: Literal["items", "groups"] = "items"
    """`groups`: a group of tasks is averaged unweighted over its tasks."""


@dataclass(frozen=True, kw_only=True)
class JudgeSpec:
    """Who judges open answers, and by which prompts; where it is reached is no part of it."""

    model: str
    """The id that the endpoint knows the judge by."""
    prompts: Source
    """File with the judge's prompts."""
    references: Source | None = None
    """Reference answers (rating), or the baseline's answers (pairwise)."""
    difficulty: Source | None = added(None)
    """pairwise: how hard each instruction is, for the win rate at equal length."""
    style: Literal["rating", "pairwise"]
    """rating: 1 to 10, each turn; pairwise: which of two answers is better, in both orders."""
    temperature: float = 0.0
    max_new_tokens: int = 2048


@dataclass(frozen=True, kw_only=True)
class BenchmarkSpec:
    """One benchmark as a study scores it: definition, items, shots, limit and template."""

    definition: BenchmarkDefinition | LmEvalDefinition
    items: Source = NO_SOURCE
    """Empty for a task of lm-eval, whose definition names its data."""
    few_shot: Source | None = None
    """Fixed examples with the items' fields; the first `shots` of them are shown."""
    shots: int = 0
    limit: int | None = None
    """Use only the first items of the frozen order; None uses all."""
    order_seed: int = 0
    """Seed of the frozen order, which is stratified by group."""
    template: str
    max_tokens: int
    """Longest prompt and answer in tokens; a longer prompt is cut at its start and counted."""
    precision: Precision = "float32"
    """Type that a GPU multiplies matrices in while it scores, for base models and tuned ones alike;
    a CPU uses float32."""
    engine: Engine = "torch"
    """Results of different engines are never one another's; `evaluate_cell` is handed `vllm`."""
    judge: JudgeSpec | None = None
    scorer_version: int = SCORER_VERSION
    name: str = unhashed()
    """Unique in a study; carries the shots where one benchmark is asked in two ways."""
    skill: str = unhashed("")
    language: str = unhashed("")
    family: str = unhashed("")
    """Benchmarks that are one test in several languages share a family."""

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint_text(canonical_json(self))

    @cached_property
    def unlimited_fingerprint(self) -> str:
        """Name of the benchmark whatever its limit is: what one limit scored, another can use."""
        return replace(self, limit=None).fingerprint

    @property
    def is_graded(self) -> bool:
        """Tell whether its answers are stored first, and scored later without the model."""
        return self.definition.kind in ("execute", "judge")


def distinct_items(benchmarks: Iterable[BenchmarkSpec]) -> list[BenchmarkItems]:
    """Return the questions of all benchmarks, once where two ask the same in different ways."""
    found: dict[str, BenchmarkItems] = {}
    for benchmark in benchmarks:
        if isinstance(benchmark.definition, BenchmarkDefinition):
            items = BenchmarkItems(
                definition=benchmark.definition, items=benchmark.items, name=benchmark.name
            )
            found.setdefault(items.fingerprint, items)
    return list(found.values())
