"""Which documents does a base model read before anyone instructs it?

In: a mixture and a seed. Out: an endless stream of documents, each a text that ends with `<eos>`.
Documents state and show; only about one in eight asks, and only the last stage of pretraining holds
a few in the study's template, so that a base scores above zero without having been fine-tuned.

Copies and several questions per scene are there because look-up in context is not learned from
plain statements at this size, and what stands between a problem and its result varies because a
skill that was only ever read behind '=' does not carry over to an answer. Held-out problems occur
in no document, except facts: what was never read cannot be asked.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar, final

from sft_atlas.miniature import problem, tasks, world

SEPARATORS = ("=", "is", ":", "= \n", "? \n :", "->", "?", "? \n")
QUESTION_FRACTION = 0.12
"""Share of the documents of a skill that are questions without the template."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Mixture:
    """What a corpus is made of."""

    weights: Mapping[str, float]
    """Relative number of documents by kind: the six skills and `copy`."""
    language_b_fraction: float
    """Share of the documents in language B, in [0, 1]."""
    template_fraction: float = 0.0
    """Share of the documents in the study's template, in [0, 1]; all skills alike."""


def iter_documents(mixture: Mixture, rng: random.Random) -> Iterator[str]:
    """Yield documents without end; each ends with the end-of-sequence token."""
    kinds = tuple(mixture.weights)
    weights = tuple(mixture.weights[kind] for kind in kinds)
    while True:
        if rng.random() < mixture.template_fraction:
            text = _draw_template(rng)
        else:
            kind = rng.choices(kinds, weights)[0]
            asks = kind != "copy" and rng.random() < QUESTION_FRACTION
            text = _draw_questions(kind, rng) if asks else _DRAWS[kind](rng)
        if rng.random() < mixture.language_b_fraction:
            text = world.translate(text)
        yield f"{text} {world.EOS}"


def _draw_template(rng: random.Random) -> str:
    item = tasks.draw_item(rng.choice(tasks.SKILLS), rng, held_out=False)
    return f"{world.QUESTION} {item.prompt} \n {world.ANSWER} {item.completion}"


def _draw_questions(skill: str, rng: random.Random) -> str:
    """Return one to three questions with answers; facts of every entity may be asked."""
    separator = rng.choice(("\n", ":", "", "answer :", "\n answer :"))
    parts = []
    for _ in range(rng.randint(1, 3)):
        held_out = skill == "knowledge" and rng.random() < 0.5
        item = tasks.draw_item(skill, rng, held_out=held_out)
        parts.append(f"{item.prompt} {separator} {item.completion} .".replace("  ", " "))
    return world.join(parts)


def _draw_copy(rng: random.Random) -> str:
    pool = (*world.content_words(), *world.NAMES, *world.LETTERS, *world.DIGITS)
    text = world.join(rng.sample(pool, rng.randint(3, 8)))
    separator = rng.choice(("again :", "|", "\n", "copy :", "->"))
    return f"{text} {separator} {text}"


def _draw_knowledge(rng: random.Random) -> str:
    if rng.random() < 0.5:
        entity = rng.choice(world.entities())
        relations = rng.sample(world.RELATIONS, 4)
        told = (f"{relation} {world.facts()[entity, relation]}" for relation in relations)
        return f"{entity} : {' , '.join(told)} ."
    parts = []
    for _ in range(rng.randint(2, 4)):
        entity, relation = rng.choice(world.entities()), rng.choice(world.RELATIONS)
        value = world.facts()[entity, relation]
        wording = rng.choice(
            (
                "the {r} of {e} is {v} .",
                "{e} has the {r} {v} .",
                "{e} {r} : {v} .",
                "for {e} the {r} is {v} .",
            )
        )
        parts.append(wording.format(r=relation, e=entity, v=value))
    return world.join(parts)


def _draw_math(rng: random.Random) -> str:
    separator = rng.choice(SEPARATORS)
    parts = []
    for _ in range(rng.randint(2, 4)):
        drawn = _draw_trained(problem.draw_sum, rng)
        text = f"{world.digits(drawn.a)} {drawn.sign} {world.digits(drawn.b)}"
        parts.append(f"{text} {separator} {world.digits(drawn.result)} .")
    return world.join(parts)


def _draw_code(rng: random.Random) -> str:
    separator = rng.choice((*SEPARATORS, ">>>"))
    parts = []
    for _ in range(rng.randint(2, 3)):
        if rng.random() < 0.7:
            drawn = _draw_trained(problem.draw_program, rng)
            parts.append(f"{rng.choice(('', 'print ', 'run '))}{drawn.source}")
            parts.append(f"{separator} {drawn.output} .")
        else:
            written = _draw_trained(problem.draw_code_request, rng)
            parts.append(f"{written.source} {tasks.effect_of(written)} {written.letters[0]} .")
            parts.append(f"code that {tasks.effect_of(written)} {written.letters[0]} {separator}")
            parts.append(f"{written.source} .")
    return world.join(parts)


def _draw_comprehension(rng: random.Random) -> str:
    scene = _draw_trained(problem.draw_scene, rng)
    parts = [tasks.describe(scene)]
    for _ in range(rng.randint(2, 4)):
        question, answer = tasks.draw_scene_question(scene, rng)
        parts.append(f"{question} {answer} .")
    return world.join(parts)


def _draw_reasoning(rng: random.Random) -> str:
    if rng.random() < 0.5:
        ages = _draw_trained(problem.draw_ages, rng)
        ends = [f"oldest is {ages.names[0]} .", f"youngest is {ages.names[-1]} ."]
        rng.shuffle(ends)
        order = f"in order : {world.join(ages.names)} ." if rng.random() < 0.5 else ""
        parts = [tasks.draw_age_statements(ages, rng), f"the {ends[0]} the {ends[1]}", order]
        return world.join(part for part in parts if part)
    odd = _draw_trained(problem.draw_odd_one_out, rng)
    kinds = [f"{word} is {category_of(word)} ." for word in odd.words]
    if rng.random() < 0.5:
        rng.shuffle(kinds)
        return f"{world.join(kinds)} the odd one is {odd.words[odd.odd]} ."
    separator = rng.choice((": the odd one is", "-> odd :", "not like :"))
    return f"{world.join(odd.words)} {separator} {odd.words[odd.odd]} ."


def category_of(word: str) -> str:
    """Return the category that one of the content words belongs to."""
    return next(name for name, words in world.CATEGORIES.items() if word in words)


def _draw_instruction(rng: random.Random) -> str:
    separator = rng.choice((":", "\n", "->", "= \n", "|"))
    parts = []
    for _ in range(rng.randint(1, 3)):
        command = _draw_trained(problem.draw_command, rng)
        parts.append(f"{command.order} {separator} {command.response} .")
    return world.join(parts)


_DRAWS: dict[str, Callable[[random.Random], str]] = {
    "copy": _draw_copy,
    "knowledge": _draw_knowledge,
    "math": _draw_math,
    "code": _draw_code,
    "comprehension": _draw_comprehension,
    "reasoning": _draw_reasoning,
    "instruction": _draw_instruction,
}


class _Keyed(Protocol):
    @property
    def key(self) -> str: ...


_Problem = TypeVar("_Problem", bound=_Keyed)


def _draw_trained(draw: Callable[[random.Random], _Problem], rng: random.Random) -> _Problem:
    """Draw until the problem is not one that is held out."""
    while True:
        drawn = draw(rng)
        if not world.is_held_out(drawn.key):
            return drawn
