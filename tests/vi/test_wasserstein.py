"""The 2-Wasserstein distance against matrix square roots and known cases."""

import itertools
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from gaussian_forms import FORMS, gaussian, gaussians, moments
from helpers import tol
from numpy.testing import assert_allclose
from scipy.linalg import sqrtm

from probkit.vi.divergences import wasserstein2

MIXES = list(itertools.product(FORMS, FORMS))


@cache
def table():
    """Every mix and its reverse, in one program."""
    found = lambda p, q: {f"{a}, {b}": (wasserstein2(p[a], q[b]), wasserstein2(q[b], p[a])) for a, b in MIXES}
    return jax.jit(found)(gaussians(0), gaussians(1))


@pytest.mark.parametrize(("one", "other"), MIXES)
def test_matrix_square_roots(one, other):
    (m, S), (u, R) = moments(gaussians(0)[one]), moments(gaussians(1)[other])
    root = np.real(sqrtm(S))
    expected = np.sqrt(np.sum((m - u) ** 2) + np.trace(S + R - 2 * np.real(sqrtm(root @ R @ root))))
    value, reverse = table()[f"{one}, {other}"]
    assert_allclose(value, expected, rtol=tol(1e-9, 1e-5))
    assert_allclose(reverse, value, rtol=tol(1e-12, 1e-5))


def test_jit_equals_eager():
    eager = wasserstein2(gaussians(0)["dense"], gaussians(1)["low rank"])
    assert_allclose(eager, table()["dense, low rank"][0], rtol=tol(1e-12, 1e-5))


def test_equal_ones_are_at_distance_zero():
    def found(p):
        value, gradient = jax.vjp(lambda q: wasserstein2(p, q), p)
        return value, gradient(jnp.ones_like(value))

    for leaf in jax.tree.leaves(jax.jit(lambda all_: [found(all_[form]) for form in FORMS])(gaussians(0))):
        assert not np.any(leaf)


def test_one_distribution_in_two_forms():
    """The roots differ, the covariances do not: the error is of the order of rounding, not of its square root."""

    @jax.jit
    def found(p):
        return wasserstein2(p, dist.MultivariateNormal(p.loc, covariance_matrix=p.covariance_matrix))

    assert found(gaussians(0)["low rank"]) < tol(1e-13, 1e-5)


def test_batches_and_wrappers():
    @jax.jit
    def found(p, q):
        wide = p.expand((3, 2)), q.expand((3, 2))
        return wasserstein2(p, q), wasserstein2(*wide), wasserstein2(*(d.to_event(1) for d in wide))

    value, wide, summed = found(gaussians(0, (3, 1))["dense"], gaussians(1, (2,))["diagonal"])
    assert value.shape == (3, 2)
    assert_allclose(wide, value, rtol=1e-6)
    assert_allclose(summed, np.linalg.norm(value, axis=-1), rtol=1e-5)


def test_scalars():
    p, q = dist.Normal(jnp.array([0.0, 1.0]), 2.0), dist.Normal(3.0, jnp.array([[2.0], [6.0]]))
    assert_allclose(jax.jit(wasserstein2)(p, q), [[3, 2], [5, np.sqrt(20)]], rtol=1e-6)
    assert wasserstein2(dist.Normal(0, 2), dist.Normal(0, 5)) == 3


@pytest.mark.skipif(not jax.config.jax_enable_x64, reason="finite differences take double precision")
def test_first_and_second_derivatives():
    mixes, h = [("dense", "low rank"), ("diagonal", "walk"), ("diagonal", "dense")], 1e-5
    along = lambda mix, t: wasserstein2(gaussian(mix[0], 0, shift=t), gaussian(mix[1], 1, shift=-2 * t))
    both = [jax.value_and_grad(lambda t, mix=mix: along(mix, t)) for mix in mixes]
    three = jax.jit(lambda t: jnp.array([jnp.stack([*f(t), jax.jvp(f, (t,), (1.0,))[1][1]]) for f in both]).T)
    low, middle, high = (three(t) for t in (0.1 - h, 0.1, 0.1 + h))
    assert_allclose(middle[1], (high[0] - low[0]) / (2 * h), rtol=1e-7)
    assert_allclose(middle[2], (high[1] - low[1]) / (2 * h), rtol=1e-6)


def test_gradient_with_equal_singular_values():
    """The derivative of a singular value decomposition is NaN here; that of its rotation is not needed."""
    sphere = lambda s: dist.MultivariateNormal(jnp.zeros(3), s * jnp.eye(3))
    gradient = jax.jit(jax.grad(lambda s: wasserstein2(sphere(s), sphere(1.0))))(4.0)
    assert_allclose(gradient, np.sqrt(3) / 4, rtol=1e-5)  # the distance is sqrt(3) |sqrt(s) - 1|


def test_what_it_takes():
    with pytest.raises(TypeError, match="Laplace"):
        wasserstein2(dist.Laplace(0.0, 1.0), dist.Normal(0.0, 1.0))
    with pytest.raises(ValueError, match="event shape"):
        wasserstein2(gaussians(0)["dense"], dist.Normal(0.0, 1.0))
