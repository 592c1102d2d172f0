"""What a grid implies is completed where little is absent, and nothing is made up elsewhere."""

from pathlib import Path

import pandas as pd

from released_form import Row, base_row, tuned_row, write_released
from sft_atlas.evidence.completion import implied_labels
from sft_atlas.evidence.massive_sft import read_massive_sft


def implied(folder: Path, rows: list[Row]) -> pd.DataFrame:
    source = read_massive_sft(write_released(folder / "t.csv", ["a"], [base_row("m0", 1), *rows]))
    return implied_labels(source.labels)


def grid(*, num_models: int, num_data: int, epochs: tuple[int, ...] = (10,)) -> list[Row]:
    return [
        tuned_row(f"m{m}", f"d{d}", 1, epoch=epoch, lora=lora)
        for m in range(num_models)
        for d in range(num_data)
        for lora in (False, True)
        for epoch in epochs
    ]


def test_a_complete_grid_implies_nothing(tmp_path: Path) -> None:
    assert implied(tmp_path, grid(num_models=3, num_data=4)).empty


def test_single_holes_are_found_with_all_their_labels(tmp_path: Path) -> None:
    rows = grid(num_models=3, num_data=4)
    hole = rows.pop(5)
    found = implied(tmp_path, rows)
    assert len(found) == 1
    row = found.iloc[0]
    assert (row["model"], row["data"], row["method"], row["epoch"]) == ("m0", "d2", "lora", 10)
    assert hole[:4] == ("m0", "d2", "true", 10)
    assert (row["block"], row["samples"], row["horizon_epochs"]) == ("each-1k-cosine", 1000, 10)


def test_a_whole_trajectory_and_a_last_epoch_are_found(tmp_path: Path) -> None:
    rows = grid(num_models=3, num_data=4, epochs=(1, 2, 3))
    kept = [row for row in rows if row[:3] != ("m1", "d3", "true")]
    kept.remove(tuned_row("m2", "d0", 1, epoch=3))
    found = implied(tmp_path, kept)
    cells = found[["model", "data", "method", "epoch"]].to_numpy().tolist()
    expected = [["m1", "d3", "lora", epoch] for epoch in (1, 2, 3)] + [["m2", "d0", "full", 3]]
    assert sorted(map(str, cells)) == sorted(map(str, expected))


def test_a_sparse_block_is_no_product(tmp_path: Path) -> None:
    rows = grid(num_models=3, num_data=4)
    assert implied(tmp_path, rows[:-4]).empty


def test_blocks_do_not_complete_one_another(tmp_path: Path) -> None:
    small = grid(num_models=4, num_data=4)
    large = [tuned_row("m0", f"d{d}", 1, samples=20000) for d in range(3)]
    assert implied(tmp_path, small + large).empty


def test_the_order_of_rows_does_not_matter(tmp_path: Path) -> None:
    rows = grid(num_models=3, num_data=4)[1:]
    first = implied(tmp_path, rows)
    second = implied(tmp_path, rows[::-1])
    pd.testing.assert_frame_equal(first, second)
