"""Time the answers: from a released table to its report, REML against references, large grids.

    make bench-analyze                       # or with TABLE=evaluation_result.csv

A table with the columns and grid of Harada et al. (2025) is invented (seeded); figures of
a given table stand beside it. References fit the same likelihood and must give the same variances
before anything is timed. Every part runs in a process of its own, whose peak memory is that of the
part; arms take turns, and the file gets medians and ranges.
"""

import argparse
import itertools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

RESULT: Final = Path(__file__).parent / "results" / "analyze.json"
MIB: Final = 2**20

MODELS: Final = (
    *("OLMo-7B-hf", "LLM-jp-3-7B", "Qwen2.5-7B", "Meta-Llama-3-8B", "Sarashina2-7B"),
    *("Llama-3-Swallow-8B-v0.1", "Yi-1.5-9B", "llama-3-chinese-8b", "Chinese-Mistral-7B-v0.1"),
    *("Mistral-7B-v0.1", "Gemma2-9B"),
)
LONG: Final = MODELS[:3]
"""Models of the study of epochs and sizes."""
DATA: Final = (
    *("alpaca_cleaned", "lima", "ultrachat", "code_alpaca", "magicoder", "openmath", "math"),
    *("flan_knowledge", "flan_reasoning", "flan_comprehension"),
)
ITEMS: Final = {
    "mbpp_4shot": 257,
    "math-0shot": 5000,
    "gsm8k-4shot": 1319,
    "humaneval-0shot": 164,
    "hellaswag-10shot": 10042,
    "nq-1shot": 3610,
    "BoolQ-5shot": 3270,
    "mmlu-5shot": 14042,
    "alpaca_eval_v2-total": 805,
    "mbpp-0shot": 257,
    "gsm8k-0shot": 1319,
    "nq-0shot": 3610,
    "nq-5shot": 3610,
    "nq-25shot": 3610,
    "BoolQ-0shot": 3270,
    "hellaswag-0shot": 10042,
    "mmlu-0shot": 14042,
    "Truthful_QA-0shot": 817,
    "LongBench-v2-0shot": 503,
    "jmmlu-0shot": 14042,
    "cmmlu-0shot": 11582,
}
GRADED: Final = (
    *("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"),
)


def grid_rows() -> Iterator[tuple[str, str, str, int, int, str]]:
    """Yield (model, data, lora, epoch, samples, schedule) of the released grid's shape."""
    for model in MODELS:
        yield model, "pretrain", "", 0, 0, ""
        for data, lora in itertools.product(DATA, ("true", "false")):
            yield model, data, lora, 10, 1000, "cosine"
        for lora, epoch in itertools.product(("true", "false"), range(1, 11)):
            yield model, "all", lora, epoch, 10000, "cosine"
    for model, data, epoch in itertools.product(LONG, DATA, range(1, 11)):
        yield model, data, "false", epoch, 1000, "constant"
        if data != "lima":
            yield model, data, "false", epoch, 20000, "constant"
    for data, lora in itertools.product(DATA, ("true", "false")):
        yield MODELS[0], f"w/o-{data}", lora, 10, 9000, "cosine"


def write_table(path: Path) -> None:
    """Invent a table: effects of model, data and their pairs on every benchmark, and noise."""
    rng = np.random.default_rng(0)
    rows = list(grid_rows())
    table = pd.DataFrame(
        rows, columns=["model_name", "data_name", "lora", "epoch", "data_size", "lr_strategy"]
    )
    runs = len(rows)
    for name, num_items in ITEMS.items():
        share = (
            0.4 + _effects(table, "model_name", 0.12, rng) + _effects(table, "data_name", 0.06, rng)
        )
        share += _effects(table, ["model_name", "data_name"], 0.04, rng)
        share = np.clip(share + rng.normal(0, 0.02, runs), 0.02, 0.95)
        table[name] = np.round(100 * rng.binomial(num_items, share) / num_items, 2)
    grades = 3 + 4 * _effects(table, ["model_name", "data_name"], 0.2, rng)
    for name in GRADED:
        table[f"mtbench-{name}"] = np.round(np.clip(grades + rng.normal(0, 0.5, runs), 1, 10), 1)
    table["mtbench-total"] = table[[f"mtbench-{name}" for name in GRADED]].mean(axis=1).round(2)
    table["Truthful_QA-0shot"] = (table["Truthful_QA-0shot"] / 100).round(2)
    table["data_size"] = table["data_size"].astype(float)
    table.to_csv(path)


