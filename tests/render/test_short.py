"""The opening page says no more than the answers do."""

import pytest

from sft_atlas.analyze.findings import Finding
from sft_atlas.render.short import MAX_CHARACTERS, certainty, opening


def finding(**changed: object) -> Finding:
    given: dict[str, object] = {
        "question": "Does it help?",
        "statement": "It helps by +1.0 points. More is not known.",
        "estimate": 0.01,
        "interval": (0.005, 0.02),
        "scale": "points",
        "n": 3,
        "unit": "model",
        "method": "Mean.",
        "rows": (),
    }
    return Finding(**{**given, **changed})


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, "clear"),
        ({"interval": (-0.01, 0.02)}, "open"),
        ({"interval": None}, "open"),
        ({"p_value": 0.2}, "open"),
        ({"p_value": 0.01, "p_adjusted": 0.06}, "open"),
        ({"scale": "count"}, "note"),
        ({"estimate": None, "interval": None}, "note"),
        ({"estimate": None, "interval": None, "reason": "one model"}, "not estimable"),
    ],
    ids=["clear", "covers-0", "no-interval", "test", "adjusted", "count", "nothing", "reason"],
)
def test_certainty_is_that_of_interval_and_test(changed: dict[str, object], expected: str) -> None:
    assert certainty(finding(**changed)) == expected


def test_a_question_is_one_line_with_the_first_answer_that_was_estimated() -> None:
    absent = finding(estimate=None, interval=None, reason="one model", statement="Not estimable.")
    clear = finding(statement="Second is clear.", interval=(0.02, 0.03), estimate=0.025)
    other = finding(question="And this?", interval=(-0.01, 0.01))
    first, second = opening([absent, finding(), clear, other])
    assert (first.question, first.place, first.number) == (
        "Does it help?",
        1,
        "+1.0 [+0.5, +2.0]",
    )
    assert (first.num_clear, first.num_tested) == (2, 2)
    assert (second.certainty, second.place) == ("open", 3)


def test_the_bar_shows_on_which_side_of_zero_an_interval_lies() -> None:
    clear, open_ = opening([finding(), finding(question="b", interval=(-0.02, 0.01), estimate=0.0)])
    assert clear.bar is not None and open_.bar is not None
    assert clear.bar.low > clear.bar.zero == 50
    assert open_.bar.low < 50 < open_.bar.low + open_.bar.width
    assert open_.bar.low >= 0 and clear.bar.low + clear.bar.width <= 100
    assert opening([finding(interval=(0.0, 0.0), estimate=0.0)])[0].bar is None


def test_a_long_answer_ends_where_a_sentence_does() -> None:
    sentence = "This is a sentence of some length that says one thing."
    (line,) = opening([finding(statement=" ".join([sentence] * 9))])
    assert line.text.endswith("one thing.") and len(line.text) <= MAX_CHARACTERS
    (line,) = opening([finding(statement="; ".join(["a part of one long sentence"] * 20) + ".")])
    assert line.text.endswith("sentence \N{HORIZONTAL ELLIPSIS}")
    assert len(line.text) <= MAX_CHARACTERS
