"""Describe the study file: which keys it has, what they mean, and which values are possible.

The models here mirror the file one to one; `loader` turns them into a `Study`. Their docstrings and
descriptions are the reference in docs/study-file.md and the JSON Schema that editors read, so every
fact about the file stands here and nowhere else.
"""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from sft_atlas.study.benchmark_entry import BenchmarkEntry, JudgeEntry, Name, Section, Seed
from sft_atlas.study.method_entry import MethodEntry as MethodEntry
from sft_atlas.study.method_entry import ScheduleEntry as ScheduleEntry

Epochs = Annotated[int, Field(ge=1, le=10_000)]
Samples = Annotated[int, Field(ge=1, le=1_000_000_000)]


def _kind_of(value: Any) -> str:
    if isinstance(value, dict):
        return "mapping"
    return "list" if isinstance(value, (list, tuple)) else "plain"


class SourceEntry(Section):
    """Where files come from: `path`, or `hub`; neither means the card of that name."""

    path: str | None = None
    """Local file or folder, relative to the study file."""
    hub: str | None = None
    """Repository id on the Hugging Face hub, `owner/name`."""
    revision: str | None = None
    """Commit, tag or branch of the repository; pin a commit to make a study repeatable."""

    @model_validator(mode="after")
    def _one_source(self) -> "SourceEntry":
        if self.path is not None and self.hub is not None:
            raise ValueError("path and hub are both given; keep one of them")
        if self.revision is not None and self.hub is None:
            raise ValueError("revision belongs to a hub repository; add hub, or remove revision")
        return self


class ModelEntry(SourceEntry):
    """A base model that is not, or not exactly, a card."""

    name: Name
    """Name in tables and in `blocks`; a card's name where neither path nor hub is given."""
    family: str | None = None
    """Architecture family, to group by in the report."""
    languages: tuple[str, ...] | None = None
    """Languages of its pre-training, to group by in the report."""
    parameters: int | None = Field(default=None, gt=0, le=10**14)
    """Number of weights, for the cost estimate where no card tells it."""


class DatasetEntry(SourceEntry):
    """An instruction dataset that is not, or not exactly, a card."""

    name: Name
    """Name in tables and in `blocks`; a card's name where neither path nor hub is given."""
    config: str | None = None
    """Configuration of the hub dataset."""
    split: str | None = None
    """Split of the hub dataset; `train` where it is left out."""
    file: str | None = None
    """One data file inside the hub repository."""
    shape: str | None = None
    """How rows are laid out, such as `messages` or `conversations`; recognised where left out."""
    fields: dict[Literal["prompt", "answer"], str] | None = None
    """Column of `prompt` and of `answer`, for rows of no known shape."""
    first_turn_only: bool | None = None
    """Keep only the first question and answer of a conversation."""
    where: dict[str, tuple[str, ...]] | None = None
    """Keep only rows whose column holds one of these values."""
    drop_answers: tuple[str, ...] | None = None
    """Drop rows whose answer is exactly one of these."""
    on_bad_rows: Literal["fail", "quarantine"] = "fail"
    """`fail` stops at a malformed row; `quarantine` leaves it out and counts it."""
    drop_overlap: tuple[Name, ...] = ()
    """Leave out training rows that hold an item of these benchmarks of the study."""
    group: str | None = None
    """Kind of data, to group by in the report."""
    rows: int | None = Field(default=None, gt=0, le=10**13)
    """Number of rows, for the plan where no card tells it."""
    tokens_per_sample: float | None = Field(default=None, gt=0, le=10**7)
    """Mean tokens of an example, for the cost estimate where no card tells it."""

    @model_validator(mode="after")
    def _maps_both_roles(self) -> "DatasetEntry":
        if self.fields is not None and len(self.fields) != 2:
            raise ValueError("fields maps only one role; give a column for prompt and for answer")
        return self


ScheduleItem = Annotated[
    Annotated[Literal["constant", "cosine"], Tag("plain")]
    | Annotated[ScheduleEntry, Tag("mapping")],
    Discriminator(_kind_of),
]
ScheduleAxis = Annotated[
    Annotated[Literal["constant", "cosine"], Tag("plain")]
    | Annotated[ScheduleEntry, Tag("mapping")]
    | Annotated[tuple[ScheduleItem, ...], Tag("list"), Field(min_length=1)],
    Discriminator(_kind_of),
]
DataAxis = Annotated[
    Annotated[Name, Tag("plain")] | Annotated[tuple[Name, ...], Tag("list"), Field(min_length=1)],
    Discriminator(_kind_of),
]
SamplesAxis = Annotated[
    Annotated[Samples, Tag("plain")]
    | Annotated[tuple[Samples, ...], Tag("list"), Field(min_length=1)],
    Discriminator(_kind_of),
]
EpochsAxis = Annotated[
    Annotated[Epochs, Tag("plain")]
    | Annotated[tuple[Epochs, ...], Tag("list"), Field(min_length=1)],
    Discriminator(_kind_of),
]
Keep = Annotated[
    Annotated[Literal["last", "every"], Tag("plain")]
    | Annotated[tuple[Epochs, ...], Tag("list"), Field(min_length=1)],
    Discriminator(_kind_of),
]


