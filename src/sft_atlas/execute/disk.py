"""Say whether what a plan leaves behind fits on the store's disk, and what to do where it does
not."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from sft_atlas.errors import StoreError
from sft_atlas.store.store import Store
from sft_atlas.study.budget import check_disk
from sft_atlas.study.plan import Plan

_DISK_ERRORS: Final = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS))


def is_disk_error(error: Exception) -> bool:
    """Tell whether an error says that a disk is full or fails."""
    return isinstance(error, OSError) and error.errno in _DISK_ERRORS


def disk_advice(store: Store, error: Exception) -> str:
    """Say in the form of an error what a user can do about `is_disk_error`."""
    return (
        f"{store.layout.root}: its disk is full or fails ({error}). Free space there or move the "
        f"store to another disk, then run again, with --only failed what is recorded as failed: "
        f"training goes on from its last checkpoint."
    )


@contextmanager
def disk_errors_are_named(store: Store) -> Iterator[None]:
    """Raise StoreError, which says what to do, where the store's disk is full or fails."""
    try:
        yield
    except OSError as error:
        if not is_disk_error(error):
            raise
        raise StoreError(disk_advice(store, error)) from error


def refuse_full_disk(planned: Plan, store: Store) -> None:
    """Raise StoreError where a plan cannot fit on the store's disk."""
    root = store.layout.root
    refusal = check_disk(planned.cost, free_bytes(root))
    if refusal:
        raise StoreError(f"{root}: {refusal}")


def free_bytes(folder: Path) -> int:
    """Return the free space of the disk where a folder is or would be."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
