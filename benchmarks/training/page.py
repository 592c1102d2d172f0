"""Write the part of docs/benchmarks.md that tells what `train.py` measured."""

import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from training.protocol import ARMS, MECHANISMS

HEADING: Final = "## `make bench-train`"


def write_part(path: Path, results: Mapping[str, Any]) -> None:
    """Put the part in place of the one that is there, or at the end."""
    text = path.read_text()
    part = "\n".join([HEADING, "", *_lines(results)]).rstrip() + "\n"
    pattern = re.compile(rf"^{re.escape(HEADING)}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    if pattern.search(text):
        text = pattern.sub(lambda _: part + "\n", text)
    else:
        text = f"{text.rstrip()}\n\n{part}"
    path.write_text(text.rstrip() + "\n")


def _lines(results: Mapping[str, Any]) -> list[str]:
    lines = [_introduction(results), ""]
    for name, grid in results["summary"].items():
        if name != "mechanisms":
            lines += [*_grid(name, grid, results.get("failures", {})), ""]
    lines += _mechanisms(results["summary"]["mechanisms"])
    lines += _ceiling(results.get("ceiling", {}))
    lines += _gates(results["gates"])
    return lines


def _introduction(results: Mapping[str, Any]) -> str:
    machine, settings = results["machine"], results["settings"]
    few, many = settings["samples"]
    versions = ", ".join(f"{name} {machine[name]}" for name in _PACKAGES if name in machine)
    choices = results["choices"]
    loop = choices["loop"]
    protocol = f"""
        `python benchmarks/train.py` writes `benchmarks/results/train.json` in
        {results["minutes"]:.0f} minutes. Llamas with a tied head, in float32: XS 0.4 M, S 1.6 M, M
        8.4 M weights. Three synthetic instruction sets of {few} and {many} samples, log-normal
        lengths (median 60 tokens), half to 70 % of them prompt; batches of 16, AdamW, constant
        rate, no dropout; a cell is one model or adapter as safetensors. All arms get the same
        weights, token ids, masks and order, and no network. Wall time is from the start of the
        process to the last file. Arms take turns in each repeat. {machine["num_cores"]} cores;
        {versions}. Load average at the start: {machine["load_average"]}."""
    figures = f"""
        Arms A, B, C, E-B and F train cells drawn from all methods, sizes and epochs, others in each
        repeat; their grid is start + tokens x seconds per token of the method, fitted to these
        cells and summed over all. The others train the whole grid: the median. Brackets hold 95 %
        bootstrap intervals over n repeats; tokens are those that go through the model. Set up for
        this machine means what was fastest of what passed the gates: TRL
        {_LAYOUTS[choices["layout"]]}, no bfloat16, no recomputation; the plain loop with
        micro-batches of {loop.get("micro_batch_samples", 16)} samples sorted by length, number of
        threads where it is alone: {choices["plain_threads"]}. A leaves TRL's defaults on: bfloat16
        (emulated on processors without it), recomputed activations, tokenisation in each process, a
        resumable checkpoint at the end."""
    return f"{_paragraph(protocol)}\n\n{_paragraph(figures)}"


def _paragraph(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), width=130, break_long_words=False)


_LAYOUTS: Final = {
    "padded": "padded",
    "padding-free": "padding-free",
    "packed": "packed (about as many tokens in a step, but of other samples than all other arms)",
}
_PACKAGES: Final = ("torch", "transformers", "trl", "peft", "accelerate")


def _grid(name: str, grid: Mapping[str, Any], failures: Mapping[str, str]) -> list[str]:
    lines = [
        f"**Grid {name}**: {grid['about']}; {grid['num_cells']} cells.",
        "",
        "| arm | seconds | cells/hour | tokens/s, supervised | CPU s | peak MiB | MB | x ours |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arm, row in grid["arms"].items():
        lines.append(f"| {arm}: {ARMS[arm].about} | {' | '.join(_figures(row, arm))} |")
    for key, words in failures.items():
        arm, _, of_grid = key.partition(" on ")
        if of_grid == name:
            lines.append(f"| {arm}: {ARMS[arm].about} | did not run: {words} | | | | | | |")
    return lines


def _figures(row: Mapping[str, Any], arm: str) -> Sequence[str]:
    low, high = row["interval"]
    sampled = row["num_sampled_cells"]
    basis = f"n = {row['num_repeats']}" + (f", {sampled} cells" if sampled else "")
    is_whole = "cpu_seconds" in row
    cpu = f"{row['cpu_seconds']:.0f}" if is_whole else f"{row['cpu_seconds_per_cell']} per cell"
    written = f"{row['written_mb']:.0f}" if is_whole else f"{row['written_mb_per_cell']} per cell"
    times = row.get("times_ours")
    return (
        f"{row['seconds']:.0f} ({low:.0f} to {high:.0f}; {basis})",
        f"{row['cells_per_hour']:,}",
        f"{row['tokens_per_second']:,}, {row['supervised_tokens_per_second']:,}",
        cpu,
        f"{row['peak_mib']:,}",
        written,
        "1" if times is None else _times(times),
    )


def _times(times: Mapping[str, Any]) -> str:
    low, high = times["interval"]
    mark = "**" if low > 1 else ""
    return f"{mark}{times['ratio']}{mark} ({low} to {high})"


def _mechanisms(found: Mapping[str, Any]) -> list[str]:
    if not found:
        return []
    lines = [
        "**What each mechanism brings**, on the same trajectories of grid S (two in each",
        "repeat), one process of one thread, without start-up; above 1: slower than `ours, alone`.",
        "",
        "| arm | seconds x `ours, alone` |",
        "|---|---|",
    ]
    for arm, row in found.items():
        about = MECHANISMS[arm].about.rpartition(": ")[2]
        low, high = row["range"]
        lines.append(f"| {arm}: {about} | {row['times_alone']} ({low} to {high}) |")
    return [*lines, ""]


def _ceiling(found: Mapping[str, Any]) -> list[str]:
    if not found:
        return []
    lines = [
        "**Share of one thread's matrix-product speed** in a training step of M (hidden size",
        "256), measured between the steps; attention, norms and optimizer count as time, not work.",
        "",
        "| arm | share | products at |",
        "|---|---|---|",
    ]
    for arm, row in found.items():
        low, high = row["range"]
        share = f"{row['share']:.0%} ({low:.0%} to {high:.0%}; n = {row['num_steps']})"
        lines.append(f"| {arm} | {share} | {row['ceiling_gflops']} GFLOP/s |")
    return [*lines, ""]


def _gates(gates: Sequence[Mapping[str, Any]]) -> list[str]:
    judged = [gate for gate in gates if gate["is_passed"] is not None]
    passed = sum(bool(gate["is_passed"]) for gate in judged)
    lines = [
        f"Before anything was timed {passed} of {len(judged)} gates passed. Not passed, or told:",
        "",
    ]
    rest = [gate for gate in gates if not gate["is_passed"]]
    lines += [f"- {gate['arm']}, {gate['about']}: {gate['found']}" for gate in rest]
    return lines
