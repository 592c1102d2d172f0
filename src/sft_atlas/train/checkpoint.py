"""Keep the state of a run that is not finished, so that a killed run goes on as if nothing had
been.

A checkpoint is a folder `step-N`: the trainable weights and the optimizer's state as safetensors,
the metrics so far, and a manifest with the digest of both. It is written aside, forced to the disk
and renamed. The newest two are kept: one that is damaged is passed over, with a warning, for the
one before. The order of samples and the random numbers of a step are functions of seed and step, so
the number of steps is the whole cursor.
"""

import shutil
import uuid
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sft_atlas import files
from sft_atlas.train.metrics import METRICS_NAME, StepMetrics, read_metrics, write_metrics

NUM_KEPT: Final = 2

_STATE_NAME = "state.safetensors"
_MANIFEST_NAME = "checkpoint.json"


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """Everything that the rest of a run depends on."""

    step: int
    """Optimizer steps done."""
    tensors: dict[str, Tensor]
    """By `state_tensors`' names."""
    metrics: list[StepMetrics]


def state_tensors(
    parameters: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Return the live weights as `weight/<name>` and the optimizer's as `<key>/<name>`."""
    tensors = {f"weight/{name}": parameter.detach() for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        for key, value in optimizer.state[parameter].items():
            tensors[f"{key}/{name}"] = value
    return tensors


def restore(
    checkpoint: Checkpoint,
    *,
    parameters: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Put a checkpoint's weights and optimizer state into fresh ones of the same shapes."""
    numbers = {name: number for number, name in enumerate(parameters)}
    state: dict[int, dict[str, Tensor]] = {number: {} for number in numbers.values()}
    for full_name, tensor in checkpoint.tensors.items():
        key, name = full_name.split("/", 1)
        if key == "weight":
            with torch.no_grad():
                parameters[name].copy_(tensor)
        else:
            state[numbers[name]][key] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict(
        {"state": {n: s for n, s in state.items() if s}, "param_groups": groups}
    )


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Add a checkpoint to a run's working folder and remove those that are too old."""
    aside = folder / f"tmp-{uuid.uuid4().hex}"
    aside.mkdir(parents=True)
    save_file({n: t.contiguous() for n, t in checkpoint.tensors.items()}, aside / _STATE_NAME)
    write_metrics(aside / METRICS_NAME, checkpoint.metrics)
    digests = {}
    for name in (_STATE_NAME, METRICS_NAME):
        files.sync_file(aside / name)
        digests[name] = files.sha256_file(aside / name)
    files.write_json(aside / _MANIFEST_NAME, {"step": checkpoint.step, "sha256": digests})
    target = folder / f"step-{checkpoint.step}"
    # One of the same step is there only if it was damaged, or another run's steps were kept.
    shutil.rmtree(target, ignore_errors=True)
    aside.rename(target)
    files.sync_folder(folder)
    for old in list(_newest_first(folder))[NUM_KEPT:]:
        shutil.rmtree(old)


def read_checkpoint(folder: Path, *, max_step: int) -> Checkpoint | None:
    """Return the newest sound checkpoint of at most `max_step` steps, or None; a damaged one
    warns."""
    for path in _newest_first(folder):
        if _step_of(path) > max_step:
            continue
        try:
            return _read(path)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            warnings.warn(f"{path}: is damaged ({error}); an older one is used.", stacklevel=2)
    return None


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed writer left in a working folder; only the holder of the job may."""
    if folder.is_dir():
        for path in folder.glob("tmp-*"):
            shutil.rmtree(path)


def _read(path: Path) -> Checkpoint:
    manifest = files.read_json(path / _MANIFEST_NAME)
    for name, digest in manifest["sha256"].items():
        if files.sha256_file(path / name) != digest:
            raise ValueError(f"{name} differs from its digest")
    return Checkpoint(
        step=manifest["step"],
        tensors=load_file(path / _STATE_NAME),
        metrics=read_metrics(path / METRICS_NAME),
    )


def _newest_first(folder: Path) -> Iterator[Path]:
    yield from sorted(folder.glob("step-*"), key=_step_of, reverse=True)


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))
