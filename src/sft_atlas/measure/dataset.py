"""How likely is a dataset under a base model, its prompts and its answers apart?

In: the samples exactly as training would see them (template, truncation, end-of-sequence token).
Out: one row per sample with summed negative log-likelihoods and counts, their sums, and the means
over samples that sums cannot give. `analyze.perplexity` forms every perplexity from these.

Each answer is scored a second time without its prompt: after one prefix token (BOS, or the
end-of-sequence token where there is no BOS) and nothing else. Both times the same tokens count. The
ratio exp(nll(answer | prompt) / n) / exp(nll(answer) / n) is the instruction-following difficulty:
near or above 1 the prompt tells the model nothing about the answer (Li et al. 2023, arXiv
2308.12032, who divide mean losses; as a ratio of perplexities Li et al. 2024, arXiv 2402.00530).
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from transformers import PreTrainedModel

from sft_atlas.data.prepared import PreparedRows
from sft_atlas.data.texts import text_prefix
from sft_atlas.data.words import count_words, normalise
from sft_atlas.errors import DataError
from sft_atlas.identity import payload
from sft_atlas.measure.quantiles import name_quantiles
from sft_atlas.model.score import sample_log_likelihoods
from sft_atlas.store.records import Record, make_provenance
from sft_atlas.store.store import Store
from sft_atlas.study.job import MeasureJob

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Floats = NDArray[np.float64]
Sample = tuple[list[int], int]
"""Token ids, and how many of them are the prompt's."""

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

    Raises:
        DataError: if a sample's likelihood is not finite, or its perplexity no float.
    """
    folder = store.layout.dataset(job.fingerprint)
    if found := store.find(folder):
        return found
    started = time.time()
    samples = [(ids.tolist(), length) for ids, length in map(rows.example, range(len(rows)))]
    columns = {
        "row": np.asarray(rows.rows, np.int64),
        **_likelihoods(model, tokenizer, samples),
        **_lengths(tokenizer, samples),
    }
    _check_finite(columns, job)
    table = pa.table(columns)

    def fill(aside: Path) -> dict[str, Any]:
        pq.write_table(table, aside / SAMPLES_NAME, compression="zstd")
        return _summary(table)

    return store.publish(
        folder,
        schema="dataset/2",
        spec=payload(job),
        fill=fill,
        provenance=lambda: make_provenance(started),
    )


def _likelihoods(
    model: PreTrainedModel, tokenizer: "PreTrainedTokenizerBase", samples: Sequence[Sample]
) -> dict[str, NDArray[Any]]:
    """Return summed nats and scored tokens of each sample's parts, and of its bare answer."""
    prefix = text_prefix(tokenizer).id
    whole = sample_log_likelihoods(model, samples)
    bare = sample_log_likelihoods(model, [([prefix, *ids[n:]], 1) for ids, n in samples])
    return {
        "answer_nll": np.array([0.0 - score.answer for score in whole]),
        "answer_tokens": np.array([score.num_answer_tokens for score in whole]),
        "prompt_nll": np.array([0.0 - score.prompt for score in whole]),
        "prompt_tokens": np.array([score.num_prompt_tokens for score in whole]),
        "bare_answer_nll": np.array([0.0 - score.answer for score in bare]),
        "bare_answer_tokens": np.array([score.num_answer_tokens for score in bare]),
    }


def _lengths(
    tokenizer: "PreTrainedTokenizerBase", samples: Sequence[Sample]
) -> dict[str, NDArray[Any]]:
    """Return each sample's tokens, and its parts' bytes and words as decoded text.

    A first token that is text, as under tokenizers that add no BOS, is scored nowhere; so its bytes
    are in `first_bytes`, not in `prompt_bytes`: bits per byte would be too low with them.
    """
    prompts = tokenizer.batch_decode([ids[:n] for ids, n in samples], skip_special_tokens=True)
    answers = tokenizer.batch_decode([ids[n:] for ids, n in samples], skip_special_tokens=True)
    firsts = tokenizer.batch_decode([ids[:1] for ids, _ in samples], skip_special_tokens=True)
    first_bytes = np.array([len(text.encode()) for text in firsts])
    ends = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    # Byte-level tokenizers know every text, and some name their end-of-sequence token here.
    unknown = {tokenizer.unk_token_id} - ends - {None}
    return {
        "num_tokens": np.array([len(ids) for ids, _ in samples]),
        "text_tokens": np.array([sum(i not in ends for i in ids) for ids, _ in samples]),
        "unknown_tokens": np.array([sum(i in unknown for i in ids) for ids, _ in samples]),
        "answer_bytes": np.array([len(text.encode()) for text in answers]),
        "prompt_bytes": np.array([len(text.encode()) for text in prompts]) - first_bytes,
        "first_bytes": first_bytes,
        "answer_words": np.array([count_words(normalise(text)) for text in answers]),
        "prompt_words": np.array([count_words(normalise(text)) for text in prompts]),
    }


