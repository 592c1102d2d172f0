"""Templates put prompt before answer; a chat template's end of turn belongs to the answer."""

from collections.abc import Callable

import pytest
from transformers import PreTrainedTokenizerBase

from sft_atlas.data.encoding import load_tokenizer
from sft_atlas.data.shapes import Example, Turn
from sft_atlas.data.template import render_examples, render_prompt
from sft_atlas.errors import DataError
from sft_atlas.study.spec import ModelSpec

MakeModel = Callable[..., ModelSpec]

CHAT_ML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def example(answer: str = "A") -> Example:
    return Example(prompt="Q", answer=answer, turns=(Turn("user", "Q"),))


def tokenizer(make_model: MakeModel, template: str, eos: str = "<eos>") -> PreTrainedTokenizerBase:
    return load_tokenizer(make_model(chat_template=template, eos=eos))


def test_the_paper_template_has_two_lines_and_no_space_after_the_marks(
    make_model: MakeModel,
) -> None:
    pair = render_examples("question-answer", [example()], load_tokenizer(make_model()))[0]
    assert pair == ("###Question: Q\n###Answer:", " A")


def test_a_chat_answer_carries_the_end_of_turn_of_its_template(make_model: MakeModel) -> None:
    pair = render_examples("chat", [example()], tokenizer(make_model, CHAT_ML))[0]
    assert pair == (
        "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n",
        "A<|im_end|>",
    )


def test_an_end_of_turn_that_is_the_end_of_sequence_is_left_to_encoding(
    make_model: MakeModel,
) -> None:
    pair = render_examples("chat", [example()], tokenizer(make_model, CHAT_ML, "<|im_end|>"))[0]
    assert pair.answer == "A"


def test_all_turns_of_a_conversation_reach_the_chat_template(make_model: MakeModel) -> None:
    turns = (Turn("system", "S"), Turn("user", "1"), Turn("assistant", "2"), Turn("user", "3"))
    conversation = Example(prompt="unused", answer="4", turns=turns)
    pair = render_examples("chat", [conversation], tokenizer(make_model, CHAT_ML))[0]
    parts = pair.prompt.split("<|im_end|>\n")
    assert [part.split("\n")[1] for part in parts] == ["S", "1", "2", "3", ""]


def test_a_generation_prompt_may_end_in_whitespace_that_an_answer_replaces(
    make_model: MakeModel,
) -> None:
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }};{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    strips = template.replace("{{ m.role }}: ", "{{ m.role }}:")
    assert render_examples("chat", [example()], tokenizer(make_model, template))[0].answer == "A;"
    pair = render_examples("chat", [example()], tokenizer(make_model, strips))[0]
    assert pair == ("user:Q;assistant:", "A;")


def test_a_template_that_rewrites_the_prompt_is_refused(make_model: MakeModel) -> None:
    template = "{{ messages | length }}:{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(DataError) as caught:
        render_examples("chat", [example()], tokenizer(make_model, template))
    assert str(caught.value) == (
        "chat template: writes the prompt differently once an answer follows; expected '1:Q', "
        "found '2:Q'. Use template question-answer for this model."
    )


def test_a_template_that_needs_a_tokenizer_says_so() -> None:
    with pytest.raises(DataError, match="template 'chat': cannot be rendered without a tokenizer"):
        render_prompt("chat", "Q")
