"""Sentences are found by their marks in scripts with and without spaces, and keep their tokens."""
# ruff: noqa: RUF001  # Marks of Chinese and Japanese look like those of English.

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors

from sft_atlas.data.sentences import NO_SENTENCE, number_sentences, split_sentences
from sft_atlas.data.texts import Text, encode_text_set
from tiny import build_byte_tokenizer, build_tokenizer


@pytest.mark.parametrize(
    "sentences",
    [
        ["Rain falls.", " Does it?", " It does!", " Really?!", " Well... it does.", " Well..."],
        ["no mark at all"],
        ["lower case. goes on", "\nunless a line ends"],
        ['He said: "Stop!"', " (She did.)", " “Why?”", " 'So.'", " [End.]"],
        ['"Really?" she said.', ' "Yes," he said.'],
        ["It is 3.5 m, e.g. here, i.e. there.", " Dr. No met J. R. Smith vs. St. Paul.", " Ok."],
        ["See example.com or a.b.c. It"],
        ["1. Wash it.", "\n2. Dry it.", "\n10. Eat.", " In 1999.", " Later."],
        ["Wait.Not here.", " Here."],
        ["你好！", "我是谁？", "他说：“走吧。”", "然后走了。"],
        ["你好!", "我是谁?", "版本3.5很好."],
        [
            "温泉の湯は熱い。",
            "「はい。」と答えた。",
            "「まだ。」、「もう。」",
            "「終わり。」",
            "そう｡",
        ],
        ["日本語の行", "\n句点がない", "\r\n\r\n次の行。"],
        ["Mixed 文。", " Then more.", "最後"],
        ["..."],
        ["A line.", "\n\n  Another.  \n "],
    ],
)
def test_planted_sentences_are_found(sentences: list[str]) -> None:
    assert split_sentences("".join(sentences)) == sentences


@given(st.text(alphabet="aB 1.!?。？」」\"'と,\n\r\u2028", max_size=30))
def test_sentences_are_the_text_and_none_is_blank(text: str) -> None:
    sentences = split_sentences(text)
    assert "".join(sentences) == text
    assert all(sentence.strip() for sentence in sentences) or len(sentences) == 1


def numbers_of(tokenizer: object, *texts: str, max_tokens: int = 100) -> list[list[int]]:
    found = [Text(str(i), "t", "", text) for i, text in enumerate(texts)]
    encoded = encode_text_set(tokenizer, found, max_tokens=max_tokens)
    return number_sentences(tokenizer, found, encoded)


def test_every_byte_of_a_sentence_is_its_own() -> None:
    """With a token for each byte; several of one character have the same offset."""
    texts = [["Rain falls.", " Dry?"], ["alone"], ["雨。", "晴れる！"], ["まだ。", "\nEnd."]]
    numbers = iter(range(9))
    expected = []
    for sentences in texts:
        row = [NO_SENTENCE]
        for sentence in sentences:
            row += [next(numbers)] * len(sentence.encode())
        expected.append(row)
    found = numbers_of(build_byte_tokenizer(), *("".join(text) for text in texts))
    assert found == expected


@pytest.mark.parametrize("is_trimmed", [False, True])
def test_a_space_counts_to_the_word_behind_it(is_trimmed: bool) -> None:
    """However the tokenizer's offsets are trimmed, as GPT-2's are."""
    tokenizer = build_byte_tokenizer("Two Two.Two Two", size=400)
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=is_trimmed)
    text = "Two. Two.  Two"
    assert tokenizer.tokenize(text) == ["Two", ".", "ĠTwo", ".", "Ġ", "ĠTwo"]
    assert numbers_of(tokenizer, text) == [[NO_SENTENCE, 0, 0, 1, 1, 2, 2]]


def test_a_sentence_without_a_token_has_no_number() -> None:
    """A token that two sentences share is the first one's; what is cut off is nobody's."""
    tokenizer = build_tokenizer()
    text = "w2 w3! 4。w5！w6。 W7 w8.\n w9"
    assert numbers_of(tokenizer, text, "w2") == [[NO_SENTENCE, 0, 0, 1, 2, 2, 3], [NO_SENTENCE, 4]]
    assert numbers_of(tokenizer, text, "w2", max_tokens=4) == [
        [NO_SENTENCE, 0, 0, 1],
        [NO_SENTENCE, 2],
    ]


def test_a_prefix_that_a_text_writes_out_belongs_to_no_sentence() -> None:
    tokenizer = build_tokenizer()
    assert numbers_of(tokenizer, "</s> w2. W3", "w4. W5") == [
        [NO_SENTENCE, 0, 1],
        [NO_SENTENCE, 2, 3],
    ]


def test_prompt_and_answer_are_one_text() -> None:
    tokenizer = build_byte_tokenizer()
    texts = [Text("0", "t", "Who? ", "Me. You")]
    encoded = encode_text_set(tokenizer, texts, max_tokens=100)
    assert number_sentences(tokenizer, texts, encoded) == [
        [NO_SENTENCE, *[0] * 4, *[1] * 4, *[2] * 4]
    ]
