"""How are the equations of crossed random effects solved quickly, for one set of variances?

In: y = X b + sum_k Z_k u_k + e, each Z_k the indicator matrix of a factor. Out: the factorised
mixed-model equations (Henderson 1975), their solutions, log-determinant and the diagonal of their
inverse. After the cross-products nothing depends on the number of rows.

The decision a reader would ask about: no sparse Cholesky. The factor with the most levels has a
diagonal block, for each row has one level of it. A second factor keeps a diagonal block after the
first is eliminated if the first is nested in it. Both are eliminated by division; what is left is
dense and small. Effects are scaled to unit variance (u = sqrt(s) v, as in Bates et al. 2015), so
that a variance of 0 is an ordinary point.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import linalg, sparse
from scipy.sparse import linalg as sparse_linalg

from sft_atlas.statistics.clusters import Floats, Ints

MAX_DENSE_LEVELS: Final = 6000
"""Most levels that may be left after elimination: 0.3 GB per matrix, 20 s per step on two cores."""

_CHUNK_LEVELS: Final = 4096
_ALIASED: Final = 1e-9


class NotEstimableError(ValueError):
    """Say that the rows cannot tell these effects; the message is a reason for a reader."""


@dataclass(frozen=True, kw_only=True)
class Design:
    """Cross-products of rows, with factors in the order of elimination: first, second, the rest.

    Levels of the rest are one block, factor after factor, then the columns of X.
    """

    num_rows: int
    names: tuple[str, ...]
    """Factors in the order in which they were given."""
    levels: tuple[Ints, ...]
    """Level of each row, by factor."""
    sizes: tuple[int, ...]
    """Number of levels, by factor."""
    first: int
    """Place in `names` of the factor that is eliminated first."""
    second: int | None
    """Of the one that is eliminated next; None where the first is nested in no other."""
    rest: tuple[int, ...]
    fixed: Floats
    """X without columns that others explain, (rows, columns)."""
    first_counts: Floats
    parent: Ints
    """Level of the second factor that each level of the first lies in."""
    first_rest: sparse.csr_array
    """Z_first' [Z_rest, X]."""
    rest_rest: Floats
    """[Z_rest, X]' [Z_rest, X]."""
    rows_rest: sparse.csr_array
    """[Z_rest, X]."""

    @property
    def num_fixed(self) -> int:
        """Number of columns of X."""
        return int(self.fixed.shape[1])

    def rest_block(self, place: int) -> slice:
        """Columns of one of the rest's factors inside the rest."""
        start = sum(self.sizes[other] for other in self.rest[: self.rest.index(place)])
        return slice(start, start + self.sizes[place])


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Vectors over all levels and fixed columns: one column per right-hand side."""

    first: Floats
    second: Floats
    rest: Floats


@dataclass(frozen=True, kw_only=True)
class Factorised:
    """The equations at given ratios of variances to the residual variance, in scaled effects."""

    design: Design
    roots: Blocks
    """sqrt(ratio) of each level, 1 for fixed columns; (levels, 1)."""
    first_diagonal: Floats
    second_diagonal: Floats
    first_rest: sparse.csr_array
    second_rest: sparse.csr_array
    cholesky: Floats
    """Lower, of what is left after both eliminations."""
    log_determinant: float


@dataclass(frozen=True, kw_only=True)
class Inverse:
    """Parts of the inverse of the factorised equations."""

    diagonals: tuple[Floats, ...]
    """By factor: prediction error variances of scaled effects over the residual variance."""
    fixed: Floats
    """Covariance of the fixed effects over the residual variance."""


def make_design(factors: Mapping[str, Ints], fixed: Floats) -> Design:
    """Form the cross-products.

    `factors` gives each row's level, numbered 0, 1, ... without holes; `fixed` is X, of full rank.
    At least one factor is needed. Raises `NotEstimableError` for more than `MAX_DENSE_LEVELS`
    levels that cannot be eliminated.
    """
    names, levels = tuple(factors), tuple(factors.values())
    sizes = tuple(int(level.max()) + 1 for level in levels)
    first = int(np.argmax(sizes))
    num_rows = levels[first].size
    others = [place for place in range(len(names)) if place != first]
    parents = {place: _parents(levels[first], levels[place], sizes[first]) for place in others}
    nested = [place for place in others if parents[place] is not None]
    second = max(nested, key=lambda place: sizes[place]) if nested else None
    rest = tuple(place for place in others if place != second)
    num_left = sum(sizes[place] for place in rest)
    if num_left > MAX_DENSE_LEVELS:
        raise NotEstimableError(
            f"{num_left:,} levels of crossed factors are too many to solve for; at most "
            f"{MAX_DENSE_LEVELS:,} are"
        )
    parts = [_indicators(levels[place], sizes[place]) for place in rest]
    rows_rest = sparse.hstack([*parts, sparse.csr_array(fixed)], format="csr")
    first_rows = _indicators(levels[first], sizes[first])
    parent = None if second is None else parents[second]
    return Design(
        num_rows=num_rows,
        names=names,
        levels=levels,
        sizes=sizes,
        first=first,
        second=second,
        rest=rest,
        fixed=fixed,
        first_counts=np.bincount(levels[first], minlength=sizes[first]).astype(np.float64),
        parent=np.zeros(sizes[first], dtype=np.int64) if parent is None else parent,
        first_rest=sparse.csr_array(first_rows.T @ rows_rest),
        rest_rest=(rows_rest.T @ rows_rest).toarray(),
        rows_rest=rows_rest,
    )


def cross_rows(design: Design, values: Floats) -> Blocks:
    """Return [Z, X]' values for values of shape (rows, columns)."""
    first = _sum_by(values, design.levels[design.first], design.sizes[design.first])
    return Blocks(first=first, second=_to_second(design, first), rest=design.rows_rest.T @ values)