def _effects(
    table: pd.DataFrame, keys: str | list[str], spread: float, rng: np.random.Generator
) -> np.ndarray[Any, Any]:
    codes = table.groupby(keys, sort=False).ngroup().to_numpy()
    values: np.ndarray[Any, Any] = rng.normal(0, spread, codes.max() + 1)[codes]
    return values


def report(folder: Path, given: Path | None) -> dict[str, Any]:
    """Two commands, from a CSV file to a finished report, and the page's size."""
    found: dict[str, Any] = {}
    invented = folder / "table.csv"
    write_table(invented)
    for name, path in (("invented", invented), ("given", given)):
        if path is None:
            continue
        seconds, memory = [], []
        for i in range(3):
            store, page = folder / f"{name}-{i}", folder / f"{name}-{i}.html"
            started = time.perf_counter()
            peaks = [
                _atlas("import", "massive-sft", str(path), "--store", str(store), "--name", "t"),
                _atlas("report", "t", "--store", str(store), "--output", str(page)),
            ]
            seconds.append(time.perf_counter() - started)
            memory.append(max(peaks))
        found[name] = {
            "seconds": _spread(seconds),
            "peak_mib": round(max(memory) / MIB),
            "page_mb": round(page.stat().st_size / 1e6, 2),
        }
    return found


def _atlas(*arguments: str) -> int:
    """Run the command line and return its peak resident size in bytes."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sft_atlas", *arguments], stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"sft-atlas {' '.join(arguments)} ended with {status}")
    return 1024 * usage.ru_maxrss


def page(folder: Path, given: Path | None) -> dict[str, Any]:
    """Open a report of that size in Chromium: when it is usable, and how soon a filter answers."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from chromium import BROWSER, open_tab

    if BROWSER is None:
        return {"reason": "Chromium is not installed"}
    table, store, path = given or folder / "table.csv", folder / "store", folder / "page.html"
    if given is None:
        write_table(table)
    _atlas("import", "massive-sft", str(table), "--store", str(store), "--name", "t")
    _atlas("report", "t", "--store", str(store), "--output", str(path))
    usable, filtered = [], []
    for i in range(5):
        with open_tab(folder / f"profile-{i}") as tab:
            tab.open(path)
            usable.append(tab.run("performance.getEntriesByName('usable')[0].startTime") / 1000)
            filtered.append(tab.run(FILTER) / 1000)
    return {
        "page_mb": round(path.stat().st_size / 1e6, 2),
        "usable_seconds": _spread(usable),
        "filter_seconds": _spread(filtered),
    }


FILTER: Final = """(() => {
  const field = document.querySelector("#controls-results input[type=search]");
  const started = performance.now();
  field.value = "lora magicoder";
  field.dispatchEvent(new Event("input"));
  document.getElementById("result-count").getBoundingClientRect();
  return performance.now() - started;
})()"""


def crossed_rows(
    num_models: int, num_data: int, num_benchmarks: int, num_repeats: int
) -> tuple[np.ndarray[Any, Any], dict[str, np.ndarray[Any, Any]]]:
    """Return scores with planted variances and the levels of all factors and interactions."""
    rng = np.random.default_rng(1)
    shape = (num_models, num_data, num_benchmarks, num_repeats)
    m, d, b, _ = (axis.ravel() for axis in np.indices(shape))
    levels = {
        "model": m,
        "data": d,
        "benchmark": b,
        "model:data": m * num_data + d,
        "model:benchmark": m * num_benchmarks + b,
        "data:benchmark": d * num_benchmarks + b,
        "model:data:benchmark": (m * num_data + d) * num_benchmarks + b,
    }
    spreads = (0.2, 0.4, 0.35, 0.2, 0.5, 0.35, 0.4)
    values = rng.normal(0, 0.3, m.size)
    for spread, codes in zip(spreads, levels.values(), strict=True):
        values = values + rng.normal(0, spread, codes.max() + 1)[codes]
    return values, levels


