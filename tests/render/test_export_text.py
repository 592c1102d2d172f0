"""Names that would run, break a row or end a cell do not, and numbers stay numbers."""

import csv
import io

import numpy as np
import pandas as pd
import pytest

from sft_atlas.render.exhibits import Column, Table, shown
from sft_atlas.render.export_text import csv_text, latex_text, markdown_text

EVIL = ["=1+1", "+1", "-1", "@A1", "\tx", 'say "hi", now', "a|b", "50% & $5_x #1 {y} ~^\\"]


def table(rows: pd.DataFrame) -> Table:
    columns = (
        Column(key="name", title="Name"),
        Column(key="gain", title="Gain", kind="points"),
        Column(key="p", title="p_adjusted", kind="p"),
    )
    return Table(name="Made up", title="Gains & losses", columns=columns, rows=rows)


@pytest.fixture
def rows() -> pd.DataFrame:
    values = [-0.0123, 0.5, np.nan, np.inf, 0.0, -0.00001, 1.0, 2.0]
    return pd.DataFrame({"name": EVIL, "gain": values, "p": [0.0001, *[0.25] * 7]})


def test_a_csv_is_read_back_as_it_was_but_runs_no_formula(rows: pd.DataFrame) -> None:
    found = list(csv.DictReader(io.StringIO(csv_text(rows))))
    names = [row["name"] for row in found]
    assert names[:5] == ["'=1+1", "'+1", "'-1", "'@A1", "'\tx"]
    assert names[5:] == EVIL[5:]
    assert [row["gain"] for row in found] == [
        *("-0.0123", "0.5", "", "", "0.0", "-1e-05", "1.0", "2.0"),
    ]


def test_a_latex_table_has_booktabs_rules_and_no_open_sign(rows: pd.DataFrame) -> None:
    text = latex_text(table(rows))
    assert r"\begin{tabular}{lrr}" in text and r"\caption{Gains \& losses}" in text
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert text.count(rule) == 1
    assert r"=1+1 & $-$1.2 & \textless{} 0.001 \\" in text
    assert r"50\% \& \$5\_x \#1 \{y\} \textasciitilde{}\textasciicircum{}\textbackslash{}" in text
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert len(body) == len(rows)
    assert all(line.replace(r"\&", "").count("&") == 2 for line in body)


def test_a_markdown_table_keeps_its_columns(rows: pd.DataFrame) -> None:
    lines = markdown_text(table(rows)).splitlines()
    assert lines[0] == r"| Name | Gain | p\_adjusted |"
    assert lines[1] == "| --- | --: | --: |"
    assert all(line.replace(r"\|", "").count("|") == 4 for line in lines)
    assert r"a\|b" in lines[8]


def test_html_stays_text_in_every_format() -> None:
    rows = pd.DataFrame({"name": ["<script>x</script>"], "gain": [0.1], "p": [0.5]})
    assert "<script>" in csv_text(rows)
    assert "<script>" not in latex_text(table(rows))
    assert r"\<script\>" in markdown_text(table(rows))


def test_what_is_absent_is_a_dash_and_a_rounded_zero_has_no_sign() -> None:
    points = Column(key="gain", title="Gain", kind="points")
    assert [shown(value, points) for value in (None, pd.NA, float("nan"), float("-inf"))] == [
        "\N{EM DASH}"
    ] * 4
    assert [shown(value, points) for value in (-0.0001, 0.0, -0.012)] == [
        *("0.0", "0.0", "\N{MINUS SIGN}1.2")
    ]
    flag = Column(key="a", title="A", kind="yes")
    assert [shown(value, flag) for value in (True, False)] == ["yes", "no"]
