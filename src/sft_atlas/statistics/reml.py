"""How much of the variation of a score belongs to each of several crossed causes?

In: y, fixed columns X and crossed factors (model, data, benchmark and their products), in any
number of rows per level. Out: variance components by restricted maximum likelihood, fixed effects,
and the predicted effect (BLUP) of every level with its error.

The decision a reader would ask about: steps use the average of observed and expected information
(AI-REML: Gilmour, Thompson and Cullis 1995; Johnson and Thompson 1995), which needs a few solves
instead of second derivatives. A step that lowers the likelihood is halved, then replaced by one of
EM, which cannot. Variances stay at or above 0; one at 0 stays there while the likelihood falls off
from it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from sft_atlas.statistics.clusters import Floats, Ints
from sft_atlas.statistics.mixed_equations import (
    Blocks,
    Design,
    NotEstimableError,
    cross_rows,
    factor_parts,
    factorise,
    from_parts,
    invert,
    is_explained,
    leaves_nothing,
    make_design,
    solve,
    unscale,
)
from sft_atlas.statistics.restricted_likelihood import State, inner_products, state_at

RESIDUAL: Final = "residual"
INTERCEPT: Final = "intercept"

_FLOOR: Final = 1e-8
"""Ratio to the residual variance at which a variance counts as 0 while iterating."""
_DECREMENT: Final = 1e-10
_ALIASED: Final = 1e-8
_EXACT: Final = 1e-9
"""Share of the variance below which what the factors leave is rounding."""


@dataclass(frozen=True, kw_only=True)
class RemlFit:
    """Variance components and effects; arrays by component are in the order of `names`."""

    names: tuple[str, ...]
    """The factors that were kept, then `RESIDUAL`."""
    variances: Floats
    standard_errors: Floats
    """From the inverse average information; NaN for a variance of 0."""
    shares: Floats
    """Of the sum of all variances."""
    fixed_names: tuple[str, ...]
    fixed_effects: Floats
    fixed_covariance: Floats
    effects: Mapping[str, Floats]
    """BLUP of each level, by factor; levels are numbered as they were given."""
    effect_errors: Mapping[str, Floats]
    """Standard error of prediction (of u - BLUP), given the variances."""
    scores: Floats
    """Slope of the log-likelihood in each variance: 0, or negative at a variance of 0."""
    log_likelihood: float
    """Restricted, with all constants: of y given that X'X is as it is."""
    is_converged: bool
    num_iterations: int
    num_rows: int
    dropped: Mapping[str, str]
    """Factors and fixed columns that were left out, each with its reason."""
    design: Design


def fit_reml(
    values: Floats,
    factors: Mapping[str, Ints],
    fixed: Mapping[str, Floats] | None = None,
    *,
    start: Mapping[str, float] | None = None,
    max_iterations: int = 100,
) -> RemlFit:
    """Fit y = intercept + X b + sum_k Z_k u_k + e.

    `factors` gives each row's level of each factor, `fixed` further columns of X. Factors that
    nothing can be told of are dropped with a reason: those with one level, with one row per level,
    with the same groups as an earlier one, or which X explains. `start` are variances from which to
    climb, by factor (and `RESIDUAL`); those not named start at an equal part of the whole.

    Raises `NotEstimableError` without rows, with values that are not finite, without variation,
    where all factors were dropped, or where the rest explain every row exactly.
    """
    if values.size == 0 or not np.isfinite(values).all():
        raise NotEstimableError("there are no scores" if values.size == 0 else "scores are missing")
    columns, dropped_columns = _independent(values.size, fixed or {})
    matrix = np.column_stack(list(columns.values()))
    # Of the fixed effects' own size nothing must be lost to rounding: they are taken out first.
    guess = np.linalg.lstsq(matrix, values, rcond=None)[0]
    residual = values - matrix @ guess
    scale = _residual_scale(values, residual, matrix.shape[1])
    kept, dropped = usable_factors(factors)
    if not kept:
        raise NotEstimableError(_all_dropped(dropped))
    design = make_design(kept, matrix)
    explained = {name for place, name in enumerate(kept) if is_explained(design, place)}
    if explained:
        dropped |= dict.fromkeys(explained, "the fixed effects explain all of it")
        kept = {name: codes for name, codes in kept.items() if name not in explained}
        if not kept:
            raise NotEstimableError(_all_dropped(dropped))
        design = make_design(kept, matrix)
    scaled = residual / scale
    if leaves_nothing(design, scaled, _EXACT):
        # The likelihood would grow without end as the residual variance falls.
        raise NotEstimableError("the factors explain every row exactly: no noise is left")
    equal = scale**2 / (len(kept) + 1)
    first = np.array([(start or {}).get(name, equal) for name in (*kept, RESIDUAL)]) / scale**2
    state, is_converged, num_iterations = _maximise(
        design, *_sufficient(design, scaled), first, max_iterations
    )
    return _fit_of(
        state,
        scale,
        dict(zip(columns, guess, strict=True)),
        is_converged=is_converged,
        num_iterations=num_iterations,
        dropped=dropped | dropped_columns,
    )


