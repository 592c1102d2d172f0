"""Keep the state of a run that is not finished, so that a killed run goes on as if nothing had
been.

A checkpoint is a folder `step-N`: the trainable weights and the optimizer's state as safetensors,
the metrics so far, and a manifest with the digest of both. It is written aside, forced to the disk
and renamed. The newest two are kept: one that is damaged is passed over, with a warning, for the
one before. The order of samples and the random numbers of a step are functions of seed and step, so
the number of steps is the whole cursor. Training waits for a copy in memory only, which
`CheckpointWriter` writes while the next steps are taken.
"""

import shutil
import time
import uuid
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
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
    """Add a checkpoint to a run's working folder and remove those that are too old.

    Raises:
        OSError: if the disk is full or fails; the checkpoints before stay, and nothing else does.
    """
    aside = folder / f"tmp-{uuid.uuid4().hex}"
    try:
        aside.mkdir(parents=True)
        with files.disk_errors():
            _fill(aside, checkpoint)
        target = folder / f"step-{checkpoint.step}"
        # One of the same step is there only if it was damaged, or another run's steps were kept.
        shutil.rmtree(target, ignore_errors=True)
        aside.rename(target)
    except BaseException:
        # Half a checkpoint would keep a full disk full.
        shutil.rmtree(aside, ignore_errors=True)
        raise
    files.sync_folder(folder)
    # Later ones are of steps that were taken before: this run may go on there, or be killed here.
    behind = [path for path in _newest_first(folder) if _step_of(path) <= checkpoint.step]
    for old in behind[NUM_KEPT:]:
        shutil.rmtree(old)


def _fill(aside: Path, checkpoint: Checkpoint) -> None:
    save_file({n: t.contiguous() for n, t in checkpoint.tensors.items()}, aside / _STATE_NAME)
    write_metrics(aside / METRICS_NAME, checkpoint.metrics)
    digests = {}
    for name in (_STATE_NAME, METRICS_NAME):
        files.sync_file(aside / name)
        digests[name] = files.sha256_file(aside / name)
    files.write_json(aside / _MANIFEST_NAME, {"step": checkpoint.step, "sha256": digests})


@final
class CheckpointWriter:
    """Writes a run's checkpoints beside its training, one at a time.

    A write that failed raises in the next call of `write` or `wait`: a run must not go on
    believing that it can be resumed. `close` in the end, however the run ended.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._started = 0.0
        self._ended: float | None = 0.0

    @property
    def seconds(self) -> float:
        """What the last write took, from its copy to the disk; of one under way, until now."""
        ended = time.monotonic() if self._ended is None else self._ended
        return ended - self._started

    def write(self, checkpoint: Checkpoint) -> None:
        """Copy a checkpoint to the machine's memory, and return while it is written from there.

        Waits for the write before, so that there is never more than one copy; raises what that one
        raised.
        """
        self.wait()
        started = time.monotonic()
        copied = Checkpoint(
            step=checkpoint.step,
            tensors={name: _copy(tensor) for name, tensor in checkpoint.tensors.items()},
            metrics=list(checkpoint.metrics),
        )
        self._started, self._ended = started, None
        self._pending = self._thread.submit(self._write, copied)

    def wait(self) -> None:
        """Return when all is on the disk; raises what `write_checkpoint` raised."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Let a last write end, well or not: who needs it has called `wait`."""
        self._thread.shutdown()
        self._pending = None

    def _write(self, checkpoint: Checkpoint) -> None:
        try:
            write_checkpoint(self._folder, checkpoint)
        finally:
            self._ended = time.monotonic()


def _copy(tensor: Tensor) -> Tensor:
    """Return a tensor of the machine's memory that shares none, whatever it is a view of."""
    return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor)


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
