"""Publish results once, read them verified, and let exactly one worker hold a job.

A result is a folder: it is filled under `tmp/`, forced to the disk, and renamed to its final name,
which is derived from its Spec. So a folder that exists is complete, whoever was killed while making
it. A lease is a kernel lock on a file: it ends with the process that holds it, so nothing has to
expire, and a lock file without a holder means nothing.
"""

import contextlib
import fcntl
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sft_atlas import files
from sft_atlas.errors import StoreError
from sft_atlas.store.layout import Layout
from sft_atlas.store.records import (
    RECORD_NAME,
    Artifact,
    Record,
    check_artifact,
    read_record,
    write_record,
)

FORMAT: Final = 1


@dataclass(frozen=True)
class Store:
    """One content-addressed folder of results, shared by any number of studies and processes."""

    layout: Layout

    def publish(
        self,
        folder: Path,
        *,
        schema: str,
        spec: dict[str, Any],
        fill: Callable[[Path], dict[str, Any]],
        provenance: Callable[[], dict[str, Any]],
    ) -> Record:
        """Make a result visible under its final name, whole or not at all.

        `fill(aside)` writes the artefacts into an empty folder and returns the record's `result`;
        each file below it is digested. `provenance()` is asked last, so that it can say how long it
        took. If another process published the same folder meanwhile, its record is returned and
        this one is dropped.
        """
        aside = self.layout.temporary / f"{os.uname().nodename}.{os.getpid()}.{uuid.uuid4().hex}"
        aside.mkdir(parents=True)
        try:
            with files.disk_errors():
                result = fill(aside)
            artifacts = _digest_files(aside)
            record = Record(
                schema=schema,
                spec=spec,
                result=result,
                artifacts=artifacts,
                provenance=provenance(),
            )
            write_record(aside, record)
            for path in [aside, *(p for p in aside.rglob("*") if p.is_dir())]:
                files.sync_folder(path)
            folder.parent.mkdir(parents=True, exist_ok=True)
            try:
                aside.rename(folder)
            except OSError:
                if not (folder / RECORD_NAME).is_file():
                    raise
                return read_record(folder)
            files.sync_folder(folder.parent)
            return record
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def has(self, folder: Path) -> bool:
        """Tell whether a result was published; says nothing about damage since then."""
        return (folder / RECORD_NAME).is_file()

    def read(self, folder: Path) -> Record:
        """Read a result's record; raises StoreError if it is absent or damaged."""
        return read_record(folder)

    def find(self, folder: Path) -> Record | None:
        """Read a result's record, or return None where nothing was published."""
        return read_record(folder) if self.has(folder) else None

    def read_verified(self, folder: Path) -> Record:
        """Read a result's record and compare all its files with their digests; raises as `read`."""
        record = read_record(folder)
        for name in record.artifacts:
            check_artifact(folder, record, name)
        return record

    def artifact(self, folder: Path, name: str) -> Path:
        """Return the path of a result's file after checking it against the record's digest."""
        return check_artifact(folder, read_record(folder), name)

    def set_aside(self, folder: Path, *, only_damaged: bool = False) -> Path:
        """Move a result to `quarantine/` and return where it went; it is made anew.

        With `only_damaged` a result that another process has made anew meanwhile stays.
        """
        target = self.layout.quarantine / f"{folder.name}.{uuid.uuid4().hex[:8]}"
        target.parent.mkdir(parents=True, exist_ok=True)
        # Another process may have set it aside first, and may even have made it anew.
        with contextlib.suppress(FileNotFoundError):
            if not only_damaged or self._is_damaged(folder):
                folder.rename(target)
        return target

    def _is_damaged(self, folder: Path) -> bool:
        try:
            self.read_verified(folder)
        except (StoreError, FileNotFoundError):
            return folder.is_dir()
        return False

    def lease(self, job: str) -> contextlib.AbstractContextManager[bool]:
        """Hold a job for the length of a `with` block; yields False if another process holds it."""
        return _lease(self.layout.lease(job))

    def holders(self) -> dict[str, dict[str, Any]]:
        """Return who holds which job now: process id, host and start by job fingerprint."""
        if not self.layout.leases.is_dir():
            return {}
        held = {}
        for path in self.layout.leases.iterdir():
            with path.open("rb") as stream:
                try:
                    fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    with contextlib.suppress(ValueError):
                        held[path.stem] = json.loads(stream.read())
        return held

    def record_failure(self, job: str, spec: dict[str, Any], result: dict[str, Any]) -> None:
        """Replace a job's failure record; `result` has kind, message, step and trace."""
        self.clear_failure(job)
        self.publish(
            self.layout.failure(job),
            schema="failure/1",
            spec=spec,
            fill=lambda _: result,
            provenance=lambda: {"failed": time.time()},
        )

    def clear_failure(self, job: str) -> None:
        """Forget a job's failure: it is tried again, or it succeeded."""
        shutil.rmtree(self.layout.failure(job), ignore_errors=True)

    def sweep(self) -> None:
        """Remove what writers left under `tmp/` that were killed on this machine."""
        if not self.layout.temporary.is_dir():
            return
        for path in self.layout.temporary.iterdir():
            host, _, rest = path.name.rpartition(".")[0].rpartition(".")
            if host == os.uname().nodename and not Path(f"/proc/{rest}").exists():
                shutil.rmtree(path, ignore_errors=True)


def open_store(root: Path, *, create: bool = False) -> Store:
    """Open a store; one that does not exist yet is empty, and made only if `create` is set.

    Raises:
        StoreError: if the folder holds something else, or a store of another format.
    """
    layout = Layout(root.absolute())
    if layout.marker.is_file():
        found = files.read_json(layout.marker).get("format")
        if found != FORMAT:
            raise StoreError(
                f"{root}: is a store of format {found!r}; this version reads {FORMAT}. "
                f"Use the version that made it, or another folder."
            )
        return Store(layout)
    if root.exists() and (not root.is_dir() or _is_foreign(layout)):
        raise StoreError(f"{root}: is not a store and not empty; name a new folder with --store.")
    if create:
        try:
            files.write_json(layout.marker, {"format": FORMAT})
        except OSError as error:
            raise StoreError(
                f"{root}: no store can be made here ({error}); use --store."
            ) from error
    return Store(layout)


def _is_foreign(layout: Layout) -> bool:
    """Tell whether a folder without a marker holds anything but a store that is being made now."""
    aside = f".{layout.marker.name}."
    others = [path for path in layout.root.iterdir() if not path.name.startswith(aside)]
    # Another process may have finished making it since the marker was looked for.
    return bool(others) and not layout.marker.is_file()


@contextlib.contextmanager
def _lease(path: Path) -> Iterator[bool]:
    path.parent.mkdir(parents=True, exist_ok=True)
    # The file is never deleted: unlinking it would let two processes lock two files of one name.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        holder = {"pid": os.getpid(), "host": os.uname().nodename, "since": time.time()}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        yield True
    finally:
        os.close(descriptor)


def _digest_files(folder: Path) -> dict[str, Artifact]:
    artifacts = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        files.sync_file(path)
        name = path.relative_to(folder).as_posix()
        artifacts[name] = Artifact(sha256=files.sha256_file(path), num_bytes=path.stat().st_size)
    return artifacts
