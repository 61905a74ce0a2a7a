"""L-BFGS on functions whose minimum is known."""

import jax
import jax.numpy as jnp
import numpy as np
from helpers import tol
from numpy.testing import assert_allclose

from probkit.math.quasi_newton import lbfgs, with_gradient


def test_with_gradient_hands_on_what_it_is_given():
    """The reverse derivative is the gradient that came with the value, even a wrong one."""
    fun = with_gradient(lambda x: (jnp.sum(x**2), 3 * x))
    x = np.array([1.0, -2.0], jnp.result_type(float))
    value, gradient = jax.jit(jax.value_and_grad(lambda x: 2 * fun(x)))(x)
    assert_allclose(value, 10)
    assert_allclose(gradient, 6 * x)
    assert_allclose(fun(x), 5)


def test_a_quadratic_of_many_scales():
    scales, centre = np.geomspace(1, 1e3, 30), np.linspace(-1, 1, 30)
    dtype = jnp.result_type(float)
    scales, centre = scales.astype(dtype), centre.astype(dtype)
    both = lambda x: (0.5 * jnp.sum(scales * (x - centre) ** 2), scales * (x - centre))
    x, steps, done = jax.jit(lambda x: lbfgs(with_gradient(both), x, 300, tol(1e-16, 1e-8)))(np.zeros(30, dtype))
    assert done and steps < 250 and x.dtype == dtype
    assert_allclose(x, centre, atol=tol(1e-6, 1e-3))


def test_a_curved_valley_and_the_limit_on_steps():
    fun = lambda x: 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2
    run = jax.jit(lambda x, most: lbfgs(fun, x, most, tol(1e-14, 1e-8)))
    start = np.array([-1.2, 1.0], jnp.result_type(float))
    x, steps, done = run(start, 200)
    assert done and steps < 60
    assert_allclose(x, 1, atol=tol(1e-5, 1e-2))
    x, steps, done = run(start, 3)
    assert steps == 3 and not done
    assert_allclose(run(np.ones_like(start), 200)[1], 1)  # at the optimum one look is enough
