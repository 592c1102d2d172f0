"""Say exactly what a measure is: which texts it reads, in which variant, under which version.

A cell's measures are wishes like its training: their fingerprints name the results in the store.
What two variants share is measured once, because raw sums are stored and variants are formed when
tables are read. Versions are raised when a measure's numbers change.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

from pydantic import Field

from sft_atlas.identity import canonical_json, fingerprint_text, unhashed
from sft_atlas.study.source import Source
from sft_atlas.study.spec import BenchmarkItems, DatasetSpec, ModelSpec


@dataclass(frozen=True, kw_only=True)
class QuestionSet:
    """The first questions of each benchmark in its frozen order, each with its right answer."""

    kind: Literal["questions"] = "questions"
    benchmarks: tuple[BenchmarkItems, ...]
    per_benchmark: int
    template: str
    """What a question is wrapped in, as where it is scored."""
    order_seed: int = 0
    name: str = unhashed("questions")

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint_text(canonical_json(self))


@dataclass(frozen=True, kw_only=True)
class TextFile:
    """Free texts: the first rows of a file in a seeded order."""

    kind: Literal["file"] = "file"
    source: Source
    field: str = "text"
    """Column that holds the text."""
    limit: int | None = None
    """None reads all."""
    max_bytes: int = 1024
    """Longer texts are cut before the first character that would pass it (UTF-8)."""
    order_seed: int = 0
    name: str = unhashed()

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint_text(canonical_json(self))


TextSet = Annotated[QuestionSet | TextFile, Field(discriminator="kind")]


@dataclass(frozen=True, kw_only=True)
class DriftMeasure:
    """How far each weight moved: norms, and the share that did not move at all."""

    kind: Literal["drift"] = "drift"
    version: int = 2

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint_text(canonical_json(self))


@dataclass(frozen=True, kw_only=True)
class SpectrumMeasure:
    """In which directions each matrix moved: its singular values, and intruder dimensions."""

    kind: Literal["spectrum"] = "spectrum"
    num_vectors: int = 10
    """Leading singular vectors of the tuned matrix that are compared with the base's."""
    version: int = 1

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint_text(canonical_json(self))


@dataclass(frozen=True, kw_only=True)
class LikelihoodMeasure:
    """How likely each text of a set is: one row of the map of all models."""

    kind: Literal["likelihood"] = "likelihood"
    texts: TextSet
    max_tokens: int
    version: int = 1

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint_text(canonical_json(self))


@dataclass(frozen=True, kw_only=True)
class ForgettingMeasure:
    """How far next-token distributions on neutral text moved from the base model's."""

    kind: Literal["forgetting"] = "forgetting"
    texts: TextSet
    max_tokens: int
    num_kept: int = 1024
    """Most likely tokens of the base model that are told apart; all others count as one."""
    version: int = 1

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint_text(canonical_json(self))


@dataclass(frozen=True, kw_only=True)
class RepresentationMeasure:
    """What the hidden states of fixed texts look like, layer by layer."""

    kind: Literal["representation"] = "representation"
    texts: TextSet
    max_tokens: int
    seed: int = 0
    version: int = 1

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint_text(canonical_json(self))


CellMeasure = Annotated[
    DriftMeasure | SpectrumMeasure | LikelihoodMeasure | ForgettingMeasure | RepresentationMeasure,
    Field(discriminator="kind"),
]
"""What can be measured of one cell; likelihood, forgetting and representation also of a base."""


def applies_to_base(measure: CellMeasure) -> bool:
    """Tell whether a base model has this measure too: what compares weights has nothing to say."""
    return not isinstance(measure, (DriftMeasure, SpectrumMeasure))


def base_measures(measures: Iterable[CellMeasure]) -> tuple[CellMeasure, ...]:
    """Return the measures that a base model has too."""
    return tuple(measure for measure in measures if applies_to_base(measure))


@dataclass(frozen=True, kw_only=True)
class Embedder:
    """What turns a text into a vector."""

    kind: Literal["words", "hidden", "sentence-transformers"]
    """words: hashed words and character n-grams, no model; hidden: the base model's own states."""
    source: Source | None = None
    """Files of a sentence-transformers model."""
    name: str = unhashed("words")


@dataclass(frozen=True, kw_only=True)
class SimilaritySpec:
    """How close a dataset's training rows are to a benchmark's items, as one embedder sees it."""

    dataset: DatasetSpec
    num_samples: int
    subset_seed: int
    benchmark: BenchmarkItems
    embedder: Embedder
    model: ModelSpec | None = None
    """Whose hidden states; None for embedders that need no base model."""
    seed: int = 0
    """Of the permutation test."""
    version: int = 1

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint_text(canonical_json(self))


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What a study measures beside scores."""

    dataset: bool = True
    """Likelihood of each training set under each base model that is trained on it."""
    dataset_samples: int | None = None
    """Samples for `dataset`; None: as many as the study trains on, at most 1,000."""
    description: bool = True
    """Lengths, duplicates, diversity and languages of each training set."""
    overlap: bool = True
    """Training rows that hold items of the benchmarks."""
    embedders: tuple[Embedder, ...] = ()
    """Embedders by which training sets are compared with benchmarks."""
    every: tuple[CellMeasure, ...] = ()
    """Measured on every kept epoch."""
    last: tuple[CellMeasure, ...] = ()
    """Measured on the last kept epoch of each trajectory alone."""
    updates: bool = False
    """Cosine between the weight changes of the cells of a base model, last kept epochs."""

    @property
    def of_base(self) -> tuple[CellMeasure, ...]:
        """What is measured of a base model itself."""
        return base_measures((*self.every, *self.last))

    def of_cell(self, *, is_last: bool) -> tuple[CellMeasure, ...]:
        """What is measured of a cell."""
        return (*self.every, *self.last) if is_last else self.every
