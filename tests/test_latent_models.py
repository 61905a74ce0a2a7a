"""Latent-variable models as small NumPyro functions through `pk.fit`: probabilistic PCA, factorisation, a mixture."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose
from numpyro.distributions import constraints

import probkit as pk

pytestmark = pytest.mark.once

KEY = jax.random.key(0)


def ppca(y):
    """Tipping and Bishop (1999), one latent direction, the latent values integrated out."""
    n, dim = y.shape
    w = numpyro.sample("w", dist.Normal(0, 2).expand([dim]).to_event(1))
    scale = numpyro.sample("scale", dist.HalfNormal(2))
    law = dist.LowRankMultivariateNormal(jnp.zeros(dim), w[:, None], jnp.full(dim, scale**2))
    numpyro.sample("y", law.expand([n]).to_event(1), obs=y)


def test_probabilistic_pca_finds_its_direction():
    rng = np.random.default_rng(0)
    w = np.array([2.0, -1.0, 0.5, 0.0])
    y = rng.normal(size=(200, 1)) * w + 0.5 * rng.normal(size=(200, 4))
    posterior = pk.fit(ppca, args=(y,), key=KEY, init={"w": np.array([1.0, -0.5, 0.1, 0.1])}, progress=False)
    assert posterior.report.converged
    # The closed form of the maximum: the first eigenvector, its eigenvalue less the mean of the others.
    values, vectors = np.linalg.eigh(np.cov(y.T, bias=True))
    noise = values[:-1].mean()
    top = vectors[:, -1] * np.sqrt(values[-1] - noise) * np.sign(vectors[0, -1])
    found = posterior.sites["w"][0]
    assert_allclose(found.mean(0), top, atol=0.06)  # the posterior's sds are about 0.1
    assert_allclose(posterior.sites["scale"].mean(), np.sqrt(noise), rtol=0.03)


def factorisation(rows, columns, ratings, shape):
    """Bayesian matrix factorisation of rank one, from some entries (Salakhutdinov and Mnih 2008)."""
    u = numpyro.sample("u", dist.Normal(1, 1).expand([shape[0]]).to_event(1))
    v = numpyro.sample("v", dist.Normal(1, 1).expand([shape[1]]).to_event(1))
    numpyro.sample("y", dist.Normal(u[rows] * v[columns], 0.3), obs=ratings)


def test_matrix_factorisation_predicts_what_it_has_not_seen():
    rng = np.random.default_rng(1)
    u, v = 1 + 0.5 * rng.normal(size=12), 1 + 0.5 * rng.normal(size=8)
    seen = rng.random((12, 8)) < 0.6
    rows, columns = np.nonzero(seen)
    ratings = (u[:, None] * v)[seen] + 0.3 * rng.normal(size=seen.sum())
    args = (jnp.asarray(rows), jnp.asarray(columns), ratings, (12, 8))
    posterior = pk.fit(factorisation, args=args, key=KEY, method=pk.VI(), progress=False)
    draws = posterior.sites["u"][0][:, :, None] * posterior.sites["v"][0][:, None, :]
    truth = (u[:, None] * v)[~seen]
    error = np.sqrt(np.mean((draws.mean(0)[~seen] - truth) ** 2))
    mean_only = np.sqrt(np.mean((ratings.mean() - truth) ** 2))
    assert error < 0.5 * mean_only
    inside = np.abs(draws.mean(0)[~seen] - truth) < 2.5 * draws.std(0)[~seen]
    assert inside.mean() > 0.85


def mixture(y):
    """Two normals, their labels summed out, their means in order."""
    mu = numpyro.sample("mu", dist.ImproperUniform(constraints.ordered_vector, (), (2,)))
    numpyro.factor("prior", dist.Normal(0, 5).log_prob(mu).sum())
    scale = numpyro.sample("scale", dist.HalfNormal(2))
    share = numpyro.sample("share", dist.Beta(2, 2))
    mixing = dist.Categorical(probs=jnp.stack([share, 1 - share]))
    numpyro.sample("y", dist.MixtureSameFamily(mixing, dist.Normal(mu, scale)).expand([y.size]).to_event(1), obs=y)


@pytest.mark.parametrize("method", [pk.Auto(), pytest.param(pk.VI(), marks=pytest.mark.slow)], ids=["auto", "vi"])
def test_a_gaussian_mixture(method):
    rng = np.random.default_rng(2)
    y = np.where(rng.random(300) < 0.3, -2.0, 1.5) + 0.7 * rng.normal(size=300)
    posterior = pk.fit(mixture, args=(y,), key=KEY, method=method, progress=False)
    assert posterior.report.converged, posterior.report
    assert_allclose(posterior.sites["mu"].mean((0, 1)), [-2.0, 1.5], atol=0.25)
    assert_allclose(posterior.sites["share"].mean(), 0.3, atol=0.08)
