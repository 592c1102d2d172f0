"""Texts are asked as they are scored, read in a seeded order, and encoded so that all counts."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from sft_atlas.catalog.cards import find_benchmark
from sft_atlas.data.encoding import encode_pair, load_tokenizer
from sft_atlas.data.texts import (
    Text,
    encode_text_set,
    load_texts,
    text_prefix,
    texts_sha256,
)
from sft_atlas.errors import DataError
from sft_atlas.evaluate.benchmark import load_questions
from sft_atlas.study.benchmark import load_benchmark
from sft_atlas.study.measure import QuestionSet, TextFile
from sft_atlas.study.source import local_source
from sft_atlas.study.spec import BenchmarkDefinition, BenchmarkItems, BenchmarkSpec, ModelSpec

MakeModel = Callable[..., ModelSpec]
MINI = ("mini-math", "mini-knowledge-choice", "mini-instruction-b")
CHAT = "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"


def mini_items(name: str) -> BenchmarkItems:
    path = find_benchmark(name).source
    assert path is not None
    assert path.path is not None
    found = load_benchmark(path.path)
    assert isinstance(found.definition, BenchmarkDefinition)
    return BenchmarkItems(definition=found.definition, items=found.items, name=name)


def questions(
    *names: str, per_benchmark: int = 5, template: str = "question-answer"
) -> QuestionSet:
    benchmarks = tuple(mini_items(name) for name in names)
    return QuestionSet(benchmarks=benchmarks, per_benchmark=per_benchmark, template=template)


def write(path: Path, rows: Sequence[Any], **options: Any) -> TextFile:
    is_text = path.suffix == ".txt"
    lines = [row if is_text else json.dumps(row) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return TextFile(name="own", source=local_source(path), **options)


def refused(texts: TextFile | QuestionSet) -> str:
    with pytest.raises(DataError) as caught:
        load_texts(texts)
    return str(caught.value)


@pytest.fixture
def tokenizers(make_model: MakeModel) -> dict[str, PreTrainedTokenizerBase]:
    """Tokenizers that add a BOS, have one without adding it, and have none."""
    adding = load_tokenizer(make_model("adding", adds_bos=True))
    silent = load_tokenizer(make_model("silent"))
    silent.bos_token = "<bos>"
    return {"adding": adding, "silent": silent, "none": load_tokenizer(make_model("none"))}


@pytest.mark.parametrize("template", ["question-answer", "chat"])
@pytest.mark.parametrize("name", MINI)
def test_a_question_is_asked_as_it_is_scored(
    make_model: MakeModel, name: str, template: str
) -> None:
    tokenizer = load_tokenizer(make_model(chat_template=CHAT))
    items = mini_items(name)
    scored = load_questions(
        BenchmarkSpec(
            name=name,
            definition=items.definition,
            items=items.items,
            limit=5,
            template=template,
            max_tokens=64,
        ),
        tokenizer,
    )
    found = load_texts(questions(name, template=template), tokenizer)
    assert [text.prompt for text in found] == [question.prompt for question in scored]
    assert {text.group for text in found} == {name}
    space = " " if template == "question-answer" else ""
    for text, question in zip(found, scored, strict=True):
        right = question.accepted[0] if question.label is None else None
        if question.label is not None:
            assert text.answer == question.answers[question.label]
        else:
            assert text.answer == f"{space}{right}"


def test_names_and_renaming_of_a_benchmark_change_neither_ids_nor_digest() -> None:
    found = load_texts(questions(*MINI))
    assert len({text.id for text in found}) == len(found) == 15
    asked = questions(*MINI)
    renamed = replace(
        asked, benchmarks=tuple(replace(b, name=f"my-{b.name}") for b in asked.benchmarks)
    )
    again = load_texts(renamed)
    assert [text.id for text in again] == [text.id for text in found]
    assert again[0].group == "my-mini-math"
    assert texts_sha256(again) == texts_sha256(found)
    assert texts_sha256(found[::-1]) != texts_sha256(found)
    moved = [found[0]._replace(prompt=found[0].prompt + found[0].answer, answer=""), *found[1:]]
    assert texts_sha256(moved) != texts_sha256(found)


def test_fewer_questions_are_the_first_of_more() -> None:
    few, many = (load_texts(questions("mini-math", per_benchmark=n)) for n in (4, 9))
    assert many[:4] == few


def test_an_item_without_a_known_answer_has_none(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text('{"q": "one", "a": null}\n{"q": "two", "a": "2"}\n')
    definition = BenchmarkDefinition(
        kind="generate", prompt="{q}", answer="{a}", metric="exact_match", wrap=False
    )
    items = BenchmarkItems(definition=definition, items=local_source(path), name="quiz")
    found = load_texts(QuestionSet(benchmarks=(items,), per_benchmark=9, template="chat"))
    # Unwrapped text needs no chat template, and its answer follows a space.
    assert {(text.prompt, text.answer) for text in found} == {("one", ""), ("two", " 2")}


def test_a_chat_template_needs_the_models_tokenizer() -> None:
    assert refused(questions("mini-math", template="chat")) == (
        "template 'chat': questions cannot be rendered without a tokenizer; expected the model's. "
        "Pass it, or use template question-answer."
    )


def test_a_benchmark_stands_in_a_set_once() -> None:
    assert refused(questions("mini-math", "mini-math")) == (
        "texts questions: benchmark mini-math stands there twice; expected its items once. "
        "Remove one."
    )


def test_rows_come_in_a_seeded_order_of_which_a_limit_takes_the_first(tmp_path: Path) -> None:
    rows = [{"text": f"text number {i}"} for i in range(40)]
    path = tmp_path / "own.jsonl"
    whole = load_texts(write(path, rows))
    assert sorted(int(text.id) for text in whole) == list(range(40))
    assert [int(text.id) for text in whole] != list(range(40))
    assert all(text.answer == f"text number {text.id}" for text in whole)
    assert {(text.group, text.prompt) for text in whole} == {("own", "")}
    assert load_texts(write(path, rows, limit=7)) == whole[:7]
    assert load_texts(write(path, rows, order_seed=1)) != whole


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".txt", ".parquet"])
def test_files_of_any_kind_hold_the_same_texts(tmp_path: Path, ending: str) -> None:
    texts = ["one, two", "drei", "四 五"]
    path = tmp_path / f"own{ending}"
    if ending == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"text": texts}), path)
        given = TextFile(name="own", source=local_source(path))
    elif ending == ".csv":
        path.write_text("text\n" + "".join(f'"{text}"\n' for text in texts), encoding="utf-8")
        given = TextFile(name="own", source=local_source(path))
    else:
        given = write(path, texts if ending == ".txt" else [{"text": text} for text in texts])
    assert {text.id: text.answer for text in load_texts(given)} == {
        str(i): text for i, text in enumerate(texts)
    }


@settings(deadline=None, max_examples=60)
@given(text=st.text(st.characters(codec="utf-8"), min_size=1), max_bytes=st.integers(4, 40))
def test_a_text_is_cut_before_the_character_that_would_not_fit(text: str, max_bytes: int) -> None:
    from sft_atlas.data.texts import _cut

    kept = _cut(text, max_bytes)
    assert text.startswith(kept)
    assert len(kept.encode()) <= max_bytes
    assert kept == text or len(text[: len(kept) + 1].encode()) > max_bytes


def test_texts_longer_than_max_bytes_are_cut(tmp_path: Path) -> None:
    given = write(tmp_path / "own.jsonl", [{"text": "日本語"}, {"text": "ab"}], max_bytes=7)
    assert {text.answer for text in load_texts(given)} == {"日本", "ab"}


def test_wrong_rows_are_refused_where_they_stand(tmp_path: Path) -> None:
    path, good = tmp_path / "own.jsonl", {"text": "good"}
    assert refused(write(path, [good, {"body": "x", "id": 1}])) == (
        "own.jsonl:2: has no column 'text'; it has body, id. Name the column of the text as "
        "`field`."
    )
    assert refused(write(path, [good, {"text": None}])) == (
        "own.jsonl:2: column 'text' is null; expected text. Correct the row, or name another "
        "column as `field`."
    )
    assert "column 'text' is a list; expected text." in refused(write(path, [{"text": ["a"]}]))
    assert refused(write(path, [good, good, {"text": " \n"}])) == (
        "own.jsonl:3: column 'text' is empty; expected text. Remove the row, or correct it."
    )
    assert "own.jsonl:1: has half of a surrogate pair at character 2 of 'a" in refused(
        write(path, [{"text": "a\ud800"}, good])
    )


def test_a_set_of_one_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    assert refused(write(path, [{"text": "alone"}])) == (
        "texts own: is a text set of one item; expected at least 2. Name more texts, or raise its "
        "limit."
    )
    assert "a text set of one item" in refused(write(path, [{"text": "a"}] * 3, limit=1))
    assert "a text set without items" in refused(write(path, []))
    assert "texts questions: is a text set of one item" in refused(
        questions("mini-math", per_benchmark=1)
    )


@pytest.mark.parametrize("kind", ["adding", "silent", "none"])
def test_every_byte_stands_behind_one_prefix_token(
    tokenizers: dict[str, PreTrainedTokenizerBase], kind: str
) -> None:
    tokenizer = tokenizers[kind]
    prefix = text_prefix(tokenizer)
    assert prefix == (("eos", 0) if kind == "none" else ("bos", 1))
    texts = [
        Text("0", "g", "", "A free text, with ümlauts and 日本語."),
        Text("1", "g", "###Question: what is it?\n###Answer:", " a test"),
        Text("2", "g", "ends in space  ", "yes"),
        Text("3", "g", "ends in space  ", ""),
        Text("4", "g", "", "  starts with space"),
    ]
    for text, encoded in zip(texts, encode_text_set(tokenizer, texts, max_tokens=512), strict=True):
        assert encoded.ids[0] == prefix.id
        assert encoded.ids[1:2] != [prefix.id]
        assert tokenizer.decode(encoded.ids[1:]) == text.prompt + text.answer
        assert not encoded.is_cut
        answer = tokenizer.decode(encoded.ids[encoded.prompt_length :])
        assert len(answer.encode()) == encoded.num_bytes_answer
        num_bytes = encoded.num_bytes_prompt + encoded.num_bytes_answer
        assert num_bytes == len((text.prompt + text.answer).encode())
        if text.answer:
            # The very tokens that scoring compares.
            pair = encode_pair(tokenizer, text.prompt, text.answer)
            assert encoded.ids[encoded.prompt_length :] == pair.answer_ids
            assert answer == text.prompt[len(text.prompt.rstrip()) :] + text.answer
        else:
            assert encoded.prompt_length == len(encoded.ids)


@pytest.mark.parametrize("kind", ["adding", "silent"])
def test_a_chat_template_that_writes_the_bos_gets_no_second_one(
    tokenizers: dict[str, PreTrainedTokenizerBase], kind: str
) -> None:
    tokenizer = tokenizers[kind]
    tokenizer.chat_template = CHAT
    found = load_texts(questions("mini-math", template="chat"), tokenizer)
    assert found[0].prompt.startswith("<bos><|im_start|>")
    for text, encoded in zip(found, encode_text_set(tokenizer, found, max_tokens=512), strict=True):
        assert encoded.ids.count(1) == 1
        assert encoded.ids[0] == 1
        assert encoded.prompt_length > 1
        # Of what is scored: neither the BOS as a token nor its characters.
        assert encoded.num_bytes_prompt == len(text.prompt.removeprefix("<bos>").encode())
    (cut,) = encode_text_set(tokenizer, found[:1], max_tokens=2)
    assert cut.num_bytes_prompt == len("<|im_start|>")


@pytest.mark.parametrize("kind", ["adding", "silent", "none"])
@pytest.mark.parametrize("max_tokens", [2, 5, 9, 40])
def test_a_long_text_is_cut_at_its_end_with_the_bytes_that_are_left(
    tokenizers: dict[str, PreTrainedTokenizerBase], kind: str, max_tokens: int
) -> None:
    text = Text("0", "g", "what is the capital?", " The capital, of all xyz places, is Paris.")
    (whole,) = encode_text_set(tokenizers[kind], [text], max_tokens=512)
    (encoded,) = encode_text_set(tokenizers[kind], [text], max_tokens=max_tokens)
    assert encoded.is_cut == (len(whole.ids) > max_tokens)
    assert encoded.ids == whole.ids[:max_tokens]
    assert encoded.prompt_length == min(whole.prompt_length, max_tokens)
    kept = tokenizers[kind].decode(encoded.ids[1:])
    assert (text.prompt + text.answer).startswith(kept)
    assert encoded.num_bytes_prompt == min(len(kept), len(text.prompt))
    assert encoded.num_bytes_prompt + encoded.num_bytes_answer == len(kept)


def test_no_room_for_a_scored_token_is_refused(
    tokenizers: dict[str, PreTrainedTokenizerBase],
) -> None:
    with pytest.raises(DataError) as caught:
        encode_text_set(tokenizers["none"], [Text("0", "g", "", "a")], max_tokens=1)
    assert str(caught.value) == (
        "max_tokens: is 1; expected at least 2, the prefix token and one that is scored. Raise it."
    )


def test_a_text_of_which_a_tokenizer_makes_nothing_is_refused(
    tokenizers: dict[str, PreTrainedTokenizerBase],
) -> None:
    with pytest.raises(DataError) as caught:
        encode_text_set(tokenizers["none"], [Text("7", "g", "", "<eos>")], max_tokens=9)
    assert str(caught.value) == (
        "text 7: has no token under this tokenizer; expected at least one. Remove it from the set: "
        "'<eos>'."
    )
