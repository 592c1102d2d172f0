"""Public instruction datasets as they are published: their shapes, flaws and numbers of rows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sft_atlas.data.encoding import load_tokenizer
from sft_atlas.data.prepared import prepare
from sft_atlas.data.sources import load_examples, read_examples
from sft_atlas.errors import DataError
from sft_atlas.store.store import open_store
from sft_atlas.study.job import PrepareJob
from sft_atlas.study.spec import DatasetSpec, ModelSpec, Source

FOLDER = Path(__file__).parents[2].parent / "shared" / "data" / "training"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="the real data files are not here")


def dataset(name: str, **options: Any) -> DatasetSpec:
    return DatasetSpec(source=Source(path=FOLDER / name), name=name, **options)


@pytest.mark.parametrize(
    ("name", "num_rows", "num_malformed"),
    [
        ("lima.json.gz", 1_000, 0),
        ("evol_instruct_1k.json.gz", 1_000, 0),
        ("gsm8k_train.jsonl.gz", 7_473, 0),
        ("code_alpaca_2k.json.gz", 2_017, 2),
        ("code_alpaca_new.json.gz", 4_535, 0),
        ("math_data.json.gz", 3_260, 3),
        ("t0_knowledge.jsonl.gz", 6_000, 0),
        ("t0_reasoning.jsonl.gz", 6_000, 0),
        ("t0_comprehension.jsonl.gz", 3_000, 0),
        ("dolly_hhrlhf_1k.jsonl.gz", 1_000, 0),
        ("alpaca_zh_demo.jsonl.gz", 1_000, 0),
    ],
)
def test_published_files_are_recognised(name: str, num_rows: int, num_malformed: int) -> None:
    found = read_examples(dataset(name))
    assert (found.num_rows, len(found.rejects)) == (num_rows, num_malformed)
    assert len(found.examples) == num_rows - num_malformed


def test_alpaca_fails_on_its_empty_answers_until_a_study_says_what_to_do() -> None:
    with pytest.raises(DataError, match="28 of 52,002 rows malformed") as caught:
        load_examples(dataset("alpaca.jsonl.gz"))
    assert "alpaca.jsonl.gz:285: output is empty" in str(caught.value)
    assert "  and 8 more" in str(caught.value)
    filtered = load_examples(dataset("alpaca.jsonl.gz", drop_answers=("",)))
    assert (filtered.num_filtered, len(filtered.examples)) == (28, 51_974)


def test_lima_asks_in_one_turn_and_answers_in_the_next() -> None:
    found = load_examples(dataset("lima.json.gz"))
    assert found.examples[0].prompt.endswith("(preferably within the brain only).")
    assert found.examples[0].answer.startswith("The question is relatively broad")
    assert {len(e.turns) for e in found.examples} == {1}


def test_empty_completions_that_hold_an_end_mark_can_be_dropped_and_templates_chosen() -> None:
    options = {"drop_answers": ("<|endoftext|>",), "where": (("template", ("wiki_qa_exercise",)),)}
    found = load_examples(dataset("t0_knowledge.jsonl.gz", **options))
    assert 0 < len(found.examples) < 6_000
    assert {e.answer for e in found.examples} <= {"True<|endoftext|>", "False<|endoftext|>"}


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("moss_dialogues.jsonl.gz", "chat"),
        ("instruction_ja.jsonl.gz", "utterances"),
        ("jcommonsenseqa_train.json.gz", "choice0"),
    ],
)
def test_other_shapes_are_named_and_not_guessed(name: str, column: str) -> None:
    with pytest.raises(DataError, match=rf":1: unknown shape \(columns: .*{column}"):
        load_examples(dataset(name))


def test_a_study_reads_other_shapes_by_mapping_places() -> None:
    places = (("prompt", "chat.turn_1.Human"), ("answer", "chat.turn_1.MOSS"))
    moss = load_examples(dataset("moss_dialogues.jsonl.gz", fields=places))
    assert len(moss.examples) == 1_120
    assert all(e.prompt.startswith("<|Human|>: ") for e in moss.examples)
    places = (("prompt", "utterances.0.text"), ("answer", "utterances.1.text"))
    assert len(load_examples(dataset("instruction_ja.jsonl.gz", fields=places)).examples) == 669


@pytest.mark.parametrize(
    "name", ["code_alpaca_new.json.gz", "gsm8k_train.jsonl.gz", "lima.json.gz"]
)
def test_every_supervised_token_of_real_samples_belongs_to_the_answer(
    name: str, make_model: Callable[..., ModelSpec], tmp_path: Path
) -> None:
    model, data = make_model(), dataset(name, drop_answers=("",))
    job = PrepareJob(
        model=model,
        dataset=data,
        num_samples=200,
        subset_seed=0,
        template="question-answer",
        max_tokens=100_000,
    )
    found = prepare(open_store(tmp_path / "store", create=True), job)
    loaded, tokenizer = load_examples(data), load_tokenizer(model)
    by_row = dict(zip(loaded.indices, loaded.examples, strict=True))
    assert len(found) == 200
    for i, row in enumerate(found.rows.tolist()):
        ids, prompt_length = found.example(i)
        example = by_row[row]
        assert tokenizer.decode(ids[prompt_length:]) == f" {example.answer}<eos>"
        assert tokenizer.decode(ids[:prompt_length]) == f"###Question: {example.prompt}\n###Answer:"
