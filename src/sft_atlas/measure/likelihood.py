"""How likely is each of a set of fixed texts under a model: its row of the map of all models?

In: a cell's live model, or a base model, and a `LikelihoodMeasure`. Out: one row per text with the
summed log-likelihoods of prompt and answer, and their tokens and bytes. Only raw sums are stored,
so that clipping, centring and distances (Oyama et al. 2025, arXiv 2502.16173: 2 KL(p_i || p_j) is
about the variance of l_i - l_j over texts) are choices made when tables are read, and a new cell
changes no other's row.
"""

import math
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
from transformers import PreTrainedModel

from sft_atlas.data.texts import (
    EncodedText,
    Text,
    encode_text_set,
    load_texts,
    text_prefix,
    texts_sha256,
)
from sft_atlas.errors import DataError
from sft_atlas.identity import payload
from sft_atlas.model.score import SampleScore, sample_log_likelihoods
from sft_atlas.store.records import Record, make_provenance
from sft_atlas.store.states import list_names
from sft_atlas.store.store import Store
from sft_atlas.study.measure import LikelihoodMeasure
from sft_atlas.study.spec import CellSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LIKELIHOOD_NAME: Final = "likelihood.parquet"

_SCHEMA: Final = pa.schema(
    [
        ("text", pa.string()),
        ("group", pa.string()),
        ("prompt_log_likelihood", pa.float64()),
        ("answer_log_likelihood", pa.float64()),
        ("prompt_tokens", pa.int64()),
        ("answer_tokens", pa.int64()),
        ("prompt_bytes", pa.int64()),
        ("answer_bytes", pa.int64()),
        ("is_cut", pa.bool_()),
    ]
)
_SUMMED: Final = (
    "prompt_log_likelihood",
    "answer_log_likelihood",
    "prompt_tokens",
    "answer_tokens",
    "prompt_bytes",
    "answer_bytes",
)


def measure_likelihood(
    store: Store,
    cell: CellSpec,
    measure: LikelihoodMeasure,
    *,
    model: PreTrainedModel,
    tokenizer: "PreTrainedTokenizerBase",
) -> Record:
    """Publish the log-likelihoods (nats) of a text set under a cell or a base model.

    `model` holds the cell's weights, in evaluation mode. Returns the record that is there if it was
    measured before.

    Raises:
        DataError: if the texts cannot be read or encoded, or a log-likelihood is not finite.
    """
    folder = store.layout.measure(cell.fingerprint, measure.fingerprint)
    if found := store.find(folder):
        return found
    started = time.time()
    texts = load_texts(measure.texts, tokenizer)
    known = _earlier_rows(store, cell, measure)
    missing = [text for text in texts if text.id not in known]
    encoded = encode_text_set(tokenizer, missing, max_tokens=measure.max_tokens)
    scores = sample_log_likelihoods(model, [(text.ids, text.prompt_length) for text in encoded])
    _check_finite(cell, missing, scores)
    made = zip(missing, encoded, scores, strict=True)
    known |= {text.id: _row(text, ids, score) for text, ids, score in made}
    rows = [known[text.id] | {"group": text.group} for text in texts]

    def fill(aside: Path) -> dict[str, Any]:
        table = pa.Table.from_pylist(rows, schema=_SCHEMA)
        pq.write_table(table, aside / LIKELIHOOD_NAME, compression="zstd")
        return {
            "texts_sha256": texts_sha256(texts),
            "num_texts": len(texts),
            "num_cut": sum(row["is_cut"] for row in rows),
            "prefix": text_prefix(tokenizer).kind,
            "groups": _sum_groups(rows),
        }

    return store.publish(
        folder,
        schema="likelihood/1",
        spec={"cell": payload(cell), "measure": payload(measure)},
        fill=fill,
        provenance=lambda: make_provenance(started),
    )


def _earlier_rows(
    store: Store, cell: CellSpec, measure: LikelihoodMeasure
) -> dict[str, dict[str, Any]]:
    """Return rows by text that a cell has from another set of questions, asked in the same way.

    So a study that gains a benchmark reads its questions alone.
    """
    if measure.texts.kind != "questions":
        return {}
    wanted = payload(measure)
    benchmarks = zip(measure.texts.benchmarks, wanted["texts"]["benchmarks"], strict=True)
    # Without a digest or a revision the same wish may find other questions under the same ids.
    prefixes = [
        (f"{items.fingerprint[:8]}/", fields)
        for items, fields in benchmarks
        if items.items.sha256 is not None or items.items.revision is not None
    ]
    found: dict[str, dict[str, Any]] = {}
    for name in sorted(list_names(store.layout.measures / cell.fingerprint)):
        folder = store.layout.measure(cell.fingerprint, name)
        record = store.read(folder)
        earlier = record.spec["measure"]
        if earlier["kind"] != "likelihood" or _way(earlier) != _way(wanted):
            continue
        shared = tuple(
            prefix for prefix, fields in prefixes if fields in earlier["texts"]["benchmarks"]
        )
        table = pq.read_table(store.artifact(folder, LIKELIHOOD_NAME), schema=_SCHEMA)
        found |= {row["text"]: row for row in table.to_pylist() if row["text"].startswith(shared)}
    return found


def _way(measure: dict[str, Any]) -> dict[str, Any]:
    """Return what decides a question's row, whichever other questions are asked."""
    texts = {
        key: value
        for key, value in measure["texts"].items()
        if key not in ("benchmarks", "per_benchmark", "order_seed")
    }
    return measure | {"texts": texts}


def _check_finite(cell: CellSpec, texts: Sequence[Text], scores: Sequence[SampleScore]) -> None:
    for text, score in zip(texts, scores, strict=True):
        total = score.prompt + score.answer
        if not math.isfinite(total):
            raise DataError(
                f"{cell.description}, text {text.id}: its log-likelihood is {total}; expected a "
                f"finite number. Its weights hold NaN or infinity, or overflow; train a cell again "
                f"with a lower learning rate."
            )


def _row(text: Text, encoded: EncodedText, score: SampleScore) -> dict[str, Any]:
    return {
        "text": text.id,
        "group": text.group,
        "prompt_log_likelihood": score.prompt,
        "answer_log_likelihood": score.answer,
        "prompt_tokens": score.num_prompt_tokens,
        "answer_tokens": score.num_answer_tokens,
        "prompt_bytes": encoded.num_bytes_prompt,
        "answer_bytes": encoded.num_bytes_answer,
        "is_cut": encoded.is_cut,
    }


def _sum_groups(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["group"]].append(row)
    return {
        name: {
            "num_texts": len(members),
            **{column: math.fsum(row[column] for row in members) for column in _SUMMED[:2]},
            **{column: sum(row[column] for row in members) for column in _SUMMED[2:]},
        }
        for name, members in groups.items()
    }