class ExcludeEntry(Section):
    """Cells that a block leaves out: those that match every key given here."""

    models: tuple[Name, ...] | None = None
    """Base models."""
    data: tuple[Name, ...] | None = None
    """Training data: a dataset, `all`, `all-but-NAME`, or a mixture."""
    samples: tuple[Samples, ...] | None = None
    """Values of the block's `samples`."""
    methods: tuple[Name, ...] | None = None
    """Methods."""
    schedules: tuple[Literal["constant", "cosine"], ...] | None = None
    """Kinds of schedule."""
    seeds: tuple[Seed, ...] | None = None
    """Seeds."""

    @model_validator(mode="after")
    def _says_something(self) -> "ExcludeEntry":
        if not self.model_fields_set:
            raise ValueError("an empty exclusion would leave out every cell; give an axis")
        return self


class BlockEntry(Section):
    """One factorial product: every combination of these axes is trained."""

    data: DataAxis
    """`each` dataset alone, `all` merged, `leave-one-out`, a mixture's name, or a list of these."""
    samples: SamplesAxis
    """Samples per dataset, of a mixture in total; one number or a list."""
    epochs: EpochsAxis
    """Passes over the data; a list asks for runs of each length."""
    models: tuple[Name, ...] | None = Field(default=None, min_length=1)
    """Base models; left out, all of the study."""
    datasets: tuple[Name, ...] | None = Field(default=None, min_length=1)
    """Datasets that `each`, `all` and `leave-one-out` range over; left out, all of the study."""
    methods: tuple[Name, ...] | None = Field(default=None, min_length=1)
    """Methods; left out, all of the study."""
    schedule: ScheduleAxis = "cosine"
    """`constant`, `cosine`, a mapping with warm-up and cooldown, or a list of these."""
    keep: Keep = "last"
    """Epochs that become cells: `last`, `every`, or a list."""
    seeds: tuple[Seed, ...] | None = Field(default=None, min_length=1)
    """Seeds; left out, those of the study."""
    exclude: tuple[ExcludeEntry, ...] = ()
    """Combinations to leave out."""


class TextsEntry(SourceEntry):
    """Texts that models read: a JSONL, Parquet, CSV or text file, or so many of a card's."""

    name: Name
    """Name in tables; a card's name where neither path nor hub is given."""
    field: str | None = None
    """Column of the file that holds the text; `text` where left out."""
    limit: int | None = Field(default=500, ge=2, le=10**6)
    """Use only so many texts, in a seeded order; null uses all."""
    max_bytes: int = Field(default=1024, ge=16, le=10**6)
    """Longer texts are cut here, at the start of a character."""


class EmbedderEntry(SourceEntry):
    """A sentence-transformers model that turns texts into vectors."""

    name: Name
    """Name in tables."""


TextsItem = Annotated[
    Annotated[Name, Tag("plain")] | Annotated[TextsEntry, Tag("mapping")], Discriminator(_kind_of)
]
EmbedderItem = Annotated[
    Annotated[Literal["words", "hidden"], Tag("plain")] | Annotated[EmbedderEntry, Tag("mapping")],
    Discriminator(_kind_of),
]
Kept = Literal[True, False, "every", "last"]
"""Of which kept epochs: all, the last of each training run, or (false) none; true is all."""


