"""KL divergences of Gaussians in every form against dense algebra."""

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
from numpyro.distributions import kl_divergence

from probkit.vi.divergences import kl
from probkit.vi.gaussians import as_gaussian

MIXES = list(itertools.product(FORMS, FORMS))


FEW = [
    ("diagonal", "low rank"),
    ("low rank", "low rank"),
    ("low rank", "dense"),
    ("dense", "walk"),
    ("walk", "diagonal"),
]


def dense_kl(p, q):
    (m, S), (u, R) = moments(p), moments(q)
    inverse, apart = np.linalg.inv(R), u - m
    log_dets = np.linalg.slogdet(R)[1] - np.linalg.slogdet(S)[1]
    trace, distance = np.trace(inverse @ S, axis1=-2, axis2=-1), np.einsum("...i,...ij,...j", apart, inverse, apart)
    return (trace + distance - apart.shape[-1] + log_dets) / 2


@cache
def table():
    """Every mix in one program: single ones, a p from itself, batches, and those in wrappers."""

    @jax.jit
    def found(singles, batches):
        each = {}
        for one, other in MIXES:
            p, q, many_p, many_q = singles[0][one], singles[1][other], batches[0][one], batches[1][other]
            pairs = {
                "single": (p, q),
                "batch": (many_p, many_q),
            }
            if (one, other) in FEW:
                pairs["wrapped"] = (many_p.expand((3, 2)).to_event(1), many_q.to_event(1))
            if one == other:
                pairs["self"] = (p, p)
            each[f"{one}, {other}"] = {name: kl(*pair) for name, pair in pairs.items()}
        return each

    return found(*forms())


def forms():
    return (gaussians(0), gaussians(1)), (gaussians(0, (3, 1)), gaussians(1, (2,)))


@pytest.mark.parametrize(("one", "other"), MIXES)
def test_dense_algebra(one, other):
    results, (singles, batches) = table()[f"{one}, {other}"], forms()
    result, many = results["single"], results["batch"]
    assert all(r.exact and not np.any(r.error) for r in results.values())
    assert result.value > 0
    assert_allclose(result.value, dense_kl(singles[0][one], singles[1][other]), rtol=tol(1e-11, 2e-5))
    assert many.value.shape == many.error.shape == (3, 2)
    assert_allclose(many.value, dense_kl(batches[0][one], batches[1][other]), rtol=tol(1e-10, 5e-5))
    if one == other:
        assert_allclose(results["self"].value, 0, atol=tol(1e-13, 2e-6))


@pytest.mark.parametrize(("one", "other"), FEW)
def test_wrappers(one, other):
    results = table()[f"{one}, {other}"]
    assert_allclose(results["wrapped"].value, results["batch"].value.sum(1), rtol=1e-5)


def few(t=0.0, dtype=float):
    """Some of the mixes, moved by t."""
    pairs = ((gaussian(p, 0, dtype=dtype, shift=t), gaussian(q, 1, dtype=dtype, shift=-2 * t)) for p, q in FEW)
    return jnp.stack([kl_divergence(p, q) for p, q in pairs])


def test_jit_equals_eager():
    eager = kl(gaussians(0)["dense"], gaussians(1)["diagonal"]).value
    assert_allclose(eager, table()["dense, diagonal"]["single"].value, rtol=tol(1e-11, 2e-5))


def test_single_precision_stays():
    assert jax.eval_shape(lambda: few(dtype=jnp.float32)).dtype == jnp.float32


@pytest.mark.skipif(not jax.config.jax_enable_x64, reason="finite differences take double precision")
def test_derivative():
    both = jax.jit(lambda t: jax.jvp(few, (t,), (1.0,)))
    assert_allclose(both(0.0)[1], (both(1e-5)[0] - both(-1e-5)[0]) / 2e-5, rtol=1e-6, atol=1e-8)


def test_small_noise_under_large_factors_keeps_digits():
    """Woodbury's difference of two numbers near 1e6 would leave nothing in float32."""
    W = 1.0 + np.random.default_rng(0).uniform(size=(30, 2))

    @jax.jit
    def found(W):
        p, q = (dist.LowRankMultivariateNormal(jnp.zeros(30), s * W, jnp.full(30, 1e-5)) for s in (1.0, 1.1))
        return p, q, kl(p, q).value, kl(p, p).value

    p, q, value, none = found(W)
    assert_allclose(value, dense_kl(p, q), rtol=tol(1e-7, 1e-2))
    assert_allclose(none, 0, atol=tol(1e-10, 1e-3))


def test_no_square_matrix_is_made():
    n = 50

    def found(x):
        p, q = (dist.LowRankMultivariateNormal(jnp.full(n, a), jnp.full((n, 2), a), jnp.ones(n)) for a in (x, 2 * x))
        d = dist.Normal(jnp.zeros(n), x).to_event(1)
        return [kl_divergence(a, b) for a, b in [(p, q), (d, q), (p, d)]]

    assert f"{n},{n}" not in str(jax.make_jaxpr(found)(0.5))


def test_a_walk_against_its_increments():
    p, q = dist.GaussianRandomWalk(0.7, 5), dist.GaussianRandomWalk(jnp.array([0.4, 2.0]), 5)
    a, b = dist.Normal(0.0, 0.7), dist.Normal(0.0, jnp.array([0.4, 2.0]))
    walks, steps = jax.jit(lambda *pairs: [kl(*pair).value for pair in pairs])((p, q), (a, b))
    assert_allclose(walks, 5 * steps, rtol=1e-6)


def test_what_is_no_gaussian():
    laplace = dist.Laplace(jnp.zeros(4), 1.0).to_event(1)
    with pytest.raises(NotImplementedError):
        kl_divergence(laplace, gaussians(0)["dense"])
    with pytest.raises(NotImplementedError, match="no Gaussian"):
        as_gaussian(laplace)


def test_unequal_lengths():
    with pytest.raises(ValueError, match=r"\(4,\)"):
        kl_divergence(gaussians(0)["dense"], dist.Normal(jnp.zeros(3), 1.0).to_event(1))
    with pytest.raises(ValueError, match="5 steps"):
        kl_divergence(dist.GaussianRandomWalk(1.0, 5), dist.GaussianRandomWalk(1.0, 4))
