"""Measure `plan` of 100,000 cells, and `status` and `table` of 1,000 finished cells.

    python benchmarks/large_studies.py [FOLDER]

Results are invented and published like real ones: 8 benchmarks of 100 items per cell. A figure is
the median of five runs of the command line, with its spread and peak memory.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

import sft_atlas
from sft_atlas.identity import payload
from sft_atlas.store.store import Store, open_store
from sft_atlas.study.plan import Plan, PlannedCell

HEAD = """
study: {name}
models: [mini-llama, mini-seed, mini-gemma3, mini-olmo2, mini-qwen3]
datasets: [mini-knowledge, mini-math, mini-code, mini-reasoning, mini-instruction]
benchmarks:
  - {{name: mini-knowledge, limit: 100}}
  - {{name: mini-math, limit: 100}}
  - {{name: mini-code, limit: 100}}
  - {{name: mini-comprehension, limit: 100}}
  - {{name: mini-reasoning, limit: 100}}
  - {{name: mini-instruction, limit: 100}}
  - {{name: mini-knowledge-b, limit: 100}}
  - {{name: mini-reasoning-choice, limit: 100}}
precision: float32
methods:
  full: {{learning_rate: 3.0e-4, batch_samples: 16}}
  lora: {{learning_rate: 2.0e-3, batch_samples: 16, rank: 8, alpha: 16}}
seeds: [{seeds}]
blocks:
  grid: {{data: each, samples: 200, schedule: constant, epochs: {epochs}, keep: every}}
"""


def write_study(folder: Path, name: str, *, num_seeds: int, epochs: int) -> Path:
    """Write a study of 5 models x 5 datasets x 2 methods x seeds x epochs cells."""
    path = folder / f"{name}.yaml"
    seeds = ", ".join(map(str, range(num_seeds)))
    path.write_text(HEAD.format(name=name, seeds=seeds, epochs=epochs))
    return path


def finish(store: Store, plan: Plan) -> None:
    """Publish an invented result for everything in a plan."""
    draws = np.random.default_rng(0)
    for planned in [*plan.bases, *plan.cells]:
        name = planned.cell.fingerprint
        if planned.cell.trajectory:
            publish(store, store.layout.cell(name), "cell/1", planned, b"weights", {"epoch": 1})
        for benchmark in plan.study.benchmark_specs:
            right = draws.integers(0, 2, 100).astype(np.float32)
            items = {"item": [str(i) for i in range(100)], "score": right}
            content = pa.BufferOutputStream()
            pq.write_table(pa.table(items), content)
            result = {
                "score": float(right.mean()),
                "standard_error": float(right.std(ddof=1) / 10),
                "num_items": 100,
                "num_scored": 100,
                "reason": None,
            }
            folder = store.layout.score(name, benchmark.fingerprint)
            publish(store, folder, "scores/1", planned, content.getvalue().to_pybytes(), result)


def publish(
    store: Store,
    folder: Path,
    schema: str,
    planned: PlannedCell,
    content: bytes,
    result: dict[str, object],
) -> None:
    def fill(aside: Path) -> dict[str, object]:
        (aside / "items.parquet").write_bytes(content)
        return result

    spec = payload(planned.cell)
    store.publish(folder, schema=schema, spec=spec, fill=fill, provenance=dict)


def measure(*words: object, num_runs: int = 5) -> str:
    """Run a command; return median and range of its seconds, and its peak resident memory."""
    command = [sys.executable, "-m", "sft_atlas", *map(str, words)]
    seconds, peak = [], 0
    for _ in range(num_runs):
        started = time.monotonic()
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            watched = psutil.Process(process.pid)
            while process.poll() is None:
                try:
                    peak = max(peak, watched.memory_info().rss)
                except psutil.Error:
                    break
                time.sleep(0.01)
            assert process.wait() == 0
        seconds.append(time.monotonic() - started)
    spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
    return f"{statistics.median(seconds):.2f} s ({spread}; n = {num_runs}), {peak / 2**20:.0f} MiB"


def main(folder: Path) -> None:
    large = write_study(folder, "large", num_seeds=200, epochs=10)
    cells = sft_atlas.plan(large).num_cells
    print(f"plan of {cells:,} cells: {measure('plan', large, '--json')}", flush=True)
    medium = write_study(folder, "medium", num_seeds=2, epochs=10)
    store = folder / "store"
    plan = sft_atlas.plan(medium)
    finish(open_store(store, create=True), plan)
    where = ("--store", store)
    first = measure("table", medium, *where, num_runs=1)
    print(f"{plan.num_cells:,} finished cells: first table, which builds the index: {first}")
    print(f"table: {measure('table', medium, *where)}")
    print(f"status: {measure('status', medium, *where)}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