def contrasts(fit: RemlFit, name: str, weights: Floats) -> tuple[Floats, Floats]:
    """Predict weighted sums of one factor's effects, with their standard errors of prediction.

    `weights` are (sums, levels). Errors are given the variances, and take in that effects of
    different levels are not known independently.
    """
    design, residual = fit.design, fit.variances[-1]
    place = design.names.index(name)
    equations = factorise(design, fit.variances[:-1] / residual)
    parts = [np.zeros((size, weights.shape[0])) for size in design.sizes]
    parts[place] = weights.T
    right = from_parts(design, tuple(parts), np.zeros((design.num_fixed, weights.shape[0])))
    solved = factor_parts(design, unscale(equations, solve(equations, right)))[place]
    variances = residual * (solved * weights.T).sum(axis=0)
    return weights @ fit.effects[name], np.sqrt(np.maximum(variances, 0.0))


def usable_factors(factors: Mapping[str, Ints]) -> tuple[dict[str, Ints], dict[str, str]]:
    """Return the factors whose variance rows can tell, levels renumbered, and why others cannot."""
    kept: dict[str, Ints] = {}
    dropped: dict[str, str] = {}
    for name, given in factors.items():
        levels = np.unique(given, return_inverse=True)[1].astype(np.int64)
        size = int(levels.max()) + 1
        twin = next((other for other, has in kept.items() if _are_same_groups(has, levels)), None)
        if size < 2:
            dropped[name] = "it has one level only"
        elif size == levels.size:
            dropped[name] = "each level has one row: it cannot be told apart from the residual"
        elif twin is not None:
            dropped[name] = f"its groups are those of {twin}"
        else:
            kept[name] = levels
    return kept, dropped


def _maximise(
    design: Design, right: Blocks, square: float, start: Floats, max_iterations: int
) -> tuple[State, bool, int]:
    """Climb from `start` until no step would gain."""
    state = state_at(design, right, square, floored(start))
    for iteration in range(1, max_iterations + 1):
        step, gain = _newton(state)
        if gain < _DECREMENT:
            return _with_zeros(design, right, square, state), True, iteration
        state = _climb(design, right, square, state, step)
    return _with_zeros(design, right, square, state), False, max_iterations


def _newton(state: State) -> tuple[Floats, float]:
    """Return the step to the top of the local parabola, and twice the gain that it promises.

    Variances that would fall below the floor stop there, and the others make up for it.
    """
    floor = floored(np.append(np.zeros(state.variances.size - 1), state.variances[-1]))
    size = np.sqrt(np.diag(state.information))
    curvature = state.information / np.outer(size, size) + 1e-12 * np.eye(size.size)
    step, is_bound = np.zeros(size.size), np.zeros(size.size, dtype=bool)
    for _ in range(size.size):
        free, bound = ~is_bound, is_bound
        slope = state.scores[free] / size[free]
        slope = slope - curvature[np.ix_(free, bound)] @ (step[bound] * size[bound])
        step[free] = linalg.solve(curvature[np.ix_(free, free)], slope, assume_a="sym") / size[free]
        falls = free & (state.variances + step < floor)
        # The residual variance has no floor of this kind: `_climb` keeps it above 0.
        falls[-1] = False
        if not falls.any():
            break
        is_bound = is_bound | falls
        step[falls] = floor[falls] - state.variances[falls]
    gain = 2 * state.scores @ step - step @ state.information @ step
    return step, float(gain)


def _climb(design: Design, right: Blocks, square: float, state: State, step: Floats) -> State:
    """Take the step, or half of it, ..., or one step of EM."""
    for _ in range(6):
        # The residual variance may fall to a tenth at once, the others to 0.
        proposed = state.variances + step
        proposed[-1] = max(proposed[-1], 0.1 * state.variances[-1])
        tried = state_at(design, right, square, floored(proposed))
        if tried.log_likelihood >= state.log_likelihood - 1e-12 * abs(state.log_likelihood):
            return tried
        step = step / 2
    return state_at(design, right, square, floored(_em_step(design, state)))


def _em_step(design: Design, state: State) -> Floats:
    """Return the variances of one EM step (Searle, Casella and McCulloch 1992, section 8.3).

    s_k is moved by s_k^2 (y'P V_k P y - tr P V_k) / q_k, which never lowers the likelihood.
    """
    counts = np.array([*design.sizes, design.num_rows], dtype=np.float64)
    moved: Floats = state.variances + 2 * state.variances**2 * state.scores / counts
    return moved


def floored(variances: Floats) -> Floats:
    """Raise variances of factors to the smallest that equations are formed with."""
    return np.append(np.maximum(variances[:-1], _FLOOR * variances[-1]), variances[-1])


