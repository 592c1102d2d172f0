"""Languages are told offline, and what is uncertain is called so."""

import pytest

from sft_atlas.data.language import iter_languages


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("The rain in late spring fills both rivers below the old town.", "en"),
        ("Der Regen im späten Frühling füllt beide Flüsse unterhalb der Altstadt.", "de"),
        ("La pluie de la fin du printemps remplit les deux rivières sous la vieille ville.", "fr"),
        ("晚春的雨水注满了老城下面的两条河流。", "zh"),
        ("晩春の雨は旧市街の下を流れる二つの川を満たします。", "ja"),
        ("늦봄의 비가 구시가지 아래의 두 강을 가득 채웁니다.", "ko"),
        ("ฝนปลายฤดูใบไม้ผลิทำให้แม่น้ำทั้งสองสายเต็ม", "th"),
        ("", "und"),
        (" \n", "und"),
        ("42", "und"),
    ],
)
def test_a_sentence_has_its_language(text: str, code: str) -> None:
    assert list(iter_languages([text])) == [code]


def test_a_language_does_not_depend_on_other_texts() -> None:
    texts = ["The town below the river is old.", "川の下の町は古いです。", "?"]
    assert list(iter_languages(texts)) == [next(iter_languages([text])) for text in texts]
