"""Time what this process' device does: matrix products, copies, passes of small and real models.

Tasks come as JSON lines on stdin and answers leave as JSON lines on stdout. A process says that it
is ready and waits for a word, so that several begin at the same moment: two processes on one
machine share its memory and caches, and are slower than one. Models are timed through the functions
that train and score them, on random tokens as long as a study's.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, TextIO, final

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import nn

from sft_atlas.data.batches import Member, TrainingRows
from sft_atlas.data.prepared import PreparedRows
from sft_atlas.errors import Error
from sft_atlas.execute.timing_task import (
    TIMING_TASK,
    DeviceTimes,
    ModelTask,
    ModelTimes,
    to_json,
)
from sft_atlas.model.dropout import dropout_seeds
from sft_atlas.model.load import BaseModel, load_base
from sft_atlas.model.score import answer_log_likelihoods, computes_in
from sft_atlas.model.training_pass import summed_losses
from sft_atlas.train.holder import prepare_live
from sft_atlas.train.loop import is_out_of_memory
from sft_atlas.train.state import make_optimizer

_LENGTH_SIGMA: Final = 0.6
"""Of the logarithm of samples' lengths."""

_SCORED_TOKENS: Final = 4
_FEW_LAYERS, _MANY_LAYERS = 2, 8
_MIN_REPEATS: Final = 3

Work = Callable[[], Callable[[], None]]
"""Makes ready, and returns what is to be timed."""


@final
@dataclass(kw_only=True)
class Bench:
    """A device, and the base model that was timed last."""

    device: str
    base: BaseModel | None = None
    loaded: str = field(default="")
    """Fingerprint of the base model."""

    def base_of(self, task: ModelTask) -> BaseModel:
        spec = task.trajectory.model
        if self.base is None or self.loaded != spec.fingerprint:
            self.base = None
            self.base, self.loaded = load_base(spec, device=self.device), spec.fingerprint
        return self.base


