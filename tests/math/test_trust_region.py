"""Newton's method by conjugate gradients, held against dense solves and against SciPy."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tol
from numpy.testing import assert_allclose
from scipy import optimize

from probkit.math.optimise import rounding, tolerance
from probkit.math.trust_region import conjugate_gradients, minimise_products


@pytest.fixture(autouse=True)
def strict():
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


@jax.jit
def solve(H, b, radius, relative, most):
    return conjugate_gradients(lambda v: H @ v, b, radius, relative, most)


def solved(H, b, radius=np.inf, relative=1e-12, most=200):
    dtype = jnp.result_type(float)
    return solve(*(np.asarray(a, dtype) for a in (H, b, radius, relative)), np.asarray(most))


def minimise(fun, x0, max_steps=300):
    """In one program, with products by forward over reverse mode."""
    slope = jax.grad(fun)
    product = lambda x, v: jax.jvp(slope, (x,), (v,))[1]
    run = jax.jit(lambda x: minimise_products(jax.value_and_grad(fun), product, x, max_steps))
    return run(np.asarray(x0, jnp.result_type(float)))


def matrix(seed=0, dim=12):
    A = np.random.default_rng(seed).normal(size=(dim, dim))
    return A @ A.T + dim * np.eye(dim)


# -- conjugate gradients ----------------------------------------------------------------------------------------------


def test_dense_solve():
    H, b = matrix(), np.random.default_rng(1).normal(size=12)
    x, decrease = solved(H, b)
    expected = np.linalg.solve(H, b)
    assert_allclose(x, expected, rtol=tol(1e-9, 1e-4), atol=tol(1e-12, 1e-5))
    assert_allclose(decrease, b @ expected / 2, rtol=tol(1e-12, 1e-5))


def test_nothing_to_solve():
    x, decrease = solved(matrix(), np.zeros(12))
    assert not np.any(x) and decrease == 0


def test_the_edge_of_the_ball():
    """At the edge, and lower there than the best along the steepest slope (Cauchy's point)."""
    H, b = matrix(), np.random.default_rng(1).normal(size=12)
    radius = 0.3 * np.linalg.norm(np.linalg.solve(H, b))
    x, decrease = solved(H, b, radius)
    assert_allclose(np.linalg.norm(x), radius, rtol=tol(1e-12, 1e-5))
    cauchy = b * radius / np.linalg.norm(b)
    assert decrease >= (b @ cauchy - cauchy @ H @ cauchy / 2) * (1 - tol(1e-12, 1e-5))
    assert_allclose(decrease, b @ np.asarray(x) - x @ H @ np.asarray(x) / 2, rtol=tol(1e-10, 1e-4))


def test_negative_curvature_is_followed_to_the_edge():
    H = matrix() - 30 * np.eye(12)
    b = np.random.default_rng(1).normal(size=12)
    assert np.linalg.eigvalsh(H)[0] < 0
    x, decrease = solved(H, b, 2.0)
    assert_allclose(np.linalg.norm(x), 2, rtol=tol(1e-12, 1e-5))
    assert decrease > 0
    beyond, _ = solved(-np.eye(3), np.ones(3))  # no ball: it stays where it was
    assert np.isfinite(beyond).all()


def test_products_are_limited():
    H, b = matrix(), np.random.default_rng(1).normal(size=12)
    x, _ = solved(H, b, most=1)
    assert_allclose(x, b * (b @ b) / (b @ H @ b), rtol=tol(1e-12, 1e-5))
    assert_allclose(solved(H, b, relative=0.9)[0], x, rtol=tol(1e-12, 1e-5))


# -- minimisation -----------------------------------------------------------------------------------------------------

A = np.random.default_rng(2).normal(size=(300, 300)) / np.sqrt(300)
SHIFT = np.random.default_rng(3).normal(size=300)


def convex(x, np=jnp):
    """Logistic losses and a ridge: smooth and convex, with no closed form."""
    return np.sum(np.logaddexp(0.0 * SHIFT, 3 * (A @ x) + SHIFT)) + 0.25 * np.sum(x**2)


def test_convex_in_300_dimensions():
    dtype = jnp.result_type(float)
    matrix, shift = A.astype(dtype), SHIFT.astype(dtype)
    found = minimise(lambda x: jnp.sum(jax.nn.softplus(3 * (matrix @ x) + shift)) + 0.25 * jnp.sum(x**2), np.zeros(300))
    slope = lambda x: 3 * A.T @ (1 / (1 + np.exp(-3 * (A @ x) - SHIFT))) + 0.5 * x
    peer = optimize.minimize(
        lambda x: convex(x, np), np.zeros(300), jac=slope, method="L-BFGS-B", options={"ftol": 0, "gtol": 1e-9}
    )
    assert found.converged and found.steps < 25 and found.decrement < tol(1e-12, 1e-3)
    assert_allclose(found.value, peer.fun, rtol=tol(1e-12, 1e-5))
    assert_allclose(found.x, peer.x, atol=tol(1e-6, 1e-2))
    assert np.max(np.abs(found.gradient)) < tol(1e-5, 2e-2)


@cache
def wells():
    """Separable double wells about -1 and 1, tilted, from a start on the hills."""
    fun = lambda x: jnp.sum((x**2 - 1) ** 2 + 0.1 * x)
    return minimise(fun, 0.3 * np.random.default_rng(4).normal(size=100))


def test_double_wells():
    found = wells()
    roots = np.sort(np.roots([4, 0, -4, 0.1]).real)
    nearest = np.abs(np.asarray(found.x)[:, None] - roots[[0, 2]]).min(1)
    assert found.converged
    assert np.max(nearest) < tol(1e-6, 1e-2)  # each in a well, none on the hill between


def test_a_curved_valley():
    """SciPy's trust-ncg takes 75 steps here and trust-krylov 59."""
    fun = lambda x: jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)
    found = minimise(fun, -np.ones(10))
    assert found.converged and found.steps < 80
    assert_allclose(found.x, np.ones(10), atol=tol(1e-5, 2e-1))
    assert found.value < tol(1e-10, 1e-4)


