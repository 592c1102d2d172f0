"""REML finds the components that a dense likelihood, statsmodels and ANOVA find."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm

from sft_atlas.statistics.mixed_equations import NotEstimableError
from sft_atlas.statistics.reml import RESIDUAL, RemlFit, contrasts, fit_reml

Factors = dict[str, np.ndarray]


def grid(sizes: tuple[int, int, int], repeats: int, *, hole: float = 0.0, seed: int = 0) -> Factors:
    """Crossed factors and all their products, with a share of the rows missing."""
    axes = [np.arange(size) for size in (*sizes, repeats)]
    a, b, c, _ = (part.ravel() for part in np.meshgrid(*axes, indexing="ij"))
    keep = np.random.default_rng([seed, 9]).random(a.size) >= hole
    a, b, c = a[keep], b[keep], c[keep]
    return {
        "a": a,
        "b": b,
        "c": c,
        "ab": a * sizes[1] + b,
        "ac": a * sizes[2] + c,
        "bc": b * sizes[2] + c,
        "abc": (a * sizes[1] + b) * sizes[2] + c,
    }


def draw(factors: Factors, variances: list[float], seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng([seed, 7])
    num_rows = next(iter(factors.values())).size
    values = rng.normal(size=num_rows) * np.sqrt(variances[-1])
    for levels, variance in zip(factors.values(), variances, strict=False):
        values += (rng.normal(size=levels.max() + 1) * np.sqrt(variance))[levels]
    return values


class Dense:
    """The model's matrices as the textbook writes them."""

    def __init__(
        self, y: np.ndarray, x: np.ndarray, factors: Factors, variances: np.ndarray
    ) -> None:
        names = list(factors)
        self.z = {name: np.eye(factors[name].max() + 1)[factors[name]] for name in names}
        v = np.eye(y.size) * variances[-1]
        for name, variance in zip(names, variances, strict=False):
            v += variance * self.z[name] @ self.z[name].T
        inverse = np.linalg.inv(v)
        information = x.T @ inverse @ x
        self.fixed_covariance = np.linalg.inv(information)
        self.fixed = self.fixed_covariance @ x.T @ inverse @ y
        self.p = inverse - inverse @ x @ self.fixed_covariance @ x.T @ inverse
        determinants = np.linalg.slogdet(v)[1] + np.linalg.slogdet(information)[1]
        constant = (y.size - x.shape[1]) * np.log(2 * np.pi)
        self.log_likelihood = -0.5 * (constant + determinants + y @ self.p @ y)

    def prediction(
        self, y: np.ndarray, name: str, variance: float
    ) -> tuple[np.ndarray, np.ndarray]:
        z = self.z[name]
        covariance = variance * np.eye(z.shape[1]) - variance**2 * z.T @ self.p @ z
        return variance * z.T @ self.p @ y, covariance


SMALL = [0.3, 0.5, 0.2, 0.2, 0.3, 0.4, 0.3, 0.2]


@pytest.fixture(scope="module")
def factors() -> Factors:
    return grid((5, 6, 4), 3, hole=0.15)


@pytest.fixture(scope="module")
def x(factors: Factors) -> np.ndarray:
    return np.random.default_rng(1).normal(size=factors["a"].size)


@pytest.fixture(scope="module")
def y(factors: Factors, x: np.ndarray) -> np.ndarray:
    return draw(factors, SMALL, seed=3) + 0.4 * x + 10


@pytest.fixture(scope="module")
def fit(y: np.ndarray, factors: Factors, x: np.ndarray) -> RemlFit:
    return fit_reml(y, factors, {"x": x})


@pytest.fixture(scope="module")
def dense(fit: RemlFit, y: np.ndarray, factors: Factors, x: np.ndarray) -> Dense:
    return Dense(y, np.column_stack([np.ones(y.size), x]), factors, fit.variances)


def test_likelihood_and_fixed_effects_are_those_of_dense_matrices(
    fit: RemlFit, dense: Dense
) -> None:
    assert fit.is_converged
    assert fit.log_likelihood == pytest.approx(dense.log_likelihood, abs=1e-8)
    np.testing.assert_allclose(fit.fixed_effects, dense.fixed, rtol=1e-8)
    np.testing.assert_allclose(fit.fixed_covariance, dense.fixed_covariance, rtol=1e-7)
    assert fit.fixed_names == ("intercept", "x")


@pytest.mark.parametrize("name", ["a", "b", "c", "ab", "ac", "bc", "abc"])
def test_predictions_and_their_errors_are_those_of_dense_matrices(
    fit: RemlFit, dense: Dense, y: np.ndarray, name: str
) -> None:
    variance = fit.variances[fit.names.index(name)]
    effects, covariance = dense.prediction(y, name, variance)
    np.testing.assert_allclose(fit.effects[name], effects, atol=1e-8)
    np.testing.assert_allclose(
        fit.effect_errors[name], np.sqrt(np.clip(np.diag(covariance), 0, None)), atol=1e-7
    )
    weights = np.random.default_rng(5).normal(size=(3, effects.size))
    sums, errors = contrasts(fit, name, weights)
    np.testing.assert_allclose(sums, weights @ effects, atol=1e-8)
    expected = np.einsum("ij,jk,ik->i", weights, covariance, weights)
    np.testing.assert_allclose(errors, np.sqrt(np.clip(expected, 0, None)), atol=1e-7)


