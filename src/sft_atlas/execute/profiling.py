"""Measure how fast this machine's device is, and how fast the base models of a study are on it.

In: a placement and a study. Out: a `Profile`. As many processes measure at the same time as a run
would start, since they share memory and caches; of what they saw the median counts. A base model is
skipped, with a reason, where it is not on this machine, too large, or too slow to be timed.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import IO, Any, Final

from sft_atlas.catalog.cards import ModelCard
from sft_atlas.catalog.devices import Device
from sft_atlas.errors import JobError
from sft_atlas.execute.local import worker_environment
from sft_atlas.execute.placement import Placement
from sft_atlas.execute.timing_task import (
    TIMING_TASK,
    DeviceTask,
    DeviceTimes,
    ModelTask,
    ModelTimes,
    TimingTask,
)
from sft_atlas.machine import Processor, free_memory_bytes, memory_bytes
from sft_atlas.study.assumption import scenarios
from sft_atlas.study.cost import CostModel
from sft_atlas.study.draft import Draft
from sft_atlas.study.passes import MICRO_BATCH_TOKENS, SCORE_BATCH_TOKENS
from sft_atlas.study.profile import BUSY_LOAD, Profile, Skipped, Speed, Work, work_of
from sft_atlas.study.shape import reading_flops, training_flops
from sft_atlas.study.spec import TrajectorySpec
from sft_atlas.study.study import Study

DEVICE_SECONDS: Final = 2.0
MODEL_SECONDS: Final = 1.5
"""How long each kind of work on each base model is timed."""

MAX_PASS_SECONDS: Final = 20.0
"""A base model whose shortest pass takes longer is not timed."""

_MEMORY_FRACTION: Final = 0.8
_MIN_PASS_TOKENS: Final = 256
_SCORED_TOKENS: Final = 4
_ACTIVATION_BYTES: Final = 68
"""Per token, layer and hidden unit: 34 in half precision (Korthikanti et al. 2022, eq. 1)."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One base model under one kind of work, as the study uses it."""

    work: Work
    trajectory: TrajectorySpec
    card: ModelCard | None
    """None where nothing states the model's size."""
    sample_tokens: float
    supervised_fraction: float

    @property
    def name(self) -> str:
        return self.trajectory.model.name


def measure_profile(
    processor: Processor,
    placement: Placement,
    candidates: Sequence[Candidate],
    *,
    seconds: float = MODEL_SECONDS,
) -> Profile:
    """Measure a device and base models on it; takes seconds for each of them.

    Raises:
        JobError: if the processes that measure cannot start.
    """
    is_gpu = placement.device == "cuda"
    # Several GPUs share nothing that is measured here.
    placement = replace(placement, num_workers=1 if is_gpu else placement.num_workers)
    num_processes = placement.num_workers
    date = time.strftime("%Y-%m-%d", time.gmtime())
    load = os.getloadavg()[0]
    speeds: list[Speed] = []
    skipped: dict[str, Skipped] = {}
    with _team(placement) as team:
        found = team.ask(DeviceTask(seconds=seconds * DEVICE_SECONDS / MODEL_SECONDS))
        if isinstance(found, str):
            raise JobError(f"profile: {found}; `sft-atlas doctor` says what is missing.")
        times = [DeviceTimes(**answer) for answer in found]
        profile = _device_profile(processor, times, num_processes, date, load)
        for candidate in candidates:
            task = task_for(candidate, profile, seconds=seconds)
            answer = task if isinstance(task, str) else team.ask(task)
            if isinstance(task, str) or isinstance(answer, str):
                skipped[candidate.name] = Skipped(name=candidate.name, reason=str(answer))
                continue
            seen = [ModelTimes(**times) for times in answer]
            speeds.append(speed_from(candidate, task, seen, is_gpu=is_gpu, date=date))
    return replace(profile, speeds=tuple(speeds), skipped=tuple(skipped.values()))


