"""KL divergences of Gaussians in every form against dense algebra."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from gaussian_forms import FORMS, gaussian, moments
from helpers import tol
from numpy.testing import assert_allclose
from numpyro.distributions import kl_divergence

from probkit.vi.divergences import kl
from probkit.vi.gaussians import as_gaussian

MIXES = list(itertools.product(FORMS, FORMS))


def dense_kl(p, q):
    (m, S), (u, R) = moments(p), moments(q)
    inverse, apart = np.linalg.inv(R), u - m
    log_dets = np.linalg.slogdet(R)[1] - np.linalg.slogdet(S)[1]
    trace, distance = np.trace(inverse @ S, axis1=-2, axis2=-1), np.einsum("...i,...ij,...j", apart, inverse, apart)
    return (trace + distance - apart.shape[-1] + log_dets) / 2


@pytest.mark.parametrize(("one", "other"), MIXES)
def test_dense_algebra(one, other):
    p, q = gaussian(one, 0), gaussian(other, 1)
    result = kl(p, q)
    assert result.exact and result.error == 0 and result.value > 0
    assert_allclose(result.value, dense_kl(p, q), rtol=tol(1e-11, 2e-5))
    if one == other:
        assert_allclose(kl(p, p).value, 0, atol=tol(1e-13, 2e-6))


@pytest.mark.parametrize(("one", "other"), MIXES)
def test_batches_broadcast(one, other):
    p, q = gaussian(one, 0, (3, 1)), gaussian(other, 1, (2,))
    value = kl(p, q).value
    assert value.shape == (3, 2)
    wide = kl(p.expand((3, 2)), q.expand((3, 2))).value
    assert_allclose(wide, value, rtol=1e-6)
    assert_allclose(value, dense_kl(p, q), rtol=tol(1e-10, 5e-5))


@pytest.mark.parametrize(("one", "other"), MIXES)
def test_wrappers(one, other):
    p, q = gaussian(one, 0), gaussian(other, 1)
    value = kl(p, q).value
    wrapped = kl(p.expand((4, 3)).to_event(1), q.expand((3,)).to_event(1))
    assert wrapped.exact and wrapped.value.shape == (4,)
    assert_allclose(wrapped.value, jnp.full(4, 3 * value), rtol=1e-5)


FEW = [
    ("diagonal", "low rank"),
    ("low rank", "low rank"),
    ("low rank", "dense"),
    ("dense", "walk"),
    ("walk", "diagonal"),
]


def few(t=0.0, dtype=float):
    """Some of the mixes, moved by t."""
    pairs = ((gaussian(p, 0, dtype=dtype, shift=t), gaussian(q, 1, dtype=dtype, shift=-2 * t)) for p, q in FEW)
    return jnp.stack([kl_divergence(p, q) for p, q in pairs])


def test_jit_equals_eager():
    assert_allclose(jax.jit(few)(), few(), rtol=tol(1e-11, 2e-5))


@pytest.mark.skipif(not jax.config.jax_enable_x64, reason="compares the precisions")
def test_single_precision_and_derivative():
    single = few(dtype=jnp.float32)
    assert single.dtype == jnp.float32
    assert_allclose(single, few(), rtol=2e-5)
    both = jax.jit(lambda t: jax.jvp(few, (t,), (1.0,)))
    assert_allclose(both(0.0)[1], (both(1e-5)[0] - both(-1e-5)[0]) / 2e-5, rtol=1e-6, atol=1e-8)


def test_small_noise_under_large_factors_keeps_digits():
    """Woodbury's difference of two numbers near 1e6 would leave nothing in float32."""
    W = 1.0 + jax.random.uniform(jax.random.key(0), (30, 2))
    p, q = (dist.LowRankMultivariateNormal(jnp.zeros(30), s * W, jnp.full(30, 1e-5)) for s in (1.0, 1.1))
    assert_allclose(kl(p, q).value, dense_kl(p, q), rtol=tol(1e-7, 1e-2))
    assert_allclose(kl(p, p).value, 0, atol=tol(1e-10, 1e-3))


def test_no_square_matrix_is_made():
    n = 50
    p, q = (dist.LowRankMultivariateNormal(jnp.full(n, x), jnp.full((n, 2), x), jnp.ones(n)) for x in (0.5, 1.0))
    d = dist.Normal(jnp.zeros(n), 2.0).to_event(1)
    for a, b in [(p, q), (d, q), (p, d)]:
        jaxpr = jax.make_jaxpr(lambda a, b: kl_divergence(a, b))(a, b)
        assert f"{n},{n}" not in str(jaxpr)


def test_a_walk_against_its_increments():
    p, q = dist.GaussianRandomWalk(0.7, 5), dist.GaussianRandomWalk(jnp.array([0.4, 2.0]), 5)
    expected = 5 * kl_divergence(dist.Normal(0.0, 0.7), dist.Normal(0.0, jnp.array([0.4, 2.0])))
    assert_allclose(kl(p, q).value, expected, rtol=1e-6)


def test_what_is_no_gaussian():
    laplace = dist.Laplace(jnp.zeros(4), 1.0).to_event(1)
    with pytest.raises(NotImplementedError):
        kl_divergence(laplace, gaussian("dense", 0))
    with pytest.raises(NotImplementedError, match="no Gaussian"):
        as_gaussian(laplace)


def test_unequal_lengths():
    with pytest.raises(ValueError, match=r"\(4,\)"):
        kl_divergence(gaussian("dense", 0), dist.Normal(jnp.zeros(3), 1.0).to_event(1))
    with pytest.raises(ValueError, match="5 steps"):
        kl_divergence(dist.GaussianRandomWalk(1.0, 5), dist.GaussianRandomWalk(1.0, 4))