def test_no_other_components_are_likelier(
    fit: RemlFit, y: np.ndarray, factors: Factors, x: np.ndarray
) -> None:
    columns = np.column_stack([np.ones(y.size), x])
    for place in range(len(fit.names)):
        for step in (-1e-3, 1e-3):
            moved = fit.variances.copy()
            moved[place] = max(moved[place] + step, 0.0)
            assert Dense(y, columns, factors, moved).log_likelihood <= fit.log_likelihood + 1e-9


@pytest.mark.parametrize("names", [("a",), ("a", "b"), ("a", "ab"), ("a", "b", "ab")])
def test_any_set_of_factors_has_the_likelihood_of_dense_matrices(
    y: np.ndarray, factors: Factors, names: tuple[str, ...]
) -> None:
    part = {name: factors[name] for name in names}
    found = fit_reml(y, part)
    dense = Dense(y, np.ones((y.size, 1)), part, found.variances)
    assert found.log_likelihood == pytest.approx(dense.log_likelihood, abs=1e-8)
    for name in names:
        variance = found.variances[found.names.index(name)]
        effects, _ = dense.prediction(y, name, variance)
        np.testing.assert_allclose(found.effects[name], effects, atol=1e-8)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.filterwarnings("ignore")
def test_components_agree_with_statsmodels(seed: int) -> None:
    factors = {name: grid((6, 5, 2), 3, hole=0.1)[name] for name in ("a", "b", "ab")}
    y = draw(factors, [0.5, 0.4, 0.3, 0.3], seed=seed)
    x = np.random.default_rng(seed).normal(size=y.size)
    found = fit_reml(y, factors, {"x": x})
    frame = pd.DataFrame({**factors, "y": y, "x": x, "one": 1})
    parts = {name: f"0 + C({name})" for name in factors}
    model = sm.MixedLM.from_formula(
        "y ~ x", groups="one", re_formula="0", vc_formula=parts, data=frame
    )
    reference = model.fit(reml=True, method="bfgs", gtol=1e-7, maxiter=200)
    assert found.log_likelihood == pytest.approx(reference.llf, abs=1e-6)
    components = dict(zip(model.exog_vc.names, reference.vcomp, strict=True))
    components[RESIDUAL] = reference.scale
    ours = dict(zip(found.names, found.variances, strict=True))
    assert ours == pytest.approx(components, rel=1e-4)
    np.testing.assert_allclose(found.fixed_effects, reference.fe_params, rtol=1e-4)


def test_balanced_components_are_those_of_anova() -> None:
    factors = {name: grid((6, 5, 1), 4)[name] for name in ("a", "b", "ab")}
    y = draw(factors, [1.0, 0.8, 0.6, 0.4], seed=2)
    cube = y.reshape(6, 5, 4)
    means = cube.mean(axis=2)
    grand, rows, columns = means.mean(), means.mean(axis=1), means.mean(axis=0)
    square_a = 20 * ((rows - grand) ** 2).sum() / 5
    square_b = 24 * ((columns - grand) ** 2).sum() / 4
    inter = means - rows[:, None] - columns + grand
    square_ab = 4 * (inter**2).sum() / 20
    noise = ((cube - means[:, :, None]) ** 2).sum() / 90
    expected = [
        (square_a - square_ab) / 20,
        (square_b - square_ab) / 24,
        (square_ab - noise) / 4,
        noise,
    ]
    assert min(expected) > 0
    found = fit_reml(y, factors)
    np.testing.assert_allclose(found.variances, expected, rtol=1e-6)
    assert found.shares.sum() == pytest.approx(1)
    # The error of the residual variance is known in closed form.
    assert found.standard_errors[-1] == pytest.approx(noise * np.sqrt(2 / 90), rel=1e-3)


def test_planted_components_come_back_on_average() -> None:
    factors = grid((9, 8, 7), 2, hole=0.1)
    found = [fit_reml(draw(factors, SMALL, seed=seed), factors) for seed in range(24)]
    assert all(one.is_converged for one in found)
    estimates = np.array([one.variances for one in found])
    error = estimates.std(axis=0, ddof=1) / np.sqrt(len(found))
    assert np.abs((estimates.mean(axis=0) - SMALL) / error).max() < 3.5
    # Their stated errors are those of the draws.
    stated = np.nanmean([one.standard_errors for one in found], axis=0)
    np.testing.assert_allclose(stated[3:], estimates.std(axis=0, ddof=1)[3:], rtol=0.35)


