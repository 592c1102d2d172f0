"""Say what a study implies and what of it is missing: trajectories, jobs, and what they cost.

In: a study and what the store holds already. Out: a `Plan`. Cells of all blocks are merged into
trajectories by fingerprint, so that a run which two blocks ask for, or an earlier study made, is
trained once. Nothing here depends on the order of the file but the order of the lists.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from sft_atlas.study.budget import PlanCost, total_cost
from sft_atlas.study.cost import NOTHING_KNOWN, CostModel, Known, default_device
from sft_atlas.study.draft import Draft
from sft_atlas.study.missing import (
    Inventory,
    MissingJobs,
    PlannedJob,
    missing_benchmarks,
    missing_measures,
)
from sft_atlas.study.spec import CellSpec, TrajectorySpec
from sft_atlas.study.study import Study

JOB_KINDS = (
    *("prepare", "measure", "train", "evaluate", "grade"),
    *("overlap", "describe", "similarity", "updates"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedCell:
    """A cell, the blocks that ask for it, and what of it exists."""

    cell: CellSpec
    blocks: tuple[str, ...]
    is_trained: bool
    """Its weights are published."""
    is_done: bool
    """Its weights, all its scores and all its measures are published."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedTrajectory:
    """One training run with the epochs that any block keeps."""

    trajectory: TrajectorySpec
    epochs: tuple[int, ...]
    blocks: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class BlockPlan:
    """One block's share; cells and trajectories of several blocks count in each of them."""

    name: str
    num_cells: int
    num_trajectories: int
    num_trained: int
    num_done: int
    shared: tuple[tuple[str, int], ...] = ()
    """(other block, number of cells that both ask for)."""

    @property
    def num_missing(self) -> int:
        return self.num_cells - self.num_done


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a study implies, and what of it is missing."""

    study: Study
    device: str
    blocks: tuple[BlockPlan, ...]
    cells: tuple[PlannedCell, ...]
    """Every cell once, in the order of the study; base models are in `bases`."""
    bases: tuple[PlannedCell, ...]
    trajectories: tuple[PlannedTrajectory, ...]
    jobs: tuple[PlannedJob, ...]
    """What is missing."""
    draft: Draft = field(repr=False)
    known: Known = field(default=NOTHING_KNOWN, repr=False)

    @property
    def num_cells(self) -> int:
        return len(self.cells)

    @property
    def num_trajectories(self) -> int:
        return len(self.trajectories)

    @cached_property
    def num_done(self) -> int:
        return sum(cell.is_done for cell in self.cells)

    @cached_property
    def num_jobs(self) -> dict[str, int]:
        """Missing jobs by kind."""
        counts = Counter[str](planned.job.kind for planned in self.jobs)
        return {kind: counts[kind] for kind in JOB_KINDS}

    @cached_property
    def cost(self) -> PlanCost:
        """The cost of what is missing."""
        return self._cost(self.jobs)

    @cached_property
    def total_cost(self) -> PlanCost:
        """The cost of the whole study in an empty store."""
        if self.num_done == 0 and not any(cell.is_trained for cell in self.cells):
            return self.cost
        jobs = MissingJobs(self.study, self.draft, Inventory(), self.cost_model()).all()
        return self._cost(jobs)

    def _cost(self, jobs: Sequence[PlannedJob]) -> PlanCost:
        return total_cost(self.cost_model(), [(planned.job, planned.cost) for planned in jobs])

    def cost_model(self) -> CostModel:
        """Return what costs work on the plan's device."""
        return CostModel(self.study, self.device, self.known)


def make_plan(
    study: Study,
    inventory: Inventory | None = None,
    *,
    device: str | None = None,
    known: Known = NOTHING_KNOWN,
    draft: Draft | None = None,
) -> Plan:
    """Plan a study against what exists.

    Args:
        study: the resolved study.
        inventory: what the store holds; None plans for an empty store.
        device: name of a device card, for the cost; None: `default_device`.
        known: what was measured, for the cost; nothing of it counts where a device is named.
        draft: the study's draft, where the caller has it.
    """
    known = NOTHING_KNOWN if device else known
    device = device or default_device(study, known)
    stored = inventory or Inventory()
    draft = draft or Draft.of(study)
    cells, bases = _states(study, draft, stored)
    return Plan(
        study=study,
        device=device,
        blocks=_block_plans(study, draft, cells),
        cells=cells,
        bases=bases,
        trajectories=tuple(
            PlannedTrajectory(
                trajectory=trajectory,
                epochs=tuple(sorted(draft.epochs[name])),
                blocks=tuple(draft.trajectory_blocks[name]),
            )
            for name, trajectory in draft.trajectories.items()
        ),
        jobs=tuple(MissingJobs(study, draft, stored, CostModel(study, device, known)).all()),
        draft=draft,
        known=known,
    )


def _states(
    study: Study, draft: Draft, inventory: Inventory
) -> tuple[tuple[PlannedCell, ...], tuple[PlannedCell, ...]]:
    specs = study.benchmark_specs

    def is_scored(cell: CellSpec) -> bool:
        return not missing_benchmarks(cell, specs, inventory)

    cells = []
    for name, cell in draft.cells.items():
        is_trained = name in inventory.cells
        wanted = study.measures.of_cell(is_last=draft.is_last(cell))
        is_measured = not missing_measures(cell, wanted, inventory)
        cells.append(
            PlannedCell(
                cell=cell,
                blocks=tuple(draft.cell_blocks[name]),
                is_trained=is_trained,
                is_done=is_trained and is_measured and is_scored(cell),
            )
        )
    bases = []
    for cell in draft.bases:
        is_measured = not missing_measures(cell, study.measures.of_base, inventory)
        is_done = is_measured and is_scored(cell)
        bases.append(PlannedCell(cell=cell, blocks=(), is_trained=True, is_done=is_done))
    return tuple(cells), tuple(bases)


def _block_plans(
    study: Study, draft: Draft, cells: tuple[PlannedCell, ...]
) -> tuple[BlockPlan, ...]:
    counts: dict[str, Counter[str]] = {block.name: Counter() for block in study.blocks}
    shared: dict[str, Counter[str]] = {block.name: Counter() for block in study.blocks}
    for cell in cells:
        for block in cell.blocks:
            counts[block]["cells"] += 1
            counts[block]["trained"] += cell.is_trained
            counts[block]["done"] += cell.is_done
            shared[block].update(other for other in cell.blocks if other != block)
    for blocks in draft.trajectory_blocks.values():
        for block in blocks:
            counts[block]["trajectories"] += 1
    return tuple(
        BlockPlan(
            name=name,
            num_cells=count["cells"],
            num_trajectories=count["trajectories"],
            num_trained=count["trained"],
            num_done=count["done"],
            shared=tuple(shared[name].items()),
        )
        for name, count in counts.items()
    )
