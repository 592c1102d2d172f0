"""On published data, what is known to be near is near: by the embedder that needs no model.

Skipped where the files are absent.
"""

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from sft_atlas.catalog.cards import find_benchmark
from sft_atlas.data.items import load_items
from sft_atlas.data.overlap import example_text
from sft_atlas.data.selection import selected_examples
from sft_atlas.data.shapes import Example
from sft_atlas.measure.description import describe_dataset
from sft_atlas.measure.embed import build_embed
from sft_atlas.measure.similarity import measure_similarity
from sft_atlas.store.store import open_store
from sft_atlas.study.benchmark import load_benchmark
from sft_atlas.study.job import DescribeJob
from sft_atlas.study.measure import Embedder, SimilaritySpec
from sft_atlas.study.source import local_source
from sft_atlas.study.spec import BenchmarkItems, DatasetSpec

DATA = Path(__file__).parents[2].parent / "shared" / "data"

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the folder of real data is absent")

NUM_ROWS = 200
NUM_ITEMS = 200
WORDS = Embedder(kind="words")
DATASETS: dict[str, dict[str, Any]] = {
    "alpaca.jsonl.gz": {"drop_answers": ("",)},
    "gsm8k_train.jsonl.gz": {},
    "code_alpaca_2k.json.gz": {"drop_answers": ("",)},
    "alpaca_zh_demo.jsonl.gz": {},
}
BENCHMARKS = {
    "gsm8k": "gsm8k_test.jsonl",
    "humaneval": "HumanEval.jsonl.gz",
    "mmlu": "mmlu/test",
}


@cache
def dataset(name: str) -> DatasetSpec:
    return DatasetSpec(name=name, source=local_source(DATA / "training" / name), **DATASETS[name])


@cache
def examples(name: str) -> list[Example]:
    return selected_examples(dataset(name), num_samples=NUM_ROWS, subset_seed=0)


@cache
def benchmark_items(name: str) -> tuple[BenchmarkItems, list[tuple[str, str]]]:
    card = find_benchmark(name).source
    assert card is not None
    assert card.path is not None
    found = load_benchmark(card.path, items=DATA / "benchmarks" / BENCHMARKS[name])
    items = load_items(found.definition, found.items, limit=NUM_ITEMS)
    known = BenchmarkItems(definition=found.definition, items=found.items, name=name)
    return known, [(item.id, item.prompt) for item in items]


@cache
def compared(folder: Path, data: str, benchmark: str) -> dict[str, Any]:
    known, items = benchmark_items(benchmark)
    spec = SimilaritySpec(
        dataset=dataset(data),
        num_samples=NUM_ROWS,
        subset_seed=0,
        benchmark=known,
        embedder=WORDS,
    )
    record = measure_similarity(
        open_store(folder, create=True),
        spec,
        rows=[(place, example_text(e)) for place, e in enumerate(examples(data))],
        items=items,
        embed=build_embed(WORDS),
    )
    return record.result


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("similarity")


@pytest.mark.parametrize(
    ("benchmark", "nearest"),
    [
        ("gsm8k", "gsm8k_train.jsonl.gz"),
        ("humaneval", "code_alpaca_2k.json.gz"),
        ("mmlu", "alpaca.jsonl.gz"),
    ],
)
@pytest.mark.parametrize("number", ["mean_cosine", "item_coverage", "item_coverage_centred"])
def test_the_dataset_of_a_benchmarks_kind_is_nearest(
    folder: Path, benchmark: str, nearest: str, number: str
) -> None:
    found = {data: compared(folder, data, benchmark)[number] for data in DATASETS}
    assert max(found, key=found.__getitem__) == nearest


def test_gsm8k_train_is_nearer_to_its_test_split_by_mmd_and_wording(folder: Path) -> None:
    found = {data: compared(folder, data, "gsm8k") for data in DATASETS}
    train = found.pop("gsm8k_train.jsonl.gz")
    for other in found.values():
        assert train["mmd2"] < other["mmd2"] / 2
        assert train["vocabulary_jaccard"] > other["vocabulary_jaccard"]
        assert train["item_bigram_coverage"] > other["item_bigram_coverage"] + 0.1


def test_published_datasets_are_described_as_they_are_known(tmp_path: Path) -> None:
    store = open_store(tmp_path, create=True)
    described = {
        data: describe_dataset(
            store,
            DescribeJob(dataset=dataset(data), num_samples=NUM_ROWS, subset_seed=0),
            examples=examples(data),
        ).result
        for data in DATASETS
    }
    chinese = described.pop("alpaca_zh_demo.jsonl.gz")
    assert chinese["languages"]["zh"] > 0.9
    assert all(result["languages"]["en"] > 0.9 for result in described.values())
    # GSM8K's problems and solutions are long and from a small world; Alpaca's are of all kinds.
    alpaca, gsm8k = described["alpaca.jsonl.gz"], described["gsm8k_train.jsonl.gz"]
    assert gsm8k["prompt_words_mean"] > 2 * alpaca["prompt_words_mean"]
    assert gsm8k["distinct_1"] < alpaca["distinct_1"]
    assert gsm8k["exact_duplicate_fraction"] == alpaca["exact_duplicate_fraction"] == 0
