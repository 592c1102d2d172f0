"""Read a set of fixed texts, and turn it into token ids of which every one can be scored.

In: a `TextSet`, benchmark questions or a file. Out: texts in a frozen order, and their ids under
one tokenizer. Every id list begins with one prefix token: BOS, or the end-of-sequence token where a
tokenizer has no BOS, whether or not it would add one by itself. The prefix is never scored and all
else is; otherwise the first token of each text would count under some tokenizers alone, and sums of
different models could not be compared. A text that is too long is cut at its end and marked.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, final

from sft_atlas.data.chat import render_chats
from sft_atlas.data.encoding import encode_texts, move_whitespace
from sft_atlas.data.formats import layout_of
from sft_atlas.data.items import Item, load_items
from sft_atlas.data.order import frozen_order
from sft_atlas.data.shapes import Turn
from sft_atlas.data.sources import iter_rows
from sft_atlas.data.template import render_answer, render_prompt
from sft_atlas.errors import DataError
from sft_atlas.identity import canonical_json
from sft_atlas.study.measure import QuestionSet, TextFile, TextSet
from sft_atlas.study.source import RowForm, Source
from sft_atlas.study.spec import BenchmarkItems

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MIN_TEXTS: Final = 2
"""A variance, a distance or a neighbour needs two."""


@final
class Text(NamedTuple):
    """One text of a set; prompt and answer are its whole text, one behind the other."""

    id: str
    """Unique in its set and the same under every study: the row's position in the file, or for a
    question eight digits that name the benchmark's items, `/`, and the item's id."""
    group: str
    """Name of the benchmark; of a file's text the name of the set."""
    prompt: str
    """The question in the template, as it is scored without examples; "" for a file's text."""
    answer: str
    """What follows the prompt: the right answer as it is scored, "" where none is known; or the
    text."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedText:
    """A text as one tokenizer has it; ids[1:] are scored."""

    ids: list[int]
    """Prefix token, prompt, answer; at most `max_tokens`."""
    prompt_length: int
    """Leading ids that belong to prefix and prompt; at least 1."""
    is_cut: bool
    """Whether ids were left out at the end."""
    num_bytes_prompt: int
    """UTF-8 bytes of the prompt that `ids[1:]` hold: a BOS that a chat template writes has none,
    and a character that is cut within counts whole."""
    num_bytes_answer: int


@final
class Prefix(NamedTuple):
    """The token that stands before every text and is not scored."""

    kind: Literal["bos", "eos"]
    id: int


def load_texts(texts: TextSet, tokenizer: "PreTrainedTokenizerBase | None" = None) -> list[Text]:
    """Return the texts of a set: benchmark by benchmark, each in its frozen order, or a file's
    rows in a seeded order.

    `tokenizer` brings the chat template and is needed for that alone. The order of a file's rows is
    that of a hash of seed and position, so a smaller `limit` reads a prefix of a larger one.

    Raises:
        DataError: if a source cannot be read, a benchmark stands in the set twice, a row lacks the
            field, a text is empty or not Unicode, or the set has fewer than two texts.
    """
    found = _questions(texts, tokenizer) if texts.kind == "questions" else _file_texts(texts)
    if len(found) < MIN_TEXTS:
        what = "a text set of one item" if found else "a text set without items"
        raise DataError(
            f"texts {texts.name}: is {what}; expected at least {MIN_TEXTS}. "
            f"Name more texts, or raise its limit."
        )
    return found


def texts_sha256(texts: Sequence[Text]) -> str:
    """Return the SHA-256 of prompts and answers in their order, as 64 hex digits.

    Names of texts and groups play no part: what was renamed is the same set.
    """
    content = canonical_json([[text.prompt, text.answer] for text in texts])
    return hashlib.sha256(content.encode()).hexdigest()


def text_prefix(tokenizer: "PreTrainedTokenizerBase") -> Prefix:
    """Return the token that every text of a set is put behind.

    Raises:
        DataError: if the tokenizer has neither a BOS nor an end-of-sequence token.
    """
    if tokenizer.bos_token_id is not None:
        return Prefix("bos", tokenizer.bos_token_id)
    if tokenizer.eos_token_id is None:
        raise DataError(
            "tokenizer: has neither a BOS nor an end-of-sequence token; expected one to put before "
            "each text. Add it to tokenizer_config.json."
        )
    return Prefix("eos", tokenizer.eos_token_id)


def encode_text_set(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[Text], *, max_tokens: int
) -> list[EncodedText]:
    """Encode texts, each behind one prefix token, cut at their end to `max_tokens` >= 2.

    Where the answer begins is decided as in scoring: trailing whitespace of the prompt moves to the
    answer, and the answer is what lies beyond as many tokens as the prompt alone has. The ids are
    those of prompt and answer tokenised together. A text that begins with the prefix token, as a
    chat template may write it, gets no second one.

    Raises:
        DataError: if the tokenizer makes no token of a text, or has no prefix token.
    """
    if max_tokens < 2:
        raise DataError(
            f"max_tokens: is {max_tokens}; expected at least 2, the prefix token and one that is "
            f"scored. Raise it."
        )
    prefix = text_prefix(tokenizer).id
    # Without an answer nothing is predicted behind the prompt, so its whitespace stays.
    pairs = [
        move_whitespace(text.prompt, text.answer) if text.answer else (text.prompt, "")
        for text in texts
    ]
    prompts = encode_texts(tokenizer, [prompt for prompt, _ in pairs])
    wholes = encode_texts(tokenizer, [prompt + answer for prompt, answer in pairs])
    encoded = []
    for text, pair, prompt, whole in zip(texts, pairs, prompts, wholes, strict=True):
        ids = behind_prefix(prefix, whole)
        if len(ids) < 2:
            raise DataError(
                f"text {text.id}: has no token under this tokenizer; expected at least one. "
                f"Remove it from the set: {(text.prompt + text.answer)[:40]!r}."
            )
        length = min(len(behind_prefix(prefix, prompt)), len(ids)) if text.answer else len(ids)
        is_cut = len(ids) > max_tokens
        kept = _kept_text(tokenizer, "".join(pair), max_tokens, prefix) if is_cut else None
        num_prompt = len(pair[0]) if kept is None else min(len(pair[0]), len(kept))
        answer = pair[1] if kept is None else kept[num_prompt:]
        num_unscored = _unscored_bytes(tokenizer, pair[0], prefix)
        encoded.append(
            EncodedText(
                ids=ids[:max_tokens],
                prompt_length=min(length, max_tokens),
                is_cut=is_cut,
                num_bytes_prompt=len(pair[0][:num_prompt].encode()) - num_unscored,
                num_bytes_answer=len(answer.encode()),
            )
        )
    return encoded


def behind_prefix(prefix: int, ids: list[int]) -> list[int]:
    """Return ids behind one prefix token, which they may begin with already."""
    return ids if ids[:1] == [prefix] else [prefix, *ids]


def _unscored_bytes(tokenizer: "PreTrainedTokenizerBase", prompt: str, prefix: int) -> int:
    """Return the bytes of a prefix token that the prompt writes out."""
    written = str(tokenizer.convert_ids_to_tokens(prefix))
    return len(written.encode()) if prompt.startswith(written) else 0


def _kept_text(
    tokenizer: "PreTrainedTokenizerBase", text: str, max_tokens: int, prefix: int
) -> str:
    """Return the start of a text that its first tokens cover, the prefix token included."""
    made = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    num_kept = max_tokens if made["input_ids"][:1] == [prefix] else max_tokens - 1
    return text[: made["offset_mapping"][num_kept - 1][1]]


def _questions(texts: QuestionSet, tokenizer: "PreTrainedTokenizerBase | None") -> list[Text]:
    counts = Counter(benchmark.fingerprint for benchmark in texts.benchmarks)
    found = []
    for benchmark in texts.benchmarks:
        if counts[benchmark.fingerprint] > 1:
            raise DataError(
                f"texts {texts.name}: benchmark {benchmark.name} stands there twice; expected its "
                f"items once. Remove one."
            )
        items = _first_items(benchmark, texts.per_benchmark, texts.order_seed)
        wraps = benchmark.definition.wrap
        prompts = _render(texts.template, items, tokenizer) if wraps else [i.prompt for i in items]
        # Unwrapped text goes on as question-answer does, with a space, where it is scored too.
        template = texts.template if wraps else "question-answer"
        found += [
            Text(
                f"{benchmark.fingerprint[:8]}/{item.id}",
                benchmark.name,
                prompt,
                _right_answer(template, item),
            )
            for item, prompt in zip(items, prompts, strict=True)
        ]
    for text in found:
        if not (text.prompt + text.answer).strip():
            raise DataError(
                f"text {text.id} of {text.group}: is empty; expected a question. Correct the item."
            )
    return found


@lru_cache(maxsize=64)
def _first_items(benchmark: BenchmarkItems, limit: int, order_seed: int) -> tuple[Item, ...]:
    # Every cell asks for the same few; finding them reads the whole benchmark.
    return load_items(benchmark.definition, benchmark.items, limit=limit, order_seed=order_seed)


def _render(
    template: str, items: Sequence[Item], tokenizer: "PreTrainedTokenizerBase | None"
) -> list[str]:
    if template != "chat":
        return [render_prompt(template, item.prompt) for item in items]
    if tokenizer is None:
        raise DataError(
            "template 'chat': questions cannot be rendered without a tokenizer; expected the "
            "model's. Pass it, or use template question-answer."
        )
    return render_chats(tokenizer, [[Turn("user", item.prompt)] for item in items])


def _right_answer(template: str, item: Item) -> str:
    is_known = item.label is not None or bool(item.accepted)
    return render_answer(template, item.shown) if is_known else ""


def _file_texts(texts: TextFile) -> list[Text]:
    # A digest or a revision says that the same wish finds the same rows again.
    is_pinned = texts.source.sha256 is not None or texts.source.revision is not None
    return list(_read_once(texts) if is_pinned else _read_file(texts))


def _read_file(texts: TextFile) -> tuple[Text, ...]:
    rows = [
        _cut(_read_text(row, where, texts.field), texts.max_bytes)
        for where, row in iter_rows(_as_lines(texts.source, texts.field))
    ]
    ids = [str(position) for position in range(len(rows))]
    order = frozen_order(ids, [None] * len(ids), texts.order_seed)
    return tuple(Text(ids[i], texts.name, "", rows[i]) for i in order[: texts.limit])


# Every cell asks for the same few rows of a file that may be large.
_read_once = lru_cache(maxsize=4)(_read_file)


def _as_lines(source: Source, field: str) -> Source:
    """Let each line of a plain text file be a row."""
    is_plain = source.path is not None and layout_of(source.path) == ".txt"
    return replace(source, forms=(RowForm(columns=(field,)),)) if is_plain else source


def _read_text(row: dict[str, object], where: str, field: str) -> str:
    if field not in row:
        raise DataError(
            f"{where}: has no column {field!r}; it has {', '.join(sorted(row))}. "
            f"Name the column of the text as `field`."
        )
    text = row[field]
    if not isinstance(text, str):
        raise DataError(
            f"{where}: column {field!r} is {'null' if text is None else f'a {type(text).__name__}'}"
            f"; expected text. Correct the row, or name another column as `field`."
        )
    if not text.strip():
        raise DataError(
            f"{where}: column {field!r} is empty; expected text. Remove the row, or correct it."
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: has half of a surrogate pair at character {error.start + 1} of "
            f"{text[:40]!r}; expected Unicode text. Correct the row."
        ) from error
    return text


def _cut(text: str, max_bytes: int) -> str:
    """Return the longest start of a text that has at most `max_bytes` bytes in UTF-8."""
    return text.encode()[:max_bytes].decode(errors="ignore")