def candidates_of(study: Study) -> list[Candidate]:
    """Return what to time of a study: for each base model scoring, and each kind of training."""
    costs = CostModel(study, "cpu-core")
    found: dict[tuple[str, Work], Candidate] = {}
    for run in Draft.of(study).trajectories.values():
        works: list[Work] = [work_of(run.method.lora)]
        if study.benchmarks:
            works.append("score")
        for work in works:
            key = (run.model.name, work)
            if key not in found:
                epoch = costs.trainings.tokens(run)
                found[key] = Candidate(
                    work=work,
                    trajectory=run,
                    card=study.model_by_name[run.model.name].card,
                    sample_tokens=epoch.num_tokens / run.data.num_samples,
                    supervised_fraction=epoch.supervised_fraction,
                )
    order = list(study.model_by_name)
    return sorted(found.values(), key=lambda c: (order.index(c.name), c.work))


def _device_profile(
    processor: Processor,
    times: Sequence[DeviceTimes],
    num_processes: int,
    date: str,
    load: float,
) -> Profile:
    def middle(name: str) -> float:
        return float(median(getattr(seen, name) for seen in times))

    rates = ("peak_flops", "float32_flops", "bandwidth")
    layers = ("forward_layer_seconds", "train_layer_seconds")
    # A difference of two noisy times may be 0, where a card needs a time.
    speeds = {name: max(middle(name), 1e-9) for name in (*rates, *layers)}
    source = f"measured on this machine, {date}"
    if load > BUSY_LOAD:
        source += f", while other programs were at work (load {load:.1f})"
    if num_processes > 1:
        source += f", one of {num_processes} processes at once"
    return Profile(
        device=Device(
            name=f"{processor.name} (measured)",
            kind=processor.kind,
            memory_bytes=middle("memory_bytes") or memory_bytes() / num_processes,
            source=source,
            **speeds,
        ),
        is_measured=True,
        reported=times[0].reported,
        num_processes=num_processes,
        load=load,
        step_seconds=middle("step_seconds"),
        date=date,
    )


def task_for(candidate: Candidate, profile: Profile, *, seconds: float) -> ModelTask | str:
    """Return what to time, or why not: size, memory, time."""
    card, run = candidate.card, candidate.trajectory
    if card is None:
        return "nothing states its size; add `parameters:` to its entry in the study file"
    kind = "cuda" if profile.device.kind == "gpu" else "cpu"
    if candidate.work == "score":
        most = SCORE_BATCH_TOKENS[kind]
    else:
        step_tokens = run.method.batch_samples * candidate.sample_tokens
        most = min(MICRO_BATCH_TOKENS[kind], int(step_tokens))
    rate = profile.peak_flops(run.precision) * scenarios()[1].train_utilisation
    token_seconds = _token_flops(candidate, card) / rate
    if _MIN_PASS_TOKENS * token_seconds > MAX_PASS_SECONDS:
        return (
            f"too slow to time here: {_MIN_PASS_TOKENS} tokens would take about "
            f"{_MIN_PASS_TOKENS * token_seconds:.0f} s"
        )
    fast = max(_MIN_PASS_TOKENS, int(MAX_PASS_SECONDS / token_seconds))
    num_samples = max(1, int(min(most, fast) / candidate.sample_tokens))
    needed = _needed_bytes(candidate, card, num_samples * candidate.sample_tokens)
    free = _MEMORY_FRACTION * profile.device.memory_bytes
    if profile.device.kind == "cpu":
        free = min(free, _MEMORY_FRACTION * free_memory_bytes() / profile.num_processes)
    if needed > free:
        return f"too large for this device: {needed / 1e9:.1f} GB of {free / 1e9:.1f} GB"
    return ModelTask(
        seconds=seconds,
        work=candidate.work,
        trajectory=run,
        num_samples=num_samples,
        sample_tokens=candidate.sample_tokens,
        supervised_fraction=candidate.supervised_fraction,
    )


