"""Distances and correlations, held against NumPy; derivatives at distance 0 against their limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tol
from numpy.testing import assert_allclose
from scipy.spatial.distance import cdist

from probkit.gp.kernels import distance, matern32, squared_distance

RTOL = tol(1e-8, 2e-3)


@pytest.fixture(autouse=True)
def strict():
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


def inputs(n, D, seed=0, offset=0.0):
    """Inputs on a grid of 1/64, exact in float32 beside an offset of 1e4 too."""
    X = np.round(64 * np.random.default_rng(seed).uniform(-2, 2, size=(n, D))) / 64 + offset
    return jnp.asarray(X[:, 0] if D == 1 else X)


def textbook(X1, X2, lengthscale):
    A, B = (np.asarray(X, np.float64).reshape(len(X), -1) / np.asarray(lengthscale, np.float64) for X in (X1, X2))
    return cdist(A, B)


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("D", [1, 2, 3, 7])
def test_distance_against_scipy(D, offset):
    X1, X2 = inputs(9, D, offset=offset), inputs(5, D, seed=1, offset=offset)
    lengthscale = jnp.linspace(0.5, 2.0, D)
    for scale in (lengthscale, jnp.asarray(0.7), 0.7):
        assert_allclose(distance(X1, X2, scale), textbook(X1, X2, scale), rtol=RTOL, atol=RTOL)
        assert_allclose(squared_distance(X1, X1, scale), textbook(X1, X1, scale) ** 2, rtol=RTOL, atol=RTOL)


@pytest.mark.parametrize("D", [1, 2, 3, 7])
def test_diagonal_is_exactly_zero(D):
    X = inputs(9, D, offset=1e4)
    assert not jnp.diagonal(jax.jit(lambda X: distance(X, X))(X)).any()


def test_matern32_against_its_formula():
    r = np.linspace(0, 5, 11)
    want = (1 + np.sqrt(3) * r) * np.exp(-np.sqrt(3) * r)
    assert_allclose(matern32(jnp.asarray(r) ** 2), want, rtol=RTOL)
    assert_allclose(jax.jit(matern32)(jnp.asarray(r) ** 2), want, rtol=RTOL)


@pytest.mark.parametrize("D", [1, 3])
@pytest.mark.parametrize("gap", [0.0, 1e-25, 1e-13])
def test_derivatives_at_coinciding_inputs(D, gap):
    x = jnp.zeros((2, D)).at[1, 0].set(gap)

    def correlation(lengthscale, x0):
        return matern32(squared_distance(x.at[0, 0].set(x0), x, lengthscale))[0, 1]

    at = (jnp.asarray(0.5), jnp.asarray(0.0))
    gradient = jax.grad(correlation, (0, 1))
    assert_allclose(jax.jit(gradient)(*at), (0.0, 0.0), atol=1e-5)
    hessian = jax.jit(jax.jacfwd(gradient, (0, 1)))(*at)
    assert_allclose(np.asarray(hessian), [[0.0, 0.0], [0.0, -3 / 0.5**2]], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("D", [1, 3])
def test_every_fusion_sees_the_same_kernel(D):
    # Two consumers make XLA compute s twice, once contracted to a fused multiply-add: a safe root with 1 as its
    # stand-in then gave K_ii = 2.7 instead of 1.
    X = jnp.asarray(np.sort(np.random.default_rng(0).uniform(0, 4, (20, D)), axis=0))

    def both(lengthscale):
        K = 1.3**2 * matern32(squared_distance(X, X, lengthscale))
        return K, jnp.mean(jnp.diagonal(K))

    for lengthscale in jnp.array([0.7, 0.3, 1.1, 2.9]):
        want = 1.3**2 * matern32(jnp.asarray(textbook(X, X, lengthscale) ** 2))
        for transform in (lambda f: f, jax.jit):
            K, variance = transform(both)(lengthscale)
            assert_allclose(K, want, rtol=RTOL, atol=RTOL)
            assert_allclose(variance, 1.3**2, rtol=1e-6)


def test_distance_has_zero_derivatives_at_zero():
    x = jnp.array([0.3, 0.3, 1.0])
    for order in (jax.jacfwd, lambda f: jax.jacfwd(jax.jacfwd(f))):
        derivative = order(lambda scale: distance(x, x, scale))(jnp.asarray(0.5))
        assert jnp.all(jnp.isfinite(derivative))
        assert derivative[0, 1] == 0


def test_nan_is_not_hidden():
    x = jnp.array([0.0, 1.0])
    assert jnp.all(jnp.isnan(matern32(squared_distance(x, x, jnp.asarray(jnp.nan)))))
