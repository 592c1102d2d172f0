"""Let the training engine take steps on random models, and time them; for `train_gpu.py`.

Times are those of `train_together`, the loop that studies train with: from the end of one optimizer
step to that of the next, whose losses the loop reads, so that no step overtakes the one before. The
device is waited for before the first and after the last. A run is ended by an exception of its
observer, so nothing is published.
"""

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, final

import numpy as np
import torch
from torch import Tensor, nn
from train_gpu_sums import DENSE_PEAK_TFLOPS, RANK, Row, Shape, spread, step_flops
from transformers import AutoConfig, AutoModelForCausalLM

from sft_atlas.data.batches import TrainingRows
from sft_atlas.data.prepared import PreparedRows
from sft_atlas.model.load import BaseModel
from sft_atlas.model.lora import LoraSpec
from sft_atlas.store.records import Record
from sft_atlas.store.store import open_store
from sft_atlas.study.job import TrainJob
from sft_atlas.study.spec import (
    DataPart,
    DatasetSpec,
    DataSpec,
    MethodSpec,
    ModelSpec,
    Precision,
    ScheduleSpec,
    Source,
    TrajectorySpec,
)
from sft_atlas.train.loop import Entrant, train_together
from sft_atlas.train.placement import Observers, TrainPlacement

ENDLESS: Final = 1_000_000
"""Epochs of a run that is stopped before."""
NOT_READ: Final = "0" * 64
LORA: Final = LoraSpec(rank=RANK, alpha=2.0 * RANK)


class Enough(Exception):
    """All steps that were asked for are taken."""


@final
@dataclass(frozen=True, kw_only=True)
class Work:
    """What every run of a measurement does in a step."""

    is_lora: bool
    documents: int
    tokens: int
    """Of a run's step, about: its documents are drawn."""
    varies: bool = True
    """Documents of half to three halves of the mean; else all alike."""
    supervised_fraction: float = 0.5
    precision: Precision = "bfloat16"
    masters: Precision = "float32"

    def rows(self, vocabulary: int, *, num_steps: int = 4) -> TrainingRows:
        """Return random samples for some steps, the front part of each a prompt."""
        draws = np.random.default_rng(0)
        number, mean = self.documents * num_steps, self.tokens / self.documents
        factors = draws.uniform(0.5, 1.5, number) if self.varies else np.ones(number)
        lengths = np.maximum(2, np.round(mean * factors / factors.mean())).astype(np.int64)
        prompts = np.minimum(lengths - 1, np.round(lengths * (1 - self.supervised_fraction)))
        order = np.arange(number, dtype=np.int64)
        prepared = PreparedRows(
            tokens=draws.integers(2, vocabulary, lengths.sum()).astype(np.int32),
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            prompt_lengths=prompts.astype(np.int32),
            rows=order,
            positions=order,
            result={},
        )
        return TrainingRows([prepared])

    def job(self, model: ModelSpec, *, seed: int, keep_epochs: tuple[int, ...]) -> TrainJob:
        dataset = DatasetSpec(name="random", source=Source(sha256=NOT_READ))
        part = DataPart(dataset=dataset, num_samples=self.documents)
        method = MethodSpec(
            learning_rate=1e-4,
            batch_samples=self.documents,
            lora=LORA if self.is_lora else None,
            name="lora" if self.is_lora else "full",
        )
        trajectory = TrajectorySpec(
            model=model,
            data=DataSpec(name="random", parts=(part,)),
            method=method,
            schedule=ScheduleSpec(kind="constant"),
            horizon_epochs=None,
            template="question-answer",
            max_tokens=8192,
            seed=seed,
            precision=self.precision,
            master_precision=self.masters,
        )
        return TrainJob(trajectory=trajectory, keep_epochs=keep_epochs, benchmarks=())


def make_model(shape: Shape, device: str) -> nn.Module:
    """Return a random model in float32, made where it is to be."""
    config = AutoConfig.for_model(shape.architecture, **shape.config())
    torch.manual_seed(0)
    with torch.device(device):
        model: nn.Module = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.to(device).eval()


def make_base(shape: Shape, device: str, *, pristine: str | None = None) -> BaseModel:
    """Return a base model of random weights, without files.

    Its pristine weights lie on the device, where a worker has them in the machine's memory: copying
    them is no part of a step. `pristine="cpu"` puts them where a worker has them.
    """
    model: Any = make_model(shape, device)
    kept = {n: p.detach().to(pristine or device, copy=True) for n, p in model.named_parameters()}
    spec = ModelSpec(name="random", source=Source(sha256=NOT_READ))
    return BaseModel(spec=spec, folder=Path("none"), model=model, pristine=kept)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@final
@dataclass(kw_only=True)
class Clock:
    """Watches the last run of a group, behind whose step a step of all is over."""

    device: torch.device
    warm_up: int
    steps: int
    begun: float = field(default_factory=time.perf_counter)
    marks: list[float] = field(default_factory=list)

    def tick(self, done: int, _all: int) -> None:
        if done == 1 or done == self.warm_up or done == self.warm_up + self.steps:
            wait(self.device)
        self.marks.append(time.perf_counter())

    @property
    def seconds(self) -> list[float]:
        """Return the times of the steps behind the warm-up."""
        return np.diff(self.marks[self.warm_up - 1 :]).tolist()


