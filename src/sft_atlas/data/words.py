"""What are the words of a text, in any script?

In: a text. Out: its words without case and punctuation. Scripts that put no space between words are
cut into characters, of which two stand for one word wherever words are counted: so Chinese and
Japanese texts have numbers of words of about the size that a segmenter would give, without one.
"""

import functools
import unicodedata
from collections.abc import Sequence
from typing import Final


def normalise(text: str) -> list[str]:
    """Return the words, or characters, that are compared.

    >>> normalise("Don't PANIC: 3.5 km to 東京!")
    ['don', 't', 'panic', '3', '5', 'km', 'to', '東', '京']
    """
    return mark_text(text).split()


def collapse(text: str) -> str:
    """Return a text without case and with one space for any run of white space; NFKC.

    Unlike the words, it keeps punctuation: `2 + 3` is not `2 - 3`.

    >>> collapse("Don't  PANIC: 3.5 km!")
    "don't panic: 3.5 km!"
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def tokens_per_word(words: Sequence[str]) -> int:
    """Return 2 where most tokens are single characters of an unspaced script, else 1."""
    return 2 if 2 * _num_characters(words) > len(words) else 1


def count_words(words: Sequence[str]) -> int:
    """Count normalised words; two characters of an unspaced script are one, a half rounded up.

    >>> count_words(normalise("Don't PANIC: 3.5 km to 東京都!"))
    9
    """
    return len(words) - _num_characters(words) // 2


def _num_characters(words: Sequence[str]) -> int:
    """Count the characters of unspaced scripts among words."""
    return sum(len(word) == 1 and _is_unspaced(word) for word in words)


def mark_text(text: str) -> str:
    """Return lower-case words between spaces, with a line break where a sentence or line ends."""
    if text.isascii():
        return text.lower().translate(_CHARACTERS)
    text = unicodedata.normalize("NFKC", text).casefold()
    return unicodedata.normalize("NFKC", text).translate(_CHARACTERS)


_ENDS: Final = frozenset("\n\r\v\f\x85\u2028\u2029.?!:;\u3002\u061f\u06d4\u0964")
"""What ends a line or a sentence, full stops of other scripts included; after NFKC."""

_UNSPACED: Final = (
    *("CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "BOPOMOFO"),
    *("THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN"),
)
"""How the Unicode names of characters begin whose script has no space between words."""


class _Characters(dict[int, str]):
    """What stands for each character, by code point; filled as characters are met."""

    def __missing__(self, code: int) -> str:
        self[code] = _mark_character(chr(code))
        return self[code]


_CHARACTERS: Final = _Characters()


def _mark_character(character: str) -> str:
    category = unicodedata.category(character)
    if character in _ENDS:
        return "\n"
    if category == "Cf" or unicodedata.name(character, "").startswith("VARIATION SELECTOR"):
        # Soft hyphens, joiners and the like stand inside words and are not seen.
        return ""
    if category[0] in "PSZC":
        return " "
    return f" {character} " if _is_unspaced(character) else character


@functools.cache
def _is_unspaced(character: str) -> bool:
    return unicodedata.name(character, "").startswith(_UNSPACED)