def reml(folder: Path, given: Path | None) -> dict[str, Any]:
    """Crossed REML against the same likelihood with numeric gradients, and against statsmodels."""
    from sft_atlas.statistics.reml import fit_reml

    values, levels = crossed_rows(11, 10, 14, 7)
    started = time.perf_counter()
    reference = numeric_reml(values, levels)
    reference_seconds = time.perf_counter() - started
    fit = fit_reml(values, levels)
    apart = np.abs(np.asarray(fit.variances) - reference) / reference
    if apart.max() > 1e-3:
        raise RuntimeError(f"the two fits differ by {apart.max():.2e}")
    ours = [_seconds(lambda: fit_reml(values, levels)) for _ in range(5)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    few_values, few_levels = crossed_rows(11, 10, 14, 1)
    few = {name: few_levels[name] for name in ("model:benchmark", "data:benchmark", "model:data")}
    peer = statsmodels_reml(few_values, few)
    small = fit_reml(few_values, few)
    small_apart = np.abs(np.asarray(small.variances) - peer) / peer
    arms: dict[str, Callable[[], object]] = {
        "statsmodels": lambda: statsmodels_reml(few_values, few),
        "ours": lambda: fit_reml(few_values, few),
    }
    turns: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(3):
        for name, arm in arms.items():
            turns[name].append(_seconds(arm))
    return {
        "num_rows": values.size,
        "num_levels": int(sum(codes.max() + 1 for codes in levels.values())),
        "seconds": _spread(ours),
        "numeric_gradient_seconds": round(reference_seconds, 2),
        "largest_relative_difference": float(apart.max()),
        "process_peak_mib": round(peak / MIB),
        "slice": {
            "num_rows": few_values.size,
            "num_components": len(few),
            **{name: _spread(seconds) for name, seconds in turns.items()},
            "largest_relative_difference": float(small_apart.max()),
        },
    }


def numeric_reml(
    values: np.ndarray[Any, Any], levels: dict[str, np.ndarray[Any, Any]]
) -> np.ndarray[Any, Any]:
    """Maximise the restricted likelihood by L-BFGS-B with numeric gradients (the plain way)."""
    import scipy.linalg
    import scipy.optimize
    import scipy.sparse

    rows = np.arange(values.size)
    parts = [scipy.sparse.csr_matrix(np.ones((values.size, 1)))]
    for codes in levels.values():
        parts.append(scipy.sparse.csr_matrix((np.ones(values.size), (rows, codes))))
    design = scipy.sparse.hstack(parts).tocsr()
    product, right, square = (design.T @ design).toarray(), design.T @ values, values @ values
    sizes = np.array([part.shape[1] for part in parts[1:]])

    def deviance(logs: np.ndarray[Any, Any]) -> float:
        variances = np.exp(logs)
        inverse = np.concatenate([[0.0], np.repeat(1 / variances[:-1], sizes)])
        matrix = product / variances[-1]
        matrix[np.diag_indices_from(matrix)] += inverse
        factor = scipy.linalg.cholesky(matrix, lower=True)
        half = scipy.linalg.solve_triangular(factor, right / variances[-1], lower=True)
        logdet = 2 * np.log(np.diag(factor)).sum() + sizes @ logs[:-1] + values.size * logs[-1]
        return float(logdet + square / variances[-1] - half @ half)

    start = np.full(len(levels) + 1, np.log(values.var() / (len(levels) + 1)))
    found = scipy.optimize.minimize(deviance, start, method="L-BFGS-B", options={"ftol": 1e-13})
    variances: np.ndarray[Any, Any] = np.exp(found.x)
    return variances


def statsmodels_reml(
    values: np.ndarray[Any, Any], levels: dict[str, np.ndarray[Any, Any]]
) -> np.ndarray[Any, Any]:
    """Fit the same components as variance components of one group in statsmodels."""
    import warnings

    import statsmodels.api as sm

    frame = pd.DataFrame({f"f{i}": codes for i, codes in enumerate(levels.values())})
    frame["y"] = values
    terms = {name: f"0 + C({name})" for name in frame.columns[:-1]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = sm.MixedLM.from_formula(
            "y ~ 1", groups=np.ones(values.size), vc_formula=terms, re_formula="0", data=frame
        )
        fit = model.fit(reml=True)
    order = [model.exog_vc.names.index(name) for name in terms]
    return np.array([*fit.vcomp[order], fit.scale])


def tabulate(folder: Path, given: Path | None) -> dict[str, Any]:
    """100,000 cells on 30 benchmarks: from loose rows to tables, gains, means and the gain map."""
    from sft_atlas.analyze.gains import cell_gains, gain_map, mean_gains
    from sft_atlas.evidence.tidy import tidy_tables

    seconds: dict[str, float] = {}

    def timed(name: str, make: Callable[[Any], Any], value: Any) -> Any:
        started = time.perf_counter()
        made = make(value)
        seconds[name] = round(time.perf_counter() - started, 2)
        return made

    tables = timed("tables", tidy_tables, large_rows(50, 200, 10, 30))
    gains = timed("gains", cell_gains, tables)
    timed("means", mean_gains, gains)
    timed("gain map", gain_map, gains)
    return {
        "num_cells": len(tables.cells),
        "num_rows": len(tables.scores),
        "seconds": seconds,
        "total_seconds": round(sum(seconds.values()), 2),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def large_rows(num_models: int, num_data: int, num_epochs: int, num_tests: int) -> pd.DataFrame:
    rng = np.random.default_rng(2)
    index = pd.MultiIndex.from_product(
        [range(num_models), range(num_data), range(1, num_epochs + 1)]
    )
    model, data, epoch = (index.get_level_values(i).to_numpy() for i in range(3))
    tuned = pd.DataFrame({"model": model, "data": data, "epoch": epoch}).assign(
        data_kind="each", data_group="", samples=1000, method="full", method_kind="full"
    )
    tuned = tuned.assign(schedule="cosine", horizon_epochs=num_epochs, seed=0, block="single")
    base = pd.DataFrame({"model": np.arange(num_models), "epoch": 0, "block": ""})
    base = base.assign(**dict.fromkeys(("data", "data_kind", "method", "method_kind"), "base"))
    labels = pd.concat([base, tuned], ignore_index=True)
    labels["model"] = "m" + labels["model"].astype(str)
    labels["data"] = labels["data"].map(lambda name: name if name == "base" else f"d{name}")
    rows = labels.loc[labels.index.repeat(num_tests)].reset_index(drop=True)
    tests = np.tile(np.arange(num_tests), len(labels))
    names = np.array([f"b{i}" for i in range(num_tests)])
    return rows.assign(
        family="",
        languages="en",
        benchmark=names[tests],
        skill="",
        language="en",
        metric="accuracy",
        in_mean=True,
        score=rng.uniform(0, 1, len(rows)),
        reason=None,
        base_reason=None,
        num_items=1000,
        standard_error=np.nan,
    )


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _spread(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 4),
        "min": round(min(values), 4),
        "max": round(max(values), 4),
        "n": len(values),
    }


PARTS: Final[dict[str, Callable[[Path, Path | None], dict[str, Any]]]] = {
    "report": report,
    "page": page,
    "reml": reml,
    "tabulate": tabulate,
}


def machine() -> dict[str, Any]:
    packages = ("numpy", "scipy", "pandas", "scikit-learn", "statsmodels")
    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "num_cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
        **{name: metadata.version(name) for name in packages},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", type=Path, help="a released table to measure as well")
    parser.add_argument("--part", choices=PARTS, help="be the process of one part")
    parser.add_argument("--only", nargs="*", choices=PARTS, help="measure these parts alone")
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    if arguments.part:
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            print(json.dumps(PARTS[arguments.part](Path(folder), arguments.table)))
        return
    results: dict[str, Any] = {}
    if arguments.only and arguments.output.is_file():
        results = json.loads(arguments.output.read_text())
    results["machine"] = machine()
    for name in arguments.only or PARTS:
        started = time.time()
        command = [sys.executable, __file__, "--part", name]
        command += ["--table", str(arguments.table.resolve())] if arguments.table else []
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
        results[name] = json.loads(done.stdout.splitlines()[-1])
        print(f"{name}: {time.time() - started:.0f} s", file=sys.stderr)
        arguments.output.parent.mkdir(exist_ok=True)
        arguments.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
