"""Minimisation by slopes: known minima, the same answer as Newton's method, honest where there is none."""

import jax
import jax.numpy as jnp
import numpy as np
from helpers import tol
from numpy.testing import assert_allclose

from probkit.math.optimise import minimise
from probkit.math.secant import descend_by_slopes, minimise_from


def rosenbrock(x):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def logistic(x):
    A = jnp.asarray(np.random.default_rng(0).normal(size=(40, 6)), x.dtype)
    return jnp.sum(jax.nn.softplus(A @ (x - 1))) + 0.05 * jnp.sum((x - 0.5) ** 2)


def test_minima_against_newton():
    starts = jnp.asarray(np.random.default_rng(1).normal(size=(3, 6)))
    each = lambda fn, x: jax.lax.map(fn, x)
    found, values = jax.jit(lambda x: minimise_from(logistic, x, jnp.ones(6), each))(starts)
    newton = jax.jit(lambda x: minimise(logistic, x))(starts[0])
    assert found.converged and np.all(values < newton.value + tol(1e-9, 1e-3))
    assert_allclose(found.x, newton.x, atol=tol(1e-6, 1e-2))
    assert_allclose(found.hessian, newton.hessian, rtol=tol(1e-6, 1e-2), atol=tol(1e-6, 1e-2))
    batch, _ = jax.jit(lambda x: minimise_from(logistic, x, jnp.ones(6), lambda fn, x: jax.vmap(fn)(x)))(starts)
    assert_allclose(batch.value, found.value, rtol=tol(1e-9, 1e-4))


def test_a_curved_valley_and_badly_chosen_units():
    found = jax.jit(lambda x: descend_by_slopes(rosenbrock, x))(jnp.array([-1.2, 1.0]))
    assert found.value < tol(1e-12, 1e-4) and found.steps < 80
    unit = jnp.array([1e4, 1e-3])
    scaled = lambda x: jnp.sum((x / unit - jnp.array([2.0, -1.0])) ** 2 * jnp.array([1.0, 30.0]))
    found, _ = jax.jit(lambda x: minimise_from(scaled, x, unit, jax.lax.map))(jnp.zeros((1, 2)))
    assert found.converged
    assert_allclose(found.x / unit, [2.0, -1.0], atol=tol(1e-6, 1e-2))


def test_a_saddle_and_a_flat_direction_are_no_minima():
    """Where no start moves along a direction, slopes alone know nothing of it."""
    saddle = lambda x: (x[1] ** 2 - 1) ** 2 + (x[0] - 1) ** 2
    along = jnp.array([[0.0, 0.0], [2.0, 0.0], [-1.0, 0.0], [3.0, 0.0]])
    found, _ = jax.jit(lambda x: minimise_from(saddle, x, jnp.ones(2), jax.lax.map))(along)
    assert not found.converged
    flat = lambda x: jnp.sum((x[:2] - 1) ** 2) + 1
    found, _ = jax.jit(lambda x: minimise_from(flat, x, jnp.ones(3), jax.lax.map))(
        jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)))
    )
    assert not found.converged
    assert_allclose(found.hessian[2], 0, atol=1e-6)


def test_walls_and_nothing_finite():
    barrier = lambda x: jnp.where(x[0] > 0, x[0] - jnp.log(jnp.where(x[0] > 0, x[0], 1.0)), jnp.nan) + x[1] ** 2
    found, values = jax.jit(lambda x: minimise_from(barrier, x, jnp.ones(2), jax.lax.map))(
        jnp.array([[30.0, 3.0], [-1.0, 0.0]])
    )
    assert found.converged and np.isinf(values[1])
    assert_allclose(found.x, [1.0, 0.0], atol=tol(1e-5, 1e-2))
    nowhere = jax.jit(lambda x: minimise_from(lambda x: jnp.sum(x) + jnp.nan, x, jnp.ones(2), jax.lax.map))
    assert not nowhere(jnp.ones((2, 2)))[0].converged
