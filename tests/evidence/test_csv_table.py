"""A table of separated values is read as it is meant, or refused with its line."""

import re
from pathlib import Path

import pytest

from sft_atlas.errors import DataError
from sft_atlas.evidence.csv_table import read_numbers, read_text_table


def write(folder: Path, content: bytes | str) -> Path:
    path = folder / "t.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def numbers(path: Path, *names: str) -> list[list[float | None]]:
    _, values = read_numbers(read_text_table(path), names)
    return [[None if v != v else v for v in row] for row in values.to_numpy().tolist()]


def refused(path: Path) -> str:
    with pytest.raises(DataError) as error:
        table = read_text_table(path)
        read_numbers(table, [name for name in table.fields if name != "m"])
    return str(error.value).replace(str(path), "t.csv")


@pytest.mark.parametrize(
    "content",
    [
        "m,a,b\nx,1.5,2\ny,,3e1\n",
        "m;a;b\nx;1,5;2\ny;;3e1\n",
        "m\ta\tb\r\nx\t1.5\t2\r\ny\t-\t30\r\n",
        '"m","a","b"\n"x","1,5","2"\n"y","NaN","30"\n',
        "\n".join(["m,a,b", " x , 1.5 , 2 ", "", "y,None,30"]),
        b"\xef\xbb\xbfm,a,b\nx,1.5,2\ny,N/A,30.\n",
        "m,a,b\nx,1.5,2\ny,null,+30\n".encode("utf-16"),
        b"\xfe\xff" + "m,a,b\nx,1.50,2\ny,nan,30\n".encode("utf-16-be"),
    ],
    ids=["comma", "semicolon", "tab", "quoted", "spaced", "bom", "utf16-le", "utf16-be"],
)
def test_every_common_form_gives_the_same_numbers(tmp_path: Path, content: bytes | str) -> None:
    path = write(tmp_path, content)
    assert numbers(path, "a", "b") == [[1.5, 2.0], [None, 30.0]]
    assert read_text_table(path).fields["m"].tolist() == ["x", "y"]


def test_texts_keep_the_digits_and_get_a_decimal_point(tmp_path: Path) -> None:
    table = read_text_table(write(tmp_path, "m;a\nx;1,50\ny;\n"))
    texts, _ = read_numbers(table, ["a"])
    assert texts["a"].tolist() == ["1.50", None]


def test_lines_count_quoted_breaks_and_blank_lines(tmp_path: Path) -> None:
    table = read_text_table(write(tmp_path, 'm,a\n"x\ny",1\n\nz,2\n'))
    assert table.lines.tolist() == [2, 5]
    assert table.where(1) == f"{tmp_path / 't.csv'}:5"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "t.csv: is empty; expected a header and one row per model."),
        (" \n\n", "t.csv: is empty; expected a header and one row per model."),
        ("m,a\n", "t.csv: has a header and no rows; expected one row per model."),
        (
            "m,a\nx,1\ny,1,2\n",
            "t.csv:3: has 3 fields; the header has 2. Write one field for each column.",
        ),
        (
            "m,a,a\nx,1,2\n",
            "t.csv:1: names 'a' twice; expected each column once. Rename or remove one.",
        ),
        (
            "m,a\nx,1\ny,high\n",
            "t.csv:3: column 'a' holds 'high'; expected a finite number such as 45.3, or nothing "
            "where there is no score.",
        ),
        (
            "m,a\nx,inf\n",
            "t.csv:2: column 'a' holds 'inf'; expected a finite number such as 45.3, or nothing "
            "where there is no score.",
        ),
        (
            "m,a\nx,=1+2\n",
            "t.csv:2: column 'a' holds '=1+2'; expected a finite number such as 45.3, or nothing "
            "where there is no score.",
        ),
        (
            "m,a\nx,45.3%\n",
            "t.csv:2: column 'a' holds '45.3%'; expected a finite number such as 45.3, or nothing "
            "where there is no score.",
        ),
        (
            'm,a,b\nx,"45,3",1\ny,2,45.1\n',
            "t.csv:2: column 'a' holds '45,3' and line 3 holds '45.1'; expected one decimal mark. "
            "Write all numbers with a decimal point.",
        ),
        (
            "m,a\nx,1e999\n",
            "t.csv:2: column 'a' holds '1e999', which is too large for a number; expected a score.",
        ),
        (
            b"m,a\nx,\xff\n",
            "t.csv:2: is not UTF-8 or UTF-16 text; save the table as UTF-8.",
        ),
        (
            b"m,a\nx,\x00\n",
            "t.csv:2: has a null character; save the table as UTF-8 text.",
        ),
        (
            'm,a\n"x,1\n',
            "t.csv:2: is no table of separated values (unexpected end of data). Write it again "
            "with a program that quotes fields as RFC 4180 says.",
        ),
    ],
    ids=[
        *("empty", "blank", "no-rows", "long-row", "repeated-name", "word", "infinity", "formula"),
        *("percent-sign", "both-marks", "too-large", "latin-1", "null", "open-quote"),
    ],
)
def test_bad_files_are_refused_with_their_line(
    tmp_path: Path, content: bytes | str, message: str
) -> None:
    assert refused(write(tmp_path, content)) == message


def test_a_folder_and_an_absent_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r": is a folder; expected a file of comma-separated val"):
        read_text_table(tmp_path)
    absent = tmp_path / "none.csv"
    message = f"{absent}: cannot be read (No such file or directory); expected a file of comma-sep"
    with pytest.raises(DataError, match=re.escape(message)):
        read_text_table(absent)
