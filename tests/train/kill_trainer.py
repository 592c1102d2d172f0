"""Kill training at boundaries, and go on with what was left behind.

A boundary is a moment at which a process is about to change the disk, or has come through a part
of a step. An undisturbed run lists those of each thread; points are spread evenly over those of
each phase.
"""

import os
import resource
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from sft_atlas.train.placement import Observers
from train.forked import Wish, digests, fork, spread

TORN_BYTES: Final = 500
"""A file that grows beyond this in a process that is to be torn ends the process."""

CHANGES: Final = frozenset(("os.rename", "os.mkdir", "os.remove", "os.rmdir"))


class Point(NamedTuple):
    """A boundary: the N-th of one thread, and what it is."""

    thread: str
    number: int
    label: str

    @property
    def phase(self) -> str:
        return self.label.partition(" ")[0]


@dataclass
class Boundaries:
    """Counts the boundaries of this process below a folder, and ends it at one of them."""

    root: str
    fatal: Point | None
    found: list[Point] = field(default_factory=list)
    numbers: dict[str, int] = field(default_factory=dict)

    def reach(self, label: str, die: Callable[[], None]) -> None:
        thread = threading.current_thread().name.partition("_")[0]
        point = Point(thread, self.numbers.get(thread, 0), label)
        self.numbers[thread] = point.number + 1
        self.found.append(point)
        if self.fatal is not None and point[:2] == self.fatal[:2]:
            die()

    def touch(self, event: str, path: str) -> None:
        """Note a change to a path."""
        if path.startswith(self.root):
            phase = "checkpoint" if "/working" in path else "publish"
            self.reach(f"{phase} {event}", kill_oneself)
            if event == "os.mkdir" and "/tmp" in path.removeprefix(self.root):
                # What is written next goes into it.
                self.reach(f"{phase} torn", tear_oneself)

    def look(self, event: str, arguments: Any) -> None:
        """Note the changes that Python announces."""
        if event in CHANGES:
            path, folder = os.fsdecode(arguments[0]), arguments[-1]
            self.touch(event, path if folder < 0 else f"{path_of(folder)}/{path}")
        elif event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            path = arguments[0]
            self.touch(event, path_of(path) if isinstance(path, int) else os.fsdecode(path))


def path_of(descriptor: int) -> str:
    return str(Path(f"/proc/self/fd/{descriptor}").readlink())


def kill_oneself() -> None:
    """End this process as the kernel or an administrator would."""
    os.kill(os.getpid(), signal.SIGKILL)


def tear_oneself() -> None:
    """Let the kernel end this process within its next write, whichever library does it."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (TORN_BYTES, TORN_BYTES))


def train_until(wish: Wish, root: Path, fatal: Point | None) -> list[Point]:
    """Train in this process until it dies at a point, or return all points."""
    boundaries = Boundaries(str(root), fatal)
    fsync = os.fsync

    def sync(descriptor: int) -> None:
        boundaries.touch("os.fsync", path_of(descriptor))
        fsync(descriptor)

    def reach(label: str) -> None:
        boundaries.reach(label, kill_oneself)

    os.fsync = sync
    # Python ignores it, so that a file that gets too large is an error.
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    sys.addaudithook(boundaries.look)
    register_optimizer_step_pre_hook(lambda *_: reach("step has its gradients"))
    register_optimizer_step_post_hook(lambda *_: reach("step is taken"))
    observers = Observers(
        on_step=lambda *_: reach("step is over"), on_epoch=lambda *_: reach("publish is seen")
    )
    wish.train(root, observers)
    return boundaries.found


def choose(found: list[Point], num_points: int) -> list[Point]:
    """Return points of each phase, as many of each as there are and evenly spaced."""
    phases: dict[str, list[Point]] = {}
    for point in sorted(found):
        phases.setdefault(point.phase, []).append(point)
    chosen: list[Point] = []
    for left, points in zip(
        range(len(phases), 0, -1), sorted(phases.values(), key=len), strict=True
    ):
        chosen += spread(points, (num_points - len(chosen)) // left)
    return chosen


def kill_and_resume(wish: Wish, root: Path, num_points: int) -> list[dict[str, Any]]:
    """Train undisturbed, then once per point in a store of its own, dying there and resuming."""
    status, found = fork(lambda: train_until(wish, root / "undisturbed", None))
    assert status == 0, "the undisturbed run failed"
    expected = digests(root / "undisturbed")
    outcomes = []
    for number, point in enumerate(choose([Point(*point) for point in found], num_points)):
        store = root / str(number)
        killed, _ = fork(lambda p=point, s=store: train_until(wish, s, p))
        resumed, _ = fork(lambda s=store: wish.train(s))
        outcomes.append(
            {
                "point": point,
                "killed": killed,
                "resumed": resumed,
                "is_same": digests(store) == expected,
                "num_compared": len(expected),
                "left": sorted(path.name for path in store.glob("working/*")),
            }
        )
    return outcomes
