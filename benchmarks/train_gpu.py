"""Measure the training engine on a CUDA GPU: correctness first, then speed, then memory.

    python benchmarks/train_gpu.py --out FOLDER [--part NAME ...] [--budget SECONDS]
    python benchmarks/train_gpu.py --out FOLDER --merge FIRST.json SECOND.json
    python benchmarks/train_gpu.py --out FOLDER --smoke

Each part runs in a process of its own with a limit; one that fails is reported by its last words
and the rest goes on. What is not begun within the budget is left out and named. FOLDER gets
`train_gpu.json`, written anew after each part, and the same as tables in `train_gpu.md`.
`train_gpu_sums.PREDICTIONS` holds what was expected before anything was measured.

`--smoke` runs the same code on a CPU with tiny shapes: its figures mean nothing. There
`torch.compile` traces once without generating code, and there are no CUDA graphs.
"""

import argparse
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1] / "src")]

from train_gpu_bench import Bench  # noqa: E402 - the package may not be installed
from train_gpu_parts import PARTS  # noqa: E402
from train_gpu_sums import Row, markdown, merge, read_reports  # noqa: E402


def main() -> int:
    """Run parts or merge reports; returns 1 if a gate or a part failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part", action="append", choices=list(PARTS), help="repeatable")
    parser.add_argument("--budget", type=float, default=560.0, help="seconds of all parts")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--merge", type=Path, nargs="+", help="reports to put into one")
    wanted = parser.parse_args()
    wanted.out.mkdir(parents=True, exist_ok=True)
    if wanted.merge:
        report = merge(read_reports([path.read_text() for path in wanted.merge]))
        write(wanted.out, report)
        return 0
    started, parts = time.monotonic(), {}
    for name in wanted.part or PARTS:
        left = wanted.budget - (time.monotonic() - started)
        parts[name] = run_part(name, wanted.smoke, left, is_alone=len(wanted.part or PARTS) == 1)
        print(f"{name}: {parts[name]['end']} ({parts[name]['seconds']:.1f} s)", flush=True)
        report = merge([{"is_smoke": wanted.smoke, "parts": parts}])
        write(wanted.out, report)
    print(markdown(report))
    gates = [row.get("passed") for part in parts.values() for row in part["rows"]]
    return int(False in gates or any(part["end"] != "done" for part in parts.values()))


def write(folder: Path, report: Row) -> None:
    (folder / "train_gpu.json").write_text(json.dumps(report, indent=1) + "\n")
    (folder / "train_gpu.md").write_text(markdown(report))


def run_part(name: str, is_smoke: bool, left: float, *, is_alone: bool) -> Row:
    """Run a part in a process of its own; returns its rows, its end in words and its seconds."""
    limit = min(PARTS[name].limit_seconds, left)
    if limit < 15:
        return {"rows": [], "end": "left out: the budget is used up", "seconds": 0.0}
    # A process that is forked has the libraries at hand; CUDA asks for one of its own.
    context: Any = multiprocessing.get_context("fork" if is_smoke and not is_alone else "spawn")
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        rows_path, log_path = Path(folder, "rows.jsonl"), Path(folder, "log")
        rows_path.touch()
        process = context.Process(target=part_process, args=(name, is_smoke, rows_path, log_path))
        process.start()
        process.join(limit)
        end = "done"
        if process.is_alive():
            try:
                os.killpg(process.pid, signal.SIGKILL)  # a session of its own: it and its children
            except ProcessLookupError:
                process.kill()  # it has not come so far
            process.join()
            end = f"took longer than {limit:.0f} s"
        elif process.exitcode:
            end = f"failed ({process.exitcode}): {last_words(log_path)}"
        rows = [json.loads(line) for line in rows_path.read_text().splitlines()]
    return {"rows": rows, "end": end, "seconds": time.monotonic() - started}


def part_process(name: str, is_smoke: bool, rows_path: Path, log_path: Path) -> None:
    """Do a part; its rows are on the disk as they come."""
    os.setsid()
    with log_path.open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)

    def emit(row: Row) -> None:
        with rows_path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    try:
        PARTS[name].do(Bench(is_smoke=is_smoke, emit=emit))
    except BaseException:  # noqa: BLE001 - its words are the part's end
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def last_words(log: Path) -> str:
    """Return the last line that says something."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    said = [line for line in lines if line]
    return said[-1][:400] if said else "ended without a word"


if __name__ == "__main__":
    sys.exit(main())
