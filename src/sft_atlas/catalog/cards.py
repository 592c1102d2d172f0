"""Find the card of a name: what is a model, dataset, benchmark or text set, where is it, and how
large?

Cards are data: YAML files beside this module with the sections `models`, `datasets`, `benchmarks`
and `texts`. A value that no source states is listed under the card's `inferred`. A name stands in
one file only; a look-up parses just the files that mention it, because parsing all of them costs
more than a plan.
"""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from sft_atlas.errors import CatalogError
from sft_atlas.strict_yaml import Lines, did_you_mean, load, validate

FOLDER: Final = Path(__file__).parent
"""Where the card files are; benchmark definitions are in `benchmarks/` below it."""

PACKAGE: Final = FOLDER.parent
"""What the path of an asset is relative to."""

Section = Literal["models", "datasets", "benchmarks", "texts"]

_KINDS: Final[dict[Section, str]] = {
    "models": "model",
    "datasets": "dataset",
    "benchmarks": "benchmark",
    "texts": "text set",
}


class _Card(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    license: str | None = None
    note: str = ""
    inferred: tuple[str, ...] = ()
    """Fields whose value is a guess or follows from other facts; no source states it."""


class CardSource(BaseModel):
    """Where the files are: on the hub, or in this package."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hub: str | None = None
    revision: str | None = None
    config: str | None = None
    split: str | None = None
    file: str | None = None
    asset: str | None = None
    """Path relative to the package."""
    definition: str | None = None
    """Benchmark file, relative to the catalog's folder."""

    @property
    def path(self) -> Path | None:
        """Absolute path of what lies in the package; None for the hub."""
        if self.asset is not None:
            return PACKAGE / self.asset
        return None if self.definition is None else FOLDER / self.definition


class ModelCard(_Card):
    """A base model and the shape that its cost follows from."""

    source: CardSource
    family: str
    languages: tuple[str, ...]
    parameters: int = Field(gt=0)
    """All weights, embeddings included."""
    layers: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    num_heads: int = Field(gt=0)
    num_kv_heads: int = Field(gt=0)
    vocab_size: int = Field(gt=0)
    head_dim: int | None = None
    """None: hidden_size / num_heads."""
    tied_embeddings: bool = False
    """The output head is the embedding matrix, counted once in `parameters`."""
    gated: bool = False
    """The hub asks for an account that accepted the licence."""
    texts: str = "neutral"
    """The text set whose words this model's vocabulary has."""


class DatasetCard(_Card):
    """An instruction dataset; `shape` is one of `data.shapes.SHAPES` or `auto`."""

    source: CardSource
    shape: str = "auto"
    fields: dict[str, str] = Field(default_factory=dict)
    """Column by role, for rows of no known shape; roles are `prompt` and `answer`."""
    group: str
    language: str
    rows: int = Field(gt=0)
    tokens_per_sample: float = Field(gt=0)
    """Mean tokens of prompt, template and answer together."""
    first_turn_only: bool = False
    where: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Keep only rows whose column holds one of these values."""
    drop_answers: tuple[str, ...] = ()


class BenchmarkCard(_Card):
    """A benchmark's size, where its items are, and how this version scores it."""

    source: CardSource | None = None
    """None: planned and costed, but not scored; `note` says why."""
    kind: Literal["choice", "generate", "execute", "judge"]
    """`execute` runs generated code; `judge` asks another model."""
    metric: str
    items: int = Field(gt=0)
    shots: int = 0
    """Solved examples that are shown where a study does not say."""
    prompt_tokens: float = Field(gt=0)
    """Mean tokens of one question, without solved examples."""
    answer_tokens: float = Field(gt=0)
    """Mean tokens of one option (choice), or mean tokens decoded (all others)."""
    choices: int = Field(default=1, gt=0)
    """Passes per item: the number of options, or 1 where each option is one letter."""
    max_new_tokens: int | None = Field(default=None, gt=0)
    """Limit of decoding where no definition states it."""
    skill: str
    language: str
    family: str = ""
    """A name that versions of one test in several languages share."""
    get: str = ""
    """Which published files can be used where the hub cannot be reached."""


class TextsCard(_Card):
    """A set of fixed, neutral texts, on which models are compared with one another."""

    source: CardSource
    field: str = "text"
    """Column that holds the text."""
    languages: tuple[str, ...]
    num_texts: int = Field(gt=1)
    tokens_per_text: float = Field(gt=0)
    """Mean tokens of a text, the prefix token not counted."""


Card = ModelCard | DatasetCard | BenchmarkCard | TextsCard
CardT = TypeVar("CardT", ModelCard, DatasetCard, BenchmarkCard, TextsCard)


def find_model(name: str) -> ModelCard:
    """Return the card of a base model; raises CatalogError for an unknown name."""
    return _find("models", name, ModelCard)


def find_hub_model(hub: str) -> ModelCard | None:
    """Return a card whose weights are a hub repository's, at any revision; None where none is."""
    mention = re.compile(rf"hub: *[\"']?{re.escape(hub)}(?![\w./-])")
    for path in card_files():
        if mention.search(_text(path)):
            for name, entry in _section(path, "models")[0].items():
                if isinstance(entry, dict) and (entry.get("source") or {}).get("hub") == hub:
                    return find_model(name)
    return None


def find_dataset(name: str) -> DatasetCard:
    """Return the card of an instruction dataset; raises CatalogError for an unknown name."""
    return _find("datasets", name, DatasetCard)


def find_benchmark(name: str) -> BenchmarkCard:
    """Return the card of a benchmark; raises CatalogError for an unknown name."""
    return _find("benchmarks", name, BenchmarkCard)


def find_texts(name: str) -> TextsCard:
    """Return the card of a text set; raises CatalogError for an unknown name."""
    return _find("texts", name, TextsCard)


def card_names(section: Section) -> list[str]:
    """Return all names of a section, sorted; parses every file."""
    return sorted({name for path in card_files() for name in _section(path, section)[0]})


def card_files() -> list[Path]:
    """Return the files that hold cards of models, datasets, benchmarks and text sets."""
    return sorted(path for path in FOLDER.glob("*.yaml") if path.name != "devices.yaml")


def iter_cards(path: Path) -> Iterator[Card]:
    """Parse every card of one file; raises StudyError with file:line for a wrong one."""
    types: dict[Section, type[Card]] = {
        "models": ModelCard,
        "datasets": DatasetCard,
        "benchmarks": BenchmarkCard,
        "texts": TextsCard,
    }
    for section, card_type in types.items():
        entries, lines = _section(path, section)
        for name, entry in entries.items():
            yield validate(card_type, _named(name, entry), lines, section, name)


def _find(section: Section, name: str, card_type: type[CardT]) -> CardT:
    mention = re.compile(rf"^  {re.escape(name)}:", re.MULTILINE)
    for path in card_files():
        if mention.search(_text(path)):
            entries, lines = _section(path, section)
            if name in entries:
                return validate(card_type, _named(name, entries[name]), lines, section, name)
    names = did_you_mean(name, card_names(section))
    raise CatalogError(f"{_KINDS[section]} {name!r} has no card; {names}")


def _named(name: str, entry: object) -> object:
    return {"name": name, **entry} if isinstance(entry, dict) else entry


def _section(path: Path, section: Section) -> tuple[dict[str, object], Lines]:
    content, lines = _parsed(path)
    return content.get(section) or {}, lines


@cache
def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@cache
def _parsed(path: Path) -> tuple[dict[str, dict[str, object]], Lines]:
    return load(path)
