"""Say how fast a device is: as it was measured, or as its card lets expect.

A step of training takes a time for each pass, however few its tokens, a time for each token, and
one for the optimizer. A profile holds these three for every base model that was measured, and what
the device does without any model. One decision: what was not measured is derived from what was, in
FLOPs; with no measurement at all it comes from the device's card and the table of assumptions.
"""

from dataclasses import dataclass, replace
from statistics import median
from typing import Final, Literal

from pydantic import TypeAdapter

from sft_atlas.catalog.cards import ModelCard
from sft_atlas.catalog.devices import Device
from sft_atlas.study.assumption import MeasuredValues, scenarios
from sft_atlas.study.shape import training_flops
from sft_atlas.study.spec import LoraSpec, Precision

Work = Literal["full", "lora", "score"]
"""What a base model is put through."""

_UNSEEN: Final = 1.3
"""How far another model's utilisation may lie beyond those that were measured."""

_LEAST_SPREAD: Final = 0.08
"""Seconds of measuring say no more than this about hours of running."""


BUSY_LOAD: Final = 0.5
"""Load average of a machine that has something else to do."""


def work_of(lora: LoraSpec | None) -> Work:
    """Return the kind of training."""
    return "full" if lora is None else "lora"


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """How fast one base model is trained or read on a device.

    On a core a pass takes `pass_seconds` and `token_seconds` for each token; on a GPU the larger of
    the two, since it computes while operators are issued.
    """

    model: str
    """Fingerprint of its `ModelSpec`."""
    name: str
    work: Work
    precision: Precision
    pass_seconds: float
    """Of a pass over almost no tokens; in training forward and backward."""
    update_seconds: float
    """Of clipping and the optimizer, once a step; 0 in scoring."""
    token_seconds: float
    token_flops: float
    """FLOPs per token of what was measured, by which other lengths are derived."""
    pass_tokens: int
    """Tokens of the pass that was measured."""
    tokens_per_second: float
    """In such passes, without the optimizer."""
    spread: float
    """Half the interquartile range of the repeats, relative to their median."""
    date: str
    """UTC day of the measurement."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Skipped:
    """A base model that was not measured, and why."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One device, as measured or as assumed."""

    device: Device
    """What it does without any model; measured: per process, with all processes at work."""
    is_measured: bool
    reported: str = ""
    """What the device calls itself: `cpu`, or the GPU's name in outcomes' provenance."""
    num_processes: int = 1
    """How many measured at the same time."""
    load: float = 0.0
    """Load average when the measurement began: above `BUSY_LOAD` other programs slowed it down."""
    step_seconds: float = 0.0
    """Of a training step over almost no tokens, beside `device.train_layer_seconds` per layer."""
    speeds: tuple[Speed, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    date: str = ""
    """UTC day of the measurement."""

    def speed(self, model: str, work: Work, precision: Precision) -> Speed | None:
        """Return what was measured of a base model, by its fingerprint."""
        is_half = self.peak_flops(precision) != self.device.float32_flops
        for speed in self.speeds:
            is_alike = not is_half or speed.precision == precision
            if (speed.model, speed.work) == (model, work) and is_alike:
                return speed
        return None

    def peak_flops(self, precision: Precision) -> float:
        """Return the ceiling of matrix products; only a GPU is faster in bfloat16."""
        is_half = precision == "bfloat16" and self.device.kind == "gpu"
        return self.device.peak_flops if is_half else self.device.float32_flops

    def beside(self, earlier: "Profile | None") -> "Profile":
        """Return this profile with the base models that an earlier one knows and this one does not;
        they count only if as many processes measured.
        """
        if earlier is None or earlier.num_processes != self.num_processes:
            return self
        own = {(speed.model, speed.work) for speed in self.speeds}
        kept = [speed for speed in earlier.speeds if (speed.model, speed.work) not in own]
        return replace(self, speeds=(*self.speeds, *kept))

    def step_overhead_seconds(self, layers: int) -> float:
        """Return the time of a training step of a model over almost no tokens."""
        return self.step_seconds + layers * self.device.train_layer_seconds

    def seconds_per_token(
        self,
        card: ModelCard,
        lora: LoraSpec | None,
        *,
        model: str = "",
        precision: Precision = "float32",
        length: float = 0.0,
        supervised_fraction: float = 1.0,
    ) -> float:
        """Return the arithmetic of one trained token, without what a pass or step costs.

        Args:
            card: the base model's shape.
            lora: the adapter; None trains every weight.
            model: its fingerprint, by which a measurement is found.
            precision: what a GPU computes in.
            length: mean tokens of a sample.
            supervised_fraction: part of the tokens that the output head is computed for.
        """
        flops = training_flops(card, lora, length, supervised_fraction)
        speed = self.speed(model, work_of(lora), precision)
        if speed is not None:
            return speed.token_seconds * flops / speed.token_flops
        likely = scenarios(self.measured_values)[1]
        return flops / (self.peak_flops(precision) * likely.train_utilisation)

    def ran_on(self, reported: str) -> bool:
        """Tell whether a device's name in a result's provenance means this one."""
        if self.device.kind == "cpu":
            return reported == "cpu"
        if self.is_measured:
            return reported == self.reported
        return self.device.name.replace("-", " ") in reported.lower()

    @property
    def measured_values(self) -> MeasuredValues:
        """Return what replaces assumptions: by name, the cheap, likely and dear value and their
        source.
        """
        if not self.is_measured:
            return {}
        source = f"measured on this device, {self.date}"
        spreads = [speed.spread for speed in self.speeds]
        spread = max(_LEAST_SPREAD, median(spreads) if spreads else 0.0)
        # Whatever disturbs a run makes it slower: the dear end lies further away.
        around = (1 / (1 + spread), 1.0, 1 + 2 * spread)
        found: MeasuredValues = {
            "bandwidth_fraction": ((1.0, 0.85, 0.6), f"relative to large copies, {source}"),
            "layer_factor": (around, source),
            "speed_factor": (around, source),
        }
        for name, is_training in (("train_utilisation", True), ("score_utilisation", False)):
            reached = [
                speed.token_flops / (speed.token_seconds * self.peak_flops(speed.precision))
                for speed in self.speeds
                if (speed.work != "score") == is_training
            ]
            if reached:
                ends = (_UNSEEN * max(reached), median(reached), min(reached) / _UNSEEN)
                text = f"base models that were not measured: as those that were, {source}"
                found[name] = (ends, text)
        return found


PROFILE: Final = TypeAdapter(Profile)
"""Writes a profile as JSON and reads it."""


def assumed_profile(device: Device) -> Profile:
    """Return what a device's card says of it."""
    return Profile(device=device, is_measured=False)
