"""Score one model on one benchmark and publish every item's result.

In: a live model (base, tuned, or with its adapter merged) and a benchmark. Out: the record
`scores/1` with the table `items.parquet`. Each benchmark is scored by itself, in batches that
only its own items decide, so that what else a study asks moves no digit. An item that could not
be scored is null with a reason and in no mean.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sft_atlas.errors import OutOfMemoryError
from sft_atlas.evaluate.answer import ItemResult, answer_choices, answer_questions, unscored
from sft_atlas.evaluate.request import Request, build_requests
from sft_atlas.identity import payload
from sft_atlas.model.score import computes_in
from sft_atlas.store.records import Record, make_provenance
from sft_atlas.store.store import Store
from sft_atlas.study.spec import BenchmarkSpec, CellSpec

ITEMS_NAME: Final = "items.parquet"

_CHUNK_ITEMS = 2048
_SMALLER_BATCHES = (4096, 1024, 256)
T = TypeVar("T")

_SCHEMA = pa.schema(
    {
        "item": pa.string(),
        "score": pa.float32(),
        "prediction": pa.string(),
        "reference": pa.string(),
        "log_likelihood": pa.float64(),
        "num_prompt_tokens": pa.int32(),
        "is_truncated": pa.bool_(),
        "finish": pa.string(),
        "reason": pa.string(),
    }
)


def evaluate_cell(
    store: Store,
    *,
    cell: CellSpec,
    benchmark: BenchmarkSpec,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> Record:
    """Publish a cell's score, or return the one that is published already.

    The model must be the cell's, in evaluation mode and with its adapter merged; nothing of it is
    changed. Where the device has too little memory, smaller batches are tried.

    Raises:
        DataError: if the items cannot be read or do not fit the benchmark's definition.
        OutOfMemoryError: if even a small batch does not fit the device.
    """
    folder = store.layout.score(cell.fingerprint, benchmark.fingerprint)
    published = store.find(folder)
    if published is not None:
        return published
    started = time.time()

    def fill(aside: Path) -> dict[str, Any]:
        requests = build_requests(
            benchmark,
            model=cell.model,
            tokenizer=tokenizer,
            max_positions=_max_positions(model),
        )
        results = score_requests(benchmark, requests, model, tokenizer)
        _write_items(aside / ITEMS_NAME, requests, results)
        return summarise(benchmark, requests, results)

    return store.publish(
        folder,
        schema="scores/1",
        spec={"cell": payload(cell), "benchmark": payload(benchmark)},
        fill=fill,
        provenance=lambda: make_provenance(
            started, device=str(model.device), torch=torch.__version__
        ),
    )


def score_requests(
    benchmark: BenchmarkSpec,
    requests: Sequence[Request],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> list[ItemResult]:
    """Return the result of each request, in order; those that cannot be scored are null."""
    results = [unscored(request.unscored or "") for request in requests]
    asked = [i for i, request in enumerate(requests) if request.unscored is None]
    for begin in range(0, len(asked), _CHUNK_ITEMS):
        chunk = asked[begin : begin + _CHUNK_ITEMS]
        selected = [requests[i] for i in chunk]

        def run(room: int | None, selected: Sequence[Request] = selected) -> list[ItemResult]:
            definition = benchmark.definition
            if definition.kind == "choice":
                return answer_choices(definition, selected, model, batch_tokens=room)
            return answer_questions(definition, selected, model, tokenizer, batch_tokens=room)

        with computes_in(benchmark.precision, model.device):
            done = retry_on_oom(run)
        for i, result in zip(chunk, done, strict=True):
            results[i] = result
    return results


def summarise(
    benchmark: BenchmarkSpec, requests: Sequence[Request], results: Sequence[ItemResult]
) -> dict[str, Any]:
    """Return the record's result: mean of scored items and sd / sqrt(n), or null with a reason."""
    scores = np.array([r.score for r in results if r.score is not None], dtype=np.float64)
    num_scored = len(scores)
    reason = None
    if num_scored == 0:
        reasons = Counter(r.reason for r in results)
        first = reasons.most_common(1)
        reason = (
            f"none of {len(results)} items could be scored: {first[0][0]}" if first else "no items"
        )
    standard_error = None
    if num_scored > 1:
        standard_error = float(scores.std(ddof=1)) / math.sqrt(num_scored)
    return {
        "benchmark": benchmark.name,
        "metric": benchmark.definition.metric,
        "score": float(scores.mean()) if num_scored else None,
        "standard_error": standard_error,
        "num_items": len(results),
        "num_scored": num_scored,
        "num_truncated": sum(request.is_truncated for request in requests),
        "reason": reason,
    }


def retry_on_oom(run: Callable[[int | None], T]) -> T:
    """Call `run(None)`, then with smaller batches while the device has too little memory.

    Raises:
        OutOfMemoryError: if even the smallest batch, 256 tokens or one sequence, does not fit.
    """
    reason = ""
    for batch_tokens in (None, *_SMALLER_BATCHES):
        try:
            return run(batch_tokens)
        except torch.OutOfMemoryError as error:
            reason = str(error)
        # Outside the handler: inside it the traceback still holds the tensors of the failed pass.
        torch.cuda.empty_cache()
    raise OutOfMemoryError(
        f"evaluation: the device has too little memory even for {_SMALLER_BATCHES[-1]} tokens at "
        f"once ({reason}). Use a device with more memory, or lower max_tokens."
    )


def _max_positions(model: PreTrainedModel) -> int | None:
    positions = model.config.get_text_config().to_dict().get("max_position_embeddings")
    return positions if isinstance(positions, int) else None


def _write_items(path: Path, requests: Sequence[Request], results: Sequence[ItemResult]) -> None:
    pairs = list(zip(requests, results, strict=True))
    columns = {
        "item": [request.question.id for request in requests],
        "score": [result.score for result in results],
        "prediction": [result.prediction for result in results],
        "reference": [request.question.reference for request in requests],
        "log_likelihood": [result.log_likelihood for result in results],
        "num_prompt_tokens": [len(request.prompt_ids) for request, _ in pairs],
        "is_truncated": [request.is_truncated for request in requests],
        "finish": [result.finish for result in results],
        "reason": [result.reason for result in results],
    }
    pq.write_table(pa.table(columns, schema=_SCHEMA), path, compression="zstd")
