"""Which files hold a stored cell, and which low-rank change did it learn?

In: a cell of a store. Out: its folder; of an adapter also the factors by the name of the weight
that they change. Every file is compared with its digest before a number is taken from it.
"""

from pathlib import Path

from sft_atlas.model.lora import LoraFactors, read_factors
from sft_atlas.store.store import Store
from sft_atlas.study.spec import CellSpec


def verified_factors(store: Store, cell: CellSpec) -> dict[str, LoraFactors]:
    """Return a stored adapter's factors by parameter name.

    Raises:
        StoreError: if the cell is not stored or damaged.
    """
    return read_factors(verified_folder(store, cell))


def verified_folder(store: Store, cell: CellSpec) -> Path:
    """Return a stored cell's folder after its files were compared with their digests.

    Raises:
        StoreError: if the cell is not stored or damaged.
    """
    folder = store.layout.cell(cell.fingerprint)
    store.read_verified(folder)
    return folder
