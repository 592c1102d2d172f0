"""Each answered question has its section, whatever its tables hold; forms are valid Vega-Lite."""

import dataclasses
import json

import altair as alt
import numpy as np
import pandas as pd
import pytest

from planted_grid import Labels, grid_rows
from sft_atlas.analyze.analysis import Analysis, analyze
from sft_atlas.analyze.questions.answered import Answered
from sft_atlas.evidence.tidy import tidy_tables
from sft_atlas.render import forms
from sft_atlas.render.appendix import appendix
from sft_atlas.render.effect_sections import likeness
from sft_atlas.render.exhibit_payload import exhibit_payload, packed
from sft_atlas.render.question_sections import all_findings, question_sections
from sft_atlas.render.section_rows import estimates, table

FORMS = {
    "forest": lambda: forms.forest("Points", margin=1.0, tooltip=(("n_text", "Rests on"),)),
    "series": lambda: forms.forest("Points", series="Group"),
    "bars": lambda: forms.bars("Share"),
    "heat": lambda: forms.heat_map("Points", 3.0),
    "ramp": lambda: forms.heat_map("Share", 3.0, is_diverging=False),
    "bands": lambda: forms.bands("Epoch", "Points"),
    "log": lambda: forms.bands("Samples", "Points", is_log=True, line_at=None),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_valid_vega_lite(name: str) -> None:
    spec = FORMS[name]()
    spec.pop("usermeta")
    alt.Chart.from_dict(spec, validate=True)


@pytest.fixture(scope="module")
def answered() -> Analysis:
    rng = np.random.default_rng(0)
    scores = np.clip(0.5 + 0.1 * rng.normal(size=(4, 4, 4, 2, 2)), 0.01, 0.99)
    labels = Labels(
        methods=("full", "lora"), epochs=(1, 2), skills=("math", "math", "code", "code")
    )
    tables = tidy_tables(grid_rows(scores, np.full((4, 4), 0.4), labels))
    return analyze(tables, num_resamples=20)


def test_each_answered_question_has_its_section(answered: Analysis) -> None:
    sections = question_sections(answered)
    names = {section.name.removeprefix("q-").replace("-", "_") for section in sections}
    assert names == set(answered.answered)
    assert all(section.lead and section.title for section in sections)
    charts = [chart.name for section in sections for chart in section.charts]
    assert len(charts) == len(set(charts)) >= 6
    lists = [part.name for section in sections for part in section.tables]
    assert len(lists) == len(set(lists))


def test_every_finding_is_listed_once(answered: Analysis) -> None:
    found = all_findings(answered)
    assert len({id(finding) for finding in found}) == len(found)
    inside = [finding for part in answered.answered.values() for finding in part.findings]
    assert len(found) == len(answered.findings) + len(inside)


def test_what_the_page_gets_is_json_without_nan(answered: Analysis) -> None:
    sent = exhibit_payload(question_sections(answered))
    text = json.dumps(sent, allow_nan=False)
    assert {chart["name"] for chart in sent["exhibits"]}
    assert "Infinity" not in text


def test_a_question_without_rows_or_answer_has_no_section(answered: Analysis) -> None:
    empty = {name: Answered(findings=()) for name in answered.answered}
    assert question_sections(dataclasses.replace(answered, answered=empty)) == []


def test_empty_tables_draw_nothing(answered: Analysis) -> None:
    bare = {
        name: Answered(
            findings=part.findings, tables={n: f.iloc[:0] for n, f in part.tables.items()}
        )
        for name, part in answered.answered.items()
    }
    sections = question_sections(dataclasses.replace(answered, answered=bare))
    assert sum(len(section.charts) + len(section.tables) for section in sections) == 0


def test_tables_of_other_columns_are_listed_or_left_out(answered: Analysis) -> None:
    frame = pd.DataFrame(
        {"anything": [1.5, None], "share_ahead": [0.5, 0.25], "is_it": [True, False]}
    )
    odd = {
        name: Answered(findings=part.findings, tables=dict.fromkeys(part.tables, frame))
        for name, part in answered.answered.items()
    }
    question_sections(dataclasses.replace(answered, answered=odd))
    new = Answered(findings=(), tables={"some_new_table": frame})
    (section,) = question_sections(dataclasses.replace(answered, answered={"new_one": new}))
    assert (section.name, section.title) == ("q-new-one", "New one")
    (listed,) = section.tables
    assert [(c.key, c.kind) for c in listed.columns] == [
        *(("anything", "number"), ("share_ahead", "percent"), ("is_it", "yes")),
    ]


def test_no_chart_is_drawn_of_correlations_that_none_is_known_of() -> None:
    names = list("abcd")
    pairs = [(one, other) for one in names for other in names]
    found = pd.DataFrame(pairs, columns=["first", "second"]).assign(correlation=np.nan)
    assert list(likeness({"model_likeness": found})) == []


def test_one_reason_for_all_rows_is_said_once() -> None:
    frame = pd.DataFrame({"benchmark": ["a", "b"], "low": [None, None], "reason": ["too few"] * 2})
    made = table("t", "T", frame)
    assert made.caption == "Too few." and [column.key for column in made.columns] == ["benchmark"]


def test_estimates_are_in_points_and_fade_where_open() -> None:
    frame = pd.DataFrame(
        {"d": [0.02, 0.02, np.nan], "low": [0.01, -0.01, np.nan], "high": [0.03, 0.05, np.nan]}
    )
    found = estimates(frame, "d")
    assert found["estimate"].tolist()[:2] == [2.0, 2.0]
    assert found["is_faded"].tolist() == [False, True, False]
    assert found["value_text"].tolist() == [
        *("+2.0 [+1.0, +3.0]", "+2.0 [\N{MINUS SIGN}1.0, +5.0]", "\N{EM DASH}"),
    ]
    adjusted = estimates(frame.assign(p_adjusted=[0.5, 0.01, np.nan]), "d")
    assert adjusted["is_faded"].tolist() == [True, False, True]


def test_columns_are_sent_as_names_and_places() -> None:
    frame = pd.DataFrame({"a": ["x", None, "x"], "b": [1.0, np.nan, np.inf], "c": [True] * 3})
    assert packed(frame) == {
        "a": {"names": ["x"], "codes": [0, -1, 0]},
        "b": [1, None, None],
        "c": [True, True, True],
    }


def test_the_appendix_describes_what_was_run(answered: Analysis) -> None:
    entries = {entry.name: entry for entry in appendix(answered.answered)}
    assert {"analyze.questions.methods", "statistics.equivalence", "statistics.clusters"} <= set(
        entries
    )
    assert "forecast.answers" in entries or "forecast" not in answered.answered
    methods = entries["analyze.questions.methods"]
    assert methods.title.startswith("LoRA or full")
    (main,) = [part for part in methods.functions if part.title.startswith("methods_compared(")]
    assert any(
        "method_differences" in text for block in main.blocks for text, code in block.runs if code
    )
    said = " ".join(text for entry in entries.values() for b in entry.blocks for text, _ in b.runs)
    assert ">>>" not in said and "`" not in said
    assert appendix([]) == []
