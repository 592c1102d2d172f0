"""Put an example into the study's template: text of the prompt, and text of the answer.

`question-answer` is the paper's template (two lines, no space after `###`); `chat` is the template
that the tokenizer brings, rendered in `chat`. The end-of-sequence token is not text: `encoding`
adds it.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from sft_atlas.data.chat import render_chats
from sft_atlas.data.shapes import Example, Turn
from sft_atlas.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATES: Final = ("question-answer", "chat")


class TextPair(NamedTuple):
    """A templated sample; only `answer` is supervised or scored."""

    prompt: str
    answer: str


def render_prompt(template: str, prompt: str) -> str:
    """Return a prompt in a template that needs no tokenizer.

    >>> render_prompt("question-answer", "2 + 2?")
    '###Question: 2 + 2?\\n###Answer:'
    """
    if template != "question-answer":
        raise DataError(
            f"template {template!r}: cannot be rendered without a tokenizer; expected "
            f"'question-answer'. Use one of {', '.join(TEMPLATES)} in the study."
        )
    return f"###Question: {prompt}\n###Answer:"


def render_answer(template: str, answer: str) -> str:
    """Return the text that follows a rendered prompt when this is the answer.

    >>> render_answer("question-answer", "4")
    ' 4'
    """
    return f" {answer}" if template == "question-answer" else answer


def render_examples(
    template: str, examples: Sequence[Example], tokenizer: "PreTrainedTokenizerBase"
) -> list[TextPair]:
    """Return prompt and answer texts of training examples.

    With `chat`, the answer is what the template adds to the prompt once the assistant's turn is
    there: it carries the template's own end of turn. Whitespace at its end and the end-of-sequence
    text are taken off, because `encoding` adds that token.

    Raises:
        DataError: if there is no chat template, it fails or exceeds its limits, or it writes the
            prompt differently once an answer follows it.
    """
    if template != "chat":
        return [
            TextPair(render_prompt(template, e.prompt), render_answer(template, e.answer))
            for e in examples
        ]
    prompts = render_chats(tokenizer, [e.turns for e in examples])
    wholes = render_chats(
        tokenizer,
        [(*e.turns, Turn("assistant", e.answer)) for e in examples],
        add_generation_prompt=False,
    )
    eos = tokenizer.eos_token or ""
    return [_split_chat(prompt, whole, eos) for prompt, whole in zip(prompts, wholes, strict=True)]


def _split_chat(prompt: str, whole: str, eos: str) -> TextPair:
    # Some templates end the generation prompt in whitespace that they strip before an answer.
    prompt = prompt if whole.startswith(prompt) else prompt.rstrip()
    if not whole.startswith(prompt):
        raise DataError(
            f"chat template: writes the prompt differently once an answer follows; expected "
            f"{prompt[-80:]!r}, found {whole[: len(prompt)][-80:]!r}. "
            f"Use template question-answer for this model."
        )
    return TextPair(prompt, whole[len(prompt) :].rstrip().removesuffix(eos))
