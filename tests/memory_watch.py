"""Watch by how much a process's memory rises while something runs."""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal


@contextmanager
def peak_memory(field: Literal["VmRSS", "RssAnon"]) -> Iterator[list[int]]:
    """Lend a list whose one entry is the rise in bytes; `RssAnon` leaves mapped files out."""
    # What earlier tests gave back would be used again, and nothing would rise.
    ctypes.CDLL(None).malloc_trim(0)
    rise, done, before = [0], threading.Event(), _num_bytes(field)

    def watch() -> None:
        while not done.wait(0.001):
            rise[0] = max(rise[0], _num_bytes(field) - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield rise
    finally:
        done.set()
        watcher.join()


def _num_bytes(field: str) -> int:
    text = Path("/proc/self/status").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith(f"{field}:")]
    return int(line.split()[1]) << 10
