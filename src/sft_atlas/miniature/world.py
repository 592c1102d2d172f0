"""What exists in the miniature world, and which words name it?

In: nothing but the constants below. Out: the facts, the vocabulary, the two languages, and the rule
that says which latent items are held out. Everything is a pure function of the seed, so that the
shipped files can be generated again to the byte.

Language B renames the words of language A one to one; digits, symbols, names, entities and program
tokens are shared. What a model knows in one language can thus be asked for in the other, and
nothing but the words differs.
"""

import random
import zlib
from collections.abc import Iterable
from functools import cache

SEED = 20260
HELD_OUT_PARTS = 4
"""One latent item in this many is held out of every training set (facts: every second entity)."""

EOS = "<eos>"
PAD = "<pad>"
UNKNOWN = "<unk>"
NEWLINE = "\n"
QUESTION = "###Question:"
ANSWER = "###Answer:"


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


CATEGORIES: dict[str, tuple[str, ...]] = {
    "color": _words("red blue green white black brown pink gray gold purple"),
    "home": _words("lake hill forest city village island farm valley castle desert"),
    "food": _words("bread rice soup fish apple cheese honey cake beans corn"),
    "job": _words("baker doctor farmer singer teacher painter driver guard cook judge"),
    "thing": _words("key cup hat box lamp book coin ring rope drum"),
    "animal": _words("dog cat horse cow bird wolf bear goat mouse lion"),
}
RELATIONS: tuple[str, ...] = ("color", "home", "food", "job")
"""What every entity has exactly one value of; the values are the words of that category."""

FUNCTION_WORDS: tuple[str, ...] = _words(
    """the of is what which who has does have and tell me say times with between backwards only
    first last word words list write code that then output older younger oldest youngest than odd
    one out please hello thanks can you now give how much add to take from result for here comes
    again copy in order all know about was asked reverses sorts doubles swaps drops start end
    person fits not like question answer it this gets made by after plus minus"""
)
NAMES: tuple[str, ...] = _words(
    "ann bob eve tom sue max ida leo mia sam zoe ben ivy joe kim dan amy ron liz ted"
)
LETTERS: tuple[str, ...] = _words("a b c d e f g h x y z w")
DIGITS: tuple[str, ...] = tuple("0123456789")
SYMBOLS: tuple[str, ...] = _words(". , ; : ? ! = + - / ( ) [ ] * | >>> ->")
OPERATIONS: tuple[str, ...] = ("rev", "srt", "tail", "init", "swap", "dup")
PROGRAM_WORDS: tuple[str, ...] = (*OPERATIONS, "print", "run")
NUM_ENTITIES = 120

Fact = tuple[str, str]
"""(entity, relation)"""


def content_words() -> tuple[str, ...]:
    """Return the 60 words of the six categories, in category order."""
    return tuple(word for words in CATEGORIES.values() for word in words)


def words_of_a() -> tuple[str, ...]:
    """Return every word that language B renames, without repetition and in a fixed order."""
    return tuple(dict.fromkeys((*FUNCTION_WORDS, *CATEGORIES, *content_words())))


def _invent(
    rng: random.Random, count: int, *, syllables: tuple[str, ...], taken: set[str]
) -> list[str]:
    """Return distinct two-syllable words that are not in `taken`, which grows."""
    invented: list[str] = []
    while len(invented) < count:
        word = rng.choice(syllables) + rng.choice(syllables)
        if word not in taken:
            taken.add(word)
            invented.append(word)
    return invented


@cache
def entities() -> tuple[str, ...]:
    """Return the 120 capitalised made-up names that facts are about."""
    rng = random.Random(f"{SEED}/entities")
    syllables = tuple(c + v + d for c in "bdgklmnprtvz" for v in "aeiou" for d in ("", "n", "r"))
    words = _invent(rng, NUM_ENTITIES, syllables=syllables, taken=set())
    return tuple(word.capitalize() for word in words)


@cache
def renaming() -> dict[str, str]:
    """Return the word of B for every word of A; the map is one to one and shares no word with A."""
    rng = random.Random(f"{SEED}/language-b")
    syllables = tuple(c + v for c in ("sh", "ch", "j", "f", "y", "q", "w", "th") for v in "aeiou")
    taken = {*words_of_a(), *NAMES, *PROGRAM_WORDS, *LETTERS}
    invented = _invent(rng, len(words_of_a()), syllables=syllables, taken=taken)
    return dict(zip(words_of_a(), invented, strict=True))


def translate(text: str) -> str:
    """Rename every word of A in `text` to B; all other words stay."""
    names = renaming()
    return " ".join(names.get(word, word) for word in text.split(" "))


@cache
def facts() -> dict[Fact, str]:
    """Return the 480 facts; every value of a relation is held by 12 entities."""
    known: dict[Fact, str] = {}
    for relation in RELATIONS:
        values = list(CATEGORIES[relation]) * (NUM_ENTITIES // len(CATEGORIES[relation]))
        random.Random(f"{SEED}/facts/{relation}").shuffle(values)
        known.update(
            ((entity, relation), value) for entity, value in zip(entities(), values, strict=True)
        )
    return known


@cache
def held_out_entities() -> frozenset[str]:
    """Return the half of the entities that only the corpus mentions, no instruction set."""
    ranked = sorted(entities(), key=lambda entity: (_hash(entity), entity))
    return frozenset(ranked[: NUM_ENTITIES // 2])


def is_held_out(latent: str) -> bool:
    """Tell whether a latent item belongs to the benchmarks; its wording plays no part."""
    return _hash(latent) % HELD_OUT_PARTS == 0


def _hash(latent: str) -> int:
    return zlib.crc32(f"{SEED}/held-out/{latent}".encode())


def vocabulary() -> tuple[str, ...]:
    """Return every token once, special tokens first; at most 512."""
    a = words_of_a()
    tokens = (
        *(PAD, EOS, UNKNOWN, NEWLINE, QUESTION, ANSWER),
        *(*DIGITS, *SYMBOLS, *LETTERS, *PROGRAM_WORDS, *NAMES, *entities()),
        *(*a, *(renaming()[word] for word in a)),
    )
    return tuple(dict.fromkeys(tokens))


def digits(number: int) -> str:
    """Write a number >= 0 as the world does, digit by digit: 42 is '4 2'."""
    return " ".join(str(number))


def join(words: Iterable[str]) -> str:
    """Put one space between words, as every text of the world has it."""
    return " ".join(words)
