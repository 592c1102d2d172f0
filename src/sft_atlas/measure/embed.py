"""Which vector stands for a text, so that like texts have like vectors?

In: texts. Out: one vector of length 1 for each. Three embedders: `words` needs nothing but the
text, `hidden` asks a base model, `sentence-transformers` a model that was made for it. No embedder
looks at other texts (there is no inverse document frequency), so a text's vector is the same in
every comparison and one embedding of a dataset serves all benchmarks.

`words` has three parts of equal weight: words, pairs of neighbouring words, and runs of three
characters within a word; each counted as 1 + ln(occurrences), brought to length 1, and hashed with
signs into 2,048 numbers (Weinberger et al. 2009), which keeps inner products within about 0.02. So
the cosine of two texts is the mean of three cosines. No stop words are left out, since no list
serves all languages; what all texts have in common goes when vectors are centred.

`hidden` takes the mean over a text's tokens of what leaves the middle block, where states say most
about a text's topic (Skean et al. 2025, arXiv 2502.02013).
"""

import hashlib
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from sft_atlas import files
from sft_atlas.data.encoding import encode_texts
from sft_atlas.data.texts import behind_prefix, text_prefix
from sft_atlas.data.words import normalise
from sft_atlas.errors import DataError, StudyError
from sft_atlas.identity import canonical_json
from sft_atlas.study.measure import Embedder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Vectors = NDArray[np.float32]
Embed = Callable[[Sequence[str]], Vectors]
"""Turns n texts into n vectors of length 1, shape (n, dimension)."""

WORD_DIMENSION: Final = 2048
MAX_TOKENS: Final = 512
"""Tokens of a text that `hidden` reads, its prefix token not counted."""
_TEXTS: Final = 64
"""Texts whose states of all layers are held at a time."""


def build_embed(
    embedder: Embedder,
    *,
    model: "PreTrainedModel | None" = None,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
) -> Embed:
    """Return the function that embeds texts; `hidden` needs the pristine base and its tokenizer.

    The function raises DataError for a text that has no vector: one without a character, or whose
    vector is not finite.

    Raises:
        StudyError: if the sentence-transformers package or model is not at hand.
    """
    if embedder.kind == "words":
        return lambda texts: _to_unit(_embed_words(texts), texts)
    if embedder.kind == "hidden":
        assert model is not None
        assert tokenizer is not None
        return lambda texts: _to_unit(_embed_hidden(model, tokenizer, texts), texts)
    encode = _load_sentence_transformer(embedder)
    return lambda texts: _to_unit(encode(texts), texts)


def remember_last(embed: Embed, *, num_sets: int = 2) -> Embed:
    """Return an embed that keeps the vectors of the last few sets of texts that it was asked for.

    Sets are told apart by what they say, so a changed text is never mistaken. At 2,000 texts a
    set, two sets of 4,096 numbers take 64 MB.
    """
    kept: OrderedDict[str, Vectors] = OrderedDict()

    def embed_once(texts: Sequence[str]) -> Vectors:
        key = digest_texts(texts)
        if key in kept:
            kept.move_to_end(key)
        else:
            kept[key] = embed(texts)
            kept[key].setflags(write=False)
            while len(kept) > num_sets:
                kept.popitem(last=False)
        return kept[key]

    return embed_once


def digest_texts(texts: Sequence[str]) -> str:
    """Return the SHA-256 of texts in their order, as 64 hex digits."""
    return hashlib.sha256(canonical_json(list(texts)).encode()).hexdigest()


def mean_cosine(vectors: NDArray[np.float64]) -> float:
    """Return the mean cosine of two different ones of n >= 2 vectors of length 1."""
    total = vectors.sum(axis=0)
    return float((total @ total - (vectors**2).sum()) / (len(vectors) * (len(vectors) - 1)))


def _to_unit(vectors: NDArray[Any], texts: Sequence[str]) -> Vectors:
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
    is_wrong = ~(np.isfinite(norms) & (norms > 0))
    if is_wrong.any():
        index = int(np.argmax(is_wrong))
        raise DataError(
            f"text {texts[index][:80]!r}: its vector has length {norms[index]}; expected a finite "
            f"length above 0. Remove the text, or use another embedder."
        )
    unit: Vectors = (vectors / norms[:, None]).astype(np.float32)
    return unit


def _embed_words(texts: Sequence[str]) -> NDArray[np.float64]:
    from sklearn.feature_extraction import FeatureHasher

    hasher = FeatureHasher(WORD_DIMENSION, input_type="pair", dtype=np.float64)
    vectors: NDArray[np.float64] = hasher.transform(map(_weigh_features, texts)).toarray()
    return vectors


def _weigh_features(text: str) -> Iterator[tuple[str, float]]:
    """Yield features and weights of a text, each part of them with length 1."""
    words = normalise(text)
    parts = [
        Counter(f"word {word}" for word in words),
        Counter(f"pair {first} {second}" for first, second in pairwise(words)),
        Counter(
            f"part {padded[i : i + 3]}"
            for padded in (f" {word} " for word in words if len(word) > 1)
            for i in range(len(padded) - 2)
        ),
        # Emoji and formulas have no words; they are told apart by their characters.
        Counter(f"sign {sign}" for sign in text if not words and not sign.isspace()),
    ]
    for counts in parts:
        weights = {feature: 1 + math.log(count) for feature, count in counts.items()}
        length = math.sqrt(sum(weight**2 for weight in weights.values()))
        yield from ((feature, weight / length) for feature, weight in weights.items())


def _embed_hidden(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]
) -> Vectors:
    from sft_atlas.model.states import POOLINGS, pooled_states

    prefix = text_prefix(tokenizer).id
    encoded = [behind_prefix(prefix, ids) for ids in encode_texts(tokenizer, texts)]
    layer = model.config.get_text_config().num_hidden_layers // 2
    pooling = POOLINGS.index("mean")
    return np.concatenate(
        [
            pooled_states(
                model, [ids[: 1 + MAX_TOKENS] for ids in encoded[start : start + _TEXTS]]
            )[layer, pooling]
            for start in range(0, len(encoded), _TEXTS)
        ]
    )


def _load_sentence_transformer(embedder: Embedder) -> Callable[[Sequence[str]], NDArray[Any]]:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise StudyError(
            f"embedder {embedder.name}: the package sentence-transformers is not installed; "
            f"expected it for this embedder. Run `pip install 'sft-atlas[sentence-transformers]'`, "
            f"or use the embedder `words`."
        ) from error
    source = embedder.source
    assert source is not None
    path = source.path
    if path is not None and source.sha256 is not None and files.sha256_tree(path) != source.sha256:
        raise StudyError(
            f"embedder {embedder.name}: {path} changed since the study was read; expected SHA-256 "
            f"{source.sha256}. Start again, or restore the folder."
        )
    name = str(source.hub if path is None else path)
    try:
        model = SentenceTransformer(name, revision=source.revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise StudyError(
            f"embedder {embedder.name}: cannot be loaded from {name} ({error}); expected a "
            f"sentence-transformers model. Check the path or id, or use the embedder `words`."
        ) from error

    def encode(texts: Sequence[str]) -> NDArray[Any]:
        return np.asarray(model.encode(list(texts), show_progress_bar=False), np.float32)

    return encode
