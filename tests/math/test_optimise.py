"""Minimisation: known minima however badly scaled, honest about failure, and the same under `vmap` as in a loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tol
from numpy.testing import assert_allclose

from probkit.math.optimise import NEWTON_MAX_DIM, curvature, tolerance, value_gradient_hessian
from probkit.math.optimise import minimise as minimise_traced

minimise = jax.jit(minimise_traced, static_argnums=(0, 2), static_argnames="max_steps")


def rosenbrock(x):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def double_well(x):
    return jnp.sum((x**2 - 1) ** 2) + 0.1 * jnp.sum(x)


def log_scale(u):
    """Minus log-likelihood of zero-mean normals, in the log of two scales of which one hardly matters: a ridge."""
    sd, faint = jnp.exp(u[0]), 1e-3 * jnp.exp(u[1])
    variance = sd**2 + faint**2
    return 50 * jnp.log(variance) + 50 * 4.0 / variance + 0.5 * 1e-2 * jnp.sum((u / 3) ** 2)


def test_a_badly_scaled_quadratic_takes_a_few_steps():
    scales = jnp.array([1e-6, 1e-3, 1.0, 1e3, 1e6])
    centre = jnp.array([2.0, -1.0, 0.5, 3.0, -2.0])
    found = minimise(lambda x: 0.5 * jnp.sum((x / scales - centre) ** 2), jnp.zeros(5))
    assert found.converged
    assert found.steps < 20
    assert_allclose(found.x / scales, centre, atol=tol(1e-6, 1e-2))


def test_a_correlated_badly_scaled_quadratic():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(6, 6))
    scales = np.logspace(-3, 3, 6)
    H = jnp.asarray((root @ root.T + np.eye(6)) / scales[:, None] / scales[None, :])
    goal = jnp.asarray(scales * rng.normal(size=6))
    found = minimise(lambda x: 0.5 * (x - goal) @ H @ (x - goal), jnp.zeros(6))
    assert found.converged
    assert_allclose(found.x / scales, goal / scales, atol=tol(1e-6, 2e-2))
    assert_allclose(found.hessian * scales[:, None] * scales, H * scales[:, None] * scales, rtol=tol(1e-9, 1e-3))


@pytest.mark.parametrize("dim", [2, 5])
def test_rosenbrock(dim):
    x0 = jnp.where(jnp.arange(dim) % 2 == 0, -1.2, 1.0)
    found = minimise(rosenbrock, x0)
    # In five dimensions there is a second minimum near (-1, 1, 1, 1, 1); this start goes to either, flat in float32.
    assert found.converged
    assert jnp.max(jnp.abs(found.gradient)) < tol(1e-4, 0.1)
    assert dim > 2 or jnp.max(jnp.abs(found.x - 1)) < tol(1e-6, 1e-2)


def test_a_ridge_in_log_scale():
    found = minimise(log_scale, jnp.array([3.0, 2.0]))
    assert found.converged
    assert_allclose(jnp.exp(found.x[0]), 2.0, rtol=2e-3)
    assert jnp.max(jnp.abs(found.gradient)) < tol(1e-5, 1e-2)


def test_an_indefinite_start_goes_downhill():
    found = minimise(double_well, jnp.array([0.05, -0.05]))
    H = jax.jit(jax.hessian(double_well))(jnp.array([0.05, -0.05]))
    assert np.all(np.linalg.eigvalsh(H) < 0)
    assert found.converged
    assert jnp.all(jnp.abs(jnp.abs(found.x) - 1) < 0.05)
    assert jnp.all(curvature(found.hessian).values > 0)


def test_a_stationary_saddle_is_not_called_a_minimum():
    found = minimise(lambda x: x[0] ** 2 - x[1] ** 2 + 0.0 * x[1], jnp.zeros(2))
    assert not found.converged


@pytest.mark.parametrize("bad", [jnp.inf, jnp.nan], ids=["inf", "nan"])
def test_a_start_without_a_finite_value_is_reported(bad):
    found = minimise(lambda x: jnp.where(x[0] > 0, jnp.sum(x**2), bad), jnp.array([-1.0, 2.0]))
    assert jnp.isinf(found.value)
    assert not found.converged


def test_steps_across_the_edge_of_the_region_are_taken_back():
    def barrier(x):
        return jnp.where(jnp.all(x > 0), jnp.sum(x - jnp.log(x)), jnp.nan)

    found = minimise(barrier, jnp.array([30.0, 1e-3]))
    assert found.converged
    assert_allclose(found.x, 1.0, atol=tol(1e-6, 1e-2))


@pytest.mark.parametrize(
    "fun",
    [lambda x: jnp.sum(x), lambda x: -jnp.log1p(jnp.sum(x**2)), lambda x: x[0] ** 2 - x[1] ** 3],
    ids=["linear", "log", "cubic"],
)
def test_a_function_without_a_minimum_does_not_converge(fun):
    found = minimise(fun, jnp.array([0.3, 0.2]), max_steps=30)
    assert not found.converged


def test_an_infimum_at_infinity_is_reached_in_value():
    """The decrement counts in the function's own units: what is left to gain is told, not how far away it lies."""
    found = minimise(lambda x: jnp.sum(jnp.exp(x)), jnp.array([0.3, -0.2]))
    assert 0 < found.value < 10 * tolerance(found.x.dtype)
    assert_allclose(found.decrement, 0.5 * found.value, rtol=1e-3)


