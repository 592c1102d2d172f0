"""Train on a disk that is too small or fails, and go on when it is mended.

The small disk is a real one: a tmpfs of so many pages or inodes, in a namespace of its own process.
So the kernel refuses whatever comes, from Python or from a library.
"""

import ctypes
import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal

from sft_atlas.store.store import open_store
from sft_atlas.train.checkpoint import Checkpoint, CheckpointWriter
from train.forked import Wish, digests, fork, spread

Resource = Literal["nr_blocks", "nr_inodes"]

_CLONE_NEWNS: Final = 0x00020000
_CLONE_NEWUSER: Final = 0x10000000
_MS_REMOUNT: Final = 32


def mount_disk(folder: Path) -> None:
    """Give this process alone an empty disk at a folder; raises OSError where that is forbidden."""
    user, group = os.getuid(), os.getgid()
    _call("unshare", _CLONE_NEWUSER | _CLONE_NEWNS)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    _call("mount", b"tmpfs", bytes(folder), b"tmpfs", 0, None)


def resize_disk(folder: Path, resource: Resource, number: int) -> None:
    """Limit a disk's pages or files; 0 takes the limit away."""
    _call("mount", b"tmpfs", bytes(folder), b"tmpfs", _MS_REMOUNT, f"{resource}={number}".encode())


def num_used(folder: Path, resource: Resource) -> int:
    """Return how many pages or inodes of a disk are in use."""
    found = os.statvfs(folder)
    if resource == "nr_blocks":
        return found.f_blocks - found.f_bfree
    return found.f_files - found.f_ffree


def _call(name: str, *arguments: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def fill_and_mend(wish: Wish, root: Path, num_points: int) -> list[dict[str, Any]] | None:
    """Train on disks of several sizes, in pages and in files, and go on when there is room.

    Returns None on a host where no process may have a disk of its own.
    """
    root.mkdir(parents=True)
    if fork(lambda: mount_disk(root))[0]:
        return None
    status, expected = fork(lambda: _train_in_room(wish, root))
    assert status == 0, "the undisturbed run failed"
    outcomes = []
    for resource in ("nr_blocks", "nr_inodes"):
        first, most = expected["used"][resource]
        for number in spread(range(first, most), num_points):
            status, outcome = fork(
                lambda r=resource, n=number: _train_short(wish, root, r, n, expected["digests"])
            )
            outcomes.append({"point": f"{resource}={number}", "status": status, **(outcome or {})})
    return outcomes


def _train_in_room(wish: Wish, root: Path) -> dict[str, Any]:
    """Train with all the room there is; returns what is used at first and at most.

    Each checkpoint is waited for: a run beside its checkpoints needs as much at some moment, and
    may need more.
    """
    mount_disk(root)
    write = CheckpointWriter.write

    def write_and_wait(writer: CheckpointWriter, checkpoint: Checkpoint) -> None:
        write(writer, checkpoint)
        writer.wait()

    CheckpointWriter.write = write_and_wait
    open_store(root, create=True)
    resources = ("nr_blocks", "nr_inodes")
    first = {resource: num_used(root, resource) for resource in resources}
    most = dict(first)

    def look(_event: str, _arguments: object) -> None:
        for resource in resources:
            most[resource] = max(most[resource], num_used(root, resource))

    sys.addaudithook(look)
    wish.train(root)
    used = {resource: (first[resource], most[resource]) for resource in resources}
    return {"used": used, "digests": digests(root)}


def _train_short(
    wish: Wish, root: Path, resource: Resource, number: int, expected: dict[str, str]
) -> dict[str, Any]:
    mount_disk(root)
    open_store(root, create=True)
    resize_disk(root, resource, number)
    return _fail_and_mend(wish, root, lambda: resize_disk(root, resource, 0), expected)


def fail_and_mend(wish: Wish, root: Path, num_points: int) -> list[dict[str, Any]]:
    """Train while one of the calls that force bytes to the disk fails, and go on when none does."""
    status, num_calls = fork(lambda: _count_calls(wish, root / "undisturbed"))
    assert status == 0, "the undisturbed run failed"
    expected = digests(root / "undisturbed")
    outcomes = []
    for number in spread(range(num_calls), num_points):
        status, outcome = fork(
            lambda n=number: _train_failing(wish, root / str(n), n, expected),
        )
        outcomes.append({"point": f"fsync {number}", "status": status, **(outcome or {})})
    return outcomes


def _count_calls(wish: Wish, root: Path) -> int:
    open_store(root, create=True)
    calls = _fail_at(-1)
    wish.train(root)
    return calls[0]


def _train_failing(wish: Wish, root: Path, number: int, expected: dict[str, str]) -> dict[str, Any]:
    open_store(root, create=True)
    _fail_at(number)
    return _fail_and_mend(wish, root, lambda: None, expected)


def _fail_at(number: int) -> list[int]:
    """Let one call of fsync in this process fail; returns a list of the number of calls so far."""
    calls, fsync = [0], os.fsync

    def sync(descriptor: int) -> None:
        calls[0] += 1
        if calls[0] == number + 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(descriptor)

    os.fsync = sync
    return calls


def _fail_and_mend(
    wish: Wish, root: Path, mend: Callable[[], None], expected: dict[str, str]
) -> dict[str, Any]:
    """Train until the disk fails, look at what is visible, and train to the end."""
    error = None
    try:
        wish.train(root)
    except Exception as caught:  # noqa: BLE001 - the test says which one it has to be
        error = caught
    visible = {(root / name).parent for name in digests(root)}
    store = open_store(root)
    whole = {path for path in visible if store.has(path)}
    for path in whole:
        store.read_verified(path)
    aside = [*root.glob("tmp/*"), *root.glob("working/*/tmp-*")]
    mend()
    wish.train(root)
    return {
        "error": type(error).__name__,
        "errno": getattr(error, "errno", None),
        "message": str(error),
        "num_published": len(whole),
        "half": sorted(map(str, visible - whole)),
        "aside": sorted(map(str, aside)),
        "is_same": digests(root) == expected,
        "num_compared": len(expected),
        "left": sorted(path.name for path in root.glob("working/*")),
    }
