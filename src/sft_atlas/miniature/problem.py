"""What can be asked in the miniature world, and what is the right answer?

In: a random generator. Out: latent problems with their solution, before any wording. A latent's
`key` names the problem itself, so that the held-out split cannot be crossed by rewording it.
Corpus and tasks put the same problems into different words.
"""

import random
from dataclasses import dataclass
from typing import final

from sft_atlas.miniature import world

ODD_ONE_OUT_SIZE = 4


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Sum:
    """Two numbers added or subtracted; every number and result lies in 0..99."""

    a: int
    sign: str
    b: int

    @property
    def key(self) -> str:
        return f"sum {self.a}{self.sign}{self.b}"

    @property
    def result(self) -> int:
        return self.a + self.b if self.sign == "+" else self.a - self.b


def draw_sum(rng: random.Random) -> Sum:
    """Draw a two-digit number plus or minus a one-digit (half the time) or two-digit number."""
    while True:
        b = rng.randint(1, 9) if rng.random() < 0.5 else rng.randint(10, 89)
        problem = Sum(a=rng.randint(10, 99), sign=rng.choice("+-"), b=b)
        if 0 <= problem.result <= 99:
            return problem


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """One or two list operations, the outer one first, on a list of distinct letters."""

    operations: tuple[str, ...]
    letters: tuple[str, ...]

    @property
    def key(self) -> str:
        return f"program {'.'.join(self.operations)} {''.join(self.letters)}"

    @property
    def source(self) -> str:
        inner = f"( {world.join(self.letters)} )"
        for operation in reversed(self.operations):
            inner = f"{operation} {inner}" if inner.startswith("(") else f"{operation} ( {inner} )"
        return inner

    @property
    def output(self) -> str:
        letters = self.letters
        for operation in reversed(self.operations):
            letters = apply(operation, letters)
        return world.join(letters)


def apply(operation: str, letters: tuple[str, ...]) -> tuple[str, ...]:
    """Return the list after one of `world.OPERATIONS`; a `KeyError` names an unknown one."""
    return {
        "rev": letters[::-1],
        "srt": tuple(sorted(letters)),
        "tail": letters[1:],
        "init": letters[:-1],
        "swap": (letters[1], letters[0], *letters[2:]) if len(letters) > 1 else letters,
        "dup": (letters[0], *letters),
    }[operation]


def draw_program(rng: random.Random) -> Program:
    """Draw one operation (60 %) or two on three or four of the first eight letters."""
    num_operations = 1 if rng.random() < 0.6 else 2
    operations = tuple(rng.sample(world.OPERATIONS, num_operations))
    letters = tuple(rng.sample(world.LETTERS[:8], rng.randint(3, 4)))
    return Program(operations=operations, letters=letters)


def draw_code_request(rng: random.Random) -> Program:
    """Draw a program on one variable: what a request to write code asks for."""
    operations = tuple(rng.sample(world.OPERATIONS, rng.choice((1, 2, 2))))
    return Program(operations=operations, letters=(rng.choice(world.LETTERS),))


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """Three people, each with one thing of one colour; nothing occurs twice."""

    names: tuple[str, ...]
    colors: tuple[str, ...]
    things: tuple[str, ...]

    @property
    def key(self) -> str:
        owned = zip(self.names, self.colors, self.things, strict=True)
        return "scene " + " ".join("-".join(part) for part in owned)


def draw_scene(rng: random.Random) -> Scene:
    return Scene(
        names=tuple(rng.sample(world.NAMES, 3)),
        colors=tuple(rng.sample(world.CATEGORIES["color"], 3)),
        things=tuple(rng.sample(world.CATEGORIES["thing"], 3)),
    )


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Ages:
    """Three people, oldest first."""

    names: tuple[str, ...]

    @property
    def key(self) -> str:
        return f"ages {' '.join(self.names)}"


def draw_ages(rng: random.Random) -> Ages:
    return Ages(names=tuple(rng.sample(world.NAMES, 3)))


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class OddOneOut:
    """Four words of which one belongs to another category."""

    words: tuple[str, ...]
    odd: int
    """Index of the odd word."""

    @property
    def key(self) -> str:
        return f"odd {' '.join(sorted(self.words))}"


def draw_odd_one_out(rng: random.Random) -> OddOneOut:
    many, one = rng.sample(tuple(world.CATEGORIES), 2)
    words = rng.sample(world.CATEGORIES[many], ODD_ONE_OUT_SIZE - 1)
    odd = rng.randrange(ODD_ONE_OUT_SIZE)
    words.insert(odd, rng.choice(world.CATEGORIES[one]))
    return OddOneOut(words=tuple(words), odd=odd)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """Something to say exactly as ordered."""

    kind: str
    """repeat, separate, backwards, between, last or first"""
    words: tuple[str, ...]
    detail: str
    """The count of a repeat, the mark of a separation, otherwise empty."""

    @property
    def key(self) -> str:
        return f"command {self.kind} {self.detail} {' '.join(self.words)}"

    @property
    def order(self) -> str:
        words = world.join(self.words)
        return {
            "repeat": f"say {words} {self.detail} times",
            "separate": f"say {words} with {self.detail} between",
            "backwards": f"say {words} backwards",
            "between": f"say {words} between ( and )",
            "last": f"say only the last word of {words}",
            "first": f"say only the first word of {words}",
        }[self.kind]

    @property
    def response(self) -> str:
        if self.kind == "repeat":
            return world.join(self.words * int(self.detail))
        return {
            "separate": f" {self.detail} ".join(self.words),
            "backwards": world.join(reversed(self.words)),
            "between": f"( {world.join(self.words)} )",
            "last": self.words[-1],
            "first": self.words[0],
        }[self.kind]


def draw_command(rng: random.Random) -> Command:
    kind = rng.choice(("repeat", "separate", "backwards", "between", "last", "first"))
    pool = (*world.content_words(), *world.NAMES)
    count = rng.randint(1, 2) if kind in ("repeat", "between") else rng.randint(3, 4)
    detail = {"repeat": rng.choice("2345"), "separate": rng.choice((",", ";", "-", "/"))}
    return Command(kind=kind, words=tuple(rng.sample(pool, count)), detail=detail.get(kind, ""))
