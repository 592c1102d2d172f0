"""Put an example into the study's template: text of the prompt, and text of the answer.

`question-answer` is the paper's template (two lines, no space after `###`); `chat` is the template that the
tokenizer brings, rendered apart in `chat`. The end-of-sequence token is not text: `encoding` adds it.
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
    """A templated sample: only `answer` is supervised or scored."""

    prompt: str
    answer: str


def render_prompt(template: str, prompt: str) -> str:
    """Return a prompt in a template that needs no tokenizer.

    >>> render_prompt("question-answer", "2 + 2?")
    '###Question: 2 + 2?\\n###Answer:'
    """
    if template != "question-answer":
        raise DataError(f"template {template!r}: needs a tokenizer; use `render_prompts`.")
    return f"###Question: {prompt}\n###Answer:"


def render_answer(template: str, answer: str) -> str:
    """Return the text that follows the prompt when this is the answer.

    >>> render_answer("question-answer", "4")
    ' 4'
    """
    return f" {answer}" if template == "question-answer" else answer


def render_prompts(
    template: str, prompts: Sequence[str], tokenizer: "PreTrainedTokenizerBase"
) -> list[str]:
    """Return prompts in any template; one call starts at most a few child processes.

    Raises:
        DataError: if the tokenizer has no chat template, or the template fails or exceeds its limits.
    """
    if template != "chat":
        return [render_prompt(template, prompt) for prompt in prompts]
    return render_chats(tokenizer, [(Turn("user", prompt),) for prompt in prompts])


def render_examples(
    template: str, examples: Sequence[Example], tokenizer: "PreTrainedTokenizerBase"
) -> list[TextPair]:
    """Return prompt and answer texts of training examples.

    With `chat`, the answer is what the template adds to the prompt when the assistant's turn is there, so it
    carries the template's own end of turn; trailing whitespace and the end-of-sequence text are taken off,
    because `encoding` adds that token itself.

    Raises:
        DataError: as `render_prompts`, or if the template renders the prompt differently once an answer follows.
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
    return [
        _split_chat(prompt, whole, tokenizer.eos_token)
        for prompt, whole in zip(prompts, wholes, strict=True)
    ]


def _split_chat(prompt: str, whole: str, eos: str | None) -> TextPair:
    if not whole.startswith(prompt):
        raise DataError(
            f"chat template: renders the prompt differently once an answer follows: {prompt[-80:]!r} does not "
            f"begin {whole[: len(prompt)][-80:]!r}. Use template question-answer for this model."
        )
    answer = whole[len(prompt) :].rstrip()
    return TextPair(prompt, answer.removesuffix(eos) if eos else answer)