def take_steps(
    base: BaseModel,
    work: Work,
    placement: TrainPlacement,
    *,
    num_runs: int = 1,
    warm_up: int = 3,
    steps: int = 10,
) -> Row:
    """Train runs together until all have taken these steps; returns what they took.

    Raises:
        Exception: whatever ended a run before.
    """
    device = base.model.device
    rows = work.rows(base.model.config.vocab_size)
    clock = Clock(device=device, warm_up=warm_up, steps=steps)

    def observers(number: int) -> Observers:
        def on_step(done: int, all_steps: int) -> None:
            if number == num_runs - 1:
                clock.tick(done, all_steps)
            if done == warm_up + steps:
                raise Enough

        return Observers(on_step=on_step)

    ends: list[Record | Exception] = []
    entrants = [
        Entrant(
            job=work.job(base.spec, seed=number, keep_epochs=(ENDLESS,)),
            rows=rows,
            observers=observers(number),
        )
        for number in range(num_runs)
    ]
    before = _memory_stat(device, "num_ooms")
    with tempfile.TemporaryDirectory() as folder:
        train_together(
            entrants,
            store=open_store(Path(folder), create=True),
            base=base,
            placement=replace(placement, checkpoint_seconds=1e9),
            on_end=lambda _job, end: ends.append(end),
        )
    for end in ends:
        if not isinstance(end, Enough):
            raise end if isinstance(end, Exception) else RuntimeError("a run ended by itself")
    mean = float(rows.lengths.mean()) * work.documents
    return {
        **spread(clock.seconds),
        "mean_ms": 1e3 * sum(clock.seconds) / steps,
        "begin_s": clock.marks[0] - clock.begun,
        "tokens": mean * num_runs,
        "tokens_per_second": mean * num_runs / spread(clock.seconds)["median_ms"] * 1e3,
        "out_of_memory_retries": _memory_stat(device, "num_ooms") - before,
    }


def utilisation(shape: Shape, work: Work, row: Row, ceiling: float | None) -> Row:
    """Return what part of the device's rate a step's operations are; `ceiling` in TFLOP/s."""
    rows = work.rows(shape.vocabulary)
    chosen = range(len(rows))
    whole = step_flops(
        shape, rows.lengths.tolist(), rows.num_supervised(chosen), is_lora=work.is_lora
    )
    # The rows are those of several steps.
    share = row["tokens"] / float(rows.lengths.sum())
    flops = {name: value * share for name, value in whole.items()}
    rate = sum(flops.values()) / row["median_ms"] * 1e3 / 1e12
    found = {f"tera_operations_{name}": value / 1e12 for name, value in flops.items()}
    found["tflops"] = rate
    if ceiling is not None:
        found |= {"of_ceiling": rate / ceiling, "of_989": rate / DENSE_PEAK_TFLOPS}
    return found


def time_calls(call: Any, device: torch.device, *, warm_up: int, steps: int) -> list[float]:
    """Return the seconds of each call, with the device waited for around it."""
    seconds = []
    for number in range(warm_up + steps):
        wait(device)
        started = time.perf_counter()
        call()
        wait(device)
        if number >= warm_up:
            seconds.append(time.perf_counter() - started)
    return seconds


def matmul_tflops(device: torch.device, size: int) -> Row:
    """Return the rate of a square bfloat16 product on random data."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    into: Tensor = torch.empty_like(a)
    seconds = time_calls(lambda: torch.mm(a, b, out=into), device, warm_up=5, steps=20)
    found = spread(seconds)
    return {**found, "tflops": 2 * size**3 / found["median_ms"] * 1e3 / 1e12}


def copy_rate(device: torch.device, num_bytes: int) -> Row:
    """Return what a copy on the device moves, bytes read and written."""
    a = torch.randint(0, 255, (num_bytes,), device=device, dtype=torch.uint8)
    into = torch.empty_like(a)
    found = spread(time_calls(lambda: into.copy_(a), device, warm_up=3, steps=10))
    return {**found, "terabytes_per_second": 2 * num_bytes / found["median_ms"] * 1e3 / 1e12}


@contextmanager
def peak_memory(device: torch.device) -> Iterator[list[int]]:
    """Lend a list whose one entry becomes the most bytes that were allocated in the block."""
    peak = [0]
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    yield peak
    if device.type == "cuda":
        peak[0] = torch.cuda.max_memory_allocated(device)


def _memory_stat(device: torch.device, name: str) -> int:
    return int(torch.cuda.memory_stats(device)[name]) if device.type == "cuda" else 0


def loss_gap(found: Sequence[float], expected: Sequence[float]) -> float:
    """Return the largest relative difference of losses; infinite where one is not finite."""
    gaps = np.abs(np.subtract(found, expected)) / np.abs(expected)
    return float(gaps.max()) if np.isfinite(gaps).all() else float("inf")
