"""Say what a study implies and what of it is missing: trajectories, jobs, and what they cost.

In: a study and what the store holds already. Out: a `Plan`. Cells of all blocks are merged into
trajectories by fingerprint, so that a run which two blocks ask for, or an earlier study made, is
trained once. Nothing here depends on the order of the file but the order of the lists.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from sft_atlas.study.budget import PlanCost, total_cost
from sft_atlas.study.cost import CostModel, JobCost, default_device
from sft_atlas.study.grid import iter_cells
from sft_atlas.study.job import EvaluateJob, Job, MeasureJob, PrepareJob, TrainJob
from sft_atlas.study.spec import (
    BenchmarkSpec,
    CellSpec,
    DataPart,
    DatasetSpec,
    ModelSpec,
    TrajectorySpec,
)
from sft_atlas.study.study import Study

_MEASURED_SAMPLES = 1000


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """What a store holds, by fingerprint; the empty one plans everything."""

    cells: frozenset[str] = frozenset()
    """Cells whose weights are published."""
    scores: frozenset[tuple[str, str]] = frozenset()
    """(cell, benchmark) pairs that are scored; base models are cells too."""
    datasets: frozenset[str] = frozenset()
    """Measure jobs that are done."""
    drift: frozenset[str] = frozenset()
    """Cells whose weight change is measured."""
    outcomes: frozenset[tuple[str, int]] = frozenset()
    """(trajectory, last epoch) of published training runs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedCell:
    """A cell, the blocks that ask for it, and what of it exists."""

    cell: CellSpec
    blocks: tuple[str, ...]
    is_trained: bool
    """Its weights are published."""
    is_done: bool
    """Its weights, all its scores and, where wanted, its drift are published."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedTrajectory:
    """One training run with the epochs that any block keeps."""

    trajectory: TrajectorySpec
    epochs: tuple[int, ...]
    blocks: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedJob:
    """A job that is missing, its expected cost, and what must be done before."""

    job: Job
    cost: JobCost
    needs: frozenset[str] = frozenset()
    """Fingerprints of jobs."""


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
    draft: "Draft" = field(repr=False)

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
        counts = Counter(planned.job.kind for planned in self.jobs)
        return {kind: counts[kind] for kind in ("prepare", "measure", "train", "evaluate")}

    @cached_property
    def cost(self) -> PlanCost:
        """The cost of what is missing."""
        return self._cost(self.jobs)

    @cached_property
    def total_cost(self) -> PlanCost:
        """The cost of the whole study in an empty store."""
        if self.num_done == 0 and not any(cell.is_trained for cell in self.cells):
            return self.cost
        model = CostModel(self.study, self.device)
        return self._cost(_Jobs(self.study, self.draft, Inventory(), model).all())

    def _cost(self, jobs: Sequence[PlannedJob]) -> PlanCost:
        model = CostModel(self.study, self.device)
        return total_cost(model, [(planned.job, planned.cost) for planned in jobs])


def make_plan(
    study: Study, inventory: Inventory | None = None, *, device: str | None = None
) -> Plan:
    """Plan a study against what exists.

    Args:
        study: the resolved study.
        inventory: what the store holds; None plans for an empty store.
        device: name of a device card, for the cost; None: `default_device`.
    """
    device = device or default_device(study)
    stored = inventory or Inventory()
    draft = Draft.of(study)
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
        jobs=tuple(_Jobs(study, draft, stored, CostModel(study, device)).all()),
        draft=draft,
    )


@dataclass(frozen=True)
class Draft:
    """Cells and trajectories by fingerprint, with the blocks that ask for them, in file order."""

    cells: dict[str, CellSpec] = field(default_factory=dict)
    cell_blocks: dict[str, list[str]] = field(default_factory=dict)
    trajectories: dict[str, TrajectorySpec] = field(default_factory=dict)
    trajectory_blocks: dict[str, list[str]] = field(default_factory=dict)
    epochs: dict[str, list[int]] = field(default_factory=dict)

    @staticmethod
    def of(study: Study) -> "Draft":
        draft = Draft()
        for item in iter_cells(study):
            trajectory = item.cell.trajectory
            assert trajectory is not None
            name = trajectory.fingerprint
            if name not in draft.trajectories:
                draft.trajectories[name] = trajectory
                draft.trajectory_blocks[name] = []
                draft.epochs[name] = []
            if item.block not in draft.trajectory_blocks[name]:
                draft.trajectory_blocks[name].append(item.block)
            cell = item.cell.fingerprint
            if cell not in draft.cells:
                draft.cells[cell] = item.cell
                draft.cell_blocks[cell] = []
                draft.epochs[name].append(item.cell.epoch)
            if item.block not in draft.cell_blocks[cell]:
                draft.cell_blocks[cell].append(item.block)
        return draft


class _Jobs:
    """Finds the jobs that an inventory lacks."""

    def __init__(self, study: Study, draft: Draft, inventory: Inventory, cost: CostModel) -> None:
        self._study = study
        self._draft = draft
        self._inventory = inventory
        self._cost = cost
        self._prepare = _prepare_jobs(study, draft)
        self._wanted: dict[str, PrepareJob] = {}
        self._needed: dict[tuple[str, str], frozenset[str]] = {}

    def all(self) -> list[PlannedJob]:
        measure = self._measure_jobs()
        train = self._train_jobs()
        evaluate = self._evaluate_jobs()
        prepare = [PlannedJob(job=job, cost=self._cost.job(job)) for job in self._wanted.values()]
        return [*prepare, *measure, *train, *evaluate]

    def _train_jobs(self) -> list[PlannedJob]:
        found = []
        stored = self._inventory
        longest: dict[str, int] = defaultdict(int)
        for name, epoch in stored.outcomes:
            longest[name] = max(longest[name], epoch)
        for name, trajectory in self._draft.trajectories.items():
            job = TrainJob(
                trajectory=trajectory,
                keep_epochs=tuple(sorted(self._draft.epochs[name])),
                benchmarks=self._study.benchmark_specs,
                measure_drift=self._study.measures.drift,
                keep_checkpoint=self._study.keep_checkpoints,
            )
            is_recorded = longest[name] >= job.keep_epochs[-1]
            if is_recorded and all(cell.fingerprint in stored.cells for cell in job.cells):
                continue
            needs = self._needs_of(trajectory)
            found.append(PlannedJob(job=job, cost=self._cost.job(job), needs=needs))
        return found

    def _needs_of(self, trajectory: TrajectorySpec) -> frozenset[str]:
        key = (trajectory.model.fingerprint, trajectory.data.canonical)
        if key not in self._needed:
            parts = trajectory.data.parts
            self._needed[key] = frozenset(
                self._needs(trajectory.model, part.dataset) for part in parts
            )
        return self._needed[key]

    def _evaluate_jobs(self) -> list[PlannedJob]:
        """Score base models, and stored cells that lack a score or their drift."""
        found = []
        stored = self._inventory
        bases = _base_cells(self._draft)
        kept = (cell for name, cell in self._draft.cells.items() if name in stored.cells)
        for cell in (*bases, *kept):
            benchmarks = missing_benchmarks(cell, self._study.benchmark_specs, stored)
            wants_drift = (
                self._study.measures.drift
                and cell.trajectory is not None
                and cell.fingerprint not in stored.drift
            )
            if benchmarks or wants_drift:
                job = EvaluateJob(cell=cell, benchmarks=benchmarks, measure_drift=wants_drift)
                found.append(PlannedJob(job=job, cost=self._cost.job(job)))
        return found

    def _measure_jobs(self) -> list[PlannedJob]:
        if not self._study.measures.dataset:
            return []
        found = []
        wanted = self._study.measures.dataset_samples or _MEASURED_SAMPLES
        for prepare in self._prepare.values():
            job = MeasureJob(
                model=prepare.model,
                dataset=prepare.dataset,
                num_samples=min(wanted, prepare.num_samples),
                subset_seed=prepare.subset_seed,
                template=prepare.template,
                max_tokens=prepare.max_tokens,
            )
            if job.fingerprint not in self._inventory.datasets:
                needs = frozenset([self._needs(job.model, job.dataset)])
                found.append(PlannedJob(job=job, cost=self._cost.job(job), needs=needs))
        return found

    def _needs(self, model: ModelSpec, dataset: DatasetSpec) -> str:
        job = self._prepare[model.fingerprint, dataset.name]
        self._wanted.setdefault(job.fingerprint, job)
        return job.fingerprint


def missing_benchmarks(
    cell: CellSpec, benchmarks: Iterable[BenchmarkSpec], inventory: Inventory
) -> tuple[BenchmarkSpec, ...]:
    """Return the benchmarks on which a cell has no score yet."""
    name = cell.fingerprint
    return tuple(b for b in benchmarks if (name, b.fingerprint) not in inventory.scores)


def _prepare_jobs(study: Study, draft: Draft) -> dict[tuple[str, str], PrepareJob]:
    """One job for each base model and dataset, as large as its largest use in the whole study."""
    pairs = {(t.model.fingerprint, id(t.data)): t for t in draft.trajectories.values()}
    uses: dict[tuple[str, str], tuple[ModelSpec, DataPart]] = {}
    for (model, _), trajectory in pairs.items():
        for part in trajectory.data.parts:
            key = (model, part.dataset.name)
            if key not in uses or uses[key][1].num_samples < part.num_samples:
                uses[key] = (trajectory.model, part)
    return {
        key: PrepareJob(
            model=model,
            dataset=part.dataset,
            num_samples=part.num_samples,
            subset_seed=study.subset_seed,
            template=study.template,
            max_tokens=study.max_tokens,
        )
        for key, (model, part) in uses.items()
    }


def _base_cells(draft: Draft) -> list[CellSpec]:
    models = {t.model.fingerprint: t.model for t in draft.trajectories.values()}
    return [CellSpec(model=model, trajectory=None, epoch=0) for model in models.values()]


def _states(
    study: Study, draft: Draft, inventory: Inventory
) -> tuple[tuple[PlannedCell, ...], tuple[PlannedCell, ...]]:
    specs = study.benchmark_specs

    def is_scored(cell: CellSpec) -> bool:
        return not missing_benchmarks(cell, specs, inventory)

    cells = []
    for name, cell in draft.cells.items():
        is_trained = name in inventory.cells
        has_drift = name in inventory.drift or not study.measures.drift
        cells.append(
            PlannedCell(
                cell=cell,
                blocks=tuple(draft.cell_blocks[name]),
                is_trained=is_trained,
                is_done=is_trained and has_drift and is_scored(cell),
            )
        )
    bases = [
        PlannedCell(cell=cell, blocks=(), is_trained=True, is_done=is_scored(cell))
        for cell in _base_cells(draft)
    ]
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
