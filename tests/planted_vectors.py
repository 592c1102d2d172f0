"""Make log-likelihoods of planted models, in the form that a likelihood measure publishes them."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sft_atlas.store.records import make_provenance
from sft_atlas.store.store import Store
from sft_atlas.store.vectors import VECTORS_NAME, Vectors
from sft_atlas.study.measure import LikelihoodMeasure, QuestionSet

MEASURE = LikelihoodMeasure(
    texts=QuestionSet(benchmarks=(), per_benchmark=150, template="{question}"), max_tokens=512
)
DIGEST = "d" * 64


def vectors_of(
    prompt: NDArray[np.float64],
    answer: NDArray[np.float64] | None = None,
    *,
    cells: Sequence[str] | None = None,
    is_cut: NDArray[np.bool_] | None = None,
    wordings: Sequence[str] | None = None,
) -> Vectors:
    """Vectors with these log-likelihoods; without an answer the texts have none."""
    num_cells, num_texts = prompt.shape
    has_answer = answer is not None
    count = np.full(prompt.shape, 10)
    return Vectors(
        measure=MEASURE.fingerprint,
        cells=tuple(cells) if cells is not None else tuple(f"c{i:03d}" for i in range(num_cells)),
        wordings=tuple(wordings or [DIGEST] * num_cells),
        texts=tuple(f"text-{i}" for i in range(num_texts)),
        groups=("quiz",) * num_texts,
        prompt=prompt,
        answer=np.zeros_like(prompt) if answer is None else answer,
        prompt_tokens=count,
        answer_tokens=count * has_answer,
        is_cut=np.zeros(prompt.shape, dtype=bool) if is_cut is None else is_cut,
        prompt_bytes=np.full(num_texts, 100),
        answer_bytes=np.full(num_texts, 20 * has_answer),
    )


def planted_world(
    *,
    models: int = 4,
    data: int = 5,
    epochs: Sequence[int] = (1, 2, 3),
    num_texts: int = 120,
    seed: int = 0,
) -> tuple[Vectors, pd.DataFrame]:
    """Cells that lie in a cluster per base model, and off it in a direction per dataset."""
    rng = np.random.default_rng(seed)
    level = -60 + 8 * rng.normal(size=num_texts)
    base = 12 * rng.normal(size=(models, num_texts))
    taught = 2 * rng.normal(size=(data, num_texts))
    labels: list[dict[str, Any]] = []
    rows = []
    for m in range(models):
        shared = {"family": f"family-{m % 3}", "model": f"model-{m}"}
        for d, epoch in [(-1, 0), *((d, e) for d in range(data) for e in epochs)]:
            moved = taught[d] * np.log1p(epoch) if d >= 0 else 0.0
            rows.append(level + base[m] + moved + 0.3 * rng.normal(size=num_texts))
            labels.append(
                {
                    "cell": f"c{len(rows):04d}",
                    **shared,
                    "data": f"data-{d}" if d >= 0 else "base",
                    "method": "full" if d >= 0 else "base",
                    "samples": 100 if d >= 0 else None,
                    "epoch": epoch,
                }
            )
    frame = pd.DataFrame(labels).astype({"samples": "Int64", "epoch": "Int64"})
    return vectors_of(np.array(rows), cells=list(frame["cell"])), frame


def publish_vector(
    store: Store,
    cell: str,
    prompt: Sequence[float | None],
    *,
    answer: Sequence[float | None] | None = None,
    texts_sha256: str = DIGEST,
    ids: Sequence[str] | None = None,
    measure: LikelihoodMeasure = MEASURE,
) -> None:
    """Publish a likelihood record with these sums."""
    size = len(prompt)
    columns = {
        "text": list(ids or [f"text-{i}" for i in range(size)]),
        "group": ["quiz"] * size,
        "prompt_log_likelihood": pa.array(list(prompt), pa.float64()),
        "answer_log_likelihood": pa.array(list(answer or [0.0] * size), pa.float64()),
        "prompt_tokens": [9] * size,
        "answer_tokens": [1 if answer else 0] * size,
        "prompt_bytes": [100] * size,
        "answer_bytes": [20 if answer else 0] * size,
        "is_cut": [False] * size,
    }

    def fill(aside: Path) -> dict[str, Any]:
        pq.write_table(pa.table(columns), aside / VECTORS_NAME)
        return {"texts_sha256": texts_sha256, "num_texts": size}

    store.publish(
        store.layout.measure(cell, measure.fingerprint),
        schema="likelihood/1",
        spec={},
        fill=fill,
        provenance=lambda: make_provenance(time.time()),
    )
