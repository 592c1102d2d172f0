"""The parts of `train_gpu.py`: what is asked of the training engine, part by part."""

import platform
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple
from unittest import mock

import torch
import transformers
from torch import Tensor
from train_gpu_bench import Bench, gate
from train_gpu_checks import do_correct, do_resume
from train_gpu_engine import (
    LORA,
    copy_rate,
    matmul_tflops,
    peak_memory,
    time_calls,
    utilisation,
)
from train_gpu_sums import Row, spread

from sft_atlas.model import packed
from sft_atlas.model.load import BaseModel
from sft_atlas.model.memory import training_memory
from sft_atlas.model.score import computes_in
from sft_atlas.model.training_pass import batch_losses, can_pack, lay_out
from sft_atlas.train.holder import prepare_live
from sft_atlas.train.state import LocalState, clear_gradients


def do_ceiling(bench: Bench) -> None:
    """Measure what the device can, and say what is installed."""
    device = bench.device
    about = {"torch": torch.__version__, "transformers": transformers.__version__}
    about["device"] = platform.machine()
    if device.type == "cuda":
        about["device"] = torch.cuda.get_device_name(device)
    bench.emit({"name": "versions", **about})
    size = 128 if bench.is_smoke else 8192
    bench.emit({"name": "matrix product", **matmul_tflops(device, size)})
    bench.emit({"name": "copy", **copy_rate(device, 1 << (20 if bench.is_smoke else 32))})


def _do_single(name: str) -> Callable[[Bench], None]:
    def do(bench: Bench) -> None:
        """Time one run in full passes of 2,048-token documents, full and LoRA."""
        base, shape = bench.base(name), bench.shape(name)
        per_token = {}
        for is_lora in (False, True):
            kind = "lora" if is_lora else "full"
            for fraction in bench.few((0.5, 1.0)):
                work = bench.work(
                    is_lora=is_lora, tokens=16_384, document=2048, varies=False,
                    supervised_fraction=fraction,
                )  # fmt: skip
                label = f"{name} {kind}, eager, 16384 tokens"
                label += "" if fraction == 0.5 else ", all supervised"
                row = bench.timed(base, label + " (times)", work)
                bench.emit({"name": label, "tokens_per_second": row["tokens_per_second"],
                            **utilisation(shape, work, row, bench.ceiling)})  # fmt: skip
                per_token.setdefault(kind, row["median_ms"])
        gain = per_token["full"] / per_token["lora"]
        bench.emit({"name": f"{name}, lora against full", "gain_per_token": gain})

    return do


def _stack(
    bench: Bench, name: str, *, is_lora: bool, sizes: Sequence[int], tokens: Sequence[int],
    compile: bool = False, base: BaseModel | None = None, **more: Any,
) -> None:  # fmt: skip
    """Time runs alone and stacked; the gain is that over one run after another."""
    base = base or bench.base(name)
    label = f"{name} {'lora' if is_lora else 'full'}" + (", compiled" if compile else "")
    for own in bench.few(tokens):
        work = bench.work(is_lora=is_lora, tokens=own, **more)
        alone = bench.timed(base, f"{label}, alone, {own} tokens", work, compile=compile)
        for number in bench.few(sizes):
            row_name = f"{label}, {number} runs of {own} tokens"
            row = bench.timed(
                base, row_name + " (times)", work, num_runs=number, compile=compile,
                stack_runs=max(2, number),
            )  # fmt: skip
            gain = number * alone["median_ms"] / row["median_ms"]
            bench.emit({"name": row_name, "gain": gain,
                        "tokens_per_second": row["tokens_per_second"]})  # fmt: skip


def _issue(bench: Bench, base: BaseModel, label: str, *, is_lora: bool, **placement: Any) -> None:
    """Split a step's time into what it costs to be issued and what a token costs."""
    few, some, many = (
        bench.timed(
            base, f"{label}, {tokens} tokens (times)",
            bench.work(is_lora=is_lora, tokens=tokens), **placement,
        )
        for tokens in (128, 8192, 16_384)
    )  # fmt: skip
    slope = (many["median_ms"] - some["median_ms"]) / (many["tokens"] - some["tokens"])
    crossover = few["median_ms"] / slope if slope > 0 else float("inf")
    bench.emit({"name": label, "issue_ms": few["median_ms"], "us_per_token": 1e3 * slope,
                "crossover_tokens": crossover})  # fmt: skip


