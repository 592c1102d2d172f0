"""Load base models and cells without running anything that came with them.

A worker keeps one `BaseModel`: the live transformers model and a copy of its pristine weights.
Training and evaluation change the live model; `reset` makes it the base again, bit for bit, which
costs a copy in memory instead of a read from the disk. Weights are safetensors only, configurations
that ask for code are refused, and weights are held in float32: a stored bfloat16 value is exact in
it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from sft_atlas import files
from sft_atlas.errors import StoreError, StudyError
from sft_atlas.model import lora
from sft_atlas.store.store import Store
from sft_atlas.study.spec import CellSpec, ModelSpec

_HUB_FILES: Final = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")
_HUB_DOUBLES: Final = ("original/*", "consolidated*", "*/*")
"""Second copies of the weights in other layouts, and subfolders."""

_CODE_KEYS: Final = (
    "auto_map",
    "_attn_implementation_internal",
    "_experts_implementation_internal",
)
_KERNEL_KEYS: Final = ("attn_implementation", "_attn_implementation", "experts_implementation")
"""Code from the hub only where the value is `owner/name`."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class BaseModel:
    """A base model in memory; whoever changes the live weights calls `reset` before the next
    use."""

    spec: ModelSpec
    folder: Path
    """Local folder with configuration, weights and tokenizer."""
    model: PreTrainedModel
    pristine: dict[str, Tensor]
    """Every weight as loaded, by parameter name, on the CPU; tied weights once."""

    def reset(self) -> None:
        """Make the live model the base again: no adapter, pristine weights, no gradients, eval
        mode."""
        lora.remove_lora(self.model)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.grad = None
                # A run may have held them in less precision.
                parameter.data = parameter.data.to(self.pristine[name].dtype)
                parameter.copy_(self.pristine[name])
        self.model.requires_grad_(True)
        self.model.eval()


def load_base(spec: ModelSpec, *, device: str = "cpu") -> BaseModel:
    """Load a base model in float32 from its local folder or the hub.

    Raises:
        StudyError: if it is not there, has changed since the study was read, asks for code of its
            own, or is not a causal language model with all its weights in safetensors.
    """
    folder = resolve_folder(spec)
    model = load_model(folder, where=f"model {spec.name}").to(device)
    pristine = {name: p.detach().to("cpu", copy=True) for name, p in model.named_parameters()}
    return BaseModel(spec=spec, folder=folder, model=model, pristine=pristine)


def load_cell(base: BaseModel, cell: CellSpec, *, store: Store) -> PreTrainedModel:
    """Give the live model the weights of a stored cell, an adapter merged; verified by digest.

    Raises:
        StoreError: if the cell is not stored, damaged, or does not fit this base.
    """
    assert cell.model == base.spec, "a cell belongs to its own base model"
    base.reset()
    if cell.trajectory is None:
        return base.model
    folder = store.layout.cell(cell.fingerprint)
    store.read_verified(folder)
    if cell.trajectory.method.lora is not None:
        lora.load_adapter(folder, base.model)
        lora.merge(base.model)
        base.model.eval()
        return base.model
    stored = dict(load_model(folder, where=f"cell {cell.fingerprint}").named_parameters())
    if stored.keys() != base.pristine.keys():
        raise StoreError(f"{folder}: its weights have other names than its base model's.")
    with torch.no_grad():
        for name, parameter in base.model.named_parameters():
            parameter.copy_(stored[name])
    return base.model


def resolve_folder(spec: ModelSpec) -> Path:
    """Return the local folder of a model, downloading safetensors and text files from the hub.

    Raises:
        StudyError: if it cannot be had, or a local folder differs from the digest in its identity.
    """
    source = spec.source
    if source.path is not None:
        if not source.path.is_dir():
            raise StudyError(
                f"model {spec.name}: {source.path} is no folder; expected a saved model."
            )
        if source.sha256 is not None and files.sha256_tree(source.path) != source.sha256:
            raise StudyError(
                f"model {spec.name}: the files in {source.path} changed since the study was read. "
                f"Run the study again: the changed model is another model."
            )
        return source.path
    assert source.hub is not None, "a source is a path or a hub repository"
    try:
        folder = snapshot_download(
            source.hub,
            revision=source.revision,
            allow_patterns=list(_HUB_FILES),
            ignore_patterns=list(_HUB_DOUBLES),
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise StudyError(
            f"model {spec.name}: {source.hub} cannot be downloaded ({error}). Check the id, the "
            f"network and, for a gated model, `hf auth login`."
        ) from error
    return Path(folder)


def load_model(folder: Path, *, where: str) -> PreTrainedModel:
    """Load a causal language model from a local folder in float32 on the CPU, in evaluation mode.

    Raises:
        StudyError: as `load_base`.
    """
    config = _read_config(folder, where)
    # Capped attention logits exist in no fused kernel: what ignores the cap is another model.
    attention = "eager" if config.get("attn_logit_softcapping") else None
    try:
        with no_progress_bars():
            model, info = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                attn_implementation=attention,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError) as error:
        raise StudyError(
            f"{where}: {folder} cannot be loaded ({error}). Expected a causal language model that "
            f"this version of transformers knows, with weights in safetensors."
        ) from error
    lacking = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if lacking:
        raise StudyError(
            f"{where}: {folder} has no fitting weights for {len(lacking)} tensors, such as "
            f"{lacking[0]}; they would be random. Use a complete model."
        )
    loaded: PreTrainedModel = model.eval()
    return loaded


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Silence transformers' bars, which are noise in a worker's log."""
    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()


def _read_config(folder: Path, where: str) -> dict[str, Any]:
    try:
        config = files.read_json(folder / "config.json")
    except (OSError, ValueError) as error:
        raise StudyError(
            f"{where}: {folder / 'config.json'} cannot be read ({error}); expected a model "
            f"saved by transformers. Check the path."
        ) from error
    for part in _iter_objects(config):
        for key in _CODE_KEYS + _KERNEL_KEYS:
            if key in part and (key in _CODE_KEYS or "/" in str(part[key])):
                raise StudyError(
                    f"{where}: its config.json has {key!r}, which asks for code from outside; "
                    f"expected an architecture of transformers. Use another model, or a copy "
                    f"without it."
                )
    assert isinstance(config, dict)
    return config


def _iter_objects(value: object) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for member in value.values():
            yield from _iter_objects(member)
    elif isinstance(value, list):
        for member in value:
            yield from _iter_objects(member)