def cross_effects(design: Design, effects: Blocks) -> Blocks:
    """Return [Z, X]' [Z, X] effects without touching the rows."""
    seen = effects.first + (0.0 if design.second is None else effects.second[design.parent])
    first = design.first_counts[:, None] * seen + design.first_rest @ effects.rest
    rest = design.first_rest.T @ seen + design.rest_rest @ effects.rest
    return Blocks(first=first, second=_to_second(design, first), rest=rest)


def factorise(design: Design, ratios: Floats) -> Factorised:
    """Eliminate the first and second factor and take the Cholesky root of the rest.

    `ratios` are variances over the residual variance, by factor, >= 0.
    """
    roots = _roots(design, np.sqrt(ratios))
    g1, g2, gr = roots.first[:, 0], roots.second, roots.rest[:, 0]
    d1 = 1.0 + g1**2 * design.first_counts
    scaled = _scale(design.first_rest, g1, gr)
    whole = gr[:, None] * design.rest_rest * gr
    num_random = gr.size - design.num_fixed
    whole[np.arange(num_random), np.arange(num_random)] += 1.0
    whole -= (scaled.T @ _scale(scaled, 1 / d1)).toarray()
    # What a level of the second keeps of a level of the first is its count over d1.
    d2 = 1.0 + g2[:, 0] ** 2 * _to_second(design, (design.first_counts / d1)[:, None])[:, 0]
    kept = _scale(design.first_rest, g2[design.parent, 0] / d1, gr) if g2.size else None
    if kept is None:
        second_rest = sparse.csr_array((0, gr.size))
    else:
        second_rest = sparse.csr_array(_indicators(design.parent, d2.size).T @ kept)
        whole -= (second_rest.T @ _scale(second_rest, 1 / d2)).toarray()
    root = linalg.cholesky(whole, lower=True, check_finite=False)
    log_determinant = np.log(d1).sum() + np.log(d2).sum() + 2 * np.log(np.diag(root)).sum()
    return Factorised(
        design=design,
        roots=roots,
        first_diagonal=d1,
        second_diagonal=d2,
        first_rest=scaled,
        second_rest=second_rest,
        cholesky=root,
        log_determinant=float(log_determinant),
    )


def solve(equations: Factorised, right: Blocks) -> Blocks:
    """Solve for scaled effects; `right` is [Z, X]' of something, not yet scaled."""
    design, roots = equations.design, equations.roots
    d1, d2 = equations.first_diagonal[:, None], equations.second_diagonal[:, None]
    first, second, rest = (
        roots.first * right.first,
        roots.second * right.second,
        roots.rest * right.rest,
    )
    rest = rest - equations.first_rest.T @ (first / d1)
    # first x second couples by sqrt(ratio1 * ratio2) * count.
    link = (roots.first[:, 0] * design.first_counts)[:, None]
    if second.size:
        link = link * roots.second[design.parent]
        second = second - _to_second(design, link * first / d1)
        rest = rest - equations.second_rest.T @ (second / d2)
    rest = linalg.cho_solve((equations.cholesky, True), rest, check_finite=False)
    if second.size:
        second = (second - equations.second_rest @ rest) / d2
        first = first - link * second[design.parent]
    first = (first - equations.first_rest @ rest) / d1
    return Blocks(first=first, second=second, rest=rest)


def unscale(equations: Factorised, effects: Blocks) -> Blocks:
    """Turn scaled effects into effects on the scale of y."""
    roots = equations.roots
    return Blocks(
        first=roots.first * effects.first,
        second=roots.second * effects.second,
        rest=roots.rest * effects.rest,
    )


