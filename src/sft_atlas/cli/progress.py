"""Show a run while it goes on: a bar with the time left on a terminal, plain lines in a log."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from sft_atlas.execute.local import Event
from sft_atlas.execute.schedule import Task
from sft_atlas.study.job import job_title


@final
@dataclass(kw_only=True)
class RunView:
    """Listens to a run; `total_cost` and costs are in the scheduler's unit."""

    console: Console
    tasks: Mapping[str, Task]
    started: float = field(default_factory=time.monotonic)
    fractions: dict[str, float] = field(default_factory=dict)
    num_done: int = 0
    num_failed: int = 0
    bar: Progress | None = None
    bar_task: TaskID | None = None

    def listen(self, event: Event) -> None:
        """Take one event of the run and show what it changes."""
        task = self.tasks[event.job]
        if event.kind == "progress":
            self.fractions[event.job] = event.fraction
            self._update_bar()
            return
        if event.kind in {"done", "failed"}:
            self.fractions[event.job] = 1.0
            self.num_done += event.kind == "done"
            self.num_failed += event.kind == "failed"
            self._update_bar()
        if event.kind in {"failed", "lost", "blocked"} or (event.kind == "done" and not self.bar):
            self._print_line(event, task)

    def seconds_left(self) -> float | None:
        """Estimate from the cost that is done; None until that is a twentieth of all."""
        total = sum(task.cost for task in self.tasks.values())
        done = sum(self.tasks[job].cost * share for job, share in self.fractions.items())
        if done <= total / 20:
            return None
        return (time.monotonic() - self.started) * (total - done) / done

    def _print_line(self, event: Event, task: Task) -> None:
        count = f"[{self.num_done + self.num_failed}/{len(self.tasks)}]"
        text = f": {event.text}" if event.text else ""
        took = f" {event.seconds:.1f} s" if event.seconds else ""
        left = self.seconds_left()
        eta = f" ({duration(left)} left)" if left and event.kind == "done" else ""
        line = f"{count} {event.kind} {job_title(task.job)}{took}{text}{eta}"
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _update_bar(self) -> None:
        if self.bar is None or self.bar_task is None:
            return
        left = self.seconds_left()
        failed = f", {self.num_failed} failed" if self.num_failed else ""
        self.bar.update(
            self.bar_task,
            completed=self.num_done + self.num_failed,
            note=(f"{duration(left)} left" if left is not None else "starting") + failed,
        )


@contextmanager
def run_view(console: Console, chosen: Sequence[Task]) -> Iterator[Callable[[Event], None]]:
    """Show a bar on a terminal for the length of a `with` block, lines elsewhere; gives a
    listener.
    """
    tasks = {task.job.fingerprint: task for task in chosen}
    if not console.is_terminal:
        yield RunView(console=console, tasks=tasks).listen
        return
    columns = (
        TextColumn("jobs"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        bar_task = bar.add_task("jobs", total=len(tasks), note="starting")
        yield RunView(console=console, tasks=tasks, bar=bar, bar_task=bar_task).listen


def duration(seconds: float) -> str:
    """Write a time span in its two largest units.

    >>> duration(75), duration(4.2), duration(7300)
    ('1 min 15 s', '4 s', '2 h 1 min')
    """
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"