def _is_at_floor(variances: Floats) -> NDArray[np.bool_]:
    at_floor: NDArray[np.bool_] = variances <= 100 * _FLOOR * variances[-1]
    return at_floor


def _with_zeros(design: Design, right: Blocks, square: float, state: State) -> State:
    """Put variances at the floor to exactly 0; scores and information stay those at the floor."""
    at_floor = _is_at_floor(state.variances)
    if not at_floor.any():
        return state
    variances = np.where(at_floor, 0.0, state.variances)
    equations = factorise(design, variances[:-1] / variances[-1])
    effects = unscale(equations, solve(equations, right))
    residual = float(variances[-1])
    quadratic = float((square - inner_products(effects, right))[0]) / residual
    freedom = design.num_rows - design.num_fixed
    deviance = freedom * np.log(2 * np.pi * residual) + equations.log_determinant + quadratic
    return replace(
        state,
        variances=variances,
        equations=equations,
        inverse=invert(equations),
        effects=effects,
        log_likelihood=-0.5 * float(deviance),
    )


def _fit_of(
    state: State,
    scale: float,
    fixed: Mapping[str, float],
    *,
    is_converged: bool,
    num_iterations: int,
    dropped: dict[str, str],
) -> RemlFit:
    """Put the results back on the scale of y."""
    design, residual = state.equations.design, float(state.variances[-1])
    is_free = state.variances > 0
    errors = np.full(state.variances.size, np.nan)
    covariance = linalg.pinvh(state.information[np.ix_(is_free, is_free)])
    errors[is_free] = np.sqrt(np.diag(covariance))
    parts = factor_parts(design, state.effects)
    prediction = [
        np.sqrt(np.maximum(variance * diagonal, 0.0))
        for variance, diagonal in zip(state.variances[:-1], state.inverse.diagonals, strict=True)
    ]
    start = state.effects.rest.shape[0] - design.num_fixed
    return RemlFit(
        names=(*design.names, RESIDUAL),
        variances=state.variances * scale**2,
        standard_errors=errors * scale**2,
        shares=state.variances / state.variances.sum(),
        fixed_names=tuple(fixed),
        fixed_effects=np.array(list(fixed.values())) + state.effects.rest[start:, 0] * scale,
        fixed_covariance=state.inverse.fixed * residual * scale**2,
        effects={name: part[:, 0] * scale for name, part in zip(design.names, parts, strict=True)},
        effect_errors={
            name: error * scale for name, error in zip(design.names, prediction, strict=True)
        },
        scores=state.scores / scale**2,
        log_likelihood=state.log_likelihood
        - (design.num_rows - design.num_fixed) * float(np.log(scale)),
        is_converged=is_converged,
        num_iterations=num_iterations,
        num_rows=design.num_rows,
        dropped=dropped,
        design=design,
    )


def _sufficient(design: Design, values: Floats) -> tuple[Blocks, float]:
    return cross_rows(design, values[:, None]), float(values @ values)


def _independent(
    num_rows: int, fixed: Mapping[str, Floats]
) -> tuple[dict[str, Floats], dict[str, str]]:
    """Keep the columns that those before them do not explain; an intercept comes first."""
    kept = {INTERCEPT: np.ones(num_rows)}
    dropped = {}
    basis = np.ones((num_rows, 1)) / np.sqrt(num_rows)
    for name, column in fixed.items():
        rest = column - basis @ (basis.T @ column)
        rest = rest - basis @ (basis.T @ rest)
        length = float(np.linalg.norm(rest))
        if length <= _ALIASED * max(float(np.linalg.norm(column)), 1e-300):
            dropped[name] = "the other fixed effects explain all of it"
            continue
        kept[name] = np.asarray(column, dtype=np.float64)
        basis = np.column_stack([basis, rest / length])
    return kept, dropped


def _residual_scale(values: Floats, residual: Floats, num_fixed: int) -> float:
    """Standard deviation of y around X b; raises where there is none."""
    freedom = values.size - num_fixed
    if freedom < 1:
        raise NotEstimableError("there are no more scores than fixed effects")
    scale = float(np.sqrt(residual @ residual / freedom))
    if scale <= _ALIASED * max(float(np.abs(values).max()), 1e-300):
        raise NotEstimableError("the scores do not vary")
    return scale


def _are_same_groups(first: Ints, second: Ints) -> bool:
    """Tell whether two factors put the same rows together."""
    pairs = np.unique(first * (int(second.max()) + 1) + second).size
    return pairs == int(first.max()) + 1 == int(second.max()) + 1


def _all_dropped(dropped: Mapping[str, str]) -> str:
    named: dict[str, list[str]] = {}
    for name, reason in dropped.items():
        named.setdefault(reason, []).append(name)
    listed = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in named.items())
    return f"no source of variation can be told ({listed})"
