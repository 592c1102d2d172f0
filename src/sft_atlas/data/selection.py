"""Say which rows of a dataset a study trains on: usable ones, without a benchmark's items.

A subset is a prefix of the seeded order of the rows that are left, so that dropping rows drops
them for every model and size alike.
"""

from dataclasses import replace
from typing import NamedTuple, final

from sft_atlas.data.items import load_items
from sft_atlas.data.overlap import example_text, rows_without_overlap
from sft_atlas.data.shapes import Example
from sft_atlas.data.sources import LoadedRows, load_examples
from sft_atlas.data.subsets import row_order
from sft_atlas.study.spec import BenchmarkItems, DatasetSpec


@final
class Selection(NamedTuple):
    """The rows that may be trained on, and how many were left out."""

    loaded: LoadedRows
    num_overlapping: int
    """Usable rows that hold an item of the dataset's `drop_overlap` benchmarks."""


def load_selection(dataset: DatasetSpec) -> Selection:
    """Read a dataset's usable rows and drop those that hold an item of `drop_overlap`.

    Raises:
        DataError: as `load_examples`, or if a benchmark's items cannot be read.
    """
    loaded = load_examples(dataset)
    texts = [text for benchmark in dataset.drop_overlap for _, text in item_texts(benchmark)]
    if not texts:
        return Selection(loaded, 0)
    kept = rows_without_overlap(loaded.examples, texts)
    loaded = replace(
        loaded,
        examples=[loaded.examples[i] for i in kept.indices],
        indices=[loaded.indices[i] for i in kept.indices],
    )
    return Selection(loaded, kept.num_dropped)


def selected_texts(
    dataset: DatasetSpec, *, num_samples: int, subset_seed: int
) -> list[tuple[int, str]]:
    """Return (place in the seeded order, prompt and answer) of the first rows of that order."""
    examples = selected_examples(dataset, num_samples=num_samples, subset_seed=subset_seed)
    return [(place, example_text(example)) for place, example in enumerate(examples)]


def selected_examples(dataset: DatasetSpec, *, num_samples: int, subset_seed: int) -> list[Example]:
    """Return the first rows of a dataset's seeded order."""
    examples = load_selection(dataset).loaded.examples
    order = row_order(len(examples), subset_seed)[:num_samples].tolist()
    return [examples[i] for i in order]


def item_texts(benchmark: BenchmarkItems) -> list[tuple[str, str]]:
    """Return (id, question) of all of a benchmark's items, without template or shown examples."""
    return [(item.id, item.prompt) for item in load_items(benchmark.definition, benchmark.items)]
