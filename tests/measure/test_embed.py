"""Each embedder gives a text the vector that its reference gives, whatever texts come with it."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import CountVectorizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from sft_atlas.errors import DataError, StudyError
from sft_atlas.measure.embed import Vectors, build_embed, remember_last
from sft_atlas.study.measure import Embedder
from sft_atlas.study.source import local_source
from sft_atlas.study.spec import Source
from tiny import build_model, build_tokenizer

TEXTS = [
    "A train leaves at noon and travels 60 km per hour. How far is it after 2 hours?",
    "A bus leaves at one and travels 40 km per hour. How far is it after 3 hours?",
    "def add(first, second): return first + second",
    "Schreibe ein Gedicht über den späten Frühling.",
    "写一首关于晚春的诗。",
]
WORDS = Embedder(kind="words")


def exact_cosines(texts: list[str]) -> np.ndarray:
    """The mean of the cosines of words, word pairs and character runs, without hashing."""
    options = [
        {"ngram_range": (1, 1), "token_pattern": r"(?u)\b\w+\b"},
        {"ngram_range": (2, 2), "token_pattern": r"(?u)\b\w+\b"},
        {"ngram_range": (3, 3), "analyzer": "char_wb"},
    ]
    cosines = []
    for option in options:
        counts = CountVectorizer(**option).fit_transform(texts).toarray().astype(float)
        weights = np.where(counts > 0, 1 + np.log(np.maximum(counts, 1)), 0)
        weights /= np.linalg.norm(weights, axis=1, keepdims=True)
        cosines.append(weights @ weights.T)
    return np.mean(cosines, axis=0)


def test_words_keep_the_cosines_of_what_they_hash() -> None:
    rng = np.random.default_rng(0)
    vocabulary = [f"word{i:03d}" for i in range(300)]
    texts = [" ".join(rng.choice(vocabulary, 60)) for _ in range(40)]
    found = build_embed(WORDS)(texts).astype(float)
    error = (found @ found.T - exact_cosines(texts))[np.triu_indices(40, 1)]
    # An inner product of hashed unit vectors has no bias and a standard error of 1 / sqrt(2048).
    assert np.sqrt(np.mean(error**2)) < 1 / np.sqrt(2048)
    assert abs(error.mean()) < 0.005


def test_vectors_have_length_1_and_do_not_depend_on_other_texts() -> None:
    embed = build_embed(WORDS)
    together = embed(TEXTS)
    assert together.shape == (5, 2048)
    assert together.dtype == np.float32
    assert np.linalg.norm(together, axis=1) == pytest.approx(1, abs=1e-6)
    for i, text in enumerate(TEXTS):
        assert np.array_equal(embed([text])[0], together[i])


def test_like_texts_are_near() -> None:
    vectors = build_embed(WORDS)(TEXTS)
    cosines = vectors @ vectors.T
    assert cosines[0, 1] > 0.4
    assert cosines[0, 2:].max() < 0.15


def test_texts_without_words_are_told_apart_by_their_signs() -> None:
    vectors = build_embed(WORDS)(["+ - =", "= - +", "?!"])
    assert vectors[0] @ vectors[1] == pytest.approx(1, abs=1e-6)
    assert abs(vectors[0] @ vectors[2]) < 0.5


def test_a_text_without_a_character_has_no_vector() -> None:
    with pytest.raises(DataError) as error:
        build_embed(WORDS)(["a", " \n"])
    assert str(error.value) == (
        "text ' \\n': its vector has length 0.0; expected a finite length above 0. "
        "Remove the text, or use another embedder."
    )


def test_hidden_is_the_mean_state_behind_the_middle_block() -> None:
    model, tokenizer = build_model(num_hidden_layers=4), build_tokenizer()
    texts = ["w5 w6 w7", "w9", "w9 w8 w7 w6 w5 w4"]
    found = build_embed(Embedder(kind="hidden"), model=model, tokenizer=tokenizer)(texts)
    for text, vector in zip(texts, found, strict=True):
        # There is no BOS, so the end-of-sequence token stands before the text.
        ids = torch.tensor([[1, *tokenizer(text)["input_ids"]]])
        with torch.no_grad():
            states = model(ids, output_hidden_states=True).hidden_states[2][0, 1:]
        mean = states.mean(dim=0).numpy()
        assert vector == pytest.approx(mean / np.linalg.norm(mean), abs=1e-5)


def test_hidden_reads_at_most_512_tokens() -> None:
    model, tokenizer = build_model(max_position_embeddings=1024), build_tokenizer()
    embed = build_embed(Embedder(kind="hidden"), model=model, tokenizer=tokenizer)
    words = [f"w{2 + i % 60}" for i in range(600)]
    long, cut = embed([" ".join(words), " ".join(words[:512])])
    assert long == pytest.approx(cut, abs=1e-6)


def save_sentence_transformer(folder: Path) -> None:
    """Write a random one-layer BERT with mean pooling as sentence-transformers does."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    words = ["[PAD]", "[UNK]", *sorted({word for text in TEXTS for word in text.lower().split()})]
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=64,
    )
    bert = folder.with_name("bert")
    BertModel(config).save_pretrained(bert)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=64
    ).save_pretrained(bert)
    SentenceTransformer(modules=[Transformer(str(bert)), Pooling(16)]).save(str(folder))


def test_a_sentence_transformer_gives_what_it_encodes(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    save_sentence_transformer(tmp_path / "model")
    source = local_source(tmp_path / "model")
    found = build_embed(Embedder(kind="sentence-transformers", source=source, name="bert"))(TEXTS)
    reference = SentenceTransformer(str(tmp_path / "model")).encode(
        TEXTS, normalize_embeddings=True, show_progress_bar=False
    )
    assert found == pytest.approx(reference, abs=1e-6)


def test_a_changed_sentence_transformer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    source = Source(path=tmp_path / "model", sha256="0" * 64)
    with pytest.raises(StudyError, match=r"embedder bert: .* changed since the study was read"):
        build_embed(Embedder(kind="sentence-transformers", source=source, name="bert"))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    embedder = Embedder(
        kind="sentence-transformers", source=Source(path=tmp_path), name="all-minilm"
    )
    with pytest.raises(StudyError) as error:
        build_embed(embedder)
    assert str(error.value) == (
        "embedder all-minilm: the package sentence-transformers is not installed; expected it for "
        "this embedder. Run `pip install 'sft-atlas[sentence-transformers]'`, or use the embedder "
        "`words`."
    )


def test_the_last_sets_are_embedded_once() -> None:
    asked: list[tuple[str, ...]] = []

    def embed(texts: list[str]) -> Vectors:
        asked.append(tuple(texts))
        return np.full((len(texts), 1), len(asked), np.float32)

    remembered = remember_last(embed, num_sets=2)
    for texts in (["a"], ["b"], ["a"], ["c"], ["a"], ["b"]):
        assert len(remembered(texts)) == 1
    assert asked == [("a",), ("b",), ("c",), ("b",)]