def _check_finite(columns: dict[str, NDArray[Any]], job: MeasureJob) -> None:
    """Refuse what has no finite perplexity; the number 700 is where exp leaves float64."""
    for part in ("answer", "prompt", "bare_answer"):
        means = _ratios(columns[f"{part}_nll"], columns[f"{part}_tokens"])
        is_wrong = (columns[f"{part}_tokens"] > 0) & ~(means < 700)
        if is_wrong.any():
            index = int(np.argmax(is_wrong))
            raise DataError(
                f"dataset {job.dataset.name}, row {columns['row'][index]}: the mean log-likelihood "
                f"of its {part.replace('_', ' ')} under {job.model.name} is {0.0 - means[index]}; "
                f"expected a finite number above -700 nats per token. Check the model's weights."
            )


def _summary(table: pa.Table) -> dict[str, Any]:
    """Return the record's result: sums over samples, means over samples, and the spread."""
    columns: dict[str, Floats] = {
        name: table[name].to_numpy().astype(np.float64) for name in table.column_names
    }
    sums = {name: pc.sum(table[name]).as_py() for name in table.column_names if name != "row"}
    num_words = sums["prompt_words"] + sums["answer_words"]
    num_bytes = sums["first_bytes"] + sums["prompt_bytes"] + sums["answer_bytes"]
    return {
        **sums,
        "num_samples": table.num_rows,
        "mean_tokens": sums["num_tokens"] / table.num_rows,
        **_spread(columns),
        **_difficulty(columns),
        "tokens_per_word": _ratio(sums["text_tokens"], num_words),
        "bytes_per_token": _ratio(num_bytes, sums["text_tokens"]),
        "unknown_fraction": _ratio(sums["unknown_tokens"], sums["text_tokens"]),
    }


def _spread(columns: dict[str, Floats]) -> dict[str, float | None]:
    """Return means over samples, each sample weighing the same, and quantiles of perplexities;
    samples without a token, or byte, have no share in them."""
    means: dict[str, float | None] = {}
    for part in ("answer", "prompt", "whole"):
        nll, num_tokens, num_bytes = (
            columns[f"answer_{name}"] + columns[f"prompt_{name}"]
            if part == "whole"
            else columns[f"{part}_{name}"]
            for name in ("nll", "tokens", "bytes")
        )
        per_token = _ratios(nll, num_tokens)
        perplexities = np.exp(per_token[~np.isnan(per_token)])
        means[f"{part}_nll_per_token_mean"] = _mean(per_token)
        means[f"{part}_ppl_mean"] = _mean(perplexities)
        means |= name_quantiles(f"{part}_ppl", perplexities)
        means[f"{part}_bits_per_byte_mean"] = _mean(_ratios(nll / np.log(2), num_bytes))
    return means


def _difficulty(columns: dict[str, Floats]) -> dict[str, float | None]:
    """Return instruction-following difficulty, its mean and median over samples."""
    given = _ratios(columns["answer_nll"], columns["answer_tokens"])
    bare = _ratios(columns["bare_answer_nll"], columns["bare_answer_tokens"])
    ratios = np.exp(given - bare)
    ratios = ratios[~np.isnan(ratios)]
    return {
        "ifd": _mean(ratios),
        "ifd_median": float(np.median(ratios)) if len(ratios) else None,
    }


def _ratios(numerators: NDArray[Any], denominators: NDArray[Any]) -> Floats:
    """Divide where the denominator is above 0; NaN elsewhere."""
    result = np.full(len(numerators), np.nan)
    np.divide(numerators, denominators, out=result, where=denominators > 0)
    return result


def _mean(values: Floats) -> float | None:
    """Return the mean of what is not NaN; None where nothing is left."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else None


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator else None
