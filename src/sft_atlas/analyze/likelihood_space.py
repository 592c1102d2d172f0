"""How far apart are two models, as the texts see them?

In: log-likelihoods of K cells on N texts. Out: one centred vector per cell, whose squared distance
per text is twice the Kullback-Leibler divergence of the two models (Oyama et al. 2025,
arXiv 2502.16173): 2 KL(p_i || p_j) ~ Var_x(log p_i(x) - log p_j(x)) ~ |q_i - q_j|^2 / N.

The steps are apart and each is named: choose the part of the texts, clip from below, centre every
cell over the texts and every text over the cells. A cell that comes later is clipped and centred
with the numbers of the cells before it, so it moves none of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist, pdist, squareform

from sft_atlas.errors import DataError
from sft_atlas.store.vectors import Variant, Vectors

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

VARIANTS: Final[tuple[Variant, ...]] = ("whole", "prompt", "answer")
MIN_TEXTS: Final = 2


@dataclass(frozen=True, kw_only=True)
class Space:
    """Where cells lie relative to each other, and what it takes to find the place of another."""

    q: Floats
    """(K, N) doubly centred log-likelihoods, nats."""
    origin: Floats
    """(N,) mean over the cells of what remains when each cell is centred over the texts."""
    clip_value: float | None
    """What lower log-likelihoods were raised to; None where nothing was clipped."""

    def place(self, values: Floats) -> Floats:
        """Return (M, N) vectors of other cells in this space, from their log-likelihoods."""
        return _row_centred(_clipped(values, self.clip_value)) - self.origin


def part_values(vectors: Vectors, variant: Variant) -> Floats:
    """Return (K, N) log-likelihoods of one part of the texts: the prompt, the answer, or both."""
    if variant == "whole":
        return vectors.prompt + vectors.answer
    return vectors.prompt if variant == "prompt" else vectors.answer


def part_bytes(vectors: Vectors, variant: Variant) -> NDArray[np.int64]:
    """Return (N,) UTF-8 bytes of that part."""
    if variant == "whole":
        return vectors.prompt_bytes + vectors.answer_bytes
    return vectors.prompt_bytes if variant == "prompt" else vectors.answer_bytes


def usable_texts(vectors: Vectors, variant: Variant) -> Bools:
    """Tell for each text whether every cell read all of it and it has that part.

    A text that one tokenizer cuts is another text to that cell than to the others.
    """
    return ~vectors.is_cut.any(axis=0) & (part_bytes(vectors, variant) > 0)


def distinct_variants(vectors: Vectors) -> tuple[Variant, ...]:
    """Return the variants that texts can be told apart by: a part that none has is left out."""
    has_prompt = bool((usable_texts(vectors, "prompt")).any())
    has_answer = bool((usable_texts(vectors, "answer")).any())
    return VARIANTS if has_prompt and has_answer else ("whole",)


def make_space(
    values: Floats, *, clip_quantile: float | None = 0.02, clip_value: float | None = None
) -> Space:
    """Clip and centre (K, N) log-likelihoods.

    `clip_quantile` is of the whole matrix: a few texts that a model finds next to impossible would
    decide every distance otherwise. None clips nothing. A `clip_value` goes before it.

    Raises:
        DataError: for no cell, fewer than two texts, or a value that is not finite.
    """
    if values.shape[0] < 1 or values.shape[1] < MIN_TEXTS:
        raise DataError(
            f"map: {values.shape[0]} cells on {values.shape[1]} texts; expected at least one cell "
            f"and {MIN_TEXTS} texts. Measure more texts."
        )
    if not np.isfinite(values).all():
        raise DataError(
            "map: a log-likelihood is not finite; expected numbers. Leave that cell out."
        )
    if clip_value is None and clip_quantile is not None:
        clip_value = float(np.quantile(values, clip_quantile))
    rows = _row_centred(_clipped(values, clip_value))
    origin = rows.mean(axis=0)
    return Space(q=rows - origin, origin=origin, clip_value=clip_value)


def _clipped(values: Floats, clip_value: float | None) -> Floats:
    return values if clip_value is None else np.maximum(values, clip_value)


def _row_centred(values: Floats) -> Floats:
    centred: Floats = values - values.mean(axis=1, keepdims=True)
    return centred


def squared_distances(q: Floats, others: Floats | None = None) -> Floats:
    """Return |q_i - q_j|^2 / N, which estimates 2 KL in nats per text.

    (K, K) within q, or (K, M) between q and others. Differences are squared, not expanded, so that
    two cells that agree are exactly 0 apart.
    """
    size = q.shape[1]
    if others is not None:
        between: Floats = cdist(q, others, "sqeuclidean") / size
        return between
    within: Floats = squareform(pdist(q, "sqeuclidean") / size)
    return within


def per_text(q: Floats) -> Floats:
    """Return q over sqrt(N): the same vectors, with plain distances of sqrt(2 KL)."""
    scaled: Floats = q / np.sqrt(q.shape[1])
    return scaled


def bits_per_byte(squared: Floats, mean_bytes: float) -> Floats:
    """Return KL in bits per byte of text from squared distances (2 KL, nats per text)."""
    scaled: Floats = squared / (2 * mean_bytes * np.log(2))
    return scaled


def displacements(q: Floats, bases: Sequence[int] | NDArray[np.int64]) -> Floats:
    """Return (K, N) differences from each cell's base model; `bases[i]` is the row of that.

    A base model's own displacement is 0. |d|^2 / N is 2 KL of the cell and its base.
    """
    moved: Floats = q - q[np.asarray(bases, dtype=np.int64)]
    return moved


def cosines(vectors: Floats) -> Floats:
    """Return (K, K) cosines between rows; NaN where a row is 0 and has no direction."""
    norms = np.linalg.norm(vectors, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        units = vectors / norms[:, None]
    found: Floats = np.clip(units @ units.T, -1, 1)
    return found
