"""What a study file says under `measures` becomes exactly what is measured, and of what."""

from pathlib import Path

import pytest

from sft_atlas.errors import StudyError
from sft_atlas.study.measure import ForgettingMeasure, LikelihoodMeasure, TextFile
from sft_atlas.study.study import Study

from .conftest import Load

BLOCK = "  b: {data: each, samples: 5, epochs: 2, keep: every, schedule: constant}"


def texts_of(study: Study) -> TextFile:
    (texts,) = {m.texts for m in study.measures.every if isinstance(m, ForgettingMeasure)}
    assert isinstance(texts, TextFile)
    return texts


def kinds(study: Study) -> tuple[list[str], list[str]]:
    measures = study.measures
    return [m.kind for m in measures.every], [m.kind for m in measures.last]


def test_the_dear_measures_wait_to_be_asked_for(load: Load) -> None:
    study = load(BLOCK)
    assert kinds(study) == (["drift", "likelihood", "forgetting"], ["representation"])
    assert [embedder.name for embedder in study.measures.embedders] == ["words"]
    assert not study.measures.updates


def test_each_measure_is_wished_for_every_or_the_last_epoch_or_none(load: Load) -> None:
    text = "drift: every, spectrum: last, likelihoods: false, forgetting: true, representations: no"
    with pytest.raises(StudyError, match="representations"):
        load(BLOCK, more=f"measures: {{{text}}}")
    study = load(BLOCK, more=f"measures: {{{text.replace('no', 'false')}}}")
    assert kinds(study) == (["drift", "forgetting"], ["spectrum"])


def test_without_benchmarks_there_is_no_map(load: Load) -> None:
    study = load(BLOCK, ("benchmarks:\n  - {file: bench.yaml}\n", ""))
    assert kinds(study)[0] == ["drift", "forgetting"]


def test_neutral_texts_are_those_that_suit_the_base_models(load: Load) -> None:
    study = load(BLOCK)
    assert texts_of(study).name == "neutral"
    assert study.texts is not None and study.texts.num_texts > 100
    one = (
        "  - {name: m1, hub: org/one, revision: abc, parameters: 1000000}",
        "  - mini-llama",
    )
    with pytest.raises(StudyError, match=r"mini-llama mini-texts, m2 neutral.*measures: \{texts"):
        load(BLOCK, one)
    assert texts_of(load(BLOCK, one, more="measures: {texts: mini-texts}")).name == "mini-texts"


def test_own_texts_are_a_file_with_a_digest(load: Load, tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text('{"body": "one"}\n{"body": "two"}\n')
    entry = f"{{name: own, path: {file}, field: body, limit: null, max_bytes: 99}}"
    texts = texts_of(load(BLOCK, more=f"measures: {{texts: {entry}}}"))
    assert (texts.field, texts.limit, texts.max_bytes) == ("body", None, 99)
    assert texts.source.sha256 is not None


def test_fewer_of_a_cards_texts_can_be_read(load: Load) -> None:
    texts = texts_of(load(BLOCK, more="measures: {texts: {name: neutral, limit: 20}}"))
    assert (texts.name, texts.limit) == ("neutral", 20)


def test_other_benchmarks_are_another_set_of_questions_and_the_same_weight_change(
    load: Load,
) -> None:
    more = ("  - {file: bench.yaml}", "  - {file: bench.yaml}\n  - mini-math")
    first, second = load(BLOCK).measures.every, load(BLOCK, more).measures.every
    assert first[0].fingerprint == second[0].fingerprint
    assert isinstance(first[1], LikelihoodMeasure)
    assert first[1].fingerprint != second[1].fingerprint


@pytest.mark.parametrize(
    ("measures", "expected"),
    [
        ("{texts: nowhere}", "texts 'nowhere' has no card|nowhere"),
        ("{texts: {name: neutral, field: body}}", "field belongs to a file of your own"),
        ("{texts: {name: own, path: absent.jsonl}}", "absent.jsonl does not exist"),
        ("{similarity: [words, words]}", "lists 'words' twice"),
        ("{similarity: [{name: mine}]}", "names neither path nor hub"),
        ("{similarity: [letters]}", "words"),
        ("{spectrum: first}", "every"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_its_line(
    load: Load, measures: str, expected: str
) -> None:
    with pytest.raises(StudyError, match=expected) as error:
        load(BLOCK, more=f"measures: {measures}")
    assert "study.yaml:" in str(error.value)
