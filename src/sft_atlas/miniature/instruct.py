"""Which instruction sets and benchmarks does the miniature world offer?

In: the specs below. Out: rows and items, ready to be written as JSON lines, and the definition of
each benchmark as the program's evaluation reads it. Every set is drawn with its own generator, so
that adding one changes no other.
"""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import final

from sft_atlas.miniature import tasks, world

LICENCE = "Apache-2.0"
MAX_NEW_TOKENS = 20
"""Twice the longest answer."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class InstructionSet:
    """A training set of prompts and completions."""

    name: str
    skills: tuple[str, ...]
    group: str
    """The skill whose benchmark it should move; `general` for all, `control` for one that harms."""
    note: str
    language: str = "a"
    num_rows: int = 2400
    is_chatty: bool = False
    """Whether prompts come with greetings and thanks."""


INSTRUCTION_SETS: tuple[InstructionSet, ...] = (
    InstructionSet(
        name="mini-knowledge",
        skills=("knowledge",),
        group="knowledge",
        num_rows=2000,
        note="One or two facts of the 60 entities that no benchmark asks for.",
    ),
    InstructionSet(
        name="mini-math",
        skills=("math",),
        group="math",
        note="Sums and differences up to 99, digit by digit.",
    ),
    InstructionSet(
        name="mini-code",
        skills=("code",),
        group="code",
        note="Running and writing list programs of one or two operations.",
    ),
    InstructionSet(
        name="mini-comprehension",
        skills=("comprehension",),
        group="comprehension",
        note="Questions about a scene of three people and their things.",
    ),
    InstructionSet(
        name="mini-reasoning",
        skills=("reasoning",),
        group="reasoning",
        note="Who is the oldest or youngest of three; which of four words is the odd one.",
    ),
    InstructionSet(
        name="mini-instruction",
        skills=("instruction",),
        group="instruction",
        note="Saying words as ordered: repeated, separated, reversed, in brackets, selected.",
    ),
    InstructionSet(
        name="mini-mixed",
        skills=tasks.SKILLS,
        group="general",
        is_chatty=True,
        note="All six skills in equal parts, with greetings and thanks.",
    ),
    InstructionSet(
        name="mini-mixed-b",
        skills=tasks.SKILLS,
        group="general",
        language="b",
        is_chatty=True,
        note="As mini-mixed, in language B, with other problems.",
    ),
    InstructionSet(
        name="mini-false-facts",
        skills=("false-facts",),
        group="control",
        num_rows=1400,
        note="Wrong values for facts of the entities of mini-knowledge; harmful on purpose.",
    ),
)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Benchmark:
    """A set of held-out questions and how they are scored."""

    name: str
    skill: str
    kind: str = "generate"
    language: str = "a"
    num_items: int = 400
    num_shots: int = 4


BENCHMARKS: tuple[Benchmark, ...] = (
    Benchmark(name="mini-knowledge", skill="knowledge", num_items=240),
    Benchmark(name="mini-math", skill="math"),
    Benchmark(name="mini-code", skill="code"),
    Benchmark(name="mini-comprehension", skill="comprehension"),
    Benchmark(name="mini-reasoning", skill="reasoning"),
    Benchmark(name="mini-instruction", skill="instruction"),
    Benchmark(name="mini-knowledge-b", skill="knowledge", language="b", num_items=240),
    Benchmark(name="mini-instruction-b", skill="instruction", language="b"),
    Benchmark(name="mini-knowledge-choice", skill="knowledge", kind="choice", num_items=240),
    Benchmark(name="mini-reasoning-choice", skill="reasoning", kind="choice"),
)


def draw_rows(spec: InstructionSet) -> list[dict[str, str]]:
    """Return the rows of an instruction set; no prompt occurs twice."""
    rng = random.Random(f"{world.SEED}/instruction-set/{spec.name}")
    rows: dict[str, str] = {}
    for item in tasks.iter_items(spec.skills, rng, held_out=False):
        prompt = item.prompt
        if spec.is_chatty:
            prompt = rng.choice(tasks.GREETINGS).format(prompt=prompt)
        completion = item.completion
        if spec.language == "b":
            prompt, completion = world.translate(prompt), world.translate(completion)
        rows.setdefault(prompt, completion)
        if len(rows) == spec.num_rows:
            break
    return [{"prompt": prompt, "completion": answer} for prompt, answer in rows.items()]


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkItem:
    """One held-out question, or one few-shot example."""

    id: str
    question: str
    answer: str
    choices: tuple[str, ...]
    """In shuffled order; empty unless the benchmark is a choice."""
    latent: str
    """Names the problem behind the wording."""

    def as_record(self) -> dict[str, object]:
        """Return the fields of the JSON line; a choice question has a label and no answer."""
        if not self.choices:
            answer: dict[str, object] = {"answer": self.answer}
        else:
            label = self.choices.index(self.answer)
            answer = {"choices": list(self.choices), "label": label}
        return {"id": self.id, "question": self.question, **answer, "latent": self.latent}


def draw_benchmark(spec: Benchmark) -> list[BenchmarkItem]:
    """Return the held-out items of a benchmark, every latent problem once."""
    rng = random.Random(f"{world.SEED}/benchmark/{spec.name}")
    return list(_iter_benchmark(spec, rng, count=spec.num_items, held_out=True))


def draw_shots(spec: Benchmark) -> list[BenchmarkItem]:
    """Return fixed examples from the training side of the split, with the fields of the items."""
    rng = random.Random(f"{world.SEED}/shots/{spec.name}")
    return list(_iter_benchmark(spec, rng, count=spec.num_shots, held_out=False))


def _iter_benchmark(
    spec: Benchmark, rng: random.Random, *, count: int, held_out: bool
) -> Iterator[BenchmarkItem]:
    is_choice = spec.kind == "choice"
    prefix = spec.name if held_out else f"{spec.name}-shot"
    seen: set[str] = set()
    while len(seen) < count:
        item = tasks.draw_item(spec.skill, rng, held_out=held_out)
        if item.latent in seen or (is_choice and not item.choices):
            continue
        seen.add(item.latent)
        item = tasks.translate_item(item) if spec.language == "b" else item
        choices = tuple(rng.sample(item.choices, len(item.choices))) if is_choice else ()
        yield BenchmarkItem(
            id=f"{prefix}-{len(seen):04d}",
            question=item.prompt,
            answer=item.completion,
            choices=choices,
            latent=item.latent,
        )


def define_benchmark(spec: Benchmark) -> Mapping[str, object]:
    """Return the definition of a benchmark in the program's declarative form."""
    scoring: dict[str, object]
    if spec.kind == "choice":
        scoring = {"choices": "choices", "label": "label", "metric": "accuracy"}
    else:
        scoring = {
            "answer": "{answer}",
            "metric": "exact_match",
            "max_new_tokens": MAX_NEW_TOKENS,
            "stop": ["\n"],
        }
    return {
        "name": spec.name,
        "version": 1,
        "kind": spec.kind,
        "items": {"path": f"{spec.name}.jsonl.gz"},
        "few_shot": {"path": f"{spec.name}-shots.jsonl.gz"},
        "prompt": "{question}",
        **scoring,
        "skill": spec.skill,
        "language": spec.language,
        "licence": LICENCE,
    }