def serve(bench: Bench, lines: TextIO, answers: TextIO) -> None:
    """Answer tasks until the input ends."""

    def send(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    for line in lines:
        task = TIMING_TASK.validate_json(line)
        try:
            timed = _model_work(bench, task) if isinstance(task, ModelTask) else _device_work(bench)
            send({"kind": "ready"})
            lines.readline()
            send({"kind": "times", "times": to_json(timed(task.seconds))})
        except Error as error:
            send({"kind": "skipped", "reason": str(error)})
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            send({"kind": "skipped", "reason": f"memory ran out ({error})"})


def _device_work(bench: Bench) -> Callable[[float], DeviceTimes]:
    is_gpu = bench.device == "cuda"
    models = [_random_model(layers).to(bench.device) for layers in (_FEW_LAYERS, _MANY_LAYERS)]

    def timed(seconds: float) -> DeviceTimes:
        part = seconds / (6 + is_gpu)
        singles, halves = (
            (_product_rate(bench.device, dtype, part) for dtype in (torch.float32, torch.bfloat16))
            if is_gpu
            else (_product_rate(bench.device, torch.float32, part),) * 2
        )
        steps = [np.median(_repeats(_bare_step(model), part, bench.device)) for model in models]
        reads = [np.median(_repeats(_bare_read(model), part, bench.device)) for model in models]
        num_layers = _MANY_LAYERS - _FEW_LAYERS
        layer_seconds = float(steps[1] - steps[0]) / num_layers
        return DeviceTimes(
            reported=torch.cuda.get_device_name() if is_gpu else "cpu",
            memory_bytes=torch.cuda.get_device_properties(0).total_memory if is_gpu else 0,
            float32_flops=singles,
            peak_flops=halves,
            bandwidth=_copy_rate(bench.device, part),
            train_layer_seconds=layer_seconds,
            forward_layer_seconds=float(reads[1] - reads[0]) / num_layers,
            step_seconds=max(0.0, float(steps[0]) - _FEW_LAYERS * layer_seconds),
        )

    return timed


def _random_model(num_layers: int) -> Any:
    config = transformers.LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    return transformers.LlamaForCausalLM(config).eval()


def _bare_step(model: Any) -> Callable[[], None]:
    member = _shortest()

    def step() -> None:
        model.zero_grad(set_to_none=True)
        torch.autograd.backward(summed_losses(model, [member]).sum())

    return step


def _bare_read(model: Any) -> Callable[[], None]:
    ids = torch.ones(1, 2, dtype=torch.int64, device=model.device)

    def read() -> None:
        with torch.no_grad():
            model(input_ids=ids, use_cache=False)

    return read


def _product_rate(device: str, dtype: torch.dtype, seconds: float) -> float:
    size = 8192 if device == "cuda" else 768
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(left)
    repeats = _repeats(lambda: torch.mm(left, right, out=product), seconds, device)
    return 2.0 * size**3 / min(repeats)


def _copy_rate(device: str, seconds: float) -> float:
    num_bytes = (1 << 30) if device == "cuda" else (1 << 26)
    source = torch.zeros(num_bytes // 4, device=device)
    target = torch.empty_like(source)
    return 2.0 * num_bytes / min(_repeats(lambda: target.copy_(source), seconds, device))


def _model_work(bench: Bench, task: ModelTask) -> Callable[[float], ModelTimes]:
    base = bench.base_of(task)
    works = _scoring(base, task) if task.work == "score" else _training(base, task)
    few, many, update = works

    def timed(seconds: float) -> ModelTimes:
        few_times = _repeats(few, 0.3 * seconds, bench.device)
        many_times = _repeats(many, 0.5 * seconds, bench.device)
        update_times = _repeats(update, 0.2 * seconds, bench.device) if update else [0.0]
        quarter, middle, three_quarters = np.quantile(many_times, [0.25, 0.5, 0.75])
        return ModelTimes(
            few_seconds=float(np.median(few_times)),
            many_seconds=float(middle),
            update_seconds=float(np.median(update_times)),
            spread=float((three_quarters - quarter) / 2 / middle),
            num_repeats=len(many_times),
        )

    return timed


Works = tuple[Callable[[], None], Callable[[], None], Callable[[], None] | None]
"""A pass over almost no tokens, one over as many as usual, and the optimizer."""


def _training(base: BaseModel, task: ModelTask) -> Works:
    run = task.trajectory
    parameters = prepare_live(base, run)
    optimizer = make_optimizer(run.method, parameters)
    optimizer.param_groups[0]["lr"] = 0.0
    usual = _rows(base, task), list(range(task.num_samples))

    def gradients(member: Member) -> None:
        optimizer.zero_grad(set_to_none=True)
        device = base.model.device
        with dropout_seeds([(0, 0)]), computes_in(run.precision, device):
            loss = summed_losses(base.model, [member]).sum()
        torch.autograd.backward(loss)

    def update() -> None:
        nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()

    return lambda: gradients(_shortest()), lambda: gradients(usual), update


def _scoring(base: BaseModel, task: ModelTask) -> Works:
    base.reset()
    rows = _rows(base, task)
    texts = [rows.example(index)[0].tolist() for index in range(task.num_samples)]
    usual = [(text[:-_SCORED_TOKENS] or text[:1], text[-_SCORED_TOKENS:]) for text in texts]

    def score(pairs: list[tuple[list[int], list[int]]]) -> None:
        with computes_in(task.trajectory.precision, base.model.device):
            answer_log_likelihoods(base.model, pairs)

    return lambda: score([([1], [1])]), lambda: score(usual), None


def _rows(base: BaseModel, task: ModelTask) -> TrainingRows:
    """Return random samples whose lengths are log-normal and add up to the task's tokens."""
    rng = np.random.default_rng(0)
    mean = np.log(task.sample_tokens) - _LENGTH_SIGMA**2 / 2
    drawn = rng.lognormal(mean, _LENGTH_SIGMA, task.num_samples)
    drawn *= task.pass_tokens / drawn.sum()
    lengths = np.clip(drawn.astype(np.int64), 2, max(2, task.trajectory.max_tokens))
    supervised = np.clip((lengths * task.supervised_fraction).astype(np.int64), 1, lengths - 1)
    vocabulary = base.model.config.get_text_config().vocab_size
    tokens = rng.integers(0, vocabulary, int(lengths.sum()), dtype=np.int32)
    return _as_rows(tokens, lengths, lengths - supervised)


def _shortest() -> Member:
    """Return one sample of two tokens."""
    two = np.array([2], dtype=np.int64)
    return _as_rows(np.zeros(2, dtype=np.int32), two, two - 1), [0]


def _as_rows(
    tokens: NDArray[np.int32], lengths: NDArray[np.int64], prompt_lengths: NDArray[np.int64]
) -> TrainingRows:
    places = np.arange(len(lengths), dtype=np.int64)
    prepared = PreparedRows(
        tokens=tokens,
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        prompt_lengths=prompt_lengths.astype(np.int32),
        rows=places,
        positions=places,
        result={},
    )
    return TrainingRows([prepared])


def _repeats(work: Callable[[], object], seconds: float, device: str) -> list[float]:
    """Do something again and again for a time, at least thrice; returns how long each took.

    One time that is longer than four times the allowance is enough.
    """
    work()
    found: list[float] = []
    begin = time.perf_counter()
    while True:
        started = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        found.append(now - started)
        if now - begin >= seconds and (len(found) >= _MIN_REPEATS or now - begin >= 4 * seconds):
            return found


def main() -> None:
    """Serve the parent process; libraries that print go to stderr."""
    answers = sys.stdout
    sys.stdout = sys.stderr
    torch.set_num_threads(int(sys.argv[2]))
    serve(Bench(device=sys.argv[1]), sys.stdin, answers)


if __name__ == "__main__":
    main()
