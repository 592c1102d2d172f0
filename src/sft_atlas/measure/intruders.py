"""Which leading directions of a tuned matrix does no direction of its base resemble?

In: one matrix before and after training. Out: how many of the k leading left singular vectors of
the tuned matrix are intruders (Shuttleworth et al., arXiv 2410.21228): the largest |cosine| with
any left singular vector of the base matrix is below epsilon. All left vectors of the base are
needed, which is the dear part: they are computed once per base matrix and kept, in memory and, if
asked, on the disk. The leading vectors of a large tuned matrix come from a block Krylov space whose
error is estimated; where the estimate is not small enough, a full decomposition is made.
"""

import hashlib
from collections import OrderedDict
from pathlib import Path
from typing import Any, Final, NamedTuple, final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sft_atlas import files

EPSILONS: Final = (0.3, 0.5, 0.6, 0.8)

_FULL_SIZE: Final = 512
"""Matrices whose shorter side is at most this are decomposed in full."""
_OVERSAMPLE: Final = 10
_ANGLE: Final = 0.01
"""Largest estimated error of a leading vector, as the sine of an angle: cosines move by as much."""
_MAX_BASIS_SHARE: Final = 0.25
"""Share of the shorter side above which a Krylov space is no cheaper than a decomposition."""
_FORMAT: Final = "left-vectors/1"


@final
class Intruders(NamedTuple):
    """How many of a tuned matrix's leading left singular vectors no base vector resembles."""

    num_vectors: int
    """Vectors compared: at most k, and none whose singular value is zero."""
    counts: tuple[int, ...] | None
    """Intruders for each of `EPSILONS`; None where either matrix is all zero."""


