"""Rows of every known shape give prompt and answer; every malformed row says what is wrong."""

from typing import Any

import pytest

from sft_atlas.data.shapes import SHAPES, RowError, Turn, example_from_row
from sft_atlas.errors import DataError
from sft_atlas.study.spec import DatasetSpec, Source


def dataset(**options: Any) -> DatasetSpec:
    return DatasetSpec(source=Source(), name="demo", **options)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


ONE_OF_EACH = {
    "messages": {"messages": [user("Q"), assistant("A")]},
    "conversations": {
        "conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]
    },
    "instruction": {"instruction": "Q", "input": "", "output": "A"},
    "prompt-completion": {"prompt": "Q", "completion": "A"},
    "prompt-response": {"prompt": "Q", "response": "A"},
    "question-answer": {"question": "Q", "answer": "A"},
}


def test_there_is_a_case_for_every_shape() -> None:
    assert set(ONE_OF_EACH) == set(SHAPES)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("is_named", [True, False])
def test_every_shape_is_read_by_name_and_recognised(shape: str, is_named: bool) -> None:
    example = example_from_row(ONE_OF_EACH[shape], dataset(shape=shape if is_named else "auto"))
    assert (example.prompt, example.answer) == ("Q", "A")
    assert example.turns == (Turn("user", "Q"),)


def test_the_input_of_an_instruction_follows_it_on_a_new_line() -> None:
    row = {"instruction": "Add.", "input": "2 3", "output": "5"}
    assert example_from_row(row, dataset()).prompt == "Add.\n2 3"


@pytest.mark.parametrize("blank", ["", "  ", None])
def test_a_blank_input_is_no_input(blank: str | None) -> None:
    row = {"instruction": "Add.", "input": blank, "output": "5"}
    assert example_from_row(row, dataset()).prompt == "Add."


def test_texts_are_taken_as_they_are() -> None:
    example = example_from_row({"prompt": " Q \n", "completion": "\n A "}, dataset())
    assert (example.prompt, example.answer) == (" Q \n", "\n A ")


def test_the_last_assistant_turn_is_the_answer_and_all_before_it_the_prompt() -> None:
    turns = [
        {"role": "system", "content": "S"},
        user("1"),
        assistant("2"),
        user("3"),
        assistant("4"),
    ]
    example = example_from_row({"messages": [*turns, user("5")]}, dataset())
    assert example.answer == "4"
    assert example.prompt == "System: S\nUser: 1\nAssistant: 2\nUser: 3"
    assert [turn.role for turn in example.turns] == ["system", "user", "assistant", "user"]


def test_first_turn_only_takes_the_first_question_and_its_reply() -> None:
    turns = [
        {"role": "system", "content": "S"},
        user("1"),
        assistant("2"),
        user("3"),
        assistant("4"),
    ]
    example = example_from_row({"messages": turns}, dataset(first_turn_only=True))
    assert (example.prompt, example.answer) == ("1", "2")


def test_a_study_maps_columns_and_places_inside_them() -> None:
    row = {"a.b": "Q", "turns": [{"text": "x"}, {"text": "A"}]}
    mapped = dataset(fields=(("prompt", "a.b"), ("answer", "turns.1.text")))
    example = example_from_row(row, mapped)
    assert (example.prompt, example.answer) == ("Q", "A")


MALFORMED = [
    (
        {"question": "Q"},
        "unknown shape (columns: question); known are messages, conversations, "
        "instruction, prompt-completion, prompt-response, question-answer",
    ),
    ({}, "unknown shape (columns: none)"),
    ({"question": "Q", "answer": None}, "answer is missing"),
    ({"question": "Q", "answer": " \n"}, "answer is empty"),
    ({"question": "Q", "answer": 42}, "answer is int, expected text"),
    ({"question": "", "answer": "A"}, "question is empty"),
    ({"question": "Q", "answer": "a\ud800"}, "answer is not valid Unicode at character 1"),
    ({"instruction": "Q", "input": 3, "output": "A"}, "input is int, expected text"),
    ({"messages": "Q"}, "messages is not a list of turns"),
    ({"messages": []}, "messages is not a list of turns"),
    ({"messages": ["Q"]}, "messages[0] has no 'role' and 'content'"),
    ({"messages": [user("Q")]}, "has no assistant turn to learn from"),
    (
        {"messages": [assistant("A")]},
        "messages[0] is by assistant, out of order; expected user there",
    ),
    (
        {"messages": [user("Q"), user("R")]},
        "messages[1] is by user, out of order; expected assistant there",
    ),
    (
        {"messages": [user("Q"), {"role": "tool", "content": "x"}]},
        "messages[1] is by 'tool'; known are",
    ),
    ({"messages": [user(""), assistant("A")]}, "messages[0] is empty"),
    ({"messages": [user("Q"), assistant(None)]}, "messages[1] is missing"),
]


@pytest.mark.parametrize(("row", "reason"), MALFORMED)
def test_a_malformed_row_says_what_is_wrong(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError) as caught:
        example_from_row(row, dataset())
    assert str(caught.value).startswith(reason)


def test_a_row_without_the_columns_of_its_named_shape_is_malformed() -> None:
    with pytest.raises(
        RowError, match="has no column 'instruction', which shape 'instruction' needs"
    ):
        example_from_row({"prompt": "Q", "completion": "A"}, dataset(shape="instruction"))


def test_a_row_without_a_mapped_column_is_malformed() -> None:
    mapped = dataset(fields=(("prompt", "q"), ("answer", "a.0")))
    with pytest.raises(RowError, match=r"has no column 'a\.0'"):
        example_from_row({"q": "Q", "a": "text"}, mapped)


def test_a_shape_that_does_not_exist_is_an_error_and_not_a_bad_row() -> None:
    with pytest.raises(DataError, match="shape 'alpaca': is not known; expected one of messages"):
        example_from_row({"prompt": "Q", "completion": "A"}, dataset(shape="alpaca"))
