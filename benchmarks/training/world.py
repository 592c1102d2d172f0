"""Make what all arms train on: models, a tokenizer, texts, and the token ids that come of them.

All is synthetic and seeded. Texts are walks on a graph of words; in the answers of a data set half
of the words are followed by others, so that there is something to learn. Lengths are log-normal,
half of them below 60 tokens and 5 % near 200 or above; half to 70 % of a sample is prompt. Models
learn the common graph for a few seconds before they are saved, so that fine-tuning moves their
loss.

The ids, the prompt lengths and the order of samples are what this package's own preparation gives;
peers read them from files.
"""

import json
import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from training.grid import (
    ALPHA,
    BATCH_SAMPLES,
    DATASETS,
    MAX_TOKENS,
    RANK,
    SIZES,
    Cell,
    Size,
)

SPECIAL: Final = ("<pad>", "</s>", "<unk>", "###Question:", "###Answer:")
NUM_SUCCESSORS: Final = 4
NUM_WORDS: Final = 2000
"""Words that texts are made of; the rest of the vocabulary makes the head as large as it is."""

NUM_ROWS: Final = 1024
PRETRAIN_STEPS: Final = {"XS": 200, "S": 100, "M": 40}


class Samples(NamedTuple):
    """Token ids of one data set in the study's order; `ids[prompt_length:]` is supervised."""

    ids: list[NDArray[np.int64]]
    prompt_lengths: list[int]

    def num_tokens(self) -> int:
        return sum(map(len, self.ids))

    def num_supervised(self) -> int:
        return self.num_tokens() - sum(self.prompt_lengths)


class World:
    """The folder with everything that arms read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def model(self, name: str) -> Path:
        return self.folder / "models" / name

    def adapter(self, name: str) -> Path:
        """The adapter with which every LoRA run of a model begins, as PEFT keeps it."""
        return self.folder / "adapters" / name

    def rows(self, dataset: str) -> Path:
        return self.folder / "data" / f"{dataset}.jsonl"

    def samples(self, model: str, dataset: str, samples: int) -> Samples:
        """Read the token ids of a data set."""
        with np.load(self._tokens(model, dataset, samples)) as arrays:
            offsets, ids = arrays["offsets"], arrays["ids"]
            prompts = arrays["prompt_lengths"].tolist()
        return Samples([ids[start:end] for start, end in pairwise(offsets)], prompts)

    def steps(self, cell: Cell) -> list[list[int]]:
        """Return the sample indices of each step up to a cell's epoch."""
        return [
            s for e in range(1, cell.epoch + 1) for s in epoch_steps(cell.trajectory.samples, e)
        ]

    def is_made(self, samples: tuple[int, ...]) -> bool:
        marker = self.folder / "made.json"
        return marker.is_file() and json.loads(marker.read_text()) == _wish(samples)

    def _tokens(self, model: str, dataset: str, samples: int) -> Path:
        return self.folder / "tokens" / f"{SIZES[model].vocab_size}-{dataset}-{samples}.npz"


def epoch_steps(num_samples: int, epoch: int) -> list[list[int]]:
    """Return the sample indices of each step of an epoch (from 1) for seed 0."""
    from sft_atlas.data.batches import epoch_order

    order = epoch_order(num_samples, 0, epoch)
    return [order[i : i + BATCH_SAMPLES].tolist() for i in range(0, len(order), BATCH_SAMPLES)]


def make_world(world: World, samples: tuple[int, ...]) -> None:
    """Write rows, models, first adapters and token ids; seconds to a minute, once."""
    if world.is_made(samples):
        return
    for name in DATASETS:
        write_rows(world.rows(name), name)
    for name, size in SIZES.items():
        if not (world.model(name) / "model.safetensors").is_file():
            _write_model(world.model(name), size, PRETRAIN_STEPS[name])
        _write_adapter(world, name)
        for dataset in DATASETS:
            for num in samples:
                _write_tokens(world, name, dataset, num)
    (world.folder / "made.json").write_text(json.dumps(_wish(samples)))


def _wish(samples: tuple[int, ...]) -> dict[str, object]:
    return {"version": 2, "samples": list(samples), "sizes": {k: list(v) for k, v in SIZES.items()}}


def word_graph(seed: str) -> NDArray[np.int64]:
    """Return the words that may follow each word, (words, successors)."""
    rng = np.random.default_rng(list(seed.encode()))
    graph: NDArray[np.int64] = rng.integers(0, NUM_WORDS, (NUM_WORDS, NUM_SUCCESSORS))
    return graph


