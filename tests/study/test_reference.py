"""The pages about the study file say what the schema says."""

import json
from pathlib import Path

from sft_atlas.study.loader import load_study
from sft_atlas.study.reference import EXAMPLE, SECTIONS, render_reference, render_schema
from sft_atlas.study.schema import StudyFile

DOCS = Path(__file__).parents[2] / "docs"


def test_the_pages_are_current() -> None:
    how = "run `python -m sft_atlas.study.reference docs`"
    assert (DOCS / "study-file.md").read_text() == render_reference(), how
    assert (DOCS / "study-file.schema.json").read_text() == render_schema(), how


def test_every_key_is_explained() -> None:
    for _, model in SECTIONS:
        assert model.__doc__
        for name, facts in model.model_json_schema()["properties"].items():
            assert "$ref" in facts or facts.get("description"), f"{model.__name__}.{name}"


def test_the_example_of_the_page_loads(tmp_path: Path) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "notes.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    path = tmp_path / "studies" / "which-data.yaml"
    path.write_text(EXAMPLE)
    study = load_study(path)
    assert [block.name for block in study.blocks] == ["single", "merged"]
    assert dict(study.mixtures[0].weights) == {"code-alpaca": 0.75, "alpaca": 0.25}


def test_the_schema_is_closed_and_knows_every_section() -> None:
    schema = json.loads(render_schema())
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == set(StudyFile.model_fields)
    assert all(part["additionalProperties"] is False for part in schema["$defs"].values())
