"""Cards are found by name, fit their schema, and agree with arithmetic."""

from pathlib import Path

import pytest

from sft_atlas.catalog import cards
from sft_atlas.catalog.cards import (
    BenchmarkCard,
    Card,
    DatasetCard,
    ModelCard,
    TextsCard,
    card_files,
    card_names,
    find_benchmark,
    find_dataset,
    find_model,
    find_texts,
    iter_cards,
)
from sft_atlas.catalog.devices import device_names, find_device
from sft_atlas.data.sources import iter_rows
from sft_atlas.data.texts import load_texts
from sft_atlas.errors import CatalogError, StudyError
from sft_atlas.study.benchmark import load_benchmark
from sft_atlas.study.measure import TextFile
from sft_atlas.study.shape import head_dim
from sft_atlas.study.source import source_from_card

ALL = [card for path in card_files() for card in iter_cards(path)]


def name_of(card: Card) -> str:
    return card.name


@pytest.mark.parametrize("card", [card for card in ALL if isinstance(card, ModelCard)], ids=name_of)
def test_a_models_weights_follow_from_its_shape(card: ModelCard) -> None:
    hidden, width = card.hidden_size, head_dim(card)
    attention = 2 * hidden * width * (card.num_heads + card.num_kv_heads)
    embeddings = card.vocab_size * hidden * (1 if card.tied_embeddings else 2)
    layer = attention + 3 * hidden * card.intermediate_size
    # Norms, biases and padding of the vocabulary are less than 5 % of the smallest.
    tolerance = 0.001 if card.parameters > 10**8 else 0.05
    assert card.parameters == pytest.approx(card.layers * layer + embeddings, rel=tolerance)


def test_every_name_stands_in_one_place() -> None:
    for card_type in (ModelCard, DatasetCard, BenchmarkCard, TextsCard):
        names = [card.name for card in ALL if isinstance(card, card_type)]
        assert len(set(names)) == len(names)


def test_every_card_says_its_licence_and_what_it_guesses() -> None:
    for card in ALL:
        assert card.license, card.name
        assert set(card.inferred) <= set(type(card).model_fields), card.name


def test_what_a_card_points_to_in_the_package_is_there() -> None:
    for card in ALL:
        if card.source is not None and card.source.path is not None:
            assert card.source.path.exists(), card.name


def test_every_benchmark_can_be_scored_and_its_files_can_be_got() -> None:
    for card in ALL:
        if isinstance(card, BenchmarkCard):
            assert card.source is not None, card.name
            assert card.source.definition is not None or card.source.asset is not None, card.name
            assert card.get or card.name.startswith("mini-") or card.note == "", card.name


def test_a_benchmarks_card_and_definition_agree() -> None:
    for card in ALL:
        if isinstance(card, BenchmarkCard) and card.source is not None:
            assert card.source.path is not None
            benchmark = load_benchmark(card.source.path)
            definition = benchmark.definition
            assert (definition.kind, definition.metric) == (card.kind, card.metric), card.name
            labels = (benchmark.skill, benchmark.language, benchmark.family, benchmark.licence)
            assert labels == (card.skill, card.language, card.family, card.license), card.name


def test_mmlu_in_three_languages_is_one_family_averaged_over_subjects() -> None:
    family = [card for card in ALL if isinstance(card, BenchmarkCard) and card.family == "mmlu"]
    assert {card.name: card.language for card in family} == {
        "mmlu": "en",
        "cmmlu": "zh",
        "jmmlu": "ja",
        "mmmlu-ja": "ja",
    }
    for card in family:
        assert card.source is not None
        assert card.source.path is not None
        definition = load_benchmark(card.source.path).definition
        assert (definition.average, definition.metric) == ("groups", "accuracy")
        assert definition.choices == ("A", "B", "C", "D")


def test_the_papers_models_data_and_benchmarks_have_cards() -> None:
    paper = list(iter_cards(cards.FOLDER / "massive_sft.yaml"))
    counts = [sum(isinstance(card, t) for card in paper) for t in (ModelCard, DatasetCard)]
    assert [*counts, sum(isinstance(card, BenchmarkCard) for card in paper)] == [12, 10, 16]
    assert find_dataset("flan-knowledge").where["_task_name"][0] == "bool_q:1.0.0"
    assert all("source" in card.inferred for card in paper if not isinstance(card, BenchmarkCard))