def do_stack_lora(bench: Bench) -> None:
    """Fused against sequential LoRA runs of the 0.5 B."""
    base = bench.base("0.5b")
    _issue(bench, base, "0.5b lora, eager", is_lora=True)
    _stack(bench, "0.5b", is_lora=True, sizes=(2, 1, 4, 8, 16), tokens=(512, 1600, 8000), base=base)


def do_stack_full(bench: Bench) -> None:
    """Stacked against sequential full fine-tunes of the 135 M."""
    base = bench.base("135m")
    _issue(bench, base, "135m full, eager", is_lora=False)
    _stack(bench, "135m", is_lora=False, sizes=(2, 1, 4, 8), tokens=(512, 1600, 8000), base=base)


def do_compile_full(bench: Bench) -> None:
    """The 135 M compiled, alone in full passes, and its steps' issue time."""
    base, shape = bench.base("135m"), bench.shape("135m")
    work = bench.work(is_lora=False, tokens=16_384, document=2048, varies=False)
    label = "135m full, compiled, 16384 tokens"
    row = bench.timed(base, label + " (times)", work, compile=True)
    bench.emit({"name": label, "tokens_per_second": row["tokens_per_second"],
                **utilisation(shape, work, row, bench.ceiling)})  # fmt: skip
    if not bench.is_smoke:
        _issue(bench, base, "135m full, compiled", is_lora=False, compile=True)


def do_compile_lora(bench: Bench) -> None:
    """The 0.5 B with LoRA compiled, alone and stacked."""
    base = bench.base("0.5b")
    if bench.is_smoke:
        bench.timed(base, "lora, compiled", bench.work(is_lora=True, tokens=512), compile=True)
        return
    _issue(bench, base, "0.5b lora, compiled", is_lora=True, compile=True)
    _stack(bench, "0.5b", is_lora=True, sizes=(4, 16), tokens=(512, 1600, 8000), base=base,
           compile=True)  # fmt: skip


def do_graph(bench: Bench) -> None:
    """Capture forward and backward pass of one layout in a CUDA graph, as a bound on what
    captured steps could gain: documents change with every step, so an engine would need more."""
    base = bench.base("0.5b")
    for tokens in bench.few((512, 1600)):
        work = bench.work(is_lora=True, tokens=tokens)
        spec = work.job(base.spec, seed=0, keep_epochs=(1,)).trajectory
        state = LocalState(spec.method, prepare_live(base, spec))
        rows = work.rows(base.model.config.vocab_size)
        _time_graph(bench, base.model, state, (rows, list(range(work.documents))), tokens)
        base.reset()


def _time_graph(bench: Bench, model: Any, state: LocalState, member: Any, tokens: int) -> None:
    assert can_pack(model), "a graph is captured of packed samples"
    device = bench.device
    batch = lay_out(model, [member], packed=True)
    made = packed._begin(model, batch)

    def passes() -> Tensor:
        with computes_in("bfloat16", device):
            loss = batch_losses(model, batch).sum() / sum(batch.num_supervised)
        torch.autograd.backward(loss)
        return loss.detach()

    def eager() -> None:
        clear_gradients(state.parameters)
        passes()
        state.clip()
        state.move(0.0)

    numbers = {"warm_up": 3, "steps": 10 if device.type == "cuda" else 2}
    label = f"0.5b lora, {tokens} tokens"
    bench.emit({"name": f"{label}, passes without the loop",
                **spread(time_calls(eager, device, **numbers))})  # fmt: skip
    if device.type != "cuda":
        bench.emit({"name": f"{label}, CUDA graph", "left_out": "a CPU has none"})
        return
    clear_gradients(state.parameters)
    expected = float(passes())
    # Lengths were copied to the device with the layout: inside a capture nothing may be.
    with mock.patch.object(packed, "_begin", lambda *_: made):
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(3):
                clear_gradients(state.parameters)
                passes()
        torch.cuda.current_stream().wait_stream(beside)
        clear_gradients(state.parameters)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = passes()

    def replayed() -> None:
        graph.replay()
        state.clip()
        state.move(0.0)

    row = spread(time_calls(replayed, device, **numbers))
    gate(bench, f"{label}: a replayed pass loses the same", abs(float(loss) / expected - 1), 1e-2)
    bench.emit({"name": f"{label}, CUDA graph", **row})


