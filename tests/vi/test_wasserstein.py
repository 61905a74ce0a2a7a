"""The 2-Wasserstein distance against matrix square roots and known cases."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from gaussian_forms import FORMS, gaussian, moments
from helpers import tol
from numpy.testing import assert_allclose
from scipy.linalg import sqrtm

from probkit.vi.divergences import wasserstein2

MIXES = list(itertools.product(FORMS, FORMS))


@pytest.mark.parametrize(("one", "other"), MIXES)
def test_matrix_square_roots(one, other):
    p, q = gaussian(one, 0), gaussian(other, 1)
    (m, S), (u, R) = moments(p), moments(q)
    root = np.real(sqrtm(S))
    expected = np.sqrt(np.sum((m - u) ** 2) + np.trace(S + R - 2 * np.real(sqrtm(root @ R @ root))))
    value = wasserstein2(p, q)
    assert_allclose(value, expected, rtol=tol(1e-9, 1e-5))
    assert_allclose(wasserstein2(q, p), value, rtol=tol(1e-12, 1e-5))
    if (one, other) == ("dense", "low rank"):
        assert_allclose(jax.jit(wasserstein2)(p, q), value, rtol=tol(1e-12, 1e-5))


@pytest.mark.parametrize("form", FORMS)
def test_equal_ones_are_at_distance_zero(form):
    p = gaussian(form, 0)
    value, gradient = jax.vjp(lambda q: wasserstein2(p, q), p)
    assert not np.any(value)
    for leaf in jax.tree.leaves(gradient(jnp.ones_like(value))):
        assert not np.any(leaf)


def test_one_distribution_in_two_forms():
    """The roots differ, the covariances do not: the error is of the order of rounding, not of its square root."""
    p = gaussian("low rank", 0)
    q = dist.MultivariateNormal(p.loc, covariance_matrix=p.covariance_matrix)
    assert wasserstein2(p, q) < tol(1e-13, 1e-5)


def test_batches_and_wrappers():
    p, q = gaussian("dense", 0, (3, 1)), gaussian("diagonal", 1, (2,))
    value = wasserstein2(p, q)
    assert value.shape == (3, 2)
    assert_allclose(wasserstein2(p.expand((3, 2)), q.expand((3, 2))), value, rtol=1e-6)
    summed = wasserstein2(p.expand((3, 2)).to_event(1), q.expand((3, 2)).to_event(1))
    assert_allclose(summed, np.linalg.norm(value, axis=-1), rtol=1e-5)


def test_scalars():
    p, q = dist.Normal(jnp.array([0.0, 1.0]), 2.0), dist.Normal(3.0, jnp.array([[2.0], [6.0]]))
    assert_allclose(wasserstein2(p, q), [[3, 2], [5, np.sqrt(20)]], rtol=1e-6)
    assert wasserstein2(dist.Normal(0, 2), dist.Normal(0, 5)) == 3


@pytest.mark.skipif(not jax.config.jax_enable_x64, reason="finite differences take double precision")
def test_first_and_second_derivatives():
    def along(t):
        mixes = [("dense", "low rank"), ("diagonal", "walk"), ("diagonal", "dense")]
        return jnp.stack([wasserstein2(gaussian(a, 0, shift=t), gaussian(b, 1, shift=-2 * t)) for a, b in mixes])

    slope, h = jax.jacrev(along), 1e-5
    three = jax.jit(lambda t: (along(t), slope(t), jax.jacfwd(slope)(t)))
    low, middle, high = (three(t) for t in (0.1 - h, 0.1, 0.1 + h))
    assert_allclose(middle[1], (high[0] - low[0]) / (2 * h), rtol=1e-7)
    assert_allclose(middle[2], (high[1] - low[1]) / (2 * h), rtol=1e-6)


def test_gradient_with_equal_singular_values():
    """The derivative of a singular value decomposition is NaN here; that of its rotation is not needed."""
    q = dist.MultivariateNormal(jnp.zeros(3), jnp.eye(3))
    gradient = jax.grad(lambda s: wasserstein2(dist.MultivariateNormal(jnp.zeros(3), s * jnp.eye(3)), q))(4.0)
    assert_allclose(gradient, np.sqrt(3) / 4, rtol=1e-5)  # the distance is sqrt(3) |sqrt(s) - 1|


def test_what_it_takes():
    with pytest.raises(TypeError, match="Laplace"):
        wasserstein2(dist.Laplace(0.0, 1.0), dist.Normal(0.0, 1.0))
    with pytest.raises(ValueError, match="event shape"):
        wasserstein2(gaussian("dense", 0), dist.Normal(0.0, 1.0))
