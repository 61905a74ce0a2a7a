"""Langevin steps: moments of a Gaussian and a banana, with inertia and without, minibatches, scales, cycles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tol

from probkit.bnn import langevin
from probkit.bnn.methods.sghmc import HEAT

#: Long chains in either precision say the same.
pytestmark = pytest.mark.once

KEYS = lambda seed, count: jax.random.split(jax.random.key(seed), count)


def moments(gradient, size, h, c, steps, chains=64, s=None):
    """Mean and covariance of many chains, their first tenth left out."""
    start = jnp.zeros((chains, size))
    run = lambda x, key: langevin.chain(gradient, x, key, steps, h, c, thin=10, s=s)
    x = np.asarray(jax.jit(jax.vmap(run))(start, KEYS(0, chains)))[:, steps // 100 :].reshape(-1, size)
    return x.mean(0), np.cov(x.T)


@pytest.mark.slow
@pytest.mark.parametrize(("h", "c"), [(0.6, 0.9), (0.7, 0.0)], ids=["sghmc", "sgld"])
def test_moments_of_a_gaussian(h, c):
    covariance = np.array([[1.0, 0.6], [0.6, 0.8]])
    precision = jnp.asarray(np.linalg.inv(covariance))
    mean, found = moments(lambda x, key: precision @ (x - 2.0), 2, h, c, 40_000)
    assert np.allclose(mean, 2.0, rtol=0.03)
    assert np.allclose(found, covariance, rtol=0.03)


@pytest.mark.slow
@pytest.mark.parametrize(("h", "c", "chains"), [(0.05, 0.9, 512), (0.1, 0.0, 1024)], ids=["sghmc", "sgld"])
def test_moments_of_a_banana(h, c, chains):
    """x0 ~ N(0, 1), x1 | x0 ~ N(x0² + 2, 1): means 0 and 3, variances 1 and 3."""
    log_density = lambda x: -0.5 * x[0] ** 2 - 0.5 * (x[1] - x[0] ** 2 - 2) ** 2
    gradient = lambda x, key: -jax.grad(log_density)(x)
    start = jnp.array([[0.0, 3.0]]) + jnp.zeros((chains, 1))
    run = lambda x, key: langevin.chain(gradient, x, key, 40_000, h, c, thin=20)
    x = np.asarray(jax.jit(jax.vmap(run))(start, KEYS(1, chains)))[:, 200:].reshape(-1, 2)
    assert abs(x[:, 0].mean()) < 0.03
    assert np.allclose(x[:, 0].var(), 1.0, rtol=0.03)
    assert np.allclose(x[:, 1].mean(), 3.0, rtol=0.03)
    assert np.allclose(x[:, 1].var(), 3.0, rtol=0.03)


@pytest.mark.slow
def test_minibatches_heat_as_much_as_said():
    """The mean of 200 numbers by batches of 20, at the step of SGHMC: variance (1 + 0.1 c²) / 200."""
    y = jnp.asarray(np.random.default_rng(0).normal(size=200))
    y = (y - y.mean()) / y.std()
    n, batch, c = 200, 20, 0.9
    h = float(np.sqrt(HEAT * (1 - c**2) * batch / n / n))
    gradient = lambda x, key: n * (x - jnp.mean(y[jax.random.randint(key, (batch,), 0, n)]))
    mean, found = moments(gradient, 1, h, c, 20_000)
    assert np.allclose(found * n, 1 + HEAT * c**2, rtol=0.04)
    assert abs(mean[0]) < 0.03 / np.sqrt(n)


def test_one_step_by_hand():
    walk = langevin.Walk(jnp.array([1.0, 2.0]), jnp.array([0.5, -0.5]))
    g, s, noise, h, c = jnp.array([2.0, 4.0]), jnp.array([1.0, 0.5]), jnp.array([1.0, -1.0]), 0.1, 0.8
    v = walk.v - h * s * g
    x = walk.x + h / 2 * s * v
    v = c * v + 0.6 * noise
    found = langevin.step(walk, g, s, jnp.asarray(h), c, noise)
    assert np.allclose(found.v, v, rtol=tol(1e-12, 1e-6))
    assert np.allclose(found.x, x + h / 2 * s * v, rtol=tol(1e-12, 1e-6))


def test_a_cycle_falls_and_stays():
    rate, sampling = jax.vmap(lambda r: langevin.cycle(r, 0.5))(jnp.linspace(0, 0.99, 12))
    assert np.all(np.diff(rate[:6]) < 0)
    assert np.allclose(rate[6:], 0.5, atol=1e-6)
    assert np.array_equal(sampling, np.linspace(0, 0.99, 12) >= 0.5)


def test_scales_are_those_of_the_rows_free_of_units():
    curvature = jnp.array([1.0, 4.0, 16.0, 1e-30])
    found = lambda H: langevin.scales(lambda v: H * v, jax.random.key(0), curvature)
    assert np.allclose(found(curvature)[:3], found(curvature)[0] / np.array([1.0, 2.0, 4.0]), rtol=1e-5)
    assert np.allclose(found(curvature), found(100 * curvature), rtol=1e-5)
    assert np.all(np.isfinite(found(jnp.zeros(4))))


def test_scales_of_a_dense_matrix_are_those_of_its_row_norms():
    root = jax.random.normal(jax.random.key(1), (8, 8)) * jnp.geomspace(0.3, 3, 8)[:, None]
    H = root @ root.T
    found = jax.vmap(lambda k: langevin.scales(lambda v: H @ v, k, H[0]))(jax.random.split(jax.random.key(2), 50))
    norm = jnp.linalg.norm(H, axis=1)
    assert np.allclose(found.mean(0), (norm / norm.mean()) ** -0.5, rtol=0.1)
