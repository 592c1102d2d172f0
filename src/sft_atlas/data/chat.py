"""Render a tokenizer's own chat template in a short-lived child process with hard limits. (Body follows.)"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sft_atlas.data.shapes import Turn
from sft_atlas.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def render_chats(
    tokenizer: "PreTrainedTokenizerBase",
    conversations: Sequence[Sequence[Turn]],
    *,
    add_generation_prompt: bool = True,
) -> list[str]:
    """Render each conversation to text, as `apply_chat_template(tokenize=False)` would.

    Raises:
        DataError: if the tokenizer has no chat template, or the template fails or exceeds its limits.
    """
    if tokenizer.chat_template is None:
        raise DataError("chat template: the tokenizer has none. Use template question-answer.")
    return [
        tokenizer.apply_chat_template(
            [{"role": t.role, "content": t.content} for t in turns],
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )
        for turns in conversations
    ]


def chat_template(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the tokenizer's (default) chat template text; raises DataError if it has none."""
    found = tokenizer.chat_template
    if isinstance(found, dict):
        found = found.get("default")
    if not isinstance(found, str):
        raise DataError("chat template: the tokenizer has none. Use template question-answer.")
    return found
