"""Read what a store knows that makes a plan's cost surer than cards and assumptions do.

In: a study and a store. Out: this machine's profile, the lengths of samples as tokenizers cut them,
and how long finished runs took; and the plan that rests on them.
"""

from collections.abc import Iterator

from sft_atlas.machine import this_processor
from sft_atlas.store.inventory import read_inventory
from sft_atlas.store.outcomes import longest_outcome
from sft_atlas.store.profiles import read_profile
from sft_atlas.store.records import Record
from sft_atlas.store.store import Store
from sft_atlas.study.cost import Known, SampleShape
from sft_atlas.study.draft import Draft
from sft_atlas.study.missing import Inventory, measure_jobs
from sft_atlas.study.plan import Plan, make_plan
from sft_atlas.study.study import Study
from sft_atlas.study.training_cost import TimedRun


def plan_for_store(
    study: Study, store: Store, *, device: str | None = None, draft: Draft | None = None
) -> Plan:
    """Plan a study against a store, and cost it with all that the store knows.

    Where a device is named, the cost is that of its card, whatever was measured here. `draft` is
    the study's, where the caller has it.
    """
    inventory, draft = read_inventory(store), draft or Draft.of(study)
    if device is not None:
        return make_plan(study, inventory, device=device, draft=draft)
    known = read_known(study, draft, inventory, store)
    return make_plan(study, inventory, known=known, draft=draft)


def read_known(study: Study, draft: Draft, inventory: Inventory, store: Store) -> Known:
    """Return what was measured of this machine, the study's data and its finished runs."""
    return Known(
        profile=read_profile(store, this_processor()),
        samples=dict(_samples(study, draft, inventory, store)),
        runs=tuple(_timed_runs(draft, inventory, store)),
    )


def _samples(
    study: Study, draft: Draft, inventory: Inventory, store: Store
) -> Iterator[tuple[tuple[str, str], SampleShape]]:
    if not inventory.datasets:
        return
    for job in measure_jobs(study, draft):
        if job.fingerprint in inventory.datasets:
            found = store.read(store.layout.dataset(job.fingerprint)).result
            shape = SampleShape(
                tokens=found["num_tokens"] / found["num_samples"],
                supervised_fraction=found["answer_tokens"] / found["num_tokens"],
            )
            yield (job.model.name, job.dataset.name), shape


def _timed_runs(draft: Draft, inventory: Inventory, store: Store) -> Iterator[TimedRun]:
    """Yield the finished runs whose outcome says how long its steps took."""
    recorded = {trajectory for trajectory, _ in inventory.outcomes}
    for name in (name for name in draft.trajectories if name in recorded):
        folder = longest_outcome(store, name)
        record = None if folder is None else store.find(folder)
        seconds = 0.0 if record is None else step_seconds(record)
        if record is not None and seconds:
            yield TimedRun(
                trajectory=draft.trajectories[name],
                epochs=record.result["last_epoch"],
                seconds=seconds,
                device=record.provenance["device"],
            )


def step_seconds(outcome: Record) -> float:
    """Return how long all optimizer steps of a finished run took; 0 where its outcome tells not.

    A run that was resumed knows the time of its last process alone, and how many steps that took.
    """
    timed = outcome.provenance.get("num_timed_steps", 0)
    if outcome.result["state"] != "finished" or not timed:
        return 0.0
    share: float = outcome.result["num_steps"] / timed
    return share * float(outcome.provenance["train_seconds"])