def test_a_flat_direction_does_not_converge():
    found = minimise(lambda x: (x[0] - 1) ** 2 + 0.0 * x[1], jnp.zeros(2))
    assert_allclose(found.x[0], 1.0, atol=1e-3)
    assert not found.converged


def test_max_steps_is_the_most_evaluations():
    found = minimise(rosenbrock, jnp.array([-1.2, 1.0]), max_steps=3)
    assert found.steps == 3
    assert not found.converged


def test_nothing_to_minimise():
    found = minimise(lambda x: jnp.asarray(1.5) + jnp.sum(x), jnp.zeros(0))
    assert found.value == 1.5
    assert found.converged


def test_vmap_equals_a_loop():
    starts = jax.random.normal(jax.random.key(0), (7, 3)) * 2
    batched = jax.jit(jax.vmap(lambda x: minimise(rosenbrock, x)))(starts)
    for i, start in enumerate(starts):
        alone = minimise(rosenbrock, start)
        assert alone.converged == batched.converged[i]
        assert_allclose(alone.x, batched.x[i], atol=tol(1e-6, 2e-2))


def test_a_bad_lane_leaves_the_others_alone():
    def fun(x, poison):
        return jnp.sum((x - 1) ** 2) + poison

    found = jax.vmap(lambda p: minimise(lambda x: fun(x, p), jnp.zeros(3)))(jnp.array([0.0, jnp.nan, jnp.inf, 2.0]))
    assert found.converged.tolist() == [True, False, False, True]
    assert_allclose(found.x[np.array([0, 3])], 1.0, atol=tol(1e-6, 1e-2))


def test_precision_follows_the_start():
    found = minimise(rosenbrock, jnp.array([-1.2, 1.0], jnp.float32))
    floats = (found.x, found.value, found.gradient, found.hessian, found.decrement)
    assert {a.dtype for a in floats} == {jnp.dtype("float32")}
    assert found.converged
    assert_allclose(found.x, 1.0, atol=2e-2)
    assert found.decrement < tolerance(jnp.float32)


def test_value_gradient_and_hessian():
    x = jnp.array([0.3, -1.1, 0.7, 2.0])
    fun = lambda x: rosenbrock(x) + jnp.sin(x[0] * x[3])
    value, gradient, hessian = jax.jit(lambda x: value_gradient_hessian(fun, x))(x)
    assert_allclose(value, fun(x), rtol=tol(1e-12, 1e-5))
    assert_allclose(gradient, jax.jit(jax.grad(fun))(x), rtol=tol(1e-10, 1e-4))
    assert_allclose(hessian, jax.jit(jax.hessian(fun))(x), rtol=tol(1e-10, 1e-4), atol=tol(1e-10, 1e-3))
    assert_allclose(hessian, hessian.T, rtol=0)


def test_the_decrement_is_what_is_still_to_be_gained():
    H, goal = jnp.array([[2.0, 0.3], [0.3, 0.5]]), jnp.array([1.0, -1.0])
    fun = lambda x: 0.5 * (x - goal) @ H @ (x - goal) + 7.0
    found = minimise(fun, jnp.array([4.0, 4.0]), max_steps=1)
    assert_allclose(found.decrement, fun(jnp.array([4.0, 4.0])) - 7.0, rtol=tol(1e-10, 1e-4))


def test_curvature_puts_the_matrix_together_again():
    root = np.random.default_rng(1).normal(size=(4, 4)) * np.logspace(-4, 4, 4)[:, None]
    H = jnp.asarray(root @ root.T)
    c = curvature(H)
    again = c.scale[:, None] * (c.vectors * c.values) @ c.vectors.T * c.scale
    scaled = 1 / c.scale[:, None] / c.scale
    assert_allclose(again * scaled, H * scaled, atol=tol(1e-12, 1e-5))
    assert jnp.all(jnp.isfinite(jnp.stack([curvature(jnp.zeros((3, 3))).values])))


# -- above NEWTON_MAX_DIM ---------------------------------------------------------------------------------------------

DIM = 100


@pytest.fixture(scope="module")
def wide():
    assert DIM > NEWTON_MAX_DIM
    scales = jnp.logspace(-1, 1, DIM)
    return jax.jit(lambda x: minimise(lambda x: 0.5 * jnp.sum((x / scales - 1) ** 2) + 0.1 * jnp.mean(x**4), x)), scales


def test_a_hundred_dimensions(wide):
    solve, scales = wide
    found = solve(jnp.zeros(DIM))
    assert found.converged
    assert_allclose(found.hessian, np.diag(1 / scales**2 + 1.2 * found.x**2 / DIM), rtol=1e-3, atol=1e-5)
    newton = np.linalg.solve(found.hessian, found.gradient)
    assert np.max(np.abs(newton / scales)) < tol(1e-4, 0.05)


def test_a_hundred_dimensions_in_lanes(wide):
    solve, scales = wide
    starts = jax.random.normal(jax.random.key(1), (3, DIM)) * scales
    batched = jax.vmap(solve)(starts)
    assert batched.converged.all()
    alone = solve(starts[1])
    assert_allclose(batched.x[1] / scales, alone.x / scales, atol=tol(1e-4, 0.05))


def test_a_hundred_dimensions_without_a_finite_start():
    found = minimise(lambda x: jnp.sum(x**2) + jnp.nan, jnp.ones(DIM))
    assert not found.converged
    assert jnp.isinf(found.value)


def test_a_hundred_dimensions_without_a_minimum():
    assert not minimise(lambda x: jnp.sum(x), jnp.zeros(DIM), max_steps=3).converged
