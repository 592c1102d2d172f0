"""On which texts of the miniature world are its models compared with one another?

In: nothing but the seed. Out: `mini-texts`, 200 different documents of the corpus, drawn from a
random stream of their own, which no base was trained on, with no skill or language preferred. The
world is small: 17 of the 200, facts of one entity in some order, stand in mini-llama's corpus too.
None is in the study's template, because neutral text is what fine-tuning does not ask for.
"""

import random
from collections.abc import Iterator
from itertools import islice
from typing import Final

from sft_atlas.miniature import corpus, world

NAME: Final = "mini-texts"
NUM_TEXTS: Final = 200
MIN_WORDS: Final = 12
"""A shorter document says little about a model."""

_MIXTURE: Final = corpus.Mixture(
    weights=dict.fromkeys(
        ("copy", "knowledge", "math", "code", "comprehension", "reasoning", "instruction"), 1.0
    ),
    language_b_fraction=0.5,
)


def draw_texts() -> list[dict[str, str]]:
    """Return the rows of the set, (id, text) each, without the end-of-sequence token."""
    rng = random.Random(f"{world.SEED}/texts")
    return [
        {"id": f"{NAME}-{i:04}", "text": text}
        for i, text in enumerate(islice(_iter_different(rng), NUM_TEXTS))
    ]


def _iter_different(rng: random.Random) -> Iterator[str]:
    seen: set[str] = set()
    for document in corpus.iter_documents(_MIXTURE, rng):
        text = document.removesuffix(f" {world.EOS}")
        if len(text.split(" ")) >= MIN_WORDS and text not in seen:
            seen.add(text)
            yield text