def test_every_model_names_a_text_set_in_its_own_words() -> None:
    for card in ALL:
        if isinstance(card, ModelCard):
            suited = "mini-texts" if card.name.startswith("mini-") else "neutral"
            assert find_texts(card.texts).name == suited, card.name


@pytest.mark.parametrize("card", [card for card in ALL if isinstance(card, TextsCard)], ids=name_of)
def test_a_text_set_has_what_its_card_says(card: TextsCard) -> None:
    texts = TextFile(name=card.name, source=source_from_card(card.source), field=card.field)
    found = load_texts(texts)
    assert len(found) == card.num_texts
    assert len({text.answer for text in found}) == len(found)
    assert not any(text.prompt for text in found)


def test_neutral_texts_are_short_different_paragraphs_in_three_languages() -> None:
    card = find_texts("neutral")
    rows = [row for _, row in iter_rows(source_from_card(card.source))]
    assert len({row["id"] for row in rows}) == len(rows)
    by_language = {
        language: [row["text"] for row in rows if row["language"] == language]
        for language in card.languages
    }
    assert sum(map(len, by_language.values())) == len(rows)
    assert all(60 <= len(text.split()) <= 160 for text in by_language["en"])
    assert all(60 <= len(text) <= 300 for lang in ("zh", "ja") for text in by_language[lang])
    for texts in by_language.values():
        # No two paragraphs share a run of words, as paraphrases and fillers would.
        grams = [
            {tuple(units[i : i + 8]) for i in range(len(units) - 7)}
            for units in (text.split() if " " in text else list(text) for text in texts)
        ]
        shared = {gram for i, found in enumerate(grams) for gram in found & set().union(*grams[:i])}
        assert not shared


def test_a_card_is_found_by_name() -> None:
    assert find_model("llama-3-8b").source.hub == "meta-llama/Meta-Llama-3-8B"
    assert find_dataset("alpaca").rows == 51760
    assert find_benchmark("mmlu").items == 14042


def test_an_unknown_text_set_is_answered_with_the_names_of_text_sets() -> None:
    with pytest.raises(CatalogError) as caught:
        find_texts("mini-text")
    assert str(caught.value) == (
        "text set 'mini-text' has no card; did you mean mini-texts? Names: mini-texts, neutral."
    )


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(CatalogError) as caught:
        find_dataset("alpacca")
    message = str(caught.value)
    assert message.startswith("dataset 'alpacca' has no card; did you mean alpaca? Names: alpaca, ")


def test_a_name_of_another_section_is_not_taken() -> None:
    with pytest.raises(CatalogError, match="model 'alpaca' has no card"):
        find_model("alpaca")


def test_names_of_a_section_are_sorted() -> None:
    names = card_names("models")
    assert names == sorted(names)
    assert {"olmo-7b", "qwen2.5-0.5b"} <= set(names)


def test_a_wrong_card_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(
        "benchmarks:\n  x:\n    kind: choice\n    metrik: accuracy\n    metric: accuracy\n"
        "    items: 5\n    prompt_tokens: 1\n    answer_tokens: 1\n    skill: s\n    language: en\n"
    )
    with pytest.raises(StudyError) as caught:
        list(iter_cards(path))
    start = f"{path}:4: benchmarks.x.metrik is not a field; did you mean metric? Fields: metric, "
    assert str(caught.value).startswith(start)


def test_devices_are_found_by_name() -> None:
    assert device_names() == ["a100", "cpu-core", "h100", "h200", "rtx-4090"]
    assert find_device("h100").peak_flops == pytest.approx(989.4e12)
    with pytest.raises(CatalogError) as caught:
        find_device("h10")
    assert str(caught.value) == (
        "device 'h10' has no card; did you mean h100? Names: h100, a100, cpu-core, h200, rtx-4090."
    )