def test_outside_its_region_a_function_may_be_infinite_or_nan():
    """The first steps, of length 1 and more, lead out of x > 0 for both."""
    for outside in (jnp.inf, jnp.nan):
        fun = lambda x: jnp.where(jnp.all(x > 0), jnp.sum(x - 0.01 * jnp.log(jnp.where(x > 0, x, 1))), outside)  # noqa: B023
        found = minimise(fun, np.full(5, 2.0))
        assert found.converged
        assert_allclose(found.x, 0.01, rtol=tol(1e-4, 3e-1))


def test_a_start_outside_the_region():
    """Where the slope is none or no help it does not count as converged; where it leads back, it is followed."""
    flat = minimise(lambda x: jnp.where(jnp.all(x > 0), jnp.sum(x**2), jnp.inf), -np.ones(3))
    assert not flat.converged and flat.value == np.inf and flat.steps < 5
    away = minimise(lambda x: jnp.sum(jnp.log(x)), -np.ones(3))
    assert not away.converged and away.value == np.inf and away.steps < 50
    both = lambda x: (jnp.where(jnp.all(x < 3.5), 0.5 * x @ x, jnp.nan), x)
    run = jax.jit(lambda x: minimise_products(both, lambda x, v: v, x))
    back = run(np.full(3, 4.0, jnp.result_type(float)))
    assert back.converged
    assert_allclose(back.x, 0, atol=tol(1e-6, 1e-3))


def test_a_start_at_the_optimum():
    found = minimise(lambda x: jnp.sum((x - 1) ** 2), np.ones(4))
    assert found.converged and found.steps <= 2 and found.decrement == 0
    assert_allclose(found.x, 1)


def test_it_stops_at_what_rounding_lets_show():
    """Under a constant of 1e6 float32 shows no decrease below one; the optimum still counts as reached."""
    found = minimise(lambda x: 1e6 + jnp.sum(jnp.cosh(x)), np.linspace(1, 2, 20))
    assert found.converged and found.steps < 30
    assert found.decrement < max(tolerance(found.x.dtype), float(rounding(found.value)))


def test_steps_are_limited():
    found = minimise(lambda x: jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2), -np.ones(10), 5)
    assert found.steps == 5 and not found.converged


def test_vmap_is_a_loop():
    fun = lambda x: jnp.sum(jnp.cosh(x - 0.5)) + jnp.prod(x)
    slope = jax.grad(fun)
    one = lambda x: minimise_products(jax.value_and_grad(fun), lambda x, v: jax.jvp(slope, (x,), (v,))[1], x)
    starts = np.random.default_rng(5).normal(size=(3, 4)).astype(jnp.result_type(float))
    many, single = jax.jit(jax.vmap(one))(starts), jax.jit(one)
    for i in range(3):
        assert_allclose(many.x[i], single(starts[i]).x, atol=tol(1e-8, 1e-3))
        assert many.x.dtype == starts.dtype
