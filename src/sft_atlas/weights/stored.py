"""Where do a folder's tensors lie on the disk?

In: a folder with one safetensors file or a sharded set. Out: for each tensor its file, place, type
and shape, so that it can be read in blocks of any size. safetensors maps files into memory, where
what was read counts as the process's own; reading blocks into one buffer keeps a bound instead.
Every file is opened once by safetensors itself, which checks that its head describes its bytes.
"""

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final, final

import torch
from safetensors import SafetensorError, safe_open

from sft_atlas import files
from sft_atlas.errors import StoreError

DTYPES: Final[dict[str, torch.dtype]] = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""Types whose every value is a float32; quantised ones mean nothing without their scales."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class StoredTensor:
    """One tensor on the disk."""

    name: str
    path: Path
    dtype: str
    """As in the file, such as BF16."""
    shape: tuple[int, ...]
    offset: int
    """Of its first byte in the file."""

    @property
    def num_weights(self) -> int:
        return prod(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of one weight; only for the types in `DTYPES`."""
        return DTYPES[self.dtype].itemsize


def weight_files(folder: Path) -> list[Path]:
    """Return the files that hold a folder's weights, sorted.

    These are the shards that an index names, so that a second copy of the weights beside them is
    not read; without an index, all safetensors files.

    Raises:
        StoreError: if there is none, or one that the index names is missing.
    """
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    if indexes:
        try:
            shards = set(files.read_json(indexes[0])["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(f"{indexes[0]}: cannot be read ({error}).") from error
        paths = sorted(folder / shard for shard in shards)
        for path in paths:
            if not path.is_file():
                raise StoreError(
                    f"{path}: is missing, but {indexes[0].name} names it; expected all shards. "
                    f"Download or copy the model again."
                )
    else:
        paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise StoreError(f"{folder}: holds no safetensors file; expected a model or an adapter.")
    return paths


def find_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Return where each tensor of a folder lies, in the order of files and bytes.

    Raises:
        StoreError: if a file is damaged, or a tensor is in two files.
    """
    found: dict[str, StoredTensor] = {}
    for path in weight_files(folder):
        for tensor in _tensors_of(path):
            if tensor.name in found:
                raise StoreError(
                    f"{path}: tensor {tensor.name!r} is also in {found[tensor.name].path.name}; "
                    f"expected each tensor once. Remove the file that is left over."
                )
            found[tensor.name] = tensor
    return found


def _tensors_of(path: Path) -> list[StoredTensor]:
    try:
        with safe_open(path, framework="pt"), path.open("rb") as stream:
            num_bytes = int.from_bytes(stream.read(8), "little")
            head: dict[str, Any] = json.loads(stream.read(num_bytes))
    except (OSError, SafetensorError) as error:
        raise StoreError(
            f"{path}: is no complete safetensors file ({error}). Download or save it again."
        ) from error
    head.pop("__metadata__", None)
    tensors = [
        StoredTensor(
            name=name,
            path=path,
            dtype=facts["dtype"],
            shape=tuple(facts["shape"]),
            offset=8 + num_bytes + facts["data_offsets"][0],
        )
        for name, facts in head.items()
    ]
    return sorted(tensors, key=lambda tensor: tensor.offset)
