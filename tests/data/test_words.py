"""Words are counted alike in spaced and unspaced scripts."""

import pytest

from sft_atlas.data.words import collapse, count_words, normalise


@pytest.mark.parametrize(
    ("text", "num_words"),
    [
        ("", 0),
        ("?!", 0),
        ("a b c", 3),
        ("It's 3.5 km", 5),
        ("東京", 1),
        ("東京都", 2),
        ("東京都 is big", 4),
        ("I am in 東京", 4),
    ],
)
def test_two_characters_of_an_unspaced_script_are_a_word(text: str, num_words: int) -> None:
    assert count_words(normalise(text)) == num_words


def test_collapsed_texts_differ_in_signs_and_not_in_space_or_case() -> None:
    assert collapse("What is  2 + 3?\n") == collapse("what is 2 + 3?")
    assert collapse("2 + 3") != collapse("2 - 3")