class MeasuresEntry(Section):
    """What is measured beside scores.

    What a cell is measured by is `every` (kept epoch), `last` (kept epoch of a training run) or
    `false`; `true` is `every`.
    """

    dataset: bool = True
    """Likelihood of each training set under each base model that is trained on it."""
    dataset_samples: int | None = Field(default=None, gt=0, le=10**9)
    """Samples for `dataset`; left out, as many as are trained on, at most 1,000."""
    description: bool = True
    """Lengths, duplicates, diversity and languages of each training set."""
    overlap: bool = True
    """Training rows that hold items of the benchmarks."""
    similarity: tuple[EmbedderItem, ...] = ("words",)
    """Embedders that compare training sets with benchmarks: `words`, `hidden`, or mappings."""
    drift: Kept = True
    """Weight change by matrix and layer: norms, and the share of weights that did not move."""
    spectrum: Kept = False
    """Singular values of weight changes and intruder dimensions; dear for large models."""
    updates: bool = False
    """Cosine between the weight changes of a base model's cells, of their last kept epochs."""
    likelihoods: Kept = True
    """Log-likelihood of benchmark questions: what the map of all models is made of."""
    likelihood_items: int = Field(default=150, ge=1, le=10**6)
    """Questions of each benchmark for `likelihoods`."""
    forgetting: Kept = True
    """How far the model moved from its base on neutral text."""
    representations: Kept = "last"
    """Intrinsic dimension of hidden states by layer, and how like the base's they are."""
    texts: TextsItem | None = None
    """Neutral texts for `forgetting` and `representations`: a card's name or a mapping; left out,
    those that suit the base models."""

    @model_validator(mode="after")
    def _compares_once(self) -> "MeasuresEntry":
        names = [item if isinstance(item, str) else item.name for item in self.similarity]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"similarity lists {twice[0]!r} twice; list it once")
        return self


class PublishedEntry(Section):
    """A figure that others published, to stand beside the plan's estimate."""

    kind: Literal["train", "evaluate"]
    """Which of the plan's figures it stands beside."""
    device_hours: float = Field(gt=0, le=10**12)
    """Hours on one device."""
    source: str = Field(min_length=1)
    """Who published it, and what it covers."""


ModelItem = Annotated[
    Annotated[Name, Tag("plain")] | Annotated[ModelEntry, Tag("mapping")], Discriminator(_kind_of)
]
DatasetItem = Annotated[
    Annotated[Name, Tag("plain")] | Annotated[DatasetEntry, Tag("mapping")], Discriminator(_kind_of)
]
BenchmarkItem = Annotated[
    Annotated[Name, Tag("plain")] | Annotated[BenchmarkEntry, Tag("mapping")],
    Discriminator(_kind_of),
]


class StudyFile(Section):
    """A study: what to train on what, how, and what to ask afterwards."""

    study: Name
    """Name of the study."""
    about: str = ""
    """What is asked, in a sentence or two; stands at the head of the report."""
    template: Literal["question-answer", "chat"] = "question-answer"
    """`question-answer`: `###Question: ...` and `###Answer: ...`; `chat`: the tokenizer's own."""
    max_tokens: int = Field(default=2048, ge=8, le=1_000_000)
    """Longest example in tokens, prompt and answer together."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Type that weights are stored in and a GPU computes in."""
    master_precision: Literal["float32", "bfloat16"] = "float32"
    """Type that weights and the optimizer's state are held in while they are trained. `bfloat16`,
    only together with `precision: bfloat16`, takes 8 bytes per trained weight instead of 16, and
    loses every update below about 1/256 of its weight: low learning rates then train nothing."""
    subset_seed: Seed = 0
    """Seed of the row order: smaller subsets of a dataset are prefixes of larger ones."""
    seeds: tuple[Seed, ...] = Field(default=(0,), min_length=1)
    """Seeds of sample order and adapter initialisation; one cell for each."""
    models: tuple[ModelItem, ...] = Field(min_length=1)
    """Base models: names of cards, or mappings."""
    datasets: tuple[DatasetItem, ...] = Field(min_length=1)
    """Instruction datasets: names of cards, or mappings."""
    benchmarks: tuple[BenchmarkItem, ...] = ()
    """Benchmarks: names of cards, or mappings."""
    methods: dict[Name, MethodEntry] = Field(min_length=1)
    """Training methods by name."""
    mixtures: dict[Name, dict[Name, Annotated[float, Field(gt=0, le=10**9)]]] = Field(
        default_factory=dict
    )
    """Named mixtures: weights by dataset, in any unit; they are divided by their sum."""
    blocks: dict[Name, BlockEntry] = Field(min_length=1)
    """Factorial products by name; cells that two blocks ask for are trained once."""
    judge: JudgeEntry | None = None
    """Who judges the answers of judged benchmarks."""
    measures: MeasuresEntry = Field(default_factory=MeasuresEntry)
    """What is measured beside scores."""
    keep_checkpoints: bool = False
    """Keep the last checkpoint of every run, so that a later study can train further."""
    published: tuple[PublishedEntry, ...] = ()
    """Figures that others published, to stand beside the plan's estimates."""

    @model_validator(mode="after")
    def _masters_are_no_coarser(self) -> "StudyFile":
        if self.master_precision == "bfloat16" and self.precision != "bfloat16":
            raise ValueError(
                "master_precision is bfloat16, but precision is float32: what is computed in "
                "float32 would be rounded at every step; use precision: bfloat16, or remove "
                "master_precision"
            )
        return self
