"""Random models, samples and jobs that are small enough to train in a test; all from seeds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from sft_atlas.data.batches import TrainingRows
from sft_atlas.data.prepared import PreparedRows
from sft_atlas.study.job import TrainJob
from sft_atlas.study.spec import (
    DataPart,
    DatasetSpec,
    DataSpec,
    LoraSpec,
    MethodSpec,
    ModelSpec,
    Precision,
    ScheduleSpec,
    Source,
    TrajectorySpec,
)

VOCAB_SIZE = 64
CONSTANT = ScheduleSpec(kind="constant")
COSINE = ScheduleSpec(kind="cosine", warmup_steps=2)
LORA = LoraSpec(rank=4, alpha=8.0)


def build_model(architecture: str = "llama", *, seed: int = 0, **extra: Any) -> PreTrainedModel:
    """Return a random causal model in float32: 2 layers, hidden size 32."""
    fields: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 1,
    }
    if architecture == "gemma2":
        fields |= {"head_dim": 8, "query_pre_attn_scalar": 8}
    config = AutoConfig.for_model(architecture, **(fields | extra))
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.eval()


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return a word-level tokenizer: `w7` is token 7, and `</s>` ends a sequence."""
    words = ["<pad>", "</s>", *(f"w{i}" for i in range(2, VOCAB_SIZE))]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<pad>"
    )


def build_byte_tokenizer(corpus: str = "", *, size: int = 257) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer as GPT-2's, its merges learned from `corpus`; `</s>` is 0.

    Of 257 entries none is a merge: a token is a byte.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        [corpus],
        trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=["</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


def save_base(folder: Path, architecture: str = "llama", **extra: Any) -> ModelSpec:
    """Write a model with its tokenizer to a folder and return its Spec."""
    build_model(architecture, **extra).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return ModelSpec(name=architecture, source=Source(path=folder))


def build_prepared(num_samples: int = 20, *, seed: int = 0) -> PreparedRows:
    """Return samples of 4 to 17 tokens whose answer can be learned: it repeats the prompt's end."""
    rng = np.random.default_rng(seed)
    samples, prompt_lengths = [], []
    for _ in range(num_samples):
        prompt = rng.integers(2, VOCAB_SIZE, size=rng.integers(2, 13))
        answer = prompt[-int(rng.integers(1, 5)) :]
        samples.append(np.concatenate([prompt, answer, [1]]))
        prompt_lengths.append(len(prompt))
    lengths = [len(sample) for sample in samples]
    return PreparedRows(
        tokens=np.concatenate(samples).astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        prompt_lengths=np.array(prompt_lengths, dtype=np.int32),
        rows=np.arange(num_samples, dtype=np.int64),
        positions=np.arange(num_samples, dtype=np.int64),
        result={},
    )


def build_rows(num_samples: int = 20, *, seed: int = 0) -> TrainingRows:
    """Return `build_prepared` as training sees it."""
    return TrainingRows([build_prepared(num_samples, seed=seed)])


def build_documents(lengths: Sequence[int], *, seed: int = 0) -> TrainingRows:
    """Return samples of these lengths and random tokens, the first half of each a prompt."""
    tokens = np.random.default_rng(seed).integers(2, VOCAB_SIZE, size=sum(lengths))
    prepared = PreparedRows(
        tokens=tokens.astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        prompt_lengths=np.array([-(-length // 2) for length in lengths], dtype=np.int32),
        rows=np.arange(len(lengths), dtype=np.int64),
        positions=np.arange(len(lengths), dtype=np.int64),
        result={},
    )
    return TrainingRows([prepared])


def build_job(
    model: ModelSpec,
    *,
    keep_epochs: tuple[int, ...] = (1, 2),
    schedule: ScheduleSpec = CONSTANT,
    lora: LoraSpec | None = None,
    precision: Precision = "float32",
    seed: int = 0,
    keep_checkpoint: bool = False,
    **method: Any,
) -> TrainJob:
    """Return a job of 8 samples per step; further keywords are the method's."""
    settings = {"learning_rate": 1e-2, "batch_samples": 8, "name": "test"} | method
    dataset = DatasetSpec(name="echo", source=Source(sha256="0" * 64))
    trajectory = TrajectorySpec(
        model=model,
        data=DataSpec(name="echo", parts=(DataPart(dataset=dataset, num_samples=20),)),
        method=MethodSpec(lora=lora, **settings),
        schedule=schedule,
        horizon_epochs=keep_epochs[-1] if schedule.needs_horizon else None,
        template="question-answer",
        max_tokens=64,
        seed=seed,
        precision=precision,
    )
    return TrainJob(
        trajectory=trajectory,
        keep_epochs=keep_epochs,
        benchmarks=(),
        keep_checkpoint=keep_checkpoint,
    )
