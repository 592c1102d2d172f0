"""A table of the release's form is read with its labels, or refused with its line."""

from pathlib import Path

import pandas as pd
import pytest

from released_form import KEYS, Row, base_row, tuned_row, write_grid, write_released
from sft_atlas.errors import DataError
from sft_atlas.evidence.massive_sft import block_names, read_massive_sft
from sft_atlas.evidence.source import LABELS

SCORES = ("gsm8k-0shot", "mtbench-total", "mtbench-math", "Truthful_QA-0shot", "new-test")


def read(folder: Path, *rows: Row, scores: tuple[str, ...] = SCORES) -> pd.DataFrame:
    return read_massive_sft(write_released(folder / "t.csv", scores, rows)).labels


def test_labels_are_in_the_words_of_a_study(tmp_path: Path) -> None:
    values = (50.0, 3.1, 2.0, 0.1, 7)
    labels = read(
        tmp_path,
        base_row("Qwen2.5-7B", *values),
        tuned_row("Qwen2.5-7B", "lima", *values),
        tuned_row("Qwen2.5-7B", "all", *values, lora=True, epoch=3, samples=10000),
        tuned_row("own", "w/o-lima", *values, samples=9000, schedule="Constant"),
    )
    names = ["model", "family", "languages", "data", "data_kind", "data_group", "samples"]
    rows = labels[[*names, "method", "method_kind", "schedule", "epoch", "horizon_epochs", "block"]]
    qwen = ["Qwen2.5-7B", "qwen2.5", "zh;en"]
    lima = ["lima", "each", "general"]
    rest = ["own", "", "", "without-lima", "leave-one-out", "mixed"]
    assert [[None if pd.isna(v) else v for v in row] for row in rows.to_numpy().tolist()] == [
        [*qwen, "base", "base", None, None, "base", "base", None, 0, None, ""],
        [*qwen, *lima, 1000, "full", "full", "cosine", 10, 10, "each-1k-cosine"],
        [*qwen, "all", "all", "mixed", 10000, "lora", "lora", "cosine", 3, 3, "all-10k-cosine"],
        [*rest, 9000, "full", "full", "constant", 10, 10, "leave-one-out-9k-constant"],
    ]
    assert labels["line"].tolist() == [2, 3, 4, 5]
    assert list(labels.columns) == ["line", *LABELS]


def test_columns_say_what_the_paper_says_of_them(tmp_path: Path) -> None:
    source = read_massive_sft(
        write_released(tmp_path / "t.csv", SCORES, [base_row("m", 50.0, 3.1, 2.0, 0.1, 7)])
    )
    gsm8k, total, part, truthful, new = source.columns
    assert (gsm8k.scale, gsm8k.num_items, gsm8k.skill, gsm8k.in_mean) == (0.01, 1319, "math", True)
    assert (total.metric, total.num_items, total.part_of) == ("rating", 160, None)
    assert (part.num_items, part.part_of, part.in_mean) == (20, "mtbench-total", False)
    assert truthful.scale == 1.0
    assert (new.num_items, new.in_mean, new.skill, new.scale) == (None, False, "", 0.01)
    assert source.texts.iloc[0].tolist() == ["50.0", "3.1", "2.0", "0.1", "7"]


def test_row_numbers_are_no_scores(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    row = ("0", *base_row("m", 50.0))
    path.write_text(f",{','.join(KEYS)},gsm8k-0shot\n{','.join(map(str, row))}\n")
    assert [column.name for column in read_massive_sft(path).columns] == ["gsm8k-0shot"]


def test_names_are_kept_as_they_are_written(tmp_path: Path) -> None:
    name = '=HYPERLINK("x")<script>alert(1)</script> 日本語'
    labels = read(tmp_path, base_row(name, 1), scores=("gsm8k-0shot",))
    assert labels["model"].tolist() == [name]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("", "lima", "true", 10, 1000, "cosine", 1), "'model_name' holds ''; expected a name."),
        (
            ("m", "lima", "yes", 10, 1000, "cosine", 1),
            "'lora' holds 'yes'; expected true or false.",
        ),
        (
            ("m", "lima", "true", 10, 1000, "None", 1),
            "'lr_strategy' holds 'None'; expected a schedule such as cosine.",
        ),
        (
            ("m", "lima", "true", 0, 1000, "cosine", 1),
            "'epoch' holds '0'; expected a whole number from 1 to 1,000,000,000,000.",
        ),
        (
            ("m", "lima", "true", 1.5, 1000, "cosine", 1),
            "'epoch' holds '1.5'; expected a whole number from 1 to 1,000,000,000,000.",
        ),
        (
            ("m", "lima", "true", 1, "", "cosine", 1),
            "'data_size' holds ''; expected a whole number from 1 to 1,000,000,000,000.",
        ),
    ],
    ids=["no-model", "lora", "no-schedule", "epoch-zero", "half-epoch", "no-size"],
)
def test_a_label_that_cannot_be_read_is_refused(tmp_path: Path, row: Row, message: str) -> None:
    path = write_released(tmp_path / "t.csv", ["gsm8k-0shot"], [base_row("m", 1), row])
    with pytest.raises(DataError) as error:
        read_massive_sft(path)
    assert str(error.value) == f"{path}:3: column {message}"


def test_the_same_run_twice_is_refused(tmp_path: Path) -> None:
    rows = [base_row("m", 1), tuned_row("m", "lima", 1), tuned_row("m", "lima", 2)]
    path = write_released(tmp_path / "t.csv", ["gsm8k-0shot"], rows)
    with pytest.raises(DataError) as error:
        read_massive_sft(path)
    assert str(error.value) == (
        f"{path}:4: is the same run as line 3 (m, lima, full, epoch 10); expected one row per run. "
        f"Remove one of them."
    )


def test_two_base_rows_of_a_model_are_the_same_run(tmp_path: Path) -> None:
    path = write_released(tmp_path / "t.csv", ["a"], [base_row("m", 1), base_row("m", 2)])
    with pytest.raises(DataError, match=r":3: is the same run as line 2 \(m, base, base, epoch 0"):
        read_massive_sft(path)


def test_a_table_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("model,score\nm,1\n")
    with pytest.raises(DataError) as error:
        read_massive_sft(path)
    assert str(error.value) == (
        f"{path}:1: has no column 'model_name'; expected the released table's columns model_name, "
        f"data_name, lora, epoch, data_size, lr_strategy and one for each score. Is it a table of "
        f"another kind?"
    )
    path.write_text(f"{','.join(KEYS)}\nm,pretrain,,,,\n")
    with pytest.raises(DataError, match=r":1: has no column of scores; expected at least one\.$"):
        read_massive_sft(path)


def test_reading_depends_on_nothing_but_the_file(tmp_path: Path) -> None:
    first = read_massive_sft(write_grid(tmp_path / "a.csv"))
    second = read_massive_sft(write_grid(tmp_path / "b.csv"))
    assert first.sha256 == second.sha256
    pd.testing.assert_frame_equal(first.labels, second.labels)
    pd.testing.assert_frame_equal(first.values, second.values)


def test_blocks_are_named_by_kind_size_and_schedule() -> None:
    labels = pd.DataFrame(
        {
            "data_kind": ["each", "all", "base"],
            "samples": pd.array([20000, 1234, None], dtype="Int64"),
            "schedule": ["constant", "cosine", None],
            "method": ["full", "lora", "base"],
        }
    )
    assert block_names(labels).tolist() == ["each-20k-constant", "all-1234-cosine", ""]
