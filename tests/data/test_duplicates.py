"""Near duplicates are those that a comparison of all pairs finds, whatever the order."""

import itertools

import networkx
import numpy as np
import pytest

from sft_atlas.data.duplicates import near_duplicate_groups
from sft_atlas.data.words import normalise


def ngrams(words: list[str]) -> set[tuple[str, ...]]:
    return {tuple(words[i : i + 5]) for i in range(max(len(words) - 4, 1))}


def compare_all(texts: list[list[str]]) -> list[int]:
    """Return each text's group by comparing every pair of sets."""
    sets = [ngrams(words) for words in texts]
    graph = networkx.Graph()
    graph.add_nodes_from(range(len(texts)))
    for i, j in itertools.combinations(range(len(texts)), 2):
        if len(sets[i] & sets[j]) / len(sets[i] | sets[j]) >= 0.8:
            graph.add_edge(i, j)
    first = {i: min(group) for group in networkx.connected_components(graph) for i in group}
    return [first[i] for i in range(len(texts))]


def edited_texts(seed: int, num_texts: int = 120) -> list[list[str]]:
    """Texts of 1 to 60 words, half of them edited copies of others."""
    rng = np.random.default_rng(seed)
    texts: list[list[str]] = []
    for _ in range(num_texts):
        if texts and rng.random() < 0.5:
            words = list(texts[rng.integers(len(texts))])
            for _ in range(rng.integers(0, 4)):
                words[rng.integers(len(words))] = f"w{rng.integers(40)}"
        else:
            words = [f"w{i}" for i in rng.integers(0, 40, rng.integers(1, 60))]
        texts.append(words)
    return texts


@pytest.mark.parametrize("seed", range(6))
def test_groups_equal_those_of_all_pairs(seed: int) -> None:
    texts = edited_texts(seed)
    expected = compare_all(texts)
    assert near_duplicate_groups(texts).tolist() == expected
    assert 1 < len(set(expected)) < len(texts)


def test_groups_do_not_depend_on_the_order() -> None:
    texts = edited_texts(7)
    order = np.random.default_rng(0).permutation(len(texts))
    moved = near_duplicate_groups([texts[i] for i in order])
    straight = near_duplicate_groups(texts)
    same = straight[order][:, None] == straight[order][None]
    assert ((moved[:, None] == moved[None]) == same).all()


def test_one_changed_word_in_sixty_is_near_and_one_in_ten_is_not() -> None:
    words = [f"w{i}" for i in range(60)]
    assert near_duplicate_groups([words, [*words[:30], "x", *words[31:]]]).tolist() == [0, 0]
    assert near_duplicate_groups([words[:10], [*words[:9], "x"]]).tolist() == [0, 1]


def test_the_limit_itself_is_near() -> None:
    words = [f"w{i}" for i in range(13)]
    # 9 runs of 5 words, of which 8 are shared: 8 / 10.
    assert near_duplicate_groups([words, [*words[:-1], "x"]]).tolist() == [0, 0]
    # 8 runs, of which 7 are shared: 7 / 9.
    assert near_duplicate_groups([words[:12], [*words[:11], "x"]]).tolist() == [0, 1]


def test_short_texts_are_near_their_equals_alone() -> None:
    texts = [normalise(text) for text in ("Yes.", "yes!", "No", "", "?", "yes it is")]
    assert near_duplicate_groups(texts).tolist() == [0, 0, 2, 3, 3, 5]


def test_hundreds_of_near_copies_are_one_group() -> None:
    words = [f"w{i}" for i in range(80)]
    copies = [[*words, f"n{i}"] for i in range(500)]
    assert set(near_duplicate_groups(copies).tolist()) == {0}


def test_nothing_has_no_groups() -> None:
    assert near_duplicate_groups([]).tolist() == []
