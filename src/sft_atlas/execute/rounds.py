"""Do what is missing of a study on this machine, once or until its scores are sure enough.

In: a study and a store. Out: what was done. A round plans against the store, refuses what cannot
work before anything is done, and runs the jobs; where gains have to be surer, limits are raised for
all cells alike and another round follows.
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from sft_atlas.data.items import load_items
from sft_atlas.errors import StudyError
from sft_atlas.execute.disk import disk_errors_are_named, refuse_full_disk
from sft_atlas.execute.extend import apply_extensions, next_limits, record_limits
from sft_atlas.execute.local import Event, Outcome, run_tasks
from sft_atlas.execute.placement import NO_WISHES, Placement, TrainingWishes, place_workers
from sft_atlas.execute.schedule import Task
from sft_atlas.execute.tasks import select_tasks, with_companions
from sft_atlas.judge.endpoint import Endpoint, check_endpoint, read_key
from sft_atlas.store.inventory import set_damaged_aside
from sft_atlas.store.known import plan_for_store
from sft_atlas.store.store import Store
from sft_atlas.store.tables import cells_table, grid_of, scores_table
from sft_atlas.study.spec import BenchmarkDefinition
from sft_atlas.study.study import Study
from sft_atlas.study.subset import Subset, describe_subset

Listener = Callable[[Event], None]
View = Callable[[Sequence[Task]], AbstractContextManager[Listener]]
"""Is given the tasks of a round and gives a listener for its events."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What a user may ask of a run; nothing here changes what is learned."""

    workers: int | None = None
    """Processes; None: one per GPU, or per usable core."""
    training: TrainingWishes = NO_WISHES
    only: Sequence[str] = ()
    """Terms that select jobs, see `execute.tasks.select_tasks`."""
    until_se: float | None = None
    """Raise limits until no gain's standard error is above so many points."""
    view: View | None = None


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run did."""

    num_done: int
    num_failed: int
    num_blocked: int
    """Jobs that could not start because one that they need failed."""
    num_left: int
    """Jobs that were not done because the run was interrupted."""
    num_failed_before: int
    """Jobs that failed in an earlier run and were left alone."""
    set_aside: tuple[Path, ...]
    """Damaged results that were moved to quarantine and made anew."""
    seconds: float

    def after(self, earlier: "RunResult") -> "RunResult":
        """Return what this round and an earlier one did together."""
        return replace(
            self,
            num_done=earlier.num_done + self.num_done,
            set_aside=earlier.set_aside + self.set_aside,
            seconds=earlier.seconds + self.seconds,
        )

    @property
    def is_complete(self) -> bool:
        """Nothing failed, now or earlier, and nothing is left."""
        problems = self.num_failed + self.num_blocked + self.num_left + self.num_failed_before
        return problems == 0


def run_study(study: Study, store: Store, options: RunOptions) -> RunResult:
    """Do what is missing of a study; `study` has the limits of its file.

    Raises:
        StudyError: if a benchmark cannot be scored, the judge cannot be asked, or options do not go
            together.
        StoreError: if the store's disk is too small.
    """
    target = options.until_se
    if target is not None and not target > 0:
        raise StudyError(f"--until-se {target:g}: expected a number of points above 0.")
    if target is not None and options.only:
        raise StudyError(
            f"--until-se {target:g}: asks all cells the same new items; expected no --only beside "
            f"it. Run what --only selects first."
        )
    result = _run_round(apply_extensions(study, store), store, options)
    while target is not None and result.is_complete:
        if not _extend(apply_extensions(study, store), store, target):
            break
        result = _run_round(apply_extensions(study, store), store, options).after(result)
    return result


def find_subsets(study: Study) -> dict[str, Subset]:
    """Return which items each benchmark asks, where its items are on this machine."""
    found = {}
    for benchmark in study.benchmark_specs:
        is_local = benchmark.items.path is not None and benchmark.items.path.exists()
        if isinstance(benchmark.definition, BenchmarkDefinition) and is_local:
            seed = benchmark.order_seed
            items = load_items(benchmark.definition, benchmark.items, order_seed=seed)
            ids, groups = [item.id for item in items], [item.group for item in items]
            found[benchmark.name] = describe_subset(ids, groups, benchmark.limit)
    return found


def _run_round(study: Study, store: Store, options: RunOptions) -> RunResult:
    started = time.monotonic()
    _refuse_unscored(study)
    placement = replace(place_workers(options.workers, options.training), judge=_judge_of(study))
    store.sweep()
    set_aside = set_damaged_aside(store)
    planned = plan_for_store(study, store)
    refuse_full_disk(planned, store)
    selection = select_tasks(planned, store, options.only)
    tasks = with_companions(selection.tasks, planned, placement)
    outcome = _run_selection(tasks, store, placement, options.view)
    if outcome.num_done:
        _read_scores(study, store)  # brings the index of scores up to date
    return RunResult(
        num_done=outcome.num_done,
        num_failed=outcome.num_failed,
        num_blocked=outcome.num_blocked,
        num_left=outcome.num_left,
        num_failed_before=selection.num_failed_before,
        set_aside=tuple(set_aside),
        seconds=time.monotonic() - started,
    )


def _extend(study: Study, store: Store, target_points: float) -> bool:
    """Record larger limits where gains are not sure enough; tells whether there were any."""
    known = find_subsets(study)
    specs = study.benchmark_specs
    limits = next_limits(
        _read_scores(study, store),
        specs,
        target_points=target_points,
        num_available={
            b.unlimited_fingerprint: known[b.name].num_available for b in specs if b.name in known
        },
    )
    record_limits(study, store, limits, target_points=target_points)
    return bool(limits)


def _read_scores(study: Study, store: Store) -> pd.DataFrame:
    grid = grid_of(study)
    return scores_table(store, grid, cells_table(store, grid))


def _judge_of(study: Study) -> Endpoint | None:
    """Return where the study's judge is reached, checked before any work is done."""
    entry = study.judge
    if entry is None or not any(b.judge for b in study.benchmark_specs):
        return None
    settings = entry.model_dump(exclude={"model", "temperature", "max_new_tokens"})
    endpoint = Endpoint(**settings)
    check_endpoint(endpoint)
    read_key(endpoint)
    return endpoint


def _run_selection(
    tasks: Sequence[Task], store: Store, placement: Placement, view: View | None
) -> Outcome:
    if not tasks:
        return Outcome(num_done=0, num_failed=0, num_blocked=0, num_left=0)
    show = view(tasks) if view else nullcontext(lambda _event: None)
    log = store.layout.log / f"{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}.jsonl"
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        disk_errors_are_named(store),
        show as listener,
        log.open("a", encoding="utf-8") as stream,
    ):

        def listen(event: Event) -> None:
            if event.kind != "progress":
                facts = {"kind": event.kind, "job": event.job, "text": event.text}
                line = facts | {"seconds": event.seconds, "time": round(time.time(), 3)}
                stream.write(json.dumps(line) + "\n")
                stream.flush()
            listener(event)

        return run_tasks(tasks, store=store, placement=placement, listen=listen)


def _refuse_unscored(study: Study) -> None:
    for benchmark in study.benchmarks:
        if benchmark.spec is None:
            raise StudyError(f"{study.path}: benchmark {benchmark.name} {benchmark.reason}.")
