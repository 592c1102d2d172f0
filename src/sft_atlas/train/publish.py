"""Publish what a training run leaves behind: the weights of kept epochs, and the run's outcome.

A full fine-tune becomes a model folder that `AutoModelForCausalLM` loads, in the precision of its
Spec; an adapter becomes a PEFT folder in float32. Both hold no path and no time, so two runs of one
wish publish the same bytes.
"""

import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from torch import Tensor

from sft_atlas import files
from sft_atlas.identity import payload
from sft_atlas.model.load import BaseModel, no_progress_bars
from sft_atlas.model.lora import merged, plain_name, save_adapter
from sft_atlas.store.outcomes import outcome_folder
from sft_atlas.store.records import Record, make_provenance
from sft_atlas.store.store import Store
from sft_atlas.study.spec import CellSpec, Precision
from sft_atlas.train.metrics import METRICS_NAME, write_metrics
from sft_atlas.train.run import Run

_DTYPES: Final[dict[Precision, torch.dtype]] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
}

_TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)


@contextmanager
def stored_weights(base: BaseModel, cell: CellSpec) -> Iterator[None]:
    """Lend the live model in float32 with the values that the store will hold, then restore the
    masters bitwise.

    Full weights are rounded to the stored precision; adapters are stored as they are.
    """
    run = cell.trajectory
    assert run is not None, "a base model is not trained"
    lent: AbstractContextManager[None]
    if run.master_precision == "bfloat16":
        lent = _widened(base)
    elif run.method.lora is None and run.precision == "bfloat16":
        lent = _rounded(base)
    else:
        lent = nullcontext()
    with lent:
        yield


@contextmanager
def _widened(base: BaseModel) -> Iterator[None]:
    """Lend bfloat16 masters as float32, and what is frozen as it was loaded."""
    parameters = dict(base.model.named_parameters())
    masters = {name: p.data for name, p in parameters.items()}
    for name, parameter in parameters.items():
        plain = base.pristine.get(plain_name(name))
        is_frozen = plain is not None and not parameter.requires_grad
        exact = plain if is_frozen and plain is not None else parameter.data
        parameter.data = exact.to(parameter.device, torch.float32)
    try:
        yield
    finally:
        for name, master in masters.items():
            parameters[name].data = master


@contextmanager
def _rounded(base: BaseModel) -> Iterator[None]:
    """Lend float32 masters with the values of bfloat16."""
    parameters = dict(base.model.named_parameters())
    # On the CPU: a device that trains has no room for a second copy.
    masters = {name: p.detach().to("cpu", copy=True) for name, p in parameters.items()}
    for parameter in parameters.values():
        parameter.data.copy_(parameter.data.to(torch.bfloat16))
    try:
        yield
    finally:
        for name, master in masters.items():
            parameters[name].data.copy_(master)


@contextmanager
def plain_model(base: BaseModel) -> Iterator[None]:
    """Lend the live model for reading: in evaluation mode, an adapter merged; training goes on
    after."""
    base.model.eval()
    try:
        with merged(base.model):
            yield
    finally:
        base.model.train()


def publish_cell(
    store: Store, cell: CellSpec, *, base: BaseModel, step: int, started: float
) -> Record:
    """Publish the live weights as a cell; call inside `stored_weights` and outside `plain_model`.

    Returns the record that is there if the cell was published before.
    """
    trajectory = cell.trajectory
    assert trajectory is not None, "a base model is not trained"
    lora = trajectory.method.lora
    folder = store.layout.cell(cell.fingerprint)
    if found := store.find(folder):
        return found

    def fill(aside: Path) -> dict[str, Any]:
        if lora is None:
            _write_model(aside, base, trajectory.precision)
        else:
            save_adapter(
                aside, base.model, lora, base_name=cell.model.source.hub or cell.model.name
            )
        trained = [p.numel() for p in base.model.parameters() if p.requires_grad]
        return {
            "weights": "model" if lora is None else "adapter",
            "precision": trajectory.precision if lora is None else "float32",
            "trajectory": trajectory.fingerprint,
            "epoch": cell.epoch,
            "step": step,
            "num_trained_weights": sum(trained),
            "num_base_weights": sum(tensor.numel() for tensor in base.pristine.values()),
        }

    return store.publish(
        folder,
        schema="cell/1",
        spec=payload(cell),
        fill=fill,
        provenance=lambda: {"cell": cell.description, **training_provenance(base, started)},
    )


def publish_outcome(
    run: Run, *, base: BaseModel, capacity: int, diverged_step: int | None = None
) -> Record:
    """Publish how a run ended, with its metrics by step.

    Which epochs were kept is not part of it: that is what the cells say, and another study of the
    same run may keep others. `capacity` is how many runs could train beside each other.
    """
    metrics = run.metrics

    def fill(aside: Path) -> dict[str, Any]:
        write_metrics(aside / METRICS_NAME, metrics)
        sound = metrics[:-1] if diverged_step is not None else metrics
        return {
            "state": "finished" if diverged_step is None else "diverged",
            "diverged_step": diverged_step,
            "last_epoch": run.job.keep_epochs[-1],
            "num_steps": len(sound),
            "first_loss": sound[0].loss if sound else None,
            "last_loss": sound[-1].loss if sound else None,
            "num_supervised_tokens": sum(m.num_supervised_tokens for m in sound),
            "num_tokens": sum(m.num_tokens for m in sound),
        }

    folder = outcome_folder(run.store, run.spec.fingerprint, last_epoch=run.job.keep_epochs[-1])
    return run.store.publish(
        folder,
        schema="trajectory/1",
        spec=payload(run.spec),
        fill=fill,
        provenance=lambda: {
            **training_provenance(base, run.started),
            "train_seconds": round(run.train_seconds, 3),
            "num_timed_steps": run.num_timed_steps,
            "num_memory_retries": run.num_memory_retries,
            "stack_runs": capacity,
        },
    )


def training_provenance(base: BaseModel, started: float) -> dict[str, Any]:
    """Return with what a result was made; `started` is when this process began the run."""
    device = base.model.device
    return make_provenance(
        started,
        torch=torch.__version__,
        transformers=transformers.__version__,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        num_threads=torch.get_num_threads(),
        base_folder=str(base.folder),
        finished=time.time(),
    )


def _write_model(aside: Path, base: BaseModel, precision: Precision) -> None:
    dtype = _DTYPES[precision]
    state: dict[str, Tensor] = {
        name: parameter.detach().to("cpu", dtype)
        for name, parameter in base.model.named_parameters()
    }
    with no_progress_bars():
        base.model.save_pretrained(aside, state_dict=state)
    # save_pretrained names the type of the live weights, which are the float32 masters.
    config = files.read_json(aside / "config.json")
    files.write_json(aside / "config.json", config | {"dtype": precision})
    for name in _TOKENIZER_FILES:
        if (base.folder / name).is_file():
            shutil.copyfile(base.folder / name, aside / name)
