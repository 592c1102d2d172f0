"""Tokenise a dataset once per (tokenizer, dataset, order, template, length) and map it into memory.

The samples of a published set stand in the seeded order of `subsets`, so one set serves every smaller size as a
prefix. Examples that lose their whole answer to truncation leave a gap in the order: a prefix is cut by position
in the order, so that a dropped example never pulls in a row from beyond the subset.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from sft_atlas.data.encoding import (
    EncodedExample,
    encode_pairs,
    finish_example,
    load_tokenizer,
    tokenizer_sha256,
)
from sft_atlas.data.shapes import Example
from sft_atlas.data.sources import LoadedRows, Reject, load_examples
from sft_atlas.data.subsets import row_order
from sft_atlas.data.template import render_examples
from sft_atlas.errors import DataError
from sft_atlas.identity import fingerprint, payload
from sft_atlas.store.records import make_provenance
from sft_atlas.store.store import Store
from sft_atlas.study.job import PrepareJob

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ARRAYS: Final = ("tokens", "offsets", "prompt_lengths", "rows", "positions")
_QUANTILES: Final = (0.0, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
_CHUNK: Final = 4096
"""Examples encoded at a time, which bounds the memory that texts and ids take twice."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedRows:
    """Tokenised samples of one dataset, mapped from disk; n samples kept."""

    tokens: NDArray[np.int32]
    """All samples end to end; sample i is tokens[offsets[i]:offsets[i + 1]]."""
    offsets: NDArray[np.int64]
    """Shape (n + 1,)."""
    prompt_lengths: NDArray[np.int32]
    """Shape (n,): how many first tokens of each sample are not supervised; at least 1."""
    rows: NDArray[np.int64]
    """Shape (n,): source row of each sample, counted from 0."""
    positions: NDArray[np.int64]
    """Shape (n,): place of each sample in the seeded order, ascending, with gaps where one was dropped."""
    result: Mapping[str, Any]
    """The record's result; describes the whole published set, not a prefix of it."""

    def __len__(self) -> int:
        return len(self.prompt_lengths)

    def example(self, index: int) -> tuple[NDArray[np.int32], int]:
        """Return one sample's token ids and its prompt length; the rest of it is supervised."""
        start, end = self.offsets[index], self.offsets[index + 1]
        return self.tokens[start:end], int(self.prompt_lengths[index])

    def lengths(self) -> NDArray[np.int64]:
        """Return tokens per sample, prompt and answer together, shape (n,)."""
        return np.diff(self.offsets)

    @property
    def num_supervised_tokens(self) -> int:
        return int(self.offsets[-1] - self.offsets[0]) - int(self.prompt_lengths.sum())

    def prefix(self, num_samples: int) -> "PreparedRows":
        """Return the samples among the first `num_samples` of the seeded order; drops are not refilled."""
        kept = int(np.searchsorted(self.positions, num_samples))
        return PreparedRows(
            tokens=self.tokens,
            offsets=self.offsets[: kept + 1],
            prompt_lengths=self.prompt_lengths[:kept],
            rows=self.rows[:kept],
            positions=self.positions[:kept],
            result=self.result,
        )


def prepare(store: Store, job: PrepareJob) -> PreparedRows:
    """Return a job's samples, tokenising and publishing them unless a large enough set is there.

    Raises:
        DataError: if rows are malformed under `fail`, fewer rows are usable than wanted, the number of
            quarantined rows is not the one in the dataset's identity, or no sample keeps an answer token.
    """
    tokenizer = load_tokenizer(job.model)
    digest = tokenizer_sha256(tokenizer, job.template)
    spec = _spec(job, digest)
    folder = store.layout.prepared(fingerprint(spec))
    for size in _published_sizes(folder):
        if size >= job.num_samples:
            found = _open(store, folder / str(size)).prefix(job.num_samples)
            if len(found):
                return found
    target = folder / str(job.num_samples)
    started = time.time()
    store.publish(
        target,
        schema="prepared/1",
        spec={**spec, "num_samples": job.num_samples},
        fill=lambda aside: _fill(aside, job, tokenizer) | {"tokenizer_sha256": digest},
        provenance=lambda: make_provenance(started),
    )
    return _open(store, target)


def _spec(job: PrepareJob, digest: str) -> dict[str, Any]:
    return {
        "tokenizer_sha256": digest,
        "dataset": payload(job.dataset),
        "subset_seed": job.subset_seed,
        "template": job.template,
        "max_tokens": job.max_tokens,
    }


def _published_sizes(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())


