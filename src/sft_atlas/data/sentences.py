"""Where does each sentence of a text lie, and which of its tokens are a sentence's own?

In: texts and their token ids. Out: for every token the number of its sentence. Sentences are found
by a rule of marks, without a model: it is the same in every study and version, works where words
have no spaces between them, and errs where a mark says too little (after an unknown abbreviation).
White space belongs to the sentence that follows, because many tokenizers make one token of a space
and the word behind it.
"""
# ruff: noqa: RUF001, RUF002  # Marks of Chinese and Japanese look like those of English.

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from sft_atlas.data.texts import EncodedText, Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NO_SENTENCE: Final = -1
"""Number of the sentence of a token that belongs to none."""

_WIDE: Final = "。！？｡"
_MARKS: Final = re.compile(rf"([.!?{_WIDE}]+)([\"'”’»›)\]}}」』）】》〉〕］｝]*)")
_UNSPACED: Final = re.compile(r"[\u3040-\u30ff\u3400-\u9fff「『“‘（《【]")
_NEXT_WORD: Final = re.compile(r"\s+[\"'“‘«‹(\[{]*(\w)")
_SHORT: Final = re.compile(
    r"(?:^|[^\w.])(?:[^\W\d_](?:\.[^\W\d_])*|Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|cf|Fig|Eq)$"
)
_LONGEST_SHORT: Final = 12
_GOES_ON: Final = "、，,とっ"


def split_sentences(text: str) -> list[str]:
    """Cut a text into its sentences, which together are the text.

    A sentence ends at the end of its line; behind 。 ！ ？; and behind . ! ? before white space or
    a Chinese or Japanese character. Closing quotes and brackets stay with it. It goes on before a
    word in lower case, behind an initial, a title or the number of a list's item, and where a quote
    is followed by a comma or by と.

    >>> split_sentences("It costs 3.5 yen, e.g. here. 安い。「はい。」と言う。 Dr. No left!")
    ['It costs 3.5 yen, e.g. here.', ' 安い。', '「はい。」と言う。', ' Dr. No left!']
    """
    ends, offset = [], 0
    for line in text.splitlines(keepends=True):
        body, begin = line.rstrip(), 0
        for match in _MARKS.finditer(body):
            if _is_end(body, begin, match):
                begin = match.end()
                ends.append(offset + begin)
        if body[begin:].strip():
            ends.append(offset + len(body))
        offset += len(line)
    # Without the last: what white space is left at the end has no sentence behind it.
    starts = [0, *ends[:-1]]
    return [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]


def number_sentences(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[Text], encoded: Sequence[EncodedText]
) -> list[list[int]]:
    """Return for every id of every text the number of the sentence in which its first character
    lies, `NO_SENTENCE` for the prefix token.

    Numbers run from 0 through all texts, over the sentences that have a token among the ids: what
    was cut off has none. The tokenizer is a fast one.
    """
    wholes = [text.prompt + text.answer for text in texts]
    made = tokenizer(wholes, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    numbers: list[list[int]] = []
    count = 0
    columns = (wholes, encoded, made["input_ids"], made["offset_mapping"])
    for whole, text, ids, offsets in zip(*columns, strict=True):
        # A text may write its prefix token out.
        first = int(ids[:1] == text.ids[:1])
        last = first + len(text.ids) - 1
        assert ids[first:last] == text.ids[1:], "offsets would be those of other tokens"
        starts = [start for start, _ in offsets[first:last]]
        ends = np.cumsum([len(sentence) for sentence in split_sentences(whole)])
        inside = np.searchsorted(ends[:-1], starts, side="right")
        found, own = np.unique(inside, return_inverse=True)
        numbers.append([NO_SENTENCE, *(own + count).tolist()])
        count += len(found)
    return numbers


def _is_end(body: str, begin: int, match: re.Match[str]) -> bool:
    """Tell whether a sentence of a line, from `begin` on, ends with a match of `_MARKS`."""
    marks, closing = match.groups()
    after = body[match.end() : match.end() + 1]
    if marks[-1] in _WIDE:
        return not (closing and after and after in _GOES_ON)
    if after and not after.isspace() and not _UNSPACED.match(after):
        return False
    word = _NEXT_WORD.match(body, match.end())
    if word and word[1].islower():
        return False
    if marks != "." or closing:
        return True
    before = body[max(begin, match.start() - _LONGEST_SHORT) : match.start()]
    is_item = match.start() - begin < _LONGEST_SHORT and before.strip().isdigit()
    return not is_item and not _SHORT.search(before)
