"""Merge the cells of all blocks: each cell and trajectory once, with the blocks that ask for it."""

from dataclasses import dataclass, field

from sft_atlas.study.grid import iter_cells
from sft_atlas.study.spec import CellSpec, TrajectorySpec, base_cell
from sft_atlas.study.study import Study


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

    def is_last(self, cell: CellSpec) -> bool:
        """Tell whether a cell is the last kept epoch of its trajectory."""
        trajectory = cell.trajectory
        return trajectory is not None and cell.epoch == max(self.epochs[trajectory.fingerprint])

    @property
    def bases(self) -> list[CellSpec]:
        """The base models that are trained, as cells."""
        models = {t.model.fingerprint: t.model for t in self.trajectories.values()}
        return [base_cell(model) for model in models.values()]
