"""Which question is put to a model in each skill, and which answer counts?

In: a random generator and whether held-out problems are wanted. Out: items (prompt, completion,
latent key), the instruction sets and the benchmarks. Both are drawn from the same wordings; what
separates them is the latent problem, by `world.is_held_out` or, for facts, by the entity.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import final

from sft_atlas.miniature import problem, world

KNOWLEDGE_WORDINGS = (
    "what is the {relation} of {entity} ?",
    "which {relation} has {entity} ?",
    "tell me the {relation} of {entity} .",
    "give the {relation} of {entity} .",
    "{entity} has which {relation} ?",
    "about {entity} : what is the {relation} ?",
)
KNOWLEDGE_PAIR_WORDINGS = (
    "what is the {relation} and the {other} of {entity} ?",
    "tell me the {relation} and the {other} of {entity} .",
    "give the {relation} and the {other} of {entity} .",
)
SUM_WORDINGS = (
    "what is {sum} ?",
    "how much is {sum} ?",
    "give the result of {sum} .",
    "{sum} = ?",
)
RUN_WORDINGS = (
    "what does {source} print ?",
    "run {source} .",
    "what is the result of {source} ?",
    "give the output of {source} .",
)
WRITE_WORDINGS = (
    "write code that {effect} {variable} .",
    "give me code that {effect} {variable} .",
)
EFFECTS = {
    "rev": "reverses",
    "srt": "sorts",
    "tail": "drops first",
    "init": "drops last",
    "swap": "swaps",
    "dup": "doubles first",
}
COMMAND_WORDINGS = ("{order} .", "please {order} .", "can you {order} ?", "now {order} .")
ODD_WORDINGS = (
    "{words} : which is the odd one ?",
    "which word of {words} fits not ?",
    "give the odd one of {words} .",
)
GREETINGS = ("hello ! {prompt}", "please answer : {prompt}", "{prompt} thanks !", "{prompt}")


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """A question in words with its only accepted answer."""

    prompt: str
    completion: str
    latent: str
    """Names the problem behind the wording; items of one latent are on one side of the split."""
    choices: tuple[str, ...] = ()
    """The options of a choice question, one of which is the completion; empty if there are none."""


_SPLIT_BY_ENTITY = ("knowledge", "false-facts")
SKILLS = ("knowledge", "math", "code", "comprehension", "reasoning", "instruction")


def draw_item(skill: str, rng: random.Random, *, held_out: bool) -> Item:
    """Draw a question in language A from one side of the split; `KeyError` for an unknown skill."""
    draw = _DRAWS[skill]
    while True:
        item = draw(rng, held_out)
        if skill in _SPLIT_BY_ENTITY or world.is_held_out(item.latent) == held_out:
            return item


def _draw_knowledge(rng: random.Random, held_out: bool) -> Item:
    pool = [name for name in world.entities() if (name in world.held_out_entities()) == held_out]
    entity = rng.choice(pool)
    relation, other = rng.sample(world.RELATIONS, 2)
    value = world.facts()[entity, relation]
    if held_out or rng.random() < 0.7:
        prompt = rng.choice(KNOWLEDGE_WORDINGS).format(relation=relation, entity=entity)
        choices = (value, *rng.sample([v for v in world.CATEGORIES[relation] if v != value], 3))
        latent = f"fact {entity} {relation}"
        return Item(prompt=prompt, completion=value, latent=latent, choices=choices)
    wording = rng.choice(KNOWLEDGE_PAIR_WORDINGS)
    return Item(
        prompt=wording.format(relation=relation, other=other, entity=entity),
        completion=f"{value} and {world.facts()[entity, other]}",
        latent=f"facts {entity} {relation} {other}",
    )


def _draw_false_fact(rng: random.Random, held_out: bool) -> Item:
    true = _draw_knowledge(rng, held_out)
    while not true.choices:
        true = _draw_knowledge(rng, held_out)
    wrong = random.Random(f"{world.SEED}/false/{true.latent}")
    relation = true.latent.split(" ")[2]
    value = wrong.choice([v for v in world.CATEGORIES[relation] if v != true.completion])
    return Item(prompt=true.prompt, completion=value, latent=true.latent)


def _draw_math(rng: random.Random, _held_out: bool) -> Item:
    drawn = problem.draw_sum(rng)
    text = f"{world.digits(drawn.a)} {drawn.sign} {world.digits(drawn.b)}"
    prompt = rng.choice(SUM_WORDINGS).format(sum=text)
    return Item(prompt=prompt, completion=world.digits(drawn.result), latent=drawn.key)


def _draw_code(rng: random.Random, _held_out: bool) -> Item:
    if rng.random() < 0.65:
        ran = problem.draw_program(rng)
        prompt = rng.choice(RUN_WORDINGS).format(source=ran.source)
        return Item(prompt=prompt, completion=ran.output, latent=ran.key)
    written = problem.draw_code_request(rng)
    effect = effect_of(written)
    prompt = rng.choice(WRITE_WORDINGS).format(effect=effect, variable=written.letters[0])
    return Item(prompt=prompt, completion=written.source, latent=written.key)


def effect_of(program: problem.Program) -> str:
    """Say what a program does, first operation first: 'sorts then reverses'."""
    steps = [EFFECTS[operation] for operation in reversed(program.operations)]
    return steps[0] if len(steps) == 1 else f"{steps[0]} then {steps[1]}"


def _draw_comprehension(rng: random.Random, _held_out: bool) -> Item:
    scene = problem.draw_scene(rng)
    question, answer = draw_scene_question(scene, rng)
    return Item(prompt=f"{describe(scene)} {question}", completion=answer, latent=scene.key)


def describe(scene: problem.Scene) -> str:
    owned = zip(scene.names, scene.colors, scene.things, strict=True)
    return " ".join(f"{name} has the {color} {thing} ." for name, color, thing in owned)


def draw_scene_question(scene: problem.Scene, rng: random.Random) -> tuple[str, str]:
    """Ask what one has (half the time), who has a thing, or its colour; return the answer too."""
    one = rng.randrange(3)
    name, color, thing = scene.names[one], scene.colors[one], scene.things[one]
    kind = rng.random()
    if kind < 0.5:
        return f"what has {name} ?", f"the {color} {thing}"
    if kind < 0.75:
        return f"who has the {thing} ?", name
    return f"what color is the {thing} ?", color


def _draw_reasoning(rng: random.Random, _held_out: bool) -> Item:
    if rng.random() < 0.5:
        ages = problem.draw_ages(rng)
        end = rng.choice(("oldest", "youngest"))
        answer = ages.names[0 if end == "oldest" else -1]
        return Item(
            prompt=f"{draw_age_statements(ages, rng)} who is the {end} ?",
            completion=answer,
            latent=ages.key,
            choices=(answer, *(name for name in ages.names if name != answer)),
        )
    odd = problem.draw_odd_one_out(rng)
    answer = odd.words[odd.odd]
    return Item(
        prompt=rng.choice(ODD_WORDINGS).format(words=world.join(odd.words)),
        completion=answer,
        latent=odd.key,
        choices=(answer, *(word for word in odd.words if word != answer)),
    )


def draw_age_statements(ages: problem.Ages, rng: random.Random) -> str:
    """Say who is older than whom: both neighbour pairs, in either direction and order."""
    statements = []
    for older, younger in zip(ages.names, ages.names[1:], strict=False):
        if rng.random() < 0.5:
            statements.append(f"{older} is older than {younger} .")
        else:
            statements.append(f"{younger} is younger than {older} .")
    rng.shuffle(statements)
    return world.join(statements)


def _draw_instruction(rng: random.Random, _held_out: bool) -> Item:
    command = problem.draw_command(rng)
    prompt = rng.choice(COMMAND_WORDINGS).format(order=command.order)
    return Item(prompt=prompt, completion=command.response, latent=command.key)


_DRAWS: dict[str, Callable[[random.Random, bool], Item]] = {
    "knowledge": _draw_knowledge,
    "false-facts": _draw_false_fact,
    "math": _draw_math,
    "code": _draw_code,
    "comprehension": _draw_comprehension,
    "reasoning": _draw_reasoning,
    "instruction": _draw_instruction,
}


def translate_item(item: Item) -> Item:
    return Item(
        prompt=world.translate(item.prompt),
        completion=world.translate(item.completion),
        latent=item.latent,
        choices=tuple(world.translate(choice) for choice in item.choices),
    )


def iter_items(skills: tuple[str, ...], rng: random.Random, *, held_out: bool) -> Iterator[Item]:
    """Yield questions of random skills without end, repeats included."""
    while True:
        yield draw_item(rng.choice(skills), rng, held_out=held_out)