def do_memory(bench: Bench) -> None:
    """Compare predicted with allocated memory."""
    cases = (
        ("0.5b", True, 8), ("0.5b", True, 1), ("0.5b", False, 1), ("135m", False, 1),
        ("135m", False, 4),
    )  # fmt: skip
    for name, is_lora, num_runs in bench.few(cases):
        base = bench.base(name, pristine="cpu")
        _compare_memory(bench, base, name, is_lora=is_lora, num_runs=num_runs)


def _compare_memory(
    bench: Bench, base: BaseModel, name: str, *, is_lora: bool, num_runs: int = 1, **more: Any
) -> Row:
    """Predict and take a step of one pass of each run; returns its times."""
    label = f"{name} {'lora' if is_lora else 'full'}"
    label += f", {num_runs} runs" if num_runs > 1 else ""
    label += ", bfloat16 masters" if more.get("masters") == "bfloat16" else ""
    work = bench.work(is_lora=is_lora, tokens=8192 // num_runs, document=1024, varies=False, **more)
    memory = training_memory(
        base, LORA if is_lora else None, precision="bfloat16", master_precision=work.masters
    )
    longest = round(work.tokens / work.documents)
    predicted = memory.peak(
        num_runs, pass_tokens=work.tokens * num_runs, longest=longest, num_passes=1
    )
    with peak_memory(bench.device) as peak:
        row = bench.timed(base, f"{label}, 8192 tokens (times)", work, num_runs=num_runs,
                          stack_runs=num_runs)  # fmt: skip
    found: Row = {"predicted_gib": predicted / 2**30, "measured_gib": peak[0] / 2**30}
    if peak[0]:
        found["measured_of_predicted"] = peak[0] / predicted
    bench.emit({"name": f"memory of {label}", **found})
    return row


def do_seven(bench: Bench) -> None:
    """LoRA on a 7 B: does it run, in what memory, how fast, and does stacking pay?"""
    base, shape = bench.base("7b", pristine="cpu"), bench.shape("7b")
    for masters in bench.few(("float32", "bfloat16")):
        row = _compare_memory(bench, base, "7b", is_lora=True, masters=masters)
        work = bench.work(is_lora=True, tokens=8192, document=1024, varies=False, masters=masters)
        label = "7b lora" if masters == "float32" else "7b lora, bfloat16 masters"
        bench.emit({"name": label, "tokens_per_second": row["tokens_per_second"],
                    "us_per_token": 1e6 / row["tokens_per_second"],
                    **utilisation(shape, work, row, bench.ceiling)})  # fmt: skip
    _stack(bench, "7b", is_lora=True, sizes=(4,), tokens=(512, 1600), base=base)


class Part(NamedTuple):
    """What is asked, and how long the answer may take."""

    do: Callable[[Bench], None]
    limit_seconds: float


PARTS: Final = {
    "ceiling": Part(do_ceiling, 60),
    "correct": Part(do_correct, 120),
    "resume": Part(do_resume, 120),
    "single-135m": Part(_do_single("135m"), 90),
    "single-0.5b": Part(_do_single("0.5b"), 120),
    "stack-lora": Part(do_stack_lora, 200),
    "stack-full": Part(do_stack_full, 150),
    "graph": Part(do_graph, 90),
    "memory": Part(do_memory, 120),
    "compile-full": Part(do_compile_full, 180),
    "compile-lora": Part(do_compile_lora, 280),
    "7b": Part(do_seven, 280),
}
"""In the order in which they run: no speed before it is known that the results are right."""
