"""Every chart and table becomes files that other programs read."""

import json
import sys
from pathlib import Path

import pandas as pd
import pytest

from sft_atlas.errors import StudyError
from sft_atlas.render import forms
from sft_atlas.render.exhibits import Chart, Choice, Column, Section, Table
from sft_atlas.render.figures import portable, write_figures

pytest.importorskip("vl_convert")


@pytest.fixture
def section() -> Section:
    rows = pd.DataFrame(
        {
            "label": ["知識テスト", "b", "知識テスト", "b"],
            "estimate": [1.0, -2.0, 0.5, None],
            "low": [0.5, None, None, None],
            "high": [1.5, None, None, None],
            "value_text": ["+1.0"] * 4,
            "is_faded": [False, True, False, True],
            "order": [0, 1, 2, 3],
            "method": ["full", "full", "lora / 8", "lora / 8"],
        }
    )
    chart = Chart(
        name="gains",
        title="Gains",
        caption="",
        form=forms.forest("Points", margin=1.0),
        rows=rows,
        choices=(Choice(column="method", label="Method", first="lora / 8"),),
    )
    listed = Table(
        name="gains",
        title="Gains",
        columns=(Column(key="label", title="Benchmark"),),
        rows=rows[["label"]],
    )
    return Section(name="s", title="S", short="S", lead="", charts=(chart,), tables=(listed,))


def test_a_folder_holds_each_chart_and_table_in_every_format(
    section: Section, tmp_path: Path
) -> None:
    written = write_figures([section], tmp_path / "figures")
    names = [path.name for path in written]
    drawn = [f"gains{end}" for end in (".vl.json", ".svg", ".png", ".pdf")]
    other = [name.replace("gains", "gains--full") for name in drawn]
    assert names == [
        "gains.csv",
        *drawn,
        *other,
        *(f"table-gains.{e}" for e in ("csv", "tex", "md")),
    ]
    folder = tmp_path / "figures"
    assert (folder / "gains.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "gains.pdf").read_bytes().startswith(b"%PDF")
    assert "知識テスト" in (folder / "gains.svg").read_text(encoding="utf-8")
    spec = json.loads((folder / "gains.vl.json").read_text(encoding="utf-8"))
    assert [row["method"] for row in spec["datasets"]["rows"]] == ["lora / 8"] * 2
    data = pd.read_csv(folder / "gains.csv")
    assert len(data) == 4 and "order" not in data and data["estimate"].tolist()[:2] == [1.0, -2.0]


def test_a_specification_has_its_colours_and_its_size(section: Section) -> None:
    (chart,) = section.charts
    spec = portable(chart, chart.rows)
    assert spec["height"] == forms.ROW_PIXELS * 2 and spec["width"] > 0
    assert "usermeta" not in spec and spec["config"]["background"] == "#ffffff"
    assert all(param["value"] != "#777" for param in spec["params"])
    json.dumps(spec, allow_nan=False)


def test_without_the_extra_the_message_says_what_to_install(
    section: Section, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(StudyError) as caught:
        write_figures([section], tmp_path / "figures")
    assert str(caught.value) == (
        "--figures: charts need the package vl-convert-python, which is not installed; a converter "
        "was expected. Install it with `pip install 'sft-atlas[figures]'`, or save single charts "
        "from the report's page."
    )
    assert not (tmp_path / "figures").exists()


def test_a_folder_that_cannot_be_made_is_named(section: Section, tmp_path: Path) -> None:
    taken = tmp_path / "figures"
    taken.write_text("a file")
    with pytest.raises(StudyError, match=r"figures: this folder cannot be made \(File exists\)"):
        write_figures([section], taken)
