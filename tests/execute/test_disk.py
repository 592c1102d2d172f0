"""What a full or failing disk says to a user, and that other errors keep their own words."""

import errno
import os
from pathlib import Path

import pytest

from sft_atlas.errors import StoreError
from sft_atlas.execute.disk import disk_errors_are_named
from sft_atlas.store.store import open_store


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_a_disk_that_is_full_or_fails_is_no_traceback(tmp_path: Path, number: int) -> None:
    store = open_store(tmp_path, create=True)
    with pytest.raises(StoreError) as caught, disk_errors_are_named(store):
        raise OSError(number, os.strerror(number))
    assert str(caught.value) == (
        f"{tmp_path}: its disk is full or fails ([Errno {number}] {os.strerror(number)}). Free "
        f"space there or move the store to another disk, then run again, with --only failed what "
        f"is recorded as failed: training goes on from its last checkpoint."
    )


def test_an_error_of_another_kind_keeps_its_words(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), disk_errors_are_named(open_store(tmp_path, create=True)):
        (tmp_path / "nowhere").read_bytes()
