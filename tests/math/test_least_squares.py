"""Batched Levenberg-Marquardt, held against SciPy lane by lane, and lanes against each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from helpers import tol
from numpy.testing import assert_allclose, assert_array_equal

from probkit.math.least_squares import gram, inverse, least_squares, solve

T = np.linspace(0.0, 4.0, 30)


def residuals(x, y):
    """y_t ~ x0 exp(-exp(x1) t) + x2, with its Jacobian."""
    t = jnp.asarray(T, x.dtype)[:, None]
    rate = jnp.exp(x[1])
    decay = jnp.exp(-rate * t)
    r = x[0] * decay + x[2] - y
    return r, jnp.stack([decay, -x[0] * rate * t * decay, jnp.ones_like(r)])


def problem(lanes, seed=0):
    rng = np.random.default_rng(seed)
    a, k, c = rng.uniform(1, 5, lanes), rng.uniform(0.3, 2.0, lanes), rng.normal(size=lanes)
    y = a * np.exp(-k * T[:, None]) + c + 0.05 * rng.normal(size=(30, lanes))
    return jnp.asarray(y, float), jnp.stack([jnp.ones(lanes), jnp.zeros(lanes), jnp.zeros(lanes)])


@jax.jit
def fit(y, x0):
    return least_squares(residuals, x0, (y,), steps=50)


@pytest.fixture(scope="module")
def fitted():
    y, x0 = problem(320)
    return y, x0, jax.device_get(fit(y, x0))


def test_every_lane_is_at_the_minimum_scipy_finds(fitted):
    y, _, found = fitted
    assert found.converged.all()
    for i in range(0, 320, 40):
        r = lambda x, i=i: x[0] * np.exp(-np.exp(x[1]) * T) + x[2] - np.asarray(y[:, i], float)
        theirs = scipy.optimize.least_squares(r, [1.0, 0.0, 0.0], xtol=1e-12, ftol=1e-12, gtol=1e-12)
        assert_allclose(found.cost[i], 2 * theirs.cost, rtol=tol(1e-7, 1e-4))
        assert_allclose(found.x[:, i], theirs.x, rtol=tol(1e-4, 2e-2), atol=tol(1e-5, 1e-2))
        assert_allclose(found.normal[..., i], theirs.jac.T @ theirs.jac, rtol=tol(1e-3, 5e-2))


def test_lanes_that_wait_for_a_place_end_where_they_end_alone(fitted):
    """More lanes than descend side by side, of which some take long: as each does in a batch without a queue."""
    y, x0, found = fitted
    assert 6 < found.steps.max() < 50
    alone = fit(y[:, 250:310], x0[:, 250:310])
    assert_allclose(found.cost[250:310], alone.cost, rtol=tol(1e-12, 1e-5))
    assert_array_equal(found.steps[250:310], alone.steps)


def test_a_bad_lane_harms_no_other(fitted):
    y, x0, good = fitted
    bad = y.at[:, 5].set(jnp.nan).at[:, 7].set(0.0).at[:, 100].multiply(1e12).at[3, 200].set(1e6)
    x0 = x0.at[1, 50].set(1e3)  # exp overflows: the start is not finite, or flat
    found = jax.device_get(fit(bad, x0))
    others = np.setdiff1d(np.arange(320), [5, 7, 50, 100, 200])
    for ours, alone in zip(found, good, strict=True):
        assert_array_equal(ours[..., others], alone[..., others])
    assert np.isinf(found.cost[5]) and not found.converged[5]
    assert found.cost[7] < 1e-6
    assert np.isfinite(found.cost[[100, 200]]).all()


def test_steps_that_are_not_finite_are_rejected():
    """log x, started where the first undamped step leaves its region."""

    def f(x, target):
        return jnp.log(x) - target, (1 / x)[:, None]

    found = least_squares(f, jnp.full((1, 3), 8.0), (jnp.asarray([[-3.0, 0.0, 2.0]]),))
    assert_allclose(found.x[0], np.exp([-3.0, 0.0, 2.0]), rtol=tol(1e-6, 1e-3))
    assert found.converged.all()


def test_a_parameter_without_effect_stays():
    def f(x, y):
        return x[:1] - y, jnp.stack([jnp.ones_like(y), jnp.zeros_like(y)])

    found = least_squares(f, jnp.asarray([[0.0], [3.0]]), (jnp.asarray([[2.0]]),))
    assert found.converged[0]
    assert_allclose(found.x[:, 0], [2.0, 3.0], rtol=tol(1e-6, 1e-4))


@pytest.mark.once
def test_elimination_is_that_of_linalg():
    rng = np.random.default_rng(1)
    J = rng.normal(size=(5, 20, 3))
    A, b = np.asarray(gram(jnp.asarray(J))), rng.normal(size=(5, 3))
    assert_allclose(A, np.einsum("ptl,qtl->pql", J, J), rtol=tol(1e-12, 1e-4), atol=tol(1e-12, 1e-4))
    for i in range(3):
        assert_allclose(solve(A, b)[:, i], np.linalg.solve(A[..., i], b[:, i]), rtol=tol(1e-10, 1e-3))
        assert_allclose(inverse(A)[..., i], np.linalg.inv(A[..., i]), rtol=tol(1e-9, 1e-3), atol=tol(1e-9, 1e-4))
    assert np.isnan(solve(-A, jnp.asarray(b))).all()
