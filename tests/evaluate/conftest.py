"""A tiny model and two tokenizers (bytes; words), made from nothing but this file."""

import gzip
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto import AutoModelForCausalLM

from sft_atlas.study.benchmark import Benchmark, load_benchmark

CORPUS = [
    "###Question: What is the capital of France?\n###Answer: Paris\n\n",
    "###Question: How much is 12 + 30?\n###Answer: 42\n\n",
]
CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
WriteBenchmark = Callable[..., Benchmark]


def build_tokenizer(*, adds_bos: bool) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<bos>", "<eos>", "<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", 0)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>", chat_template=CHAT
    )


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(adds_bos=False)


@pytest.fixture(scope="session")
def bos_tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(adds_bos=True)


@pytest.fixture
def model() -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=1,
    )
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture
def write_benchmark(tmp_path: Path) -> WriteBenchmark:
    """Write items (and examples) beside a benchmark file and read it."""

    def write(
        items: Iterable[Mapping[str, Any]],
        *,
        few_shot: Iterable[Mapping[str, Any]] | None = None,
        **fields: Any,
    ) -> Benchmark:
        write_rows(tmp_path / "items.jsonl.gz", items)
        content: dict[str, Any] = {"name": "bench", "items": {"path": "items.jsonl.gz"}}
        if few_shot is not None:
            write_rows(tmp_path / "shots.jsonl.gz", few_shot)
            content["few_shot"] = {"path": "shots.jsonl.gz"}
        path = tmp_path / "bench.yaml"
        path.write_text(json.dumps(content | fields))
        return load_benchmark(path)

    return write


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with gzip.open(path, "wt") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)