def invert(equations: Factorised) -> Inverse:
    """Compute the diagonal of the inverse for all levels, and its block of fixed effects."""
    design, roots = equations.design, equations.roots
    # The root is 0 above its diagonal, and so is what dpotri returns.
    lower = linalg.lapack.dpotri(equations.cholesky, lower=1)[0]
    inner = lower + lower.T
    np.fill_diagonal(inner, np.diag(lower))
    d1, d2 = equations.first_diagonal, equations.second_diagonal
    k1 = _scale(equations.first_rest, 1 / d1)
    first = 1 / d1 + _quadratic(k1, inner)
    diagonals: dict[int, Floats] = {}
    if design.second is not None:
        k2 = _scale(equations.second_rest, 1 / d2)
        across = k2 @ inner
        second = 1 / d2 + k2.multiply(across).sum(axis=1)
        link = roots.first[:, 0] * roots.second[design.parent, 0] * design.first_counts / d1
        owner = np.repeat(np.arange(d1.size), np.diff(k1.indptr))
        shared = np.bincount(
            owner, k1.data * across[design.parent[owner], k1.indices], minlength=d1.size
        )
        first += link**2 * second[design.parent] - 2 * link * shared
        diagonals[design.second] = second
    diagonals[design.first] = first
    diagonal = np.diag(inner)
    for place in design.rest:
        diagonals[place] = diagonal[design.rest_block(place)]
    start = inner.shape[0] - design.num_fixed
    return Inverse(
        diagonals=tuple(diagonals[place] for place in range(len(design.names))),
        fixed=inner[start:, start:],
    )


def factor_parts(design: Design, blocks: Blocks) -> tuple[Floats, ...]:
    """Split into one (levels, columns) array per factor, in the order of `design.names`."""
    parts = {design.first: blocks.first}
    if design.second is not None:
        parts[design.second] = blocks.second
    parts |= {place: blocks.rest[design.rest_block(place)] for place in design.rest}
    return tuple(parts[place] for place in range(len(design.names)))


def from_parts(design: Design, parts: tuple[Floats, ...], fixed: Floats) -> Blocks:
    """Undo `factor_parts`; `fixed` is (columns of X, columns)."""
    rest = [parts[place] for place in design.rest]
    return Blocks(
        first=parts[design.first],
        second=parts[design.second] if design.second is not None else fixed[:0],
        rest=np.concatenate([*rest, fixed]),
    )


def is_explained(design: Design, place: int) -> bool:
    """Tell whether X alone explains every level of a factor, so that nothing is left to it."""
    fixed = design.fixed
    sums = _sum_by(fixed, design.levels[place], design.sizes[place])
    explained = np.einsum("ij,ij->", sums, np.linalg.solve(fixed.T @ fixed, sums.T).T)
    return bool(design.num_rows - explained <= _ALIASED * design.num_rows)


def leaves_nothing(design: Design, values: Floats, share: float) -> bool:
    """Tell whether fixed and random effects together fit all but a share of the values' squares."""
    parts = [_indicators(*pair) for pair in zip(design.levels, design.sizes, strict=True)]
    columns = sparse.hstack([*parts, sparse.csr_array(design.fixed)], format="csr")
    left = sparse_linalg.lsmr(columns, values, atol=1e-8, btol=1e-8, conlim=0, maxiter=500)[3]
    return bool(left**2 < share * (values @ values))


def _roots(design: Design, roots: Floats) -> Blocks:
    parts = tuple(np.full((size, 1), root) for size, root in zip(design.sizes, roots, strict=True))
    return from_parts(design, parts, np.ones((design.num_fixed, 1)))


def _parents(inner: Ints, outer: Ints, num_inner: int) -> Ints | None:
    """Level of `outer` that each level of `inner` lies in; None where one lies in several."""
    parent = np.zeros(num_inner, dtype=np.int64)
    parent[inner] = outer
    return parent if bool((parent[inner] == outer).all()) else None


def _indicators(levels: Ints, size: int) -> sparse.csr_array:
    rows = np.arange(levels.size)
    return sparse.csr_array((np.ones(levels.size), (rows, levels)), shape=(levels.size, size))


def _sum_by(values: Floats, levels: Ints, size: int) -> Floats:
    summed: Floats = _indicators(levels, size).T @ values
    return summed


def _to_second(design: Design, first: Floats) -> Floats:
    if design.second is None:
        return first[:0]
    return _sum_by(first, design.parent, design.sizes[design.second])


def _scale(
    matrix: sparse.csr_array, rows: Floats, columns: Floats | None = None
) -> sparse.csr_array:
    """Multiply each row, and each column, by a number."""
    data = matrix.data * np.repeat(rows, np.diff(matrix.indptr))
    if columns is not None:
        data = data * columns[matrix.indices]
    return sparse.csr_array((data, matrix.indices, matrix.indptr), shape=matrix.shape)


def _quadratic(rows: sparse.csr_array, inner: Floats) -> Floats:
    """Return row' inner row for each row, in chunks that fit in memory."""
    parts = []
    for start in range(0, rows.shape[0], _CHUNK_LEVELS):
        part = rows[start : start + _CHUNK_LEVELS]
        parts.append(np.asarray(part.multiply(part @ inner).sum(axis=1)).ravel())
    return np.concatenate(parts)
