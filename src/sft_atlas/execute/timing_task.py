"""What is timed of a device, and what comes back: what `profiling` and `timing` tell each other."""

from dataclasses import asdict, dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import Field, TypeAdapter

from sft_atlas.study.profile import Work
from sft_atlas.study.spec import TrajectorySpec


@dataclass(frozen=True, kw_only=True)
class DeviceTask:
    """Time matrix products, copies, and steps of a very small model."""

    kind: Literal["device"] = "device"
    seconds: float
    """How long to measure."""


@dataclass(frozen=True, kw_only=True)
class ModelTask:
    """Time one base model in training or scoring."""

    kind: Literal["model"] = "model"
    seconds: float
    work: Work
    trajectory: TrajectorySpec
    """Which model, adapter, optimizer and precision."""
    num_samples: int
    """Of the pass that is timed."""
    sample_tokens: float
    """Their mean tokens."""
    supervised_fraction: float

    @property
    def pass_tokens(self) -> int:
        return round(self.num_samples * self.sample_tokens)


@dataclass(frozen=True, kw_only=True)
class DeviceTimes:
    """What one process saw of its device."""

    reported: str
    memory_bytes: int
    """Of a GPU; 0 for a processor."""
    float32_flops: float
    peak_flops: float
    """In bfloat16; of a processor, in float32."""
    bandwidth: float
    """Bytes per second, read and written, of a large copy."""
    train_layer_seconds: float
    forward_layer_seconds: float
    step_seconds: float


@dataclass(frozen=True, kw_only=True)
class ModelTimes:
    """What one process saw of a base model."""

    few_seconds: float
    """Of a pass over almost no tokens."""
    many_seconds: float
    """Of a pass over the task's tokens."""
    update_seconds: float
    spread: float
    num_repeats: int


TimingTask = Annotated[DeviceTask | ModelTask, Field(discriminator="kind")]

TIMING_TASK: Final[TypeAdapter[TimingTask]] = TypeAdapter(TimingTask)


def to_json(times: DeviceTimes | ModelTimes) -> dict[str, Any]:
    """Return times as plain JSON; the classes read it by keyword."""
    return asdict(times)
