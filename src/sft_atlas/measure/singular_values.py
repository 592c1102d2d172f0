"""Which singular values has a change of one matrix, and in how many directions does it go?

In: a matrix, or the low-rank factors of one. Out: its norms and ranks. A low-rank change is never
multiplied out: the singular values of B A are those of R_B R_A^T, the small triangles of two thin
QR decompositions.
"""

import math
from typing import Final, NamedTuple, final

import torch
from torch import Tensor

from sft_atlas.errors import DataError
from sft_atlas.weights.adapter import LoraFactors

_DIRECT_SIZE: Final = 512
"""Shorter side up to which singular values are computed directly."""


@final
class Spectrum(NamedTuple):
    """The singular values of a matrix in five numbers; ranks are None for a matrix of zeros."""

    rank_bound: int
    """Largest rank that the change can have: the adapter's, or the shorter side."""
    spectral_norm: float
    """Largest singular value."""
    stable_rank: float | None
    """||.||_F^2 / ||.||_2^2, from 1 to the rank (Rudelson and Vershynin 2007)."""
    effective_rank: float | None
    """exp of the entropy of the singular values over their sum, from 1 to the rank (Roy and
    Vetterli 2007)."""
    nuclear_norm: float
    """Sum of the singular values."""
    top_share: float | None
    """Share of the squared Frobenius norm in the largest singular value: 1 / stable rank."""


def spectrum_of(change: Tensor | LoraFactors, *, where: str = "matrix") -> Spectrum:
    """Sum up the singular values of a matrix of any shape, or of scale B A from its factors.

    Values come from float64 arithmetic: directly where the shorter side is at most 512, and above
    that as roots of the eigenvalues of the smaller Gram matrix, which is faster and loses only
    values below 1e-8 of the largest.

    Raises:
        DataError: if it holds NaN or infinity; `where` names it.
    """
    if isinstance(change, LoraFactors):
        check_finite(where, change.up, "B of the adapter")
        check_finite(where, change.down, "A of the adapter")
        bound = min(change.up.shape[1], change.up.shape[0], change.down.shape[1])
        return _spectrum(_factored_values(change).tolist(), rank_bound=bound)
    check_finite(where, change, "the change")
    if not bool(change.any()):
        return _spectrum([], rank_bound=min(change.shape))
    return _spectrum(_dense_values(change.double()).tolist(), rank_bound=min(change.shape))


def _factored_values(factors: LoraFactors) -> Tensor:
    up = torch.linalg.qr(factors.up.double(), mode="r").R
    down = torch.linalg.qr(factors.down.double().T, mode="r").R
    values: Tensor = torch.linalg.svdvals(up @ down.T)
    # Factors that cancel each other out leave their rounding, which has no direction.
    rounding = torch.finfo(up.dtype).eps * len(values)
    floor = rounding * torch.linalg.norm(up) * torch.linalg.norm(down)
    return torch.where(values > floor, values, 0.0) * abs(factors.scale)


def _dense_values(matrix: Tensor) -> Tensor:
    # Relative to the largest weight, so that squares of tiny changes do not vanish.
    largest = matrix.abs().max()
    tall = (matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T) / largest
    values: Tensor
    if tall.shape[1] <= _DIRECT_SIZE:
        values = torch.linalg.svdvals(tall)
    else:
        values = torch.linalg.eigvalsh(tall.T @ tall).clamp(min=0).sqrt().flip(0)
    return values * largest


def _spectrum(values: list[float], *, rank_bound: int) -> Spectrum:
    """Sum up descending singular values; none, or only zeros, is a matrix that did not change."""
    if not values or values[0] == 0:
        return Spectrum(rank_bound, 0.0, None, None, 0.0, None)
    top = values[0]
    relative = [value / top for value in values]
    total = math.fsum(relative)
    stable_rank = math.fsum(value * value for value in relative)
    shares = [value / total for value in relative if value > 0]
    entropy = -math.fsum(share * math.log(share) for share in shares)
    return Spectrum(
        rank_bound=rank_bound,
        spectral_norm=top,
        stable_rank=stable_rank,
        effective_rank=math.exp(entropy),
        nuclear_norm=total * top,
        top_share=1 / stable_rank,
    )


def check_finite(name: str, tensor: Tensor, what: str) -> None:
    """Refuse NaN and infinity; `what` says which state of the weight it is.

    Raises:
        DataError: if there is one.
    """
    if not bool(torch.isfinite(tensor).all()):
        raise DataError(
            f"{name}: {what} holds NaN or infinity; expected finite weights. Its spectrum would "
            f"mean nothing: look at the run's loss curve, and train the cell again."
        )
