"""Exact GP regression, held against SciPy, brute-force conditioning and autodiff through a plain Cholesky."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tol
from jax.scipy.linalg import solve_triangular
from numpy.testing import assert_allclose
from scipy.stats import multivariate_normal

from probkit.gp.exact import condition, condition_marginal, leave_one_out, log_likelihood
from probkit.gp.kernels import matern32, squared_distance

RTOL = tol(1e-8, 2e-3)
MISSING = (0, 7, 8, 19)
#: lengthscale, scale, noise scale, mean
THETA = jnp.array([0.7, 1.3, 0.4, 0.2])


@pytest.fixture(autouse=True)
def strict():
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


def data(n=20, duplicates=False, missing=()):
    rng = np.random.default_rng(0)
    X = np.sort(rng.uniform(0, 4, n))
    if duplicates:
        X[1::2] = X[::2]
    y = np.sin(2 * X) + 0.4 * rng.normal(size=n)
    y[list(missing)] = np.nan
    return jnp.asarray(X), jnp.asarray(y)


def covariance(X, theta=THETA):
    K = theta[1] ** 2 * matern32(squared_distance(X, X, theta[0]))
    return K + theta[2] ** 2 * jnp.eye(len(X), dtype=X.dtype)


def objective(X, y, likelihood=log_likelihood):
    return lambda theta: likelihood(covariance(X, theta), y - theta[3])


def plain(K, r):
    """The textbook in four lines, over the observed entries (chosen before any trace)."""
    L = jnp.linalg.cholesky(K)
    w = solve_triangular(L, r, lower=True)
    return -0.5 * w @ w - jnp.log(jnp.diagonal(L)).sum() - 0.5 * r.size * jnp.log(2 * jnp.pi)


def plain_objective(X, y):
    seen = ~np.isnan(y)
    return objective(X[seen], y[seen], plain)


def conditional(K, r, i, given):
    """Mean and variance of entry i given others, by dense algebra in float64."""
    weights = np.linalg.solve(K[np.ix_(given, given)], K[given, i])
    return weights @ r[given], K[i, i] - weights @ K[given, i]


@pytest.mark.parametrize("missing", [(), MISSING])
def test_log_likelihood_against_scipy(missing):
    X, y = data(missing=missing)
    seen = ~np.isnan(y)
    K = np.asarray(covariance(X), np.float64)[np.ix_(seen, seen)]
    want = multivariate_normal(np.full(seen.sum(), 0.2), K).logpdf(np.asarray(y)[seen])
    assert_allclose(objective(X, y)(THETA), want, rtol=RTOL)
    assert_allclose(jax.jit(objective(X, y))(THETA), want, rtol=RTOL)
    value, gradient = jax.value_and_grad(objective(X, y))(THETA)
    assert_allclose(value, want, rtol=RTOL)
    assert_allclose(gradient, jax.jit(jax.grad(objective(X, y)))(THETA), rtol=RTOL, atol=RTOL)


@pytest.mark.once
@pytest.mark.parametrize(("duplicates", "missing"), [(False, ()), (True, MISSING)])
def test_gradient_and_hessian_against_autodiff(duplicates, missing):
    X, y = data(duplicates=duplicates, missing=missing)
    ours, twin = objective(X, y), plain_objective(X, y)
    for order in (jax.grad, jax.jacfwd, lambda f: jax.jacfwd(jax.grad(f))):
        got, want = jax.jit(order(ours))(THETA), jax.jit(order(twin))(THETA)
        assert_allclose(got, want, rtol=RTOL, atol=RTOL * np.abs(want).max())


def test_gradient_in_the_data():
    X, y = data(missing=MISSING)
    seen = ~np.isnan(y)
    got = jax.grad(lambda y: objective(X, y)(THETA))(y)
    assert_allclose(got[seen], jax.grad(lambda y: objective(X[seen], y, plain)(THETA))(y[seen]), rtol=RTOL, atol=RTOL)
    assert not got[~seen].any()


def test_value_alone_forms_no_inverse():
    X, y = data()
    K = covariance(X)
    value = str(jax.make_jaxpr(log_likelihood)(K, y))
    gradient = str(jax.make_jaxpr(jax.grad(log_likelihood))(K, y))
    assert "dot_general" not in value.split("jvp_jaxpr_fun")[0]
    assert "dot_general" in gradient


def test_all_missing_is_zero():
    X, y = data()
    assert log_likelihood(1e6 * covariance(X), jnp.full_like(y, jnp.nan)) == pytest.approx(0.0, abs=1e-3)


def test_missing_entries_leave_the_jitter_alone():
    X, y = data(duplicates=True, missing=MISSING)
    K = 1e-12 * matern32(squared_distance(X, X))
    seen = ~np.isnan(y)
    small = 1e-6 * y
    assert_allclose(log_likelihood(K, small), log_likelihood(K[seen][:, seen], small[seen]), rtol=0.3)


def test_failure_is_minus_infinity_with_zero_gradient():
    _, y = data(3)
    for K in (-jnp.eye(3), jnp.full((3, 3), jnp.nan)):
        for transform in (lambda f: f, jax.jit):
            value, (dK, dr) = transform(jax.value_and_grad(log_likelihood, (0, 1)))(K, y)
            assert value == -jnp.inf
            assert not dK.any()
            assert not dr.any()
    assert log_likelihood(-jnp.eye(3), y) == -jnp.inf


def test_a_bad_lane_is_isolated():
    X, y = data(missing=MISSING)
    thetas = jnp.stack([THETA, THETA.at[0].set(jnp.nan), 1.5 * THETA])
    f = jax.value_and_grad(objective(X, y))
    values, gradients = jax.jit(jax.vmap(f))(thetas)
    for lane in (0, 2):
        value, gradient = f(thetas[lane])
        assert_allclose(values[lane], value, rtol=RTOL)
        assert_allclose(gradients[lane], gradient, rtol=RTOL, atol=RTOL)
    assert values[1] == -jnp.inf
    hessians = jax.jit(jax.vmap(jax.jacfwd(jax.grad(objective(X, y)))))(thetas)
    assert jnp.all(jnp.isfinite(hessians[jnp.array([0, 2])]))


@pytest.mark.parametrize("missing", [(), MISSING])
def test_leave_one_out_by_brute_force(missing):
    X, y = data(missing=missing)
    mean, variance = leave_one_out(covariance(X), y)
    K, r = np.asarray(covariance(X), np.float64), np.asarray(y, np.float64)
    seen = np.flatnonzero(~np.isnan(r))
    want = np.array([conditional(K, r, i, seen[seen != i]) for i in range(len(r))])
    assert_allclose(mean, want[:, 0], rtol=RTOL, atol=RTOL)
    assert_allclose(variance, want[:, 1], rtol=RTOL)


def test_leave_one_out_under_transformations():
    X, y = data(missing=MISSING)

    def loo(theta):
        return jnp.stack(leave_one_out(covariance(X, theta), y - theta[3]))

    thetas = jnp.stack([THETA, 1.5 * THETA, THETA.at[1].set(jnp.nan)])
    lanes = jax.jit(jax.vmap(loo))(thetas)
    assert_allclose(lanes[:2], jnp.stack([loo(t) for t in thetas[:2]]), rtol=RTOL, atol=RTOL)
    assert jnp.all(jnp.isnan(lanes[2]))
    assert_allclose(jax.jit(loo)(THETA), loo(THETA), rtol=RTOL, atol=RTOL)
    assert_allclose(jax.jit(jax.jacrev(loo))(THETA), jax.jit(jax.jacfwd(loo))(THETA), rtol=RTOL, atol=RTOL)


@pytest.mark.parametrize("missing", [(), MISSING])
def test_condition_against_dense_algebra(missing):
    X, y = data(missing=missing)
    X_new = jnp.linspace(-1.0, 5.0, 6)
    K_cross = THETA[1] ** 2 * matern32(squared_distance(X, X_new, THETA[0]))
    K_new = covariance(X_new)
    mean, S = jax.jit(condition)(covariance(X), y, K_cross, K_new)
    seen = ~np.isnan(y)
    K, C = np.asarray(covariance(X), np.float64)[np.ix_(seen, seen)], np.asarray(K_cross, np.float64)[seen]
    assert_allclose(mean, C.T @ np.linalg.solve(K, np.asarray(y)[seen]), rtol=RTOL, atol=RTOL)
    assert_allclose(S, K_new - C.T @ np.linalg.solve(K, C), rtol=RTOL, atol=RTOL)
    marginal = condition_marginal(covariance(X), y, K_cross, jnp.diagonal(K_new))
    assert_allclose(marginal[0], mean, rtol=RTOL, atol=RTOL)
    assert_allclose(marginal[1], jnp.diagonal(S), rtol=RTOL)


def test_marginal_variance_stays_positive_without_noise():
    _, y = data()
    X = jnp.linspace(0.0, 4.0, 20)
    K = matern32(squared_distance(X, X))
    mean, variance = condition_marginal(K, y, K, jnp.diagonal(K))
    assert_allclose(mean, y, atol=tol(1e-8, 1e-2))
    assert jnp.all(variance > 0)
