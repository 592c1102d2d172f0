"""Keep what each optimizer step said, and store it as one table whose bytes the steps alone
decide."""

from pathlib import Path
from typing import Final, NamedTuple, final

import pyarrow as pa
import pyarrow.parquet as pq

METRICS_NAME: Final = "metrics.parquet"

_SCHEMA: Final = pa.schema(
    [
        ("step", pa.int64()),
        ("epoch", pa.int64()),
        ("loss", pa.float64()),
        ("grad_norm", pa.float64()),
        ("learning_rate", pa.float64()),
        ("num_supervised_tokens", pa.int64()),
        ("num_tokens", pa.int64()),
    ]
)


@final
class StepMetrics(NamedTuple):
    """One optimizer step; no times, so that two runs of one wish agree on it."""

    step: int
    """Counted from 1 over the whole run."""
    epoch: int
    """Counted from 1."""
    loss: float
    """Before the step, mean over its supervised tokens, nats per token."""
    grad_norm: float
    """Global Euclidean norm before clipping."""
    learning_rate: float
    num_supervised_tokens: int
    num_tokens: int
    """Prompt and answer tokens, without padding."""


def write_metrics(path: Path, metrics: list[StepMetrics]) -> None:
    """Write one row per step as Parquet."""
    columns = [list(column) for column in zip(*metrics, strict=True)] or [[] for _ in _SCHEMA]
    table = pa.table(columns, schema=_SCHEMA)
    pq.write_table(table, path, compression="zstd")


def read_metrics(path: Path) -> list[StepMetrics]:
    """Read what `write_metrics` wrote, equal to the last bit."""
    table = pq.read_table(path, schema=_SCHEMA)
    columns = [table.column(name).to_pylist() for name in _SCHEMA.names]
    return [StepMetrics(*row) for row in zip(*columns, strict=True)]
