"""How likely are the scores under given variances, and which way do the variances want to move?

In: the factorised equations of a design and the cross-products of y. Out: the restricted
likelihood (Patterson and Thompson 1971), its slope, and the average of observed and expected
information (Johnson and Thompson 1995). Many y can share one factorisation: they are columns.
"""

from dataclasses import dataclass

import numpy as np

from sft_atlas.statistics.clusters import Floats
from sft_atlas.statistics.mixed_equations import (
    Blocks,
    Design,
    Factorised,
    Inverse,
    cross_effects,
    factor_parts,
    factorise,
    from_parts,
    invert,
    solve,
    unscale,
)


@dataclass(frozen=True, kw_only=True)
class State:
    """What the likelihood, its slope and its curvature are at one set of variances."""

    variances: Floats
    """By factor, then the residual's."""
    equations: Factorised
    inverse: Inverse
    effects: Blocks
    """On the scale of y."""
    log_likelihood: float
    scores: Floats
    information: Floats


def state_at(design: Design, right: Blocks, square: float, variances: Floats) -> State:
    """Evaluate likelihood, scores and average information; `right` is [Z, X]'y, `square` y'y."""
    residual = float(variances[-1])
    ratios = variances[:-1] / residual
    equations = factorise(design, ratios)
    scaled = solve(equations, right)
    effects = unscale(equations, scaled)
    inverse = invert(equations)
    explained = float(inner_products(effects, right)[0])
    freedom = design.num_rows - design.num_fixed
    quadratic = (square - explained) / residual
    deviance = freedom * np.log(2 * np.pi * residual) + equations.log_determinant + quadratic
    expected = expected_squares(equations, inverse, variances)
    working = projections(equations, right, effects, square, residual)
    return State(
        variances=variances,
        equations=equations,
        inverse=inverse,
        effects=effects,
        log_likelihood=-0.5 * float(deviance),
        scores=-0.5 * (expected - working.squares[:, 0]),
        information=average_information(equations, working, residual)[0],
    )


def expected_squares(equations: Factorised, inverse: Inverse, variances: Floats) -> Floats:
    """Return tr(P V_k): the mean of y'P V_k P y at these variances, which are all above 0."""
    design = equations.design
    sizes = np.array(design.sizes, dtype=np.float64)
    told = sizes - np.array([part.sum() for part in inverse.diagonals])
    left = (design.num_rows - design.num_fixed - told.sum()) / variances[-1]
    return np.append(told / variances[:-1], left)


@dataclass(frozen=True, kw_only=True)
class Projections:
    """P y seen from every factor, for one or many y."""

    parts: tuple[Floats, ...]
    """Z_k' P y, (levels, columns)."""
    residual: Blocks
    """[Z, X]' P y."""
    squares: Floats
    """y'P V_k P y, (components, columns)."""


def projections(
    equations: Factorised, right: Blocks, effects: Blocks, square: float | Floats, residual: float
) -> Projections:
    """Compute Z'Py and its squares from cross-products; columns are different y."""
    design = equations.design
    fitted = cross_effects(design, effects)
    left = Blocks(
        first=(right.first - fitted.first) / residual,
        second=(right.second - fitted.second) / residual,
        rest=(right.rest - fitted.rest) / residual,
    )
    parts = factor_parts(design, left)
    error = square - inner_products(effects, right)
    error = (error - residual * inner_products(effects, left)) / residual**2
    squares = [(part * part).sum(axis=0) for part in parts]
    return Projections(parts=parts, residual=left, squares=np.array([*squares, error]))


def average_information(equations: Factorised, working: Projections, residual: float) -> Floats:
    """Return y'P V_k P V_l P y / 2 for all pairs of components, (columns, components, components).

    Source: Johnson and Thompson 1995, eq. 7.
    """
    design = equations.design
    num_columns = working.squares.shape[1]
    num_parts = len(working.parts)
    # All components are one solve: component k has the columns of its own block alone.
    spread = []
    for place, part in enumerate(working.parts):
        wide = np.zeros((part.shape[0], num_parts * num_columns))
        wide[:, place * num_columns : (place + 1) * num_columns] = part
        spread.append(wide)
    nothing = np.zeros((design.num_fixed, num_parts * num_columns))
    crossed = cross_effects(design, from_parts(design, tuple(spread), nothing))
    right = Blocks(
        first=np.hstack([crossed.first, working.residual.first]),
        second=np.hstack([crossed.second, working.residual.second]),
        rest=np.hstack([crossed.rest, working.residual.rest]),
    )
    solved = _by_component(unscale(equations, solve(equations, right)), num_columns)
    given = _by_component(right, num_columns)
    result = np.empty((num_columns, num_parts + 1, num_parts + 1))
    for k, this in enumerate(given):
        seen = factor_parts(design, this)
        for j in range(k + 1):
            inner = (
                (seen[j] * working.parts[j]).sum(axis=0) if j < num_parts else working.squares[-1]
            )
            value = 0.5 / residual * (inner - inner_products(solved[j], this))
            result[:, k, j] = result[:, j, k] = value
    return result


def _by_component(blocks: Blocks, num_columns: int) -> list[Blocks]:
    """Cut columns into one group per component."""
    starts = range(0, blocks.rest.shape[1], num_columns)
    return [
        Blocks(
            first=blocks.first[:, start : start + num_columns],
            second=blocks.second[:, start : start + num_columns],
            rest=blocks.rest[:, start : start + num_columns],
        )
        for start in starts
    ]


def inner_products(first: Blocks, second: Blocks) -> Floats:
    """Inner product per column."""
    total: Floats = (
        (first.first * second.first).sum(axis=0)
        + (first.second * second.second).sum(axis=0)
        + (first.rest * second.rest).sum(axis=0)
    )
    return total