def _token_flops(candidate: Candidate, card: ModelCard) -> float:
    length = candidate.sample_tokens
    if candidate.work == "score":
        return reading_flops(card, length, min(1.0, _SCORED_TOKENS / length))
    lora = candidate.trajectory.method.lora
    return training_flops(card, lora, length, candidate.supervised_fraction)


def _needed_bytes(candidate: Candidate, card: ModelCard, pass_tokens: float) -> float:
    """Count live and pristine weights in float32, an optimizer's state, and activations."""
    weights = 8.0 * card.parameters
    if candidate.work == "score":
        return weights
    state = 12.0 * card.parameters if candidate.work == "full" else 0.0
    return weights + state + _ACTIVATION_BYTES * card.layers * card.hidden_size * pass_tokens


def speed_from(
    candidate: Candidate,
    task: ModelTask,
    seen: Sequence[ModelTimes],
    *,
    is_gpu: bool,
    date: str,
) -> Speed:
    """Return what processes saw at the same time as one speed: of each number the median."""
    assert candidate.card is not None, "only a model of known size is timed"
    few, many = (
        median(times.few_seconds for times in seen),
        median(times.many_seconds for times in seen),
    )
    # A GPU computes while operators are issued: what they take is hidden in a long pass.
    busy = many if is_gpu else max(many - few, 0.1 * many)
    return Speed(
        model=task.trajectory.model.fingerprint,
        name=candidate.name,
        work=task.work,
        precision=task.trajectory.precision,
        pass_seconds=few,
        update_seconds=median(times.update_seconds for times in seen),
        token_seconds=busy / task.pass_tokens,
        token_flops=_token_flops(candidate, candidate.card),
        pass_tokens=task.pass_tokens,
        tokens_per_second=task.pass_tokens / many,
        spread=median(times.spread for times in seen),
        date=date,
    )


class _Team:
    """Processes that time the same thing at the same moment."""

    def __init__(self, placement: Placement) -> None:
        self._placement = placement
        self._processes: list[subprocess.Popen[str]] = []

    def ask(self, task: TimingTask) -> list[dict[str, Any]] | str:
        """Return what each process saw, or why one could not do it."""
        if not self._processes:
            self._start()
        line = TIMING_TASK.dump_json(task).decode() + "\n"
        ready = self._exchange(line)
        reasons = [answer["reason"] for answer in ready if answer["kind"] != "ready"]
        if not reasons:
            seen = self._exchange("\n")
            reasons = [answer["reason"] for answer in seen if answer["kind"] != "times"]
            if not reasons:
                return [answer["times"] for answer in seen]
        # The others may wait for a word: they begin anew.
        self.close()
        return str(reasons[0])

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            for stream in (process.stdin, process.stdout):
                assert stream is not None
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
            process.wait()
        self._processes = []

    def _start(self) -> None:
        command = [sys.executable, "-m", "sft_atlas.execute.timing"]
        arguments = [self._placement.device, str(self._placement.num_threads)]
        for number in range(self._placement.num_workers):
            # What is not on this machine is no base model to time: nothing is downloaded for it.
            environment = worker_environment(self._placement, number) | {"HF_HUB_OFFLINE": "1"}
            self._processes.append(
                subprocess.Popen(
                    command + arguments,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    env=environment,
                    text=True,
                )
            )

    def _exchange(self, line: str) -> list[dict[str, Any]]:
        for process in self._processes:
            with contextlib.suppress(BrokenPipeError):  # its end shows as the end of its output
                _stream(process.stdin).write(line)
                _stream(process.stdin).flush()
        answers = []
        for process in self._processes:
            answer = _stream(process.stdout).readline()
            if not answer:
                reason = f"the process that timed it ended with code {process.wait()}"
                answers.append({"kind": "ended", "reason": reason})
            else:
                answers.append(json.loads(answer))
        return answers


def _stream(stream: IO[str] | None) -> IO[str]:
    assert stream is not None, "the process was started with pipes"
    return stream


@contextlib.contextmanager
def _team(placement: Placement) -> Iterator[_Team]:
    team = _Team(placement)
    try:
        yield team
    finally:
        team.close()