def _open(store: Store, folder: Path) -> PreparedRows:
    record = store.read(folder)
    arrays = {
        name: np.load(store.artifact(folder, f"{name}.npy"), mmap_mode="r") for name in _ARRAYS
    }
    return PreparedRows(result=record.result, **arrays)


def _fill(aside: Path, job: PrepareJob, tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    loaded = load_examples(job.dataset)
    _check_counts(loaded, job)
    order = row_order(len(loaded.examples), job.subset_seed)[: job.num_samples]
    examples = [loaded.examples[i] for i in order]
    encoded = encode_all(tokenizer, examples, template=job.template, max_tokens=job.max_tokens)
    kept = [(position, e) for position, e in enumerate(encoded) if e is not None]
    if not kept:
        raise DataError(_describe_unsupervised(job, examples, tokenizer))
    lengths = np.array([len(e.ids) for _, e in kept], dtype=np.int64)
    arrays = {
        "tokens": np.fromiter((t for _, e in kept for t in e.ids), np.int32, int(lengths.sum())),
        "offsets": np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]),
        "prompt_lengths": np.array([e.prompt_length for _, e in kept], dtype=np.int32),
        "rows": np.array([loaded.indices[order[p]] for p, _ in kept], dtype=np.int64),
        "positions": np.array([p for p, _ in kept], dtype=np.int64),
    }
    for name, array in arrays.items():
        np.save(aside / f"{name}.npy", array, allow_pickle=False)
    if loaded.rejects:
        _write_rejects(aside / "rejects.jsonl", loaded.rejects)
    num_tokens = int(lengths.sum())
    return {
        "num_rows_read": loaded.num_rows,
        "num_filtered": loaded.num_filtered,
        "num_quarantined": len(loaded.rejects),
        "num_dropped_truncated": len(encoded) - len(kept),
        "num_truncated": sum(e.is_truncated for _, e in kept),
        "num_samples": len(kept),
        "num_tokens": num_tokens,
        "num_supervised_tokens": num_tokens - int(arrays["prompt_lengths"].sum()),
        "token_length_quantiles": _quantiles(lengths),
    }


def encode_all(
    tokenizer: "PreTrainedTokenizerBase",
    examples: Sequence[Example],
    *,
    template: str,
    max_tokens: int,
) -> list[EncodedExample | None]:
    """Template and encode examples in order; None stands where no answer token is left."""
    encoded: list[EncodedExample | None] = []
    for start in range(0, len(examples), _CHUNK):
        texts = render_examples(template, examples[start : start + _CHUNK], tokenizer)
        for pair in encode_pairs(tokenizer, texts):
            encoded.append(finish_example(pair, tokenizer.eos_token_id, max_tokens))
    return encoded


def _check_counts(loaded: LoadedRows, job: PrepareJob) -> None:
    dataset = job.dataset
    expected = dataset.num_quarantined
    if expected is not None and expected != len(loaded.rejects):
        raise DataError(
            f"dataset {dataset.name}: {len(loaded.rejects):,} rows are malformed; expected {expected:,}, as when "
            f"the study was read. Run the study again."
        )
    if len(loaded.examples) < job.num_samples:
        raise DataError(
            f"dataset {dataset.name}: has {len(loaded.examples):,} usable rows; expected at least the "
            f"{job.num_samples:,} samples of the study. Lower `samples`, or exclude this dataset there."
        )


def _describe_unsupervised(
    job: PrepareJob, examples: Sequence[Example], tokenizer: "PreTrainedTokenizerBase"
) -> str:
    text = render_examples(job.template, examples[:1], tokenizer)[0]
    prompt_ids, answer_ids = encode_pairs(tokenizer, [text])[0]
    cut = tokenizer.decode([*prompt_ids, *answer_ids][: job.max_tokens])
    return (
        f"dataset {job.dataset.name}: none of {len(examples):,} samples has a supervised token within "
        f"max_tokens {job.max_tokens:,}. The first has {len(prompt_ids):,} prompt tokens and reads "
        f"{cut!r} [cut here] with the answer {text.answer[:200]!r} outside. Raise max_tokens."
    )


def _write_rejects(path: Path, rejects: Sequence[Reject]) -> None:
    lines = (
        json.dumps({"where": r.where, "reason": r.reason, "row": r.row}, default=str)
        for r in rejects
    )
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _quantiles(lengths: NDArray[np.int64]) -> dict[str, float]:
    values = np.quantile(lengths, _QUANTILES)
    return {str(q): float(v) for q, v in zip(_QUANTILES, values, strict=True)}
