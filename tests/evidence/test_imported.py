"""Any table of a known form gives tables, and the same file the same ones."""

from pathlib import Path

import pandas as pd
import pytest

from released_form import Row, base_row, tuned_row, write_grid, write_released
from sft_atlas.errors import DataError
from sft_atlas.evidence.imported import Imported, import_results


def read(path: Path) -> Imported:
    return import_results("massive-sft", path)


def test_counts_say_what_was_read(tmp_path: Path) -> None:
    found = read(write_grid(tmp_path / "t.csv", num_models=4, num_data=5))
    assert found.counts() == {
        "num_models": 4,
        "num_base_cells": 4,
        "num_cells": 40,
        "num_missing_cells": 0,
        "num_trajectories": 40,
        "num_benchmarks": 3,
        "num_scores": 132,
        "num_treated": 0,
    }
    assert found.defects == ()
    assert found.name == "massive-sft"
    assert found.origin == str(tmp_path / "t.csv")


def test_the_same_file_gives_the_same_tables(tmp_path: Path) -> None:
    first, second = (read(write_grid(tmp_path / "t.csv")) for _ in range(2))
    pd.testing.assert_frame_equal(first.tables.scores, second.tables.scores)
    pd.testing.assert_frame_equal(first.tables.cells, second.tables.cells)
    assert first.defects == second.defects


def test_the_order_of_rows_changes_no_score(tmp_path: Path) -> None:
    path = write_grid(tmp_path / "t.csv")
    header, *lines = path.read_text().splitlines()
    other = tmp_path / "other.csv"
    other.write_text("\n".join([header, *lines[::-1]]) + "\n")
    keys = ["cell", "benchmark"]
    first, second = (
        read(found).tables.scores.sort_values(keys, ignore_index=True) for found in (path, other)
    )
    pd.testing.assert_frame_equal(first, second)


SCORES = ("gsm8k-0shot", "BoolQ-0shot")
DEGENERATE: dict[str, list[Row]] = {
    "one row": [base_row("m", 40, 50)],
    "no base rows": [tuned_row(f"m{m}", f"d{d}", 40, 50) for m in range(3) for d in range(3)],
    "one model": [base_row("m", 40, 50), *[tuned_row("m", f"d{d}", 41, 50) for d in range(4)]],
    "one dataset": [
        row
        for m in range(4)
        for row in (base_row(f"m{m}", 40, 50), tuned_row(f"m{m}", "d", 41, 49))
    ],
    "constant scores": [
        *[base_row(f"m{m}", 50, 50) for m in range(4)],
        *[tuned_row(f"m{m}", f"d{d}", 50, 50) for m in range(4) for d in range(4)],
    ],
    "no score of a benchmark": [
        *[base_row(f"m{m}", 50, "") for m in range(3)],
        *[tuned_row(f"m{m}", f"d{d}", 51, "-") for m in range(3) for d in range(3)],
    ],
    "few scores": [
        base_row("m", "", "nan"),
        *[tuned_row("m", f"d{d}", 1 if d == 7 else "", "None") for d in range(40)],
    ],
    "scores out of any range": [base_row("m", -3, 400), tuned_row("m", "d", 1e6, -1e6)],
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_tables_are_read_and_hold_nothing_infinite(tmp_path: Path, name: str) -> None:
    found = read(write_released(tmp_path / "t.csv", SCORES, DEGENERATE[name]))
    assert len(found.tables.scores) >= 2 * len(DEGENERATE[name])
    numbers = found.tables.scores.select_dtypes("float64")
    assert not numbers.isin([float("inf"), float("-inf")]).to_numpy().any()
    assert found.tables.scores.loc[found.tables.scores["score"].isna(), "reason"].notna().all()


def test_a_run_whose_scores_are_all_left_out_was_still_run(tmp_path: Path) -> None:
    found = read(write_released(tmp_path / "t.csv", SCORES, DEGENERATE["no score of a benchmark"]))
    assert set(found.tables.cells["state"]) == {"done"}
    assert found.tables.cells is found.released.cells


def test_a_table_without_any_score_is_refused(tmp_path: Path) -> None:
    rows = [base_row("m", "", "nan"), tuned_row("m", "d", "-", "None")]
    path = write_released(tmp_path / "t.csv", SCORES, rows)
    with pytest.raises(DataError) as error:
        read(path)
    assert str(error.value) == f"{path}: has no score; expected at least one."


def test_an_unknown_kind_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        import_results("lm_eval", tmp_path)
    assert str(error.value) == (
        "no importer 'lm_eval'; did you mean lm-eval? Names: lm-eval, eval-results, massive-sft, "
        "opencompass."
    )


def test_labels_for_a_table_that_has_its_own_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not used; a massive-sft table has its labels"):
        import_results("massive-sft", write_grid(tmp_path / "t.csv"), labels=tmp_path / "l.yaml")


def write_many(path: Path, *, num_rows: int, num_models: int) -> Path:
    lines = ["model_name,data_name,lora,epoch,data_size,lr_strategy,gsm8k-0shot"]
    for row in range(num_rows):
        data, model = divmod(row, num_models)
        run = f"d{data},false,10,1000,cosine" if data else "pretrain,,0,0,"
        lines.append(f"m{model},{run},{round(row % 1320 / 13.19, 2)}")
    path.write_text("\n".join(lines) + "\n")
    return path


def test_ten_thousand_rows_are_a_matter_of_a_second(tmp_path: Path) -> None:
    found = read(write_many(tmp_path / "t.csv", num_rows=10_000, num_models=100))
    assert found.counts()["num_cells"] == 9_900


@pytest.mark.slow
def test_a_million_rows_are_read(tmp_path: Path) -> None:
    found = read(write_many(tmp_path / "t.csv", num_rows=1_000_000, num_models=1000))
    assert found.counts()["num_cells"] == 999_000
