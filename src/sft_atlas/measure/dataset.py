"""How likely is a dataset under a base model, its prompts and its answers apart?

In: the samples exactly as training would see them (template, truncation, end-of-sequence token).
Out: one row per sample with summed negative log-likelihoods and token counts, and their sums. Every
perplexity variant (per token or per byte, answer or full text, mean of samples or of tokens)
follows from these columns.
"""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from transformers import PreTrainedModel

from sft_atlas.data.prepared import PreparedRows
from sft_atlas.identity import payload
from sft_atlas.model.score import SampleScore, sample_log_likelihoods
from sft_atlas.store.records import Record, make_provenance
from sft_atlas.store.store import Store
from sft_atlas.study.job import MeasureJob

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAMPLES_NAME: Final = "samples.parquet"


def measure_dataset(
    store: Store,
    job: MeasureJob,
    *,
    model: PreTrainedModel,
    tokenizer: "PreTrainedTokenizerBase",
    rows: PreparedRows,
) -> Record:
    """Publish the likelihood of each of a job's samples under its base model.

    `model` is the pristine base in evaluation mode. Returns the record that is there if it was
    measured before.
    """
    folder = store.layout.dataset(job.fingerprint)
    if found := store.find(folder):
        return found
    started = time.time()
    examples = [rows.example(i) for i in range(len(rows))]
    samples = [(ids.tolist(), prompt_length) for ids, prompt_length in examples]
    scores = sample_log_likelihoods(model, samples)

    def fill(aside: Path) -> dict[str, Any]:
        table = _table(rows, samples, scores, tokenizer)
        pq.write_table(table, aside / SAMPLES_NAME, compression="zstd")
        return _sums(samples, scores)

    return store.publish(
        folder,
        schema="dataset/1",
        spec=payload(job),
        fill=fill,
        provenance=lambda: make_provenance(started),
    )


def _table(
    rows: PreparedRows,
    samples: list[tuple[list[int], int]],
    scores: list[SampleScore],
    tokenizer: "PreTrainedTokenizerBase",
) -> pa.Table:
    prompts = tokenizer.batch_decode([ids[:n] for ids, n in samples], skip_special_tokens=True)
    answers = tokenizer.batch_decode([ids[n:] for ids, n in samples], skip_special_tokens=True)
    return pa.table(
        {
            "row": pa.array(np.asarray(rows.rows), pa.int64()),
            "answer_nll": pa.array([0.0 - score.answer for score in scores], pa.float64()),
            "answer_tokens": pa.array([score.num_answer_tokens for score in scores], pa.int64()),
            "prompt_nll": pa.array([0.0 - score.prompt for score in scores], pa.float64()),
            "prompt_tokens": pa.array([score.num_prompt_tokens for score in scores], pa.int64()),
            "num_tokens": pa.array([len(ids) for ids, _ in samples], pa.int64()),
            "answer_bytes": pa.array([len(text.encode()) for text in answers], pa.int64()),
            "prompt_bytes": pa.array([len(text.encode()) for text in prompts], pa.int64()),
        }
    )


def _sums(samples: list[tuple[list[int], int]], scores: list[SampleScore]) -> dict[str, Any]:
    num_tokens = sum(len(ids) for ids, _ in samples)
    return {
        "answer_nll": 0.0 - sum(score.answer for score in scores),
        "answer_tokens": sum(score.num_answer_tokens for score in scores),
        "prompt_nll": 0.0 - sum(score.prompt for score in scores),
        "prompt_tokens": sum(score.num_prompt_tokens for score in scores),
        "num_samples": len(samples),
        "num_tokens": num_tokens,
        "mean_tokens": num_tokens / len(samples),
    }
