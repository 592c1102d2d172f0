"""Blocks become the cells that were asked for, and equal cells are one."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft_atlas.errors import StudyError
from sft_atlas.study.grid import DataChoice, GridCell, check_size, iter_cells
from sft_atlas.study.spec import TrajectorySpec
from sft_atlas.study.study import Study

from .conftest import Load


def run_of(item: GridCell) -> TrajectorySpec:
    assert item.cell.trajectory is not None
    return item.cell.trajectory


def names(study: Study) -> set[str]:
    return {item.cell.fingerprint for item in iter_cells(study)}


def test_a_block_is_the_product_of_its_axes(load: Load) -> None:
    study = load("  b: {data: each, samples: [5, 10], epochs: 3, keep: every, seeds: [0, 1]}")
    cells = list(iter_cells(study))
    assert len(cells) == 2 * 3 * 2 * 2 * 3 * 2 == len(names(study))
    assert Counter(item.cell.epoch for item in cells) == {1: 48, 2: 48, 3: 48}


def test_only_the_last_epoch_is_kept_unless_more_are_asked_for(load: Load) -> None:
    last = load("  b: {data: each, samples: 5, epochs: 3}")
    assert {item.cell.epoch for item in iter_cells(last)} == {3}
    some = load("  b: {data: each, samples: 5, epochs: 5, keep: [4, 1, 4]}")
    assert [item.cell.epoch for item in iter_cells(some)][:4] == [1, 4, 1, 4]


def test_all_merges_every_dataset_with_the_samples_of_each(load: Load) -> None:
    (first, *_) = iter_cells(load("  b: {data: all, samples: 7, epochs: 1}"))
    data = run_of(first).data
    assert (data.name, data.kind, data.num_samples) == ("all", "all", 21)
    assert {part.dataset.name for part in data.parts} == {"d1", "d2", "d3"}


def test_leave_one_out_leaves_each_dataset_out_once(load: Load) -> None:
    cells = iter_cells(load("  b: {data: leave-one-out, samples: 7, epochs: 1, methods: [full]}"))
    left = {run_of(item).data.name: run_of(item).data for item in cells}
    assert set(left) == {"all-but-d1", "all-but-d2", "all-but-d3"}
    assert {part.dataset.name for part in left["all-but-d2"].parts} == {"d1", "d3"}
    assert left["all-but-d2"].num_samples == 14


def test_a_mixture_gives_its_total(load: Load) -> None:
    study = load("  b: {data: mix, samples: 10, epochs: 1}", more="mixtures: {mix: {d1: 3, d3: 1}}")
    data = run_of(next(iter_cells(study))).data
    assert data.kind == "mixture"
    # 7.5 and 2.5: the remainders are equal, so the first name gets the sample that is left.
    assert {p.dataset.name: p.num_samples for p in data.parts} == {"d1": 8, "d3": 2}


@given(
    weights=st.lists(st.floats(0.01, 100), min_size=1, max_size=6),
    samples=st.integers(1, 10_000),
)
def test_the_shares_of_a_mixture_add_up_and_are_close(weights: list[float], samples: int) -> None:
    shares = tuple(weight / sum(weights) for weight in weights)
    datasets = tuple(f"d{i}" for i in range(len(weights)))
    choice = DataChoice(name="m", kind="mixture", datasets=datasets, weights=shares)
    sizes = choice.part_sizes(samples)
    assert sum(sizes) == samples
    assert all(abs(size - samples * share) < 1 for size, share in zip(sizes, shares, strict=True))


def test_equal_shares_are_split_equally() -> None:
    choice = DataChoice(
        name="m", kind="mixture", datasets=("a", "b", "c"), weights=(1 / 3, 1 / 3, 1 / 3)
    )
    assert choice.part_sizes(999) == (333, 333, 333)
    assert choice.part_sizes(1000) == (334, 333, 333)


def test_constant_runs_of_several_lengths_are_one_run(load: Load) -> None:
    study = load("  b: {data: each, samples: 5, epochs: [2, 4], keep: every, schedule: constant}")
    cells = list(iter_cells(study))
    assert len({run_of(item).fingerprint for item in cells}) == 12
    assert len(cells) == 12 * 4 == len(names(study))


@pytest.mark.parametrize(
    "schedule", ["cosine", "{kind: constant, cooldown_steps: 2}", "{kind: cosine, warmup_steps: 2}"]
)
def test_a_run_that_knows_its_end_shares_nothing(load: Load, schedule: str) -> None:
    study = load(f"  b: {{data: each, samples: 5, epochs: [2, 4], schedule: {schedule}}}")
    assert len({run_of(item).fingerprint for item in iter_cells(study)}) == 24


def test_warmup_does_not_part_runs_of_different_lengths(load: Load) -> None:
    schedule = "{kind: constant, warmup_steps: 5}"
    study = load(f"  b: {{data: each, samples: 5, epochs: [2, 4], schedule: {schedule}}}")
    assert {run_of(item).horizon_epochs for item in iter_cells(study)} == {None}


def test_an_exclusion_needs_all_its_axes_to_agree(load: Load) -> None:
    block = "  b: {data: each, samples: [5, 10], epochs: 1, exclude: ["
    whole = len(list(iter_cells(load(block + "]}"))))
    one = load(block + "{models: [m1], data: [d1, d2], samples: [10], methods: [lora]}]}")
    assert len(list(iter_cells(one))) == whole - 2
    two = load(block + "{models: [m1]}, {schedules: [cosine], seeds: [0], methods: [full]}]}")
    assert {run_of(i).model.name for i in iter_cells(two)} == {"m2"}
    assert {run_of(i).method.name for i in iter_cells(two)} == {"lora"}


def test_the_order_of_the_file_changes_no_identity(load: Load) -> None:
    block = "  b: {data: [all, leave-one-out], samples: 5, epochs: 2}"
    first = "  - {name: d1, path: d1.jsonl, tokens_per_sample: 10}\n"
    last = "  - {name: d3, hub: org/three}\n"
    plain = names(load(block))
    assert names(load(block, (first, ""), (last, last + first))) == plain
    full = "  full: {learning_rate: 1e-5, batch_samples: 4}\n"
    moved = "alpha: 4}\n  full: {batch_samples: 4, learning_rate: 1.0e-5}\n"
    assert names(load(block, (full, ""), ("alpha: 4}\n", moved))) == plain


def test_names_and_labels_change_no_identity(load: Load) -> None:
    plain = names(load("  b: {data: all, samples: 5, epochs: 2}"))
    renamed = load(
        "  other: {data: all, samples: 5, epochs: 2}",
        ("name: m1", "name: model-one"),
        ("name: d1", "group: g, name: data-one"),
        ("full:", "whole:"),
    )
    assert names(renamed) == plain


@pytest.mark.parametrize(
    ("old", "new", "num_changed"),
    [
        ("revision: abc", "revision: abd", 3),
        ("learning_rate: 1e-5", "learning_rate: 2e-5", 6),
        ("study: tiny", "study: tiny\nmax_tokens: 64", 6),
        ("study: tiny", "study: tiny\nsubset_seed: 1", 6),
        ("study: tiny", "study: tiny\nprecision: float32", 6),
        ("study: tiny", "study: tiny\ntemplate: chat", 6),
        ("study: tiny", "study: tiny\nseeds: [1]", 6),
    ],
)
def test_a_changed_wish_changes_the_cells_it_is_about(
    load: Load, old: str, new: str, num_changed: int
) -> None:
    block = "  b: {data: each, samples: 5, epochs: 1, methods: [full]}"
    plain, changed = names(load(block)), names(load(block, (old, new)))
    assert len(changed - plain) == num_changed


def test_changed_data_changes_the_cells_that_use_it(load: Load) -> None:
    block = "  b: {data: each, samples: 5, epochs: 1}"
    study = load(block)
    plain = names(study)
    (study.path.parent / "d1.jsonl").write_text('{"instruction": "x", "output": "y"}\n')
    assert len(names(load(block)) - plain) == 4


def test_a_grid_that_is_too_large_is_refused_before_it_is_expanded(load: Load) -> None:
    study = load("  b: {data: each, samples: 5, epochs: 10000, keep: every, seeds: [0, 1, 2]}")
    with pytest.raises(StudyError) as caught:
        check_size(study, 100)
    assert str(caught.value) == (
        f"{study.path}: block b asks for 2 models x 3 data x 1 samples x 2 methods x 1 schedules "
        f"x 10000 kept epochs x 3 seeds = 360000 cells, 360000 with the blocks before it; the cap "
        f"is 100. Use fewer values."
    )
    with pytest.raises(StudyError, match="the cap is 1000000"):
        load(f"  b: {{data: each, samples: 5, epochs: 10000, keep: every, seeds: {[*range(9)]}}}")


def test_blocks_over_fewer_datasets_name_their_merged_data_apart(load: Load) -> None:
    study = load("  b: {data: [all, leave-one-out], datasets: [d1, d2], samples: 5, epochs: 1}")
    data = {run_of(item).data.name for item in iter_cells(study)}
    assert data == {"all-b", "all-b-but-d1", "all-b-but-d2"}
