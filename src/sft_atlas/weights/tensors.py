"""Read the weights of a model folder one tensor at a time, so that two models never need to fit in
memory.

In: a folder with one safetensors file or a sharded set with its index. Out: a mapping by tensor
name whose values are read when they are asked for.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, final

from safetensors import safe_open
from torch import Tensor

from sft_atlas.errors import StoreError
from sft_atlas.weights.stored import weight_files


@final
class TensorFolder(Mapping[str, Tensor]):
    """The tensors of a folder's safetensors files; each look-up reads from the disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, Path] = {}
        for path in weight_files(folder):
            with safe_open(path, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - the handle is no mapping
                    if name in self._files:
                        raise StoreError(
                            f"{path}: tensor {name!r} is also in {self._files[name].name}; "
                            f"expected each tensor once. Remove the file that is left over."
                        )
                    self._files[name] = path

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self._files[name], framework="pt") as tensors:
            tensor: Tensor = tensors.get_tensor(name)
            return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


@final
class TensorPair(NamedTuple):
    """One weight before and after."""

    name: str
    before: Tensor
    after: Tensor


def iter_pairs(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Iterator[TensorPair]:
    """Yield each tensor of two models of one architecture, in the order of the first.

    Raises:
        StoreError: if names or shapes differ.
    """
    if different := before.keys() ^ after.keys():
        raise StoreError(
            f"weights: {len(different)} tensors are in one model alone, such as "
            f"{min(different)!r}; expected two models of one architecture."
        )
    for name, tensor in before.items():
        pair = TensorPair(name, tensor, after[name])
        if pair.before.shape != pair.after.shape:
            raise StoreError(
                f"weights: {name!r} has shape {tuple(pair.before.shape)} before and "
                f"{tuple(pair.after.shape)} after; expected two models of one architecture."
            )
        yield pair
