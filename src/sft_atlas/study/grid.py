"""Expand blocks into cells: which model at which epoch of which training run?

Runs of a constant schedule that never learns its end are one trajectory whatever their length, so
their epochs are cells of the longest. Objects are shared between cells: a grid holds very many
cells, and few models, data and methods.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import floor
from typing import Final

from sft_atlas.errors import StudyError
from sft_atlas.identity import canonical_json
from sft_atlas.study.spec import (
    CellSpec,
    DataPart,
    DataSpec,
    ScheduleSpec,
    TrajectorySpec,
)
from sft_atlas.study.study import Block, Exclusion, Mixture, Study

MAX_CELLS: Final = 1_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class GridCell:
    """A cell and the block that asks for it."""

    block: str
    cell: CellSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class DataChoice:
    """One value of a block's data axis."""

    name: str
    kind: str
    """`each`, `all`, `leave-one-out` or `mixture`."""
    datasets: tuple[str, ...]
    weights: tuple[float, ...] | None = None
    """Shares of a mixture, in the order of `datasets`; None where each gives the same number."""

    def part_sizes(self, samples: int) -> tuple[int, ...]:
        """Return how many samples each dataset gives.

        A mixture's shares are rounded down, and what is left goes to the largest remainders, ties
        to the name that sorts first.
        """
        if self.weights is None:
            return (samples,) * len(self.datasets)
        exact = [samples * weight for weight in self.weights]
        # 1e-9 undoes the rounding of a share that is a whole number.
        sizes = [floor(value + 1e-9) for value in exact]
        order = sorted(
            range(len(sizes)), key=lambda i: (round(sizes[i] - exact[i], 9), self.datasets[i])
        )
        for i in order[: samples - sum(sizes)]:
            sizes[i] += 1
        return tuple(sizes)


def data_choices(
    block: Block, datasets: tuple[str, ...], mixtures: tuple[Mixture, ...]
) -> list[DataChoice]:
    """Return the values of a block's data axis; `datasets` are all of the study.

    `all` and `all-but-x` carry the block's name where the block ranges over fewer datasets.
    """
    whole = "all" if set(block.datasets) == set(datasets) else f"all-{block.name}"
    choices = []
    for kind in block.data:
        if kind == "each":
            choices += [DataChoice(name=d, kind=kind, datasets=(d,)) for d in block.datasets]
        elif kind == "all":
            choices.append(DataChoice(name=whole, kind=kind, datasets=block.datasets))
        elif kind == "leave-one-out":
            for left_out in block.datasets:
                rest = tuple(d for d in block.datasets if d != left_out)
                name = f"{whole}-but-{left_out}"
                choices.append(DataChoice(name=name, kind=kind, datasets=rest))
        else:
            names, weights = zip(*next(m.weights for m in mixtures if m.name == kind), strict=True)
            choices.append(DataChoice(name=kind, kind="mixture", datasets=names, weights=weights))
    return choices


def is_excluded(exclusion: Exclusion, **axes: object) -> bool:
    """Tell whether an exclusion agrees with every one of its axes; an axis not passed differs."""
    given = {name: values for name, values in vars(exclusion).items() if values is not None}
    return all(name in axes and axes[name] in values for name, values in given.items())


def check_size(study: Study, max_cells: int = MAX_CELLS) -> None:
    """Refuse a grid whose product is too large, without expanding it.

    Raises:
        StudyError: naming the block, its product and the cap.
    """
    total = 0
    for block in study.blocks:
        num_data = len(data_choices(block, tuple(study.dataset_by_name), study.mixtures))
        num_epochs = sum(_num_kept(block, epochs) for epochs in block.epochs)
        axes = {
            "models": len(block.models),
            "data": num_data,
            "samples": len(block.samples),
            "methods": len(block.methods),
            "schedules": len(block.schedules),
            "kept epochs": num_epochs,
            "seeds": len(block.seeds),
        }
        size = 1
        for length in axes.values():
            size *= length
        total += size
        if total > max_cells:
            factors = " x ".join(f"{length} {name}" for name, length in axes.items())
            raise StudyError(
                f"{study.path}: block {block.name} asks for {factors} = {size} cells, {total} with "
                f"the blocks before it; the cap is {max_cells}. Use fewer values."
            )


