"""Solves and factors of positive definite matrices, held against NumPy and against autodiff through the Cholesky."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tol
from numpy.testing import assert_allclose

from probkit.math.linalg import (
    safe_cholesky,
    solve_lower,
    solve_lower_transposed,
    spd_inverse,
    spd_solve,
    triangular_gram,
    triangular_inverse,
)

RTOL = tol(1e-8, 2e-3)


@pytest.fixture(autouse=True)
def strict():
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


def matrix(n=12, seed=0):
    """A regular positive definite matrix."""
    A = np.random.default_rng(seed).normal(size=(n, 2 * n))
    return jnp.asarray(A @ A.T / n)


def smooth(n=40):
    """Squared exponential covariance of close inputs: singular in either precision."""
    x = np.linspace(0, 1, n)
    return jnp.asarray(np.exp(-0.5 * (x[:, None] - x[None, :]) ** 2 / 0.5**2))


def test_regular_matrix_takes_no_jitter():
    K = matrix()
    L, jitter = safe_cholesky(K)
    assert jitter == 0
    assert_allclose(L, np.linalg.cholesky(np.asarray(K, np.float64)), rtol=RTOL, atol=RTOL)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_singular_matrix_takes_the_smallest_jitter_that_works(scale):
    K = scale * smooth()
    L, jitter = safe_cholesky(K)
    eps = float(jnp.finfo(K.dtype).eps)
    step = np.log10(float(jitter) / (10 * eps * scale))
    assert abs(step - round(step)) < 1e-3
    assert 0 <= round(step) <= 2
    assert_allclose(L @ L.T, K + jitter * jnp.eye(len(K)), atol=50 * eps * scale)


def test_pivot_lost_to_rounding_is_a_failure():
    K = jnp.array([[1.0, 1.0], [1.0, 1.0 + float(jnp.finfo(float).eps)]])
    assert safe_cholesky(K)[1] > 0


@pytest.mark.parametrize(
    "K", [np.diag([1.0, -1.0]), -np.eye(2), np.zeros((2, 2)), np.diag([1.0, np.nan]), np.diag([1.0, np.inf])]
)
def test_exhausted_ladder_is_nan(K):
    assert jnp.all(jnp.isnan(jax.jit(safe_cholesky)(jnp.asarray(K))[0]))


def test_lanes_are_apart():
    Ks = jnp.stack([matrix(40), -matrix(40), smooth(40), jnp.full((40, 40), jnp.nan)])
    L, jitter = jax.jit(jax.vmap(safe_cholesky))(Ks)
    for lane, K in enumerate(Ks):
        one, level = safe_cholesky(K)
        assert_allclose(L[lane], one, rtol=RTOL, atol=RTOL)
        assert_allclose(jitter[lane], level, rtol=RTOL)
    assert jitter[0] == 0


def test_derivative_of_the_factor():
    K, direction = matrix(), matrix(seed=1)

    def entries(cholesky):
        return lambda t: jnp.sin(cholesky(K + t * direction)).sum()

    ours, twin = entries(lambda K: safe_cholesky(K)[0]), entries(jnp.linalg.cholesky)
    for order in (jax.grad, jax.jacfwd, lambda f: jax.jacfwd(jax.grad(f))):
        assert_allclose(jax.jit(order(ours))(0.1), jax.jit(order(twin))(0.1), rtol=RTOL)


@pytest.mark.parametrize("n", [1, 7, 16, 37, 90])
def test_blocks_equal_the_whole(n):
    L, b = jnp.linalg.cholesky(matrix(n)), jnp.linspace(-1.0, 2.0, n)

    @jax.jit
    def blocks(L, b):
        whole = triangular_inverse(L, block=4), triangular_gram(L, block=4), spd_inverse(L, block=4)
        return *whole, solve_lower(L, b, block=4), solve_lower_transposed(L, b, block=4)

    inverse, gram, spd, forth, back = blocks(L, b)
    dense = np.asarray(L, np.float64)
    assert_allclose(inverse, np.linalg.inv(dense), rtol=RTOL, atol=RTOL)
    assert_allclose(gram, dense.T @ dense, rtol=RTOL, atol=RTOL)
    assert_allclose(spd, np.linalg.inv(dense @ dense.T), rtol=RTOL, atol=RTOL)
    assert_allclose(forth, np.linalg.solve(dense, b), rtol=RTOL, atol=RTOL)
    assert_allclose(back, np.linalg.solve(dense.T, b), rtol=RTOL, atol=RTOL)


def test_spd_solve_against_numpy():
    K, b = matrix(), jnp.linspace(-1.0, 2.0, 12)
    out = spd_solve(K, b)
    dense = np.asarray(K, np.float64)
    assert_allclose(out.inverse, np.linalg.inv(dense), rtol=RTOL, atol=RTOL)
    assert_allclose(out.solution, np.linalg.solve(dense, b), rtol=RTOL, atol=RTOL)
    assert_allclose(out.log_det, np.linalg.slogdet(dense)[1], rtol=RTOL)
    assert out.jitter == 0


def test_derivatives_of_spd_solve():
    K, D1, D2, b = matrix(), matrix(seed=1), matrix(seed=2), jnp.linspace(-1.0, 2.0, 12)

    def ours(t):
        out = spd_solve(K + t[0] * D1 + t[1] ** 2 * D2, b * jnp.exp(t[1]))
        return jnp.sin(out.inverse).sum() + jnp.cos(out.solution).sum() + out.log_det**2

    def twin(t):
        A, c = K + t[0] * D1 + t[1] ** 2 * D2, b * jnp.exp(t[1])
        log_det = 2 * jnp.log(jnp.diagonal(jnp.linalg.cholesky(A))).sum()
        return jnp.sin(jnp.linalg.inv(A)).sum() + jnp.cos(jnp.linalg.solve(A, c)).sum() + log_det**2

    t = jnp.array([0.1, 0.5])
    for order in (jax.grad, jax.jacfwd, lambda f: jax.jacfwd(jax.grad(f)), lambda f: jax.jacrev(jax.grad(f))):
        assert_allclose(jax.jit(order(ours))(t), jax.jit(order(twin))(t), rtol=RTOL, atol=RTOL)


def test_failed_solve_is_nan_with_zero_derivatives():
    K, b = -jnp.eye(3), jnp.ones(3)
    assert jnp.all(jnp.isnan(spd_solve(K, b).inverse))
    dK, db = jax.grad(lambda K, b: spd_solve(K, b).inverse.sum() + spd_solve(K, b).solution.sum(), (0, 1))(K, b)
    assert not dK.any()
    assert not db.any()
