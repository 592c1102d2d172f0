"""Find the speed and memory of a device by name, for cost estimates."""

from functools import cache
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from sft_atlas.catalog.cards import FOLDER
from sft_atlas.errors import CatalogError
from sft_atlas.strict_yaml import did_you_mean, load, validate


class Device(BaseModel):
    """One GPU, or one core of a CPU."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: Literal["cpu", "gpu"]
    peak_flops: float = Field(gt=0)
    """Dense floating-point operations per second in bfloat16; of a CPU, in float32."""
    float32_flops: float = Field(gt=0)
    """The same in float32, without TF32."""
    memory_bytes: float = Field(gt=0)
    bandwidth: float = Field(gt=0)
    """Bytes per second from its memory."""
    forward_layer_seconds: float = Field(gt=0)
    """Least time of a forward pass through one layer, however few the tokens."""
    train_layer_seconds: float = Field(gt=0)
    """Least time of a forward and backward pass through one layer."""
    source: str


def find_device(name: str) -> Device:
    """Return the card of a device; raises CatalogError for an unknown name."""
    devices = _devices()
    if name not in devices:
        raise CatalogError(f"device {name!r} has no card; {did_you_mean(name, devices)}")
    return devices[name]


def device_names() -> list[str]:
    """Return the names of all device cards, sorted."""
    return sorted(_devices())


@cache
def _devices() -> dict[str, Device]:
    content, lines = load(FOLDER / "devices.yaml")
    return {
        name: validate(Device, {"name": name, **entry}, lines, "devices", name)
        for name, entry in content["devices"].items()
    }
