import random
import re

import pytest

from sft_atlas.miniature import corpus, problem, tasks, world

SUM = re.compile(r"(\d(?: \d)?) ([+-]) (\d(?: \d)?)")


def test_the_vocabulary_fits_and_names_every_word_once() -> None:
    tokens = world.vocabulary()
    assert len(set(tokens)) == len(tokens) <= 512


def test_language_b_renames_words_one_to_one_and_keeps_names_and_digits() -> None:
    names = world.renaming()
    assert len(set(names.values())) == len(names)
    assert not set(names.values()) & set(names)
    text = "what is the color of Dopa ? ann 4 2"
    assert world.translate(text).split(" ")[5:] == ["Dopa", "?", "ann", "4", "2"]
    assert not set(world.translate(text).split(" ")[:5]) & set(text.split(" "))


def test_every_value_is_as_frequent_as_any_other_of_its_relation() -> None:
    values = list(world.facts().values())
    assert len(values) == 480
    assert {values.count(value) for value in set(values)} == {12}


@pytest.mark.parametrize(
    ("operations", "letters", "output"),
    [
        (("rev",), "abc", "c b a"),
        (("srt",), "cab", "a b c"),
        (("tail",), "abc", "b c"),
        (("init",), "abc", "a b"),
        (("swap",), "abc", "b a c"),
        (("dup",), "abc", "a a b c"),
        (("rev", "tail"), "abc", "c b"),
        (("tail", "rev"), "abc", "b a"),
    ],
)
def test_programs_apply_the_inner_operation_first(
    operations: tuple[str, ...], letters: str, output: str
) -> None:
    program = problem.Program(operations=operations, letters=tuple(letters))
    assert program.output == output
    assert program.source.split(" ")[0] == operations[0]


@pytest.mark.parametrize(
    ("kind", "words", "detail", "response"),
    [
        ("repeat", "red", "3", "red red red"),
        ("separate", "red dog", ",", "red , dog"),
        ("backwards", "red dog", "", "dog red"),
        ("between", "red", "", "( red )"),
        ("last", "red dog", "", "dog"),
        ("first", "red dog", "", "red"),
    ],
)
def test_commands_have_the_response_that_they_order(
    kind: str, words: str, detail: str, response: str
) -> None:
    command = problem.Command(kind=kind, words=tuple(words.split(" ")), detail=detail)
    assert command.response == response


@pytest.mark.parametrize("skill", tasks.SKILLS)
def test_questions_of_the_two_sides_never_share_a_latent_problem(skill: str) -> None:
    rng = random.Random(7)
    latents = {
        side: {tasks.draw_item(skill, rng, held_out=side).latent for _ in range(500)}
        for side in (True, False)
    }
    assert not latents[True] & latents[False]


def test_sums_are_right_and_stay_between_0_and_99() -> None:
    rng = random.Random(3)
    for _ in range(300):
        item = tasks.draw_item("math", rng, held_out=False)
        expression = item.latent.removeprefix("sum ")
        assert int(item.completion.replace(" ", "")) == eval(expression) in range(100)


def test_scene_answers_can_be_read_off_the_scene() -> None:
    rng = random.Random(4)
    for _ in range(100):
        scene = problem.draw_scene(rng)
        question, answer = tasks.draw_scene_question(scene, rng)
        sentence = next(
            part
            for part in tasks.describe(scene).split(" .")
            if any(word in part.split() for word in question.split() if word not in ("has", "the"))
        )
        assert answer in sentence


def test_documents_use_known_words_only_and_hold_no_benchmark_problem() -> None:
    mixture = corpus.Mixture(
        weights=dict.fromkeys(("copy", *tasks.SKILLS), 1.0),
        language_b_fraction=0.2,
        template_fraction=0.1,
    )
    documents = corpus.iter_documents(mixture, random.Random(5))
    known = set(world.vocabulary())
    texts = [next(documents) for _ in range(4000)]
    assert not {word for text in texts for word in text.split(" ")} - known
    sums = [match for text in texts for match in SUM.findall(text)]
    assert len(sums) > 500
    for a, sign, b in sums:
        key = problem.Sum(a=int(a.replace(" ", "")), sign=sign, b=int(b.replace(" ", ""))).key
        assert not world.is_held_out(key)


def test_template_documents_ask_nothing_that_is_held_out() -> None:
    mixture = corpus.Mixture(weights={"copy": 1.0}, language_b_fraction=0.0, template_fraction=1.0)
    documents = corpus.iter_documents(mixture, random.Random(6))
    for _ in range(500):
        words = next(documents).split(" ")
        assert (words[0], words[-1]) == (world.QUESTION, world.EOS)
        assert not set(words) & world.held_out_entities()
