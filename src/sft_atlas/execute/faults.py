"""Say which faults cost only what has them, and tell several faults of one job as one.

What is wrong with one benchmark's files, one measure's texts or one stored result must not cost a
cell its other scores and measures: such errors are kept while the job goes on, and raised at its
end. Everything else (memory, a canary, a fault of this program) ends the job at once.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from sft_atlas.errors import DamagedError, DataError, Error, StoreError, StudyError

LOCAL_FAULTS: Final = (DataError, StudyError, StoreError)
"""Errors that say nothing about the rest of a job."""


@contextmanager
def kept(faults: list[Error]) -> Iterator[None]:
    """Let a local fault end the block alone, and keep it for `raise_faults`."""
    try:
        yield
    except LOCAL_FAULTS as error:
        faults.append(error)


def raise_faults(faults: Sequence[Error]) -> None:
    """Raise what was kept as one error that says all of it; nothing where nothing was kept.

    Of several it has the type of the first; damage goes before, since its folder has to be made
    anew.
    """
    if not faults:
        return
    texts = dict.fromkeys(str(fault) for fault in faults)
    first = next((fault for fault in faults if isinstance(fault, DamagedError)), faults[0])
    if len(texts) == 1:
        raise first
    text = " Also: ".join(texts)
    if isinstance(first, DamagedError):
        raise DamagedError(text, first.folder) from first
    raise type(first)(text) from first
