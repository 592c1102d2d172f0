"""The studies that come with the package are what they say."""

from pathlib import Path

import pytest

from sft_atlas.study.loader import load_study
from sft_atlas.study.plan import Plan, make_plan

STUDIES = Path(__file__).parents[2] / "studies"


@pytest.fixture(scope="module")
def paper() -> Plan:
    return make_plan(load_study(STUDIES / "massive-sft.yaml"))


def test_the_papers_grid_has_1070_cells_of_341_runs(paper: Plan) -> None:
    assert (paper.num_cells, paper.num_trajectories) == (1070, 341)
    counts = {block.name: (block.num_cells, block.num_trajectories) for block in paper.blocks}
    assert counts == {
        "single": (240, 240),
        "all": (240, 24),
        "size-small": (300, 30),
        "size-large": (270, 27),
        "leave-one-out": (20, 20),
    }


def test_the_papers_cells_are_820_full_and_250_lora(paper: Plan) -> None:
    # 786 and 230 of them were released.
    runs = [cell.cell.trajectory for cell in paper.cells]
    assert sum(run is not None and run.method.lora is None for run in runs) == 820
    assert sum(run is not None and run.method.lora is not None for run in runs) == 250


def test_the_papers_methods_are_its_own(paper: Plan) -> None:
    methods = {method.name: method for method in paper.study.methods}
    assert (methods["full"].learning_rate, methods["full"].batch_samples) == (1e-5, 32)
    assert (methods["lora"].learning_rate, methods["lora"].batch_samples) == (2e-6, 128)
    assert {method.weight_decay for method in methods.values()} == {0.0}


def test_estimates_stand_beside_what_the_paper_reports(paper: Plan) -> None:
    published = [(figure.kind, figure.device_hours) for figure in paper.study.published]
    assert published == [("train", 530.0), ("evaluate", 16700.0), ("evaluate", 8348.0)]
    cost = paper.cost
    # A run for each model, as the paper did: its 530 hours lie inside the range.
    assert cost.unshared_train_hours.low < 530 < cost.unshared_train_hours.high
    assert cost.hours["train"].likely < cost.unshared_train_hours.likely / 3
    assert cost.weights_bytes == pytest.approx(12.2e12, rel=0.02)
    assert len(cost.assumptions) > 40


def test_a_day_is_enough_for_the_study_of_one_gpu() -> None:
    study = load_study(STUDIES / "one-gpu.yaml")
    for device in (None, "rtx-4090"):
        cost = make_plan(study, device=device).cost
        assert cost.total_hours.likely < 24
    assert all(need.fits for need in cost.memory)
    assert cost.peak_disk_bytes < 200e9
    assert {method.name for method in study.methods} == {"full", "lora"}


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_study_loads_and_says_what_it_asks(path: Path) -> None:
    plan = make_plan(load_study(path))
    assert plan.study.about
    assert all(block.num_cells > 0 for block in plan.blocks)
