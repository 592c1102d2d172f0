"""Where a part of `train_gpu.py` runs, at which sizes, and whom it tells."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, TypeVar, final
from unittest import mock

import torch
from torch import nn
from torch._dynamo.utils import counters
from train_gpu_engine import Work, make_base, matmul_tflops, take_steps
from train_gpu_sums import SHAPES, SMOKE_SHAPE, Row, Shape

from sft_atlas.model.load import BaseModel
from sft_atlas.train.placement import TrainPlacement

Value = TypeVar("Value")

PASS_TOKENS: Final = 32_768
"""Of all runs together; activations of the 0.5 B at that are about half of the memory."""


@final
@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where a part runs, and whom it tells."""

    is_smoke: bool
    emit: Callable[[Row], None]

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.is_smoke else "cuda")

    @cached_property
    def ceiling(self) -> float:
        """bfloat16 products in this process, TFLOP/s."""
        return float(matmul_tflops(self.device, 128 if self.is_smoke else 8192)["tflops"])

    def shape(self, name: str) -> Shape:
        return SMOKE_SHAPE if self.is_smoke else SHAPES[name]

    def base(self, name: str, *, pristine: str | None = None) -> BaseModel:
        return make_base(self.shape(name), str(self.device), pristine=pristine)

    def few(self, values: Sequence[Value]) -> Sequence[Value]:
        """Return the values to measure: in a smoke run the first alone."""
        return values[:1] if self.is_smoke else values

    def work(self, *, is_lora: bool, tokens: int, document: int = 128, **more: Any) -> Work:
        """Return steps of documents of some mean length."""
        if self.is_smoke:
            tokens, document = max(32, tokens // 64), max(8, document // 64)
        documents = max(1, round(tokens / document))
        return Work(is_lora=is_lora, documents=documents, tokens=tokens, **more)

    def timed(
        self, base: BaseModel, name: str, work: Work, *, num_runs: int = 1, **placement: Any
    ) -> Row:
        """Time steps and say so; `name` is the row's, `placement` TrainPlacement's."""
        numbers = {"warm_up": 1, "steps": 2} if self.is_smoke else {"warm_up": 4, "steps": 12}
        settings = {"micro_batch_tokens": 256 if self.is_smoke else PASS_TOKENS} | placement
        with _tracing_only(self.is_smoke and bool(placement.get("compile"))):
            row = take_steps(base, work, TrainPlacement(**settings), num_runs=num_runs, **numbers)
        if placement.get("compile"):
            # More of them with each measurement: code is compiled anew instead of used again.
            row["graphs_so_far"] = counters["stats"]["unique_graphs"]
        self.emit({"name": name, **row})
        return row


@contextmanager
def _tracing_only(is_wanted: bool) -> Iterator[None]:
    """Let `torch.compile` trace code and generate none: that takes a minute on a CPU."""
    with ExitStack() as stack:
        if is_wanted:
            compile_module = nn.Module.compile

            def traced(model: nn.Module, **options: Any) -> None:
                compile_module(model, **options, backend="eager")

            stack.enter_context(mock.patch.object(nn.Module, "compile", traced))
        yield


def gate(bench: Bench, name: str, gap: float, bound: float, **more: Any) -> None:
    row = {"name": name, "passed": bool(gap <= bound), "relative_gap": gap, "bound": bound}
    bench.emit({**row, **more})
