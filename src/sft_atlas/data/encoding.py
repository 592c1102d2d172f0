"""Split a templated sample into prompt tokens and answer tokens: one rule for training and scoring.

The rule is that of lm-evaluation-harness (`TemplateLM._encode_pair`): trailing whitespace of the
prompt moves to the answer, both are tokenised together, and the answer is what lies beyond as many
tokens as the prompt alone has. So a score compares the very tokens that training supervises. The
end-of-sequence token belongs to a training answer and to no scored one.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from sft_atlas.data.chat import chat_template
from sft_atlas.errors import DataError
from sft_atlas.identity import canonical_json
from sft_atlas.study.spec import ModelSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Drop = Literal["truncated", "empty"]
"""Why no answer token is left: the prompt fills max_tokens; the tokenizer knows none of it."""


class EncodedPair(NamedTuple):
    """Token ids of one sample; together they are the model's input."""

    prompt_ids: list[int]
    """At least one token, so that every answer token is predicted from something."""
    answer_ids: list[int]


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedExample:
    """A training sample: ids[prompt_length:] is supervised."""

    ids: list[int]
    prompt_length: int
    is_truncated: bool
    """Whether the end of the answer, and with it the end-of-sequence token, was cut off."""


def load_tokenizer(model: ModelSpec) -> "PreTrainedTokenizerBase":
    """Load a model's fast tokenizer from its folder or the hub, without remote code.

    Raises:
        DataError: if there is none, it is not a fast one, or it has no end-of-sequence token.
    """
    from transformers import AutoTokenizer

    source = model.source
    name = str(source.path) if source.path is not None else str(source.hub)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name, revision=source.revision, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise DataError(
            f"model {model.name}: its tokenizer cannot be loaded from {name} ({error}). "
            f"Check the path or id; a tokenizer.json is expected and remote code is never run."
        ) from error
    if not tokenizer.is_fast:
        raise DataError(
            f"model {model.name}: has no fast tokenizer; expected a tokenizer.json. Convert it."
        )
    if tokenizer.eos_token_id is None:
        raise DataError(
            f"model {model.name}: its tokenizer names no end-of-sequence token; expected "
            f"`eos_token` in tokenizer_config.json. Add it there."
        )
    return tokenizer


def encode_pair(tokenizer: "PreTrainedTokenizerBase", prompt: str, answer: str) -> EncodedPair:
    """Encode one templated prompt and answer; no end-of-sequence token is added."""
    return encode_pairs(tokenizer, [(prompt, answer)])[0]


def encode_pairs(
    tokenizer: "PreTrainedTokenizerBase", pairs: Sequence[tuple[str, str]]
) -> list[EncodedPair]:
    """Encode many pairs at once, several times faster than one by one.

    A prompt without any token becomes the BOS token, or the end-of-sequence token where there is
    none, as in lm-evaluation-harness; so does a prompt of whitespace, which that code does not
    accept.
    """
    moved = [move_whitespace(prompt, answer) for prompt, answer in pairs]
    prompts = encode_texts(tokenizer, [prompt for prompt, _ in moved])
    wholes = encode_texts(tokenizer, [prompt + answer for prompt, answer in moved])
    bos = tokenizer.bos_token_id
    prefix = [tokenizer.eos_token_id if bos is None else bos]
    return [
        EncodedPair(prompt or prefix, whole[len(prompt) :])
        for prompt, whole in zip(prompts, wholes, strict=True)
    ]


def encode_example(
    tokenizer: "PreTrainedTokenizerBase", prompt: str, answer: str, *, max_tokens: int
) -> EncodedExample | Drop:
    """Encode a training sample with its end-of-sequence token, or say why it is dropped."""
    pair = encode_pair(tokenizer, prompt, answer)
    return finish_example(pair, tokenizer.eos_token_id, max_tokens)


def finish_example(pair: EncodedPair, eos_id: int, max_tokens: int) -> EncodedExample | Drop:
    """Add the end-of-sequence token and cut the sample to max_tokens from its end.

    >>> finish_example(EncodedPair([5, 6], [7]), 0, 8)
    EncodedExample(ids=[5, 6, 7, 0], prompt_length=2, is_truncated=False)
    >>> finish_example(EncodedPair([5, 6], [7]), 0, 2)
    'truncated'
    """
    if not pair.answer_ids:
        return "empty"
    if len(pair.prompt_ids) >= max_tokens:
        return "truncated"
    ids = [*pair.prompt_ids, *pair.answer_ids, eos_id]
    return EncodedExample(
        ids=ids[:max_tokens],
        prompt_length=len(pair.prompt_ids),
        is_truncated=len(ids) > max_tokens,
    )


def encode_texts(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[list[int]]:
    """Encode texts; BOS comes first if the tokenizer adds it by default and the text has none."""
    if not texts:
        return []
    # Not verbose: too long samples are cut and counted later, so a warning would say nothing.
    encoded: list[list[int]] = tokenizer(
        list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False
    )["input_ids"]
    if not adds_bos(tokenizer):
        return encoded
    bos = tokenizer.bos_token_id
    return [ids if ids[:1] == [bos] else [bos, *ids] for ids in encoded]


def adds_bos(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Tell whether the tokenizer by default begins a text with its BOS token."""
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("a")["input_ids"][:1] == [bos]


def move_whitespace(prompt: str, answer: str) -> tuple[str, str]:
    """Move the prompt's trailing whitespace to the answer's start.

    >>> move_whitespace("Answer: ", "42")
    ('Answer:', ' 42')
    """
    kept = prompt.rstrip()
    return kept, prompt[len(kept) :] + answer


def tokenizer_sha256(tokenizer: "PreTrainedTokenizerBase", template: str) -> str:
    """Return the SHA-256 of all that decides a prepared sample's ids, as 64 hex digits.

    The chat template counts only where it is used, so that models which differ in nothing else
    share their prepared data.
    """
    facts: dict[str, object] = {
        "tokenizer": tokenizer.backend_tokenizer.to_str(),
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "adds_bos": adds_bos(tokenizer),
    }
    if template == "chat":
        facts["chat"] = [chat_template(tokenizer), tokenizer.special_tokens_map]
    return hashlib.sha256(canonical_json(facts).encode()).hexdigest()