def iter_cells(study: Study) -> Iterator[GridCell]:
    """Yield each cell of each block once, in the order of the file; epochs ascend within a run."""
    expander = _Expander(study)
    for block in study.blocks:
        seen: set[tuple[int, int]] = set()
        for trajectory, epochs in expander.trajectories(block):
            for epoch in epochs:
                # Runs of several lengths can be one trajectory; its object is shared then.
                if (id(trajectory), epoch) not in seen:
                    seen.add((id(trajectory), epoch))
                    cell = CellSpec(model=trajectory.model, trajectory=trajectory, epoch=epoch)
                    yield GridCell(block=block.name, cell=cell)


class _Expander:
    """Builds specs, each of them once for the whole study."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self._parts: dict[tuple[str, int], DataPart] = {}
        self._data: dict[tuple[DataChoice, int], DataSpec] = {}
        self._trajectories: dict[tuple[object, ...], TrajectorySpec] = {}

    def trajectories(self, block: Block) -> Iterator[tuple[TrajectorySpec, tuple[int, ...]]]:
        """Yield the runs of a block with the epochs that it keeps."""
        choices = data_choices(block, tuple(self._study.dataset_by_name), self._study.mixtures)
        runs = product(
            block.models,
            choices,
            block.samples,
            block.methods,
            block.schedules,
            block.seeds,
        )
        for model, choice, samples, method, schedule, seed in runs:
            if any(
                is_excluded(
                    exclusion,
                    models=model,
                    data=choice.name,
                    samples=samples,
                    methods=method,
                    schedules=schedule.kind,
                    seeds=seed,
                )
                for exclusion in block.exclude
            ):
                continue
            for epochs in block.epochs:
                horizon = epochs if schedule.needs_horizon else None
                key = (model, choice, samples, method, schedule, horizon, seed)
                if key not in self._trajectories:
                    self._trajectories[key] = self._trajectory(*key)
                yield self._trajectories[key], block.kept_epochs(epochs)

    def _trajectory(
        self,
        model: str,
        choice: DataChoice,
        samples: int,
        method: str,
        schedule: ScheduleSpec,
        horizon: int | None,
        seed: int,
    ) -> TrajectorySpec:
        return TrajectorySpec(
            model=self._study.model_by_name[model].spec,
            data=self._data_spec(choice, samples),
            method=self._study.method_by_name[method],
            schedule=schedule,
            horizon_epochs=horizon,
            template=self._study.template,
            max_tokens=self._study.max_tokens,
            seed=seed,
            precision=self._study.precision,
            master_precision=self._study.master_precision,
        )

    def _data_spec(self, choice: DataChoice, samples: int) -> DataSpec:
        key = (choice, samples)
        if key not in self._data:
            sizes = zip(choice.datasets, choice.part_sizes(samples), strict=True)
            parts = [self._part(name, size) for name, size in sizes]
            # The order of datasets in the file must not change what is trained.
            parts.sort(key=canonical_json)
            self._data[key] = DataSpec(
                parts=tuple(parts),
                subset_seed=self._study.subset_seed,
                name=choice.name,
                kind=choice.kind,
                samples=samples,
            )
        return self._data[key]

    def _part(self, name: str, size: int) -> DataPart:
        key = (name, size)
        if key not in self._parts:
            dataset = self._study.dataset_by_name[name].spec
            self._parts[key] = DataPart(dataset=dataset, num_samples=size)
        return self._parts[key]


def _num_kept(block: Block, epochs: int) -> int:
    return (
        len(block.keep) if isinstance(block.keep, tuple) else 1 if block.keep == "last" else epochs
    )
