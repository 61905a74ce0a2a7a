"""Mean-field on fixed draws: exact for Gaussian targets, honest about its error elsewhere."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tol
from numpy.testing import assert_allclose

from probkit.vi.meanfield import _Dense, _Products, fit_meanfield, moments
from probkit.vi.noise import fixed_noise

KEY = jax.random.key(0)
EACH = lambda fn, z: jax.vmap(fn)(z)


def correlated(dim, seed=0):
    """Mean and precision of a Gaussian with correlations."""
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(dim, dim)) / np.sqrt(dim)
    scale = np.exp(0.5 * rng.normal(size=dim))
    return rng.normal(size=dim), (A @ A.T + np.eye(dim)) / scale[:, None] / scale


def cast(*arrays):
    return tuple(np.asarray(a, jnp.result_type(float)) for a in arrays)


@cache
def gaussian_fit(dim):
    mean, precision = correlated(dim)

    @jax.jit
    def fit(mean, precision, centre, scale):
        log_density = lambda u: -0.5 * (u - mean) @ precision @ (u - mean)
        return fit_meanfield(log_density, KEY, centre, scale)

    return fit(*cast(mean, precision, np.zeros(dim), np.full(dim, 0.7)))


@pytest.mark.parametrize("dim", [5, 70])
def test_a_gaussian_is_fitted_exactly(dim):
    """Means, scales 1 / sqrt(diagonal of the precision) and the linear response, without Monte Carlo error.

    Above 64 dimensions the draws are not matched in their cross moments: the means stay exact, the rest errs.
    """
    (mean, precision), fit = correlated(dim), gaussian_fit(dim)
    covariance = np.linalg.inv(precision)
    sd = np.sqrt(np.diagonal(covariance))
    assert fit.converged and fit.definite
    assert_allclose((fit.guide.loc - mean) / sd, 0, atol=tol(1e-6, 2e-2))
    exact = dim <= 64
    assert_allclose(fit.guide.scale() * np.sqrt(np.diagonal(precision)), 1, rtol=tol(1e-6, 1e-2) if exact else 0.2)
    correlations = (fit.response - covariance) / sd[:, None] / sd
    assert_allclose(correlations, 0, atol=tol(1e-8, 1e-3) if exact else 0.1)
    if exact:
        assert np.max(fit.error) < 0.5 and fit.draws >= 32
        evidence = 0.5 * dim * np.log(2 * np.pi) - 0.5 * np.log(np.diagonal(precision)).sum()
        assert_allclose(fit.elbo, evidence, rtol=tol(1e-9, 1e-4))


@pytest.mark.skipif(not jax.config.jax_enable_x64, reason="one precision is enough for algebra")
def test_moments_are_the_derivatives_of_the_mean():
    fun = lambda u: jnp.sum(jnp.cosh(u)) + jnp.prod(u) + u[0] * jnp.exp(u[1])
    phi, z = np.array([0.3, -0.2, 0.5, -0.4, 0.1, -1.0]), np.random.default_rng(1).normal(size=(4, 3))

    @jax.jit
    def both(phi, z):
        ours = jax.tree.map(lambda a: jnp.mean(a, axis=0), jax.vmap(lambda z: moments(fun, phi, z))(z))
        mean = lambda phi: jnp.mean(jax.vmap(lambda z: fun(phi[:3] + jnp.exp(phi[3:]) * z))(z))
        return ours, (mean(phi), jax.grad(mean)(phi), jax.hessian(mean)(phi))

    for a, b in zip(*both(phi, z), strict=True):
        assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def skewed(u):
    """Log gammas with a coupling: far from Gaussian."""
    return jnp.sum(1.5 * u - jnp.exp(u)) - 0.2 * jnp.sum((u[1:] - u[:-1]) ** 2)


def test_products_agree_with_the_dense_path():
    """On the same noise: the optimum, the error and the linear response."""
    noise = fixed_noise(KEY, 2, 4, jnp.result_type(float))

    @jax.jit
    def both():
        each = []
        for part in (_Dense, _Products):
            objective = part(lambda u: -skewed(u), noise, EACH, 100)
            found = objective.optimum(jnp.zeros(8, noise.dtype), 2)
            each.append((found.x, found.value, found.converged, objective.response(found, 2)[0]))
        return each

    dense, products = both()
    assert dense[2] and products[2]
    assert_allclose(products[0], dense[0], atol=tol(1e-5, 2e-2))
    assert_allclose(products[1], dense[1], rtol=tol(1e-10, 1e-5))
    assert_allclose(products[3], dense[3], rtol=tol(1e-4, 5e-2), atol=tol(1e-4, 2e-2))


@cache
def doublings():
    """The skewed target at tolerances that take few draws, many, and more than there are."""
    zeros, ones = cast(np.zeros(3), np.ones(3))
    fit = jax.jit(lambda tolerance: fit_meanfield(skewed, KEY, zeros, ones, tolerance=tolerance, response=False))
    return fit(0.2), fit(0.005), fit(0.0)


def test_draws_are_doubled_until_the_error_is_small():
    loose, tight, most = doublings()
    assert loose.draws < tight.draws < most.draws
    assert np.max(tight.error) <= 0.005 < np.max(loose.error) <= 0.2
    assert loose.converged and tight.converged and loose.response is None
    for fit in (loose, tight):  # the error claimed is an upper bound
        difference = np.abs(fit.guide.loc - most.guide.loc) / most.guide.scale()
        assert np.max(difference) < 2 * np.max(fit.error)


def test_the_limit_of_draws_is_visible():
    most = doublings()[2]
    assert most.draws == 2048 and np.max(most.error) > 0


def test_the_optimum_is_that_of_the_elbo():
    """At the tight fit the exact ELBO of independent coordinates' slope, by Gauss-Hermite, is near 0."""
    tight = doublings()[1]
    a, s = np.asarray(tight.guide.loc, float), np.asarray(tight.guide.scale(), float)
    mean_exp = np.exp(a + s**2 / 2)  # E exp(u)
    pull = np.r_[0, np.diff(a)] - np.r_[np.diff(a), 0]
    by_mean = 1.5 - mean_exp - 0.4 * pull
    by_log_scale = 1 - s**2 * mean_exp - 0.4 * s**2 * np.array([1, 2, 1])
    assert_allclose(by_mean * s, 0, atol=0.06)
    assert_allclose(by_log_scale, 0, atol=0.1)


@cache
def bounded():
    """A normal cut off where a coordinate is beyond some bound, started far too wide: one program for all cuts."""
    inside = lambda u: -0.5 * jnp.sum((u - 0.5) ** 2) / 0.25
    centre, wide = cast(np.zeros(2), np.full(2, 20.0))

    @jax.jit
    def fit(bound, outside):
        return fit_meanfield(lambda u: jnp.where(jnp.max(jnp.abs(u)) < bound, inside(u), outside), KEY, centre, wide)

    return fit


@pytest.mark.parametrize("outside", [-np.inf, np.nan])
def test_a_target_with_an_outside(outside):
    """The start is narrowed until the ELBO is finite; the edge is where no draw of the optimum comes."""
    fit = bounded()(*cast(8.0, outside))
    assert fit.converged
    assert_allclose(fit.guide.loc, 0.5, atol=tol(1e-6, 1e-2))
    assert_allclose(fit.guide.scale(), 0.5, rtol=tol(1e-6, 1e-2))


@pytest.mark.parametrize("outside", [-np.inf, np.nan])
def test_nowhere_finite_does_not_converge(outside):
    assert not bounded()(*cast(0.0, outside)).converged