def test_order_of_rows_and_names_of_levels_change_nothing(
    fit: RemlFit, y: np.ndarray, factors: Factors, x: np.ndarray
) -> None:
    rng = np.random.default_rng(0)
    order = rng.permutation(y.size)
    renamed = {name: (levels.max() - levels)[order] for name, levels in factors.items()}
    other = fit_reml(y[order], renamed, {"x": x[order]})
    np.testing.assert_allclose(other.variances, fit.variances, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(other.effects["a"][::-1], fit.effects["a"], atol=1e-6)


@pytest.mark.parametrize(("factor", "shift"), [(1000.0, 0.0), (1e-3, 5.0)])
def test_units_of_scores_change_nothing_else(
    fit: RemlFit, y: np.ndarray, factors: Factors, x: np.ndarray, factor: float, shift: float
) -> None:
    other = fit_reml(y * factor + shift, factors, {"x": x})
    np.testing.assert_allclose(other.variances, fit.variances * factor**2, rtol=1e-6)
    np.testing.assert_allclose(other.shares, fit.shares, rtol=1e-6)
    moved = fit.log_likelihood - (y.size - 2) * np.log(factor)
    assert other.log_likelihood == pytest.approx(moved, abs=1e-6)


def test_start_does_not_matter(
    fit: RemlFit, y: np.ndarray, factors: Factors, x: np.ndarray
) -> None:
    start = dict.fromkeys(fit.names, 1e-4) | {"abc": 50.0}
    other = fit_reml(y, factors, {"x": x}, start=start)
    np.testing.assert_allclose(other.variances, fit.variances, rtol=1e-4, atol=1e-8)


def test_a_component_that_is_not_there_is_exactly_zero() -> None:
    factors = {name: grid((8, 6, 1), 3)[name] for name in ("a", "b")}
    y = draw(factors, [0.0, 1.0, 1.0], seed=1)
    # Even means of the levels of a: less variation than noise alone would give.
    y = y - np.array([y[factors["a"] == level].mean() for level in range(8)])[factors["a"]]
    found = fit_reml(y, factors)
    assert found.is_converged
    assert found.variances[0] == 0.0
    assert np.isnan(found.standard_errors[0])
    assert found.scores[0] < 0
    assert np.abs(found.effects["a"]).max() == 0.0
    alone = fit_reml(y, {"b": factors["b"]})
    assert found.log_likelihood == pytest.approx(alone.log_likelihood, abs=1e-8)
    assert found.variances[1:] == pytest.approx(alone.variances, rel=1e-4)


def test_what_cannot_be_told_is_dropped_with_its_reason(
    y: np.ndarray, factors: Factors, x: np.ndarray
) -> None:
    rows = np.arange(y.size)
    given = {
        "a": factors["a"],
        "one": np.zeros(y.size, dtype=int),
        "row": rows,
        "twin": factors["a"] * 10 + 3,
        "c": factors["c"],
    }
    fixed = {f"c{level}": (factors["c"] == level).astype(float) for level in (1, 2, 3)}
    found = fit_reml(y, given, {**fixed, "x": x, "twice": 2 * x})
    assert found.names == ("a", "residual")
    assert found.dropped == {
        "one": "it has one level only",
        "row": "each level has one row: it cannot be told apart from the residual",
        "twin": "its groups are those of a",
        "c": "the fixed effects explain all of it",
        "twice": "the other fixed effects explain all of it",
    }


@pytest.mark.parametrize(
    ("values", "levels", "message"),
    [
        ([], [], "there are no scores"),
        ([1.0, np.nan, 2.0], [0, 0, 1], "scores are missing"),
        ([2.0, 2.0, 2.0, 2.0], [0, 0, 1, 1], "the scores do not vary"),
        ([1.0], [0], "there are no more scores than fixed effects"),
        (
            [1.0, 2.0, 3.0],
            [0, 0, 0],
            "no source of variation can be told (a: it has one level only)",
        ),
    ],
    ids=["no rows", "missing", "constant", "one row", "one level"],
)
def test_degenerate_rows_say_why(values: list[float], levels: list[int], message: str) -> None:
    with pytest.raises(NotEstimableError) as caught:
        fit_reml(np.array(values, dtype=float), {"a": np.array(levels, dtype=int)})
    assert str(caught.value) == message


def test_more_levels_than_can_be_solved_are_refused() -> None:
    rng = np.random.default_rng(0)
    factors = {name: rng.integers(0, 8000, size=30_000) for name in ("a", "b")}
    with pytest.raises(NotEstimableError) as caught:
        fit_reml(rng.normal(size=30_000), factors)
    size = min(np.unique(levels).size for levels in factors.values())
    assert str(caught.value) == (
        f"{size:,} levels of crossed factors are too many to solve for; at most 6,000 are"
    )


def test_rows_that_are_sums_of_effects_leave_no_noise_to_tell_of() -> None:
    factors = {"data": np.array([0, 0, 1, 1]), "benchmark": np.array([0, 1, 0, 1])}
    with pytest.raises(NotEstimableError, match="explain every row exactly"):
        fit_reml(np.array([-1.0, 0.5, 1.0, 2.5]), factors)
