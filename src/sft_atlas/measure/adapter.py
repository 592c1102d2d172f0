"""Which low-rank change did a stored cell learn?

In: a cell whose store folder is an adapter. Out: its factors by the name of the weight that they
change. Every file is compared with its digest before a number is taken from it.
"""

from sft_atlas.model.lora import LoraFactors, read_factors
from sft_atlas.store.records import check_artifact
from sft_atlas.store.store import Store
from sft_atlas.study.spec import CellSpec


def verified_factors(store: Store, cell: CellSpec) -> dict[str, LoraFactors]:
    """Return a stored adapter's factors by parameter name.

    Raises:
        StoreError: if the cell is not stored or damaged.
    """
    folder = store.layout.cell(cell.fingerprint)
    record = store.read(folder)
    for name in record.artifacts:
        check_artifact(folder, record, name)
    return read_factors(folder)
