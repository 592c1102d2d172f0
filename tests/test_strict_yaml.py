"""What a hand-written file may hold, and what its reader says where it is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from sft_atlas.errors import StudyError
from sft_atlas.strict_yaml import MAX_BYTES, MAX_DEPTH, MAX_NODES, did_you_mean, load, validate


def write(folder: Path, text: str) -> Path:
    path = folder / "file.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1.0e-5", 1e-5),
        ("2E3", 2000.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("-3", -3),
        ("0x10", 16),
        ("0o17", 15),
        ("017", 17),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("no", "no"),
        ("on", "on"),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("'1'", "1"),
        ('"true"', "true"),
        ("1e", "1e"),
        ("e5", "e5"),
    ],
)
def test_scalars_follow_yaml_1_2(tmp_path: Path, text: str, value: object) -> None:
    loaded, _ = load(write(tmp_path, f"key: {text}\n"))
    assert loaded["key"] == value
    assert type(loaded["key"]) is type(value)


def test_every_value_has_its_line(tmp_path: Path) -> None:
    _, lines = load(write(tmp_path, "a: 1\nb:\n  - x\n  - {c: 2,\n     d: 3}\n"))
    assert lines.where("a") == f"{tmp_path}/file.yaml:1"
    assert [lines.line("b", 0), lines.line("b", 1, "c"), lines.line("b", 1, "d")] == [3, 4, 5]


def test_a_value_that_is_not_there_has_the_line_of_what_is_around_it(tmp_path: Path) -> None:
    _, lines = load(write(tmp_path, "a: 1\nb:\n  c: 2\n"))
    assert lines.line("b", "d", 4) == 2
    assert lines.line("z") == 1


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("a: 1\nb: &x 2\n", 2, "anchor &x is not allowed; write the value out."),
        ("a: *x\n", 1, "alias *x is not allowed; write the value again."),
        ("a: 1\nb: 2\na: 3\n", 3, "key 'a' is repeated; it first stands in line 1."),
        ("a: !!python/object:os.system x\n", 1, "tag tag:yaml.org,2002:python/object:os.system"),
        ("a: 1\n---\nb: 2\n", 2, "a second document begins; write one study per file."),
        ("a: 1\n2: 3\n", 2, "key '2' is not text; quote it."),
        ("? [a]\n: 1\n", 1, "a key must be text, not a list or mapping."),
        ("a: .inf\n", 1, ".inf is not a finite number."),
        ("a: .NaN\n", 1, ".NaN is not a finite number."),
        ("a: 1e999\n", 1, "'1e999' is too large for a number."),
        ("a: 1\nb: [1,\n", 3, "is not valid YAML: expected the node content"),
        ("a: @x\n", 1, "is not valid YAML: found character '@' that cannot start any token."),
        (f"a: {'[' * 200}", 1, f"values are nested deeper than {MAX_DEPTH} levels."),
        (f"a: [{'1,' * (MAX_NODES + 5)}]", 1, f"more than {MAX_NODES} values; split the file."),
    ],
)
def test_what_is_refused_is_named_with_its_line(
    tmp_path: Path, text: str, line: int, what: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(StudyError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}:{line}: {what}")


def test_merge_keys_have_no_power(tmp_path: Path) -> None:
    assert load(write(tmp_path, "a: {<<: 1}\n"))[0] == {"a": {"<<": 1}}


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    path = tmp_path / "none.yaml"
    with pytest.raises(StudyError) as caught:
        load(path)
    expected = f"{path}: cannot be read (No such file or directory); expected a YAML file."
    assert str(caught.value) == expected


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    path.write_bytes(b"a" * (MAX_BYTES + 1))
    with pytest.raises(StudyError, match=f"is larger than {MAX_BYTES} bytes"):
        load(path)


def test_text_of_another_encoding_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"a: 1\nb: caf\xe9\n")
    with pytest.raises(StudyError) as caught:
        load(path)
    assert str(caught.value) == f"{path}:2: is not UTF-8 text. Save it as UTF-8."


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(text=st.text(max_size=200))
def test_any_text_loads_or_is_refused_as_a_study_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "any.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        load(path)
    except StudyError as error:
        assert str(error).startswith(str(path))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    value=st.dictionaries(
        st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=8),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text("abc: -#'", max_size=8),
            lambda inner: st.lists(inner, max_size=3),
            max_leaves=8,
        ),
        max_size=5,
    )
)
def test_json_reads_as_itself(tmp_path: Path, value: dict[str, Any]) -> None:
    assert load(write(tmp_path, json.dumps(value)))[0] == value


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    epochs: int = Field(ge=1)
    """Passes over the data."""
    names: tuple[str, ...] = ()


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")

    study: str
    blocks: dict[str, Inner]


def faults(tmp_path: Path, text: str) -> list[str]:
    value, lines = load(write(tmp_path, text))
    with pytest.raises(StudyError) as caught:
        validate(Outer, value, lines)
    return str(caught.value).replace(f"{tmp_path}/", "").split("\n")


def test_a_wrong_key_names_the_nearest_one(tmp_path: Path) -> None:
    assert faults(tmp_path, "study: s\nblocks:\n  a:\n    epochs: 1\n    epoch: 2\n") == [
        "file.yaml:5: blocks.a.epoch is not a field; did you mean epochs? Fields: epochs, names."
    ]


def test_a_missing_key_says_what_it_would_mean(tmp_path: Path) -> None:
    assert faults(tmp_path, "study: s\nblocks:\n  a: {}\n") == [
        "file.yaml:3: blocks.a.epochs is missing; expected passes over the data."
    ]


@pytest.mark.parametrize("value", ["'3'", "3.0", "true", "[3]"])
def test_nothing_is_converted(tmp_path: Path, value: str) -> None:
    (fault,) = faults(tmp_path, f"study: s\nblocks:\n  a: {{epochs: {value}}}\n")
    assert fault.startswith("file.yaml:3: blocks.a.epochs: input should be a valid integer, got ")
    assert fault.endswith("; expected passes over the data.")


def test_all_faults_are_listed_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = "blocks:\n  a: {epochs: 0}\n  b: {epochs: 1, names: x}\nstudy: 5\n"
    places = [fault.split(": ")[:2] for fault in faults(tmp_path, text)]
    assert places == [
        ["file.yaml:2", "blocks.a.epochs"],
        ["file.yaml:3", "blocks.b.names"],
        ["file.yaml:4", "study"],
    ]


def test_a_flood_of_faults_is_cut(tmp_path: Path) -> None:
    text = "study: s\nblocks:\n" + "".join(f"  b{i}: {{epochs: 0}}\n" for i in range(30))
    found = faults(tmp_path, text)
    assert len(found) == 21
    assert found[-1] == "... and 10 more."


def test_a_file_that_is_no_mapping_says_so(tmp_path: Path) -> None:
    assert faults(tmp_path, "- a\n") == ["file.yaml:1: expected keys and values, got ['a']."]
    assert faults(tmp_path, "") == ["file.yaml:1: expected keys and values, got None."]


def test_lists_fit_tuples(tmp_path: Path) -> None:
    value, lines = load(write(tmp_path, "study: s\nblocks: {a: {epochs: 2, names: [x, y]}}\n"))
    assert validate(Outer, value, lines).blocks["a"].names == ("x", "y")


def test_close_names_come_first_and_the_list_is_short() -> None:
    names = [f"name{i}" for i in range(20)]
    assert did_you_mean("alpca", ["lima", "alpaca"]) == "did you mean alpaca? Names: alpaca, lima."
    assert did_you_mean("x", []) == "Names: none."
    assert did_you_mean("zzz", names).count("name") == 10
