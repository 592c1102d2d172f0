"""A byte-level tokenizer trained on a few words, saved as a model folder; files in every format."""

import functools
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from sft_atlas.study.spec import DatasetSpec, ModelSpec, Source

TEXTS = ["###Question: what is the capital of France?\n###Answer: The capital is Paris."] * 3


@functools.cache
def _tokenizer_text(adds_bos: bool) -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<eos>", "<bos>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", 1)]
        )
    text: str = tokenizer.to_str()
    return text


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., ModelSpec]:
    """Return a function that saves a tokenizer folder and returns its spec."""

    def make(
        name: str = "tiny",
        *,
        adds_bos: bool = False,
        eos: str | None = "<eos>",
        chat_template: str | None = None,
    ) -> ModelSpec:
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(_tokenizer_text(adds_bos)),
            eos_token=eos,
            bos_token="<bos>" if adds_bos else None,
            chat_template=chat_template,
        )
        tokenizer.save_pretrained(tmp_path / name)
        return ModelSpec(source=Source(path=tmp_path / name), name=name)

    return make


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., DatasetSpec]:
    """Return a function that writes rows (or raw lines) as JSONL and returns a dataset of them."""

    def write(rows: list[Any], name: str = "rows.jsonl", **options: Any) -> DatasetSpec:
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        content = b"".join(line + b"\n" for line in lines)
        path = tmp_path / name
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return DatasetSpec(source=Source(path=path), name="demo", **options)

    return write
