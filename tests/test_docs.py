"""What the documents promise exists: links, verbs, starter study, packaged licences."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

import sft_atlas
from sft_atlas.api_reference import render_api
from sft_atlas.cli import app

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_relative_links_lead_somewhere(document: Path) -> None:
    for target in LINK.findall(document.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_every_verb_of_the_readme_exists() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    help_text = CliRunner().invoke(app, ["--help"]).stdout
    for verb in set(re.findall(r"^\$ sft-atlas (\w+)", readme, re.MULTILINE)):
        assert re.search(rf"\b{verb}\b", help_text), verb


def test_every_verb_is_documented() -> None:
    reference = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    for command in app.registered_commands:
        assert command.callback is not None
        verb = command.name or command.callback.__name__
        assert re.search(rf"^\| `{verb}[ `]", reference, re.MULTILINE), verb


def test_the_starter_study_plans_as_it_is(tmp_path: Path) -> None:
    path = sft_atlas.new("mine", folder=tmp_path)
    plan = sft_atlas.plan(path)
    assert plan.num_cells == 2 * 2 * 2 * 3 + 2 * 2
    assert not plan.cost.guessed_sizes


def test_the_python_page_is_that_of_the_code() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert page == render_api(), "run `python -m sft_atlas.api_reference docs`"


def test_every_verb_is_a_function() -> None:
    for command in app.registered_commands:
        assert command.callback is not None
        verb = command.name or command.callback.__name__
        assert callable(getattr(sft_atlas, {"import": "import_results"}.get(verb, verb))), verb