@final
class BaseVectors:
    """The left singular vectors of a base model's matrices, computed when they are first asked for.

    `folder` keeps them for later processes, one file per matrix with the digest of the matrix; a
    file that is damaged or of another matrix is made anew, and all of them can be deleted. Beyond
    `max_bytes` the ones asked for longest ago leave the memory, all but the latest; beyond
    `max_file_bytes` no more files are written.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        max_bytes: int = 4 << 30,
        max_file_bytes: int = 16 << 30,
    ) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._max_file_bytes = max_file_bytes
        self._kept: OrderedDict[str, Tensor] = OrderedDict()

    @property
    def num_bytes(self) -> int:
        """Bytes of the vectors in memory."""
        return sum(vectors.nbytes for vectors in self._kept.values())

    def left(self, name: str, matrix: Tensor) -> Tensor:
        """Return the left singular vectors of a base matrix that are not of singular value zero.

        Shape (rows, rank) in float32 on the matrix's device, by descending singular value. The
        caller answers for it that `name` is always the same matrix.
        """
        vectors = self._kept.get(name)
        if vectors is None:
            vectors = self._read_or_compute(name, matrix)
            self._kept[name] = vectors
        self._kept.move_to_end(name)
        while self.num_bytes > self._max_bytes and len(self._kept) > 1:
            self._kept.popitem(last=False)
        return vectors.to(matrix.device)

    def _read_or_compute(self, name: str, matrix: Tensor) -> Tensor:
        if self._folder is None:
            return left_vectors(matrix).vectors.cpu()
        path = self._folder / f"{name}.safetensors"
        of_matrix = _digest(matrix)
        stored = _read_vectors(path, of_matrix)
        if stored is not None:
            return stored
        vectors = left_vectors(matrix).vectors.cpu()
        present = sum(p.stat().st_size for p in self._folder.glob("*.safetensors"))
        if present + vectors.nbytes <= self._max_file_bytes:
            facts = {"format": _FORMAT, "matrix": of_matrix, "vectors": _digest(vectors)}
            files.write_atomic(path, save({"left": vectors.contiguous()}, metadata=facts))
        return vectors


@final
class LeftVectors(NamedTuple):
    """Left singular vectors and their singular values, descending; none of value zero."""

    vectors: Tensor
    """Shape (rows, number of vectors)."""
    values: Tensor


def count_intruders(
    tuned: Tensor, base_left: Tensor, *, num_vectors: int = 10, seed: int = 0
) -> Intruders:
    """Count the leading left singular vectors of `tuned` that no column of `base_left` resembles.

    `base_left` holds all left singular vectors of the base matrix, shape (rows, rank). Agrees with
    peft's `reduce_intruder_dimension` (left side, top 10, epsilon 0.5), which counts vectors of
    singular value zero too; they have no direction, so they are left out here.
    """
    leading = leading_left_vectors(tuned, num_vectors, seed=seed).vectors
    if leading.shape[1] == 0 or base_left.shape[1] == 0:
        return Intruders(num_vectors=0, counts=None)
    likeness = (leading.T @ base_left.to(leading)).abs().amax(dim=1)
    counts = tuple(int((likeness < epsilon).sum().item()) for epsilon in EPSILONS)
    return Intruders(num_vectors=leading.shape[1], counts=counts)


def left_vectors(matrix: Tensor) -> LeftVectors:
    """Decompose a matrix in full, in float32."""
    matrix = matrix.float()
    if matrix.shape[0] >= matrix.shape[1]:
        vectors, values, _ = torch.linalg.svd(matrix, full_matrices=False)
    else:
        # LAPACK is several times faster on the tall side.
        _, values, transposed = torch.linalg.svd(matrix.T, full_matrices=False)
        vectors = transposed.T
    return _without_zeros(LeftVectors(vectors, values), matrix)


def leading_left_vectors(matrix: Tensor, num_vectors: int, *, seed: int = 0) -> LeftVectors:
    """Return the left singular vectors of the largest singular values, at most `num_vectors`.

    Each vector is right to within a sine of 0.01 as its residual and the gap to the neighbouring
    singular values tell (Wedin 1972); equal values have no gap, so such a matrix is decomposed in
    full.
    """
    matrix = matrix.float()
    found = None
    if min(matrix.shape) > _FULL_SIZE:
        found = _krylov_vectors(matrix, num_vectors, seed)
    found = found or left_vectors(matrix)
    top = LeftVectors(found.vectors[:, :num_vectors], found.values[:num_vectors])
    return _without_zeros(top, matrix)


def _krylov_vectors(matrix: Tensor, num_vectors: int, seed: int) -> LeftVectors | None:
    """Search the space that (A A^T)^i spans from a random block (Musco and Musco 2015).

    Returns None where it would have to grow too large to be right.
    """
    width = num_vectors + _OVERSAMPLE
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(matrix.shape[0], width, generator=generator).to(matrix)
    block = torch.linalg.qr(matrix @ (matrix.T @ start)).Q
    basis, images = block, matrix.T @ block
    max_basis = int(_MAX_BASIS_SHARE * min(matrix.shape))
    while basis.shape[1] + width <= max_basis:
        block = matrix @ images[:, -width:]
        # Twice is enough: rounding leaves parts of the basis in what was subtracted once.
        for _ in range(2):
            block = torch.linalg.qr(block - basis @ (basis.T @ block)).Q
        basis = torch.cat([basis, block], dim=1)
        images = torch.cat([images, matrix.T @ block], dim=1)
        right, values, inner = torch.linalg.svd(images, full_matrices=False)
        vectors = basis @ inner.T[:, :num_vectors]
        residual = matrix @ right[:, :num_vectors] - vectors * values[:num_vectors]
        error = torch.linalg.vector_norm(residual, dim=0)
        if bool((error <= _ANGLE * _gaps(values)[:num_vectors]).all()):
            return LeftVectors(vectors, values[:num_vectors])
    return None


def _gaps(values: Tensor) -> Tensor:
    """Return the distance of each but the last of descending values to its nearest neighbour."""
    below = values[:-1] - values[1:]
    above = torch.cat([below.new_tensor([torch.inf]), below[:-1]])
    return torch.minimum(above, below)


def _without_zeros(found: LeftVectors, matrix: Tensor) -> LeftVectors:
    if found.values.numel() == 0:
        return found
    floor = found.values[0] * max(matrix.shape) * torch.finfo(torch.float32).eps
    rank = int((found.values > floor).sum().item())
    return LeftVectors(found.vectors[:, :rank], found.values[:rank])


def _read_vectors(path: Path, of_matrix: str) -> Tensor | None:
    """Return stored vectors, or None where there are none of this matrix or they are damaged."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as stored:
            facts = stored.metadata() or {}
            vectors: Tensor = stored.get_tensor("left").clone()
    except (OSError, SafetensorError):
        return None
    expected = {"format": _FORMAT, "matrix": of_matrix, "vectors": _digest(vectors)}
    return vectors if facts == expected else None


def _digest(tensor: Tensor) -> str:
    plain = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{plain.dtype} {tuple(plain.shape)}\n".encode())
    bytes_of_tensor: Any = plain.flatten().view(torch.uint8).numpy()
    digest.update(bytes_of_tensor)
    return digest.hexdigest()
