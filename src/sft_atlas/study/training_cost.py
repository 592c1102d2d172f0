"""Estimate what a training run costs: its optimizer steps, and what stands around them.

A step takes a time for each token, one for each pass and one for the optimizer. They are measured
where the device's profile has the base model, else they follow from FLOPs, layers and bytes. What
finished runs took corrects the steps of those that are left.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from sft_atlas.study.assumption import Range, Scenario
from sft_atlas.study.correction import ComparedRun
from sft_atlas.study.passes import MICRO_BATCH_TOKENS
from sft_atlas.study.profile import work_of
from sft_atlas.study.shape import matmul_weights, training_flops
from sft_atlas.study.spec import TrajectorySpec

if TYPE_CHECKING:
    from sft_atlas.study.cost import CostModel

_OPTIMIZER_BYTES = 28
"""Read and written per trained weight and step: weight, gradient and two moments, float32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TimedRun:
    """A finished training run and how long its optimizer steps took, over all its processes."""

    trajectory: TrajectorySpec
    epochs: int
    seconds: float
    device: str
    """As its outcome's provenance names it."""


class StepRates(NamedTuple):
    """What a step costs, seconds."""

    token: float
    """Arithmetic of one token."""
    one_pass: float
    """A pass over almost no tokens: what runs that train together share."""
    update: float
    """The optimizer, once a step."""


class EpochTokens(NamedTuple):
    """One epoch of a trajectory's data."""

    num_tokens: float
    supervised_fraction: float


class TrainingCost:
    """Costs the training runs of one study on one device."""

    def __init__(self, model: "CostModel") -> None:
        self._model = model

    def seconds(self, run: TrajectorySpec, epochs: int, num_kept: int) -> Range:
        """Return the seconds of a run of some epochs, of which a number is published."""
        key = ("around", run.model.name, run.method.name, num_kept)
        around = self._model.once(key, self._around, run, num_kept)
        steps = self._model.correction.corrected(self.steps(run, epochs), group_of(run))
        shares = (scenario.checkpoint_fraction for scenario in self._model.scenarios)
        checkpoints = Range(*(s * share for s, share in zip(steps, shares, strict=True)))
        return steps.plus(checkpoints).plus(around)

    def steps(self, run: TrajectorySpec, epochs: int) -> Range:
        """Return the seconds of all optimizer steps, whatever finished runs say."""
        key = ("steps", run.model.name, run.data.canonical, run.method.name)
        return self._model.once(key, self._epoch, run).times(epochs)

    def compared(self) -> list[ComparedRun]:
        """Return finished runs on this device beside their predictions."""
        return [
            ComparedRun(
                group=group_of(run.trajectory),
                predicted_seconds=self.steps(run.trajectory, run.epochs).likely,
                actual_seconds=run.seconds,
            )
            for run in self._model.known.runs
            if run.seconds > 0 and self._model.profile.ran_on(run.device)
        ]

    def rates(self, run: TrajectorySpec, scenario: Scenario | None = None) -> StepRates:
        """Return what a run's steps cost when it trains alone; by default the likely scenario."""
        scenario = scenario or self._model.scenarios[1]
        epoch = self.tokens(run, scenario)
        model, profile = self._model, self._model.profile
        card, lora = model.card(run.model), run.method.lora
        length = epoch.num_tokens / run.data.num_samples
        flops = training_flops(card, lora, length, epoch.supervised_fraction)
        speed = profile.speed(run.model.fingerprint, work_of(lora), run.precision)
        if speed is not None:
            token = speed.token_seconds * flops / speed.token_flops
            rates = StepRates(token, speed.pass_seconds, speed.update_seconds)
            return StepRates(*(seconds * scenario.speed_factor for seconds in rates))
        bandwidth = model.device.bandwidth * scenario.bandwidth_fraction
        issue = profile.step_overhead_seconds(card.layers) * scenario.layer_factor
        # A pass reads all weights twice and adds to their gradients.
        traffic = 6 * matmul_weights(card) / bandwidth
        update = _OPTIMIZER_BYTES * model.trained_weights(run.model, run.method) / bandwidth
        token = flops / (model.peak_flops * scenario.train_utilisation)
        return StepRates(token, issue + traffic, update)

    def tokens(self, run: TrajectorySpec, scenario: Scenario | None = None) -> EpochTokens:
        """Return the tokens of an epoch as the model's tokenizer cuts them; where a dataset was
        not measured, those of its card.
        """
        scenario = scenario or self._model.scenarios[1]
        total = supervised = 0.0
        for part in run.data.parts:
            shape = self._model.known.samples.get((run.model.name, part.dataset.name))
            if shape is None:
                tokens = self._model.sample_tokens(part.dataset) * scenario.token_factor
                fraction = scenario.supervised_fraction
            else:
                tokens, fraction = shape.tokens, shape.supervised_fraction
            total += part.num_samples * tokens
            supervised += part.num_samples * tokens * fraction
        return EpochTokens(total, supervised / total)

    def _epoch(self, run: TrajectorySpec, scenario: Scenario) -> float:
        rates, method = self.rates(run, scenario), run.method
        tokens = self.tokens(run, scenario).num_tokens * scenario.packing_factor
        steps = math.ceil(run.data.num_samples / method.batch_samples)
        step_tokens = tokens / run.data.num_samples * method.batch_samples
        passes = steps * math.ceil(step_tokens / self._pass_tokens)
        busy = self._model.machine.overlapped(tokens * rates.token, passes * rates.one_pass)
        return busy + steps * rates.update

    def _around(self, run: TrajectorySpec, num_kept: int, scenario: Scenario) -> float:
        saved = num_kept * self._model.cell_bytes(run.model, run.method)
        load = self._model.loading_in(run.model, scenario)
        return saved / scenario.save_bytes_per_second + load

    @property
    def _pass_tokens(self) -> int:
        return MICRO_BATCH_TOKENS["cuda" if self._model.device.kind == "gpu" else "cpu"]


def group_of(run: TrajectorySpec) -> tuple[str, str]:
    """Return what is corrected together: a base model under full training or LoRA."""
    return run.model.name, work_of(run.method.lora)