def walk(graph: NDArray[np.int64], start: int, num: int, rng: random.Random) -> list[int]:
    """Return the next words of a walk; the first successor is the likeliest."""
    words = []
    for _ in range(num):
        start = int(graph[start, min(int(rng.expovariate(1.2)), NUM_SUCCESSORS - 1)])
        words.append(start)
    return words


def write_rows(path: Path, name: str) -> None:
    """Write prompts and answers as JSON lines."""
    rng = random.Random(f"rows {name}")
    common, own = word_graph("common"), word_graph("common")
    is_own = np.random.default_rng(list(name.encode())).random(NUM_WORDS) < 0.5
    own[is_own] = word_graph(name)[is_own]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as stream:
        for _ in range(NUM_ROWS):
            length = min(max(round(rng.lognormvariate(np.log(60), 0.732)), 12), MAX_TOKENS - 8)
            num_prompt = round(length * rng.uniform(0.5, 0.7))
            prompt = walk(common, rng.randrange(NUM_WORDS), max(num_prompt - 2, 1), rng)
            answer = walk(own, prompt[-1], max(length - num_prompt - 1, 1), rng)
            row = {"prompt": _text(prompt), "completion": _text(answer)}
            stream.write(json.dumps(row) + "\n")


def _text(words: list[int]) -> str:
    return " ".join(f"w{word}" for word in words)


def make_tokenizer(size: Size) -> PreTrainedTokenizerFast:
    words = [*SPECIAL, *(f"w{i}" for i in range(size.vocab_size - len(SPECIAL)))]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def _write_model(folder: Path, size: Size, num_steps: int) -> None:
    config = LlamaConfig(
        vocab_size=size.vocab_size,
        hidden_size=size.hidden_size,
        intermediate_size=size.intermediate_size,
        num_hidden_layers=size.num_layers,
        num_attention_heads=size.hidden_size // 32,
        num_key_value_heads=size.hidden_size // 32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=SPECIAL.index("</s>"),
        pad_token_id=SPECIAL.index("<pad>"),
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    for ids in _pretraining_batches(num_steps):
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        loss = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.save_pretrained(folder)
    make_tokenizer(size).save_pretrained(folder)


def _pretraining_batches(num_steps: int) -> Iterator[torch.Tensor]:
    rng, common = random.Random("pre-training"), word_graph("common")
    for _ in range(num_steps):
        lines = [walk(common, rng.randrange(NUM_WORDS), 64, rng) for _ in range(16)]
        yield torch.tensor(lines) + len(SPECIAL)


def _write_adapter(world: World, name: str) -> None:
    """Save the factors that this package begins with, so that all arms begin alike."""
    from sft_atlas.model.lora import add_lora, save_adapter
    from sft_atlas.study.spec import LoraSpec

    model = LlamaForCausalLM.from_pretrained(world.model(name), dtype=torch.float32)
    lora = LoraSpec(rank=RANK, alpha=ALPHA)
    add_lora(model, lora, seed=0)
    world.adapter(name).mkdir(parents=True, exist_ok=True)
    save_adapter(world.adapter(name), model, lora, base_name=str(world.model(name)))


def _write_tokens(world: World, model: str, dataset: str, num: int) -> None:
    from sft_atlas.data.encoding import encode_pairs, finish_example
    from sft_atlas.data.subsets import row_order
    from sft_atlas.data.template import render_answer, render_prompt

    path = world._tokens(model, dataset, num)
    if path.is_file():
        return
    lines = world.rows(dataset).read_text().splitlines()
    order = row_order(len(lines), 0)[:num]
    rows = [json.loads(lines[i]) for i in order]
    texts = [
        (
            render_prompt("question-answer", r["prompt"]),
            render_answer("question-answer", r["completion"]),
        )
        for r in rows
    ]
    tokenizer = make_tokenizer(SIZES[model])
    eos = SPECIAL.index("</s>")
    examples = [finish_example(p, eos, MAX_TOKENS) for p in encode_pairs(tokenizer, texts)]
    assert not any(isinstance(example, str) for example in examples)
    lengths = [len(example.ids) for example in examples]
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        path,
        ids=np.concatenate([example.ids for example in examples]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        prompt_lengths=[example.prompt_length for example in examples],
    )
