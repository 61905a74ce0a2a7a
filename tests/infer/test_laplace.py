"""Laplace with importance resampling, held against exact Gaussians and quadrature; its errors against their spread."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from helpers import count_compilations, tol
from numpy.testing import assert_allclose
from scipy import stats
from scipy.stats import multivariate_normal, multivariate_t

import probkit as pk
from probkit.infer.importance import (
    LEAST_POOL,
    _chi_square,
    _widened,
    acceptable,
    least_ess,
    resample,
    standard_draws,
    weighted_error,
)

S = 4000


def gaussian(y):
    """A conjugate pair with correlated data: the posterior is exactly Gaussian."""
    theta = numpyro.sample("theta", dist.Normal(0, 10.0).expand([2]).to_event(1))
    noise = jnp.array([[1.0, 0.8], [0.8, 2.0]])
    numpyro.sample("y", dist.MultivariateNormal(theta, noise), obs=y)


Y = np.array([[1.0, -2.0], [3.0, 0.5], [2.2, -0.3]])


def exact_gaussian():
    noise, prior = np.array([[1.0, 0.8], [0.8, 2.0]]), 100 * np.eye(2)
    covariance = np.linalg.inv(np.linalg.inv(prior) + 3 * np.linalg.inv(noise))
    mean = covariance @ np.linalg.inv(noise) @ Y.sum(0)
    joint = np.kron(np.ones((3, 3)), prior) + np.kron(np.eye(3), noise)
    return mean, covariance, multivariate_normal(np.zeros(6), joint).logpdf(Y.ravel())


@functools.cache
def fitted(method):
    return pk.fit(gaussian, args=(Y.astype(jnp.result_type(float)),), key=jax.random.key(3), method=method)


@pytest.mark.once
@pytest.mark.parametrize("importance", [True, False])
def test_a_gaussian_posterior_is_exact(importance):
    posterior = fitted(pk.Laplace(importance=importance))
    mean, covariance, _ = exact_gaussian()
    sd = np.sqrt(np.diag(covariance))
    draws = posterior.sites["theta"]
    assert draws.shape == (1, S, 2)
    assert_allclose(draws.mean((0, 1)), mean, atol=5 * sd.max() / math.sqrt(S))
    assert_allclose(np.cov(draws[0].T), covariance, atol=0.1 * covariance.max())
    report = posterior.report
    assert report.converged
    assert report.rung == ("importance" if importance else "laplace")
    assert report.k_hat < 0.3
    assert report.decrement < tol(1e-12, 1e-5)
    assert report.starts_agreeing == 1.0


def test_the_mode_of_a_gaussian_and_its_evidence():
    report = fitted(pk.Laplace()).report
    mean, covariance, evidence = exact_gaussian()
    # The weights of a t proposal on a Gaussian are bounded, so 4,000 draws give the evidence to about 1%.
    assert_allclose(report.log_evidence, evidence, atol=0.02)
    at_mode = evidence + multivariate_normal(mean, covariance).logpdf(mean)
    assert_allclose(report.log_density, at_mode, atol=tol(1e-8, 1e-3))
    assert report.ess > 0.8 * S


def test_the_plain_gaussian_says_that_it_is_one():
    posterior = fitted(pk.Laplace(importance=False))
    assert not posterior.targets_posterior
    assert posterior.report.log_evidence is None
    assert "Gaussian at the mode" in posterior.report.reason
    with pytest.raises(TypeError, match="loo needs draws of the posterior"):
        posterior.loo()


@functools.cache
def nile_fit(method, seed):
    return pk.fit(pk.LocalLevel(), pk.datasets.nile(), key=jax.random.key(seed), method=method)


@pytest.mark.once
def test_the_nile_against_quadrature(grid):
    posterior = nile_fit(pk.Laplace(), 0)
    assert posterior.report.converged
    for name, draws in posterior.sites.items():
        assert_allclose(draws.mean(), grid.mean[name], atol=0.05 * grid.std[name])
        assert_allclose(draws.std(), grid.std[name], rtol=0.05)
    assert_allclose(posterior.report.log_evidence, grid.log_evidence, atol=0.03)


def test_the_evidence_over_keys(grid):
    evidence = [nile_fit(pk.Laplace(), seed).report.log_evidence for seed in range(50)]
    assert_allclose(np.mean(np.exp(np.array(evidence) - grid.log_evidence)), 1.0, atol=0.01)


def test_the_monte_carlo_error_is_honest(grid):
    """Over 50 keys the means spread as the reports say, and stand around the truth."""
    fits = [nile_fit(pk.Laplace(), seed) for seed in range(50)]
    for name, truth in grid.mean.items():
        means = np.array([f.sites[name].mean() for f in fits])
        reported = np.mean([f.report.mcse[name] for f in fits])
        assert_allclose(means.std(), reported, rtol=0.3)
        assert abs(means.mean() - truth) < 4 * reported / math.sqrt(50) + 1e-3 * grid.std[name]


def test_another_fit_compiles_nothing(nile):
    nile_fit(pk.Laplace(), 0)
    y, key = nile * 1.5 + 3, jax.random.key(1)
    with count_compilations() as compiled:
        posterior = pk.fit(pk.LocalLevel(), y, key=key, method=pk.Laplace())
    assert compiled.count == 0
    assert posterior.report.seconds.compile == 0


def test_draws_carry_their_density():
    posterior = nile_fit(pk.Laplace(), 0)
    stats, sites = posterior.outcome.stats, posterior.sites
    y = posterior.target.args[0]
    for i in (0, 7, 3999):
        model = pk.LocalLevel(**{name: draws[0, i] for name, draws in sites.items()})
        assert_allclose(stats["log_likelihood"][0, i], model.log_likelihood(y), rtol=tol(1e-10, 1e-5))
    jacobian = sum(np.log(v) for v in sites.values())
    assert_allclose(stats["lp"], stats["log_prior"] + stats["log_likelihood"] + jacobian, rtol=tol(1e-8, 1e-4))


def heavy():
    """Unit curvature at the mode and far heavier tails than the proposal."""
    numpyro.sample("x", dist.StudentT(0.3, 0.0, 1.0).expand([3]).to_event(1))


@pytest.mark.once
def test_too_light_a_proposal_is_refused():
    report = pk.fit(heavy, key=jax.random.key(0), method=pk.Laplace(), progress=False).report
    assert not report.converged
    assert "does not cover the posterior" in report.reason
    assert report.advice


def flat():
    x = numpyro.sample("x", dist.ImproperUniform(dist.constraints.real, (), (2,)))
    numpyro.factor("f", -0.5 * jnp.sum(x) ** 2)


@pytest.mark.once
def test_a_flat_direction_is_told():
    report = pk.fit(flat, key=jax.random.key(0), method=pk.Laplace()).report
    assert not report.converged
    assert "Hessian" in report.reason or "decrement" in report.reason


def nowhere():
    numpyro.sample("x", dist.Normal(0, 1))
    numpyro.factor("f", -jnp.inf)


@pytest.mark.once
def test_no_finite_density_is_told():
    report = pk.fit(nowhere, key=jax.random.key(0), method=pk.Laplace()).report
    assert not report.converged
    assert "No start has a finite density" in report.reason


@pytest.mark.parametrize("option", [{"draws": 0}, {"starts": 1.5}, {"rounds": -1}, {"max_steps": True}])
def test_options_are_checked(option):
    with pytest.raises(ValueError, match=next(iter(option))):
        pk.Laplace(**option)


@pytest.mark.parametrize("pool", [99, 0, 500.0, True])
def test_the_pool_is_checked(pool):
    with pytest.raises(ValueError, match="pool"):
        pk.Laplace(draws=100, pool=pool)


# -- pieces -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degrees", [5.0, math.inf])
def test_standard_draws_know_their_density(degrees):
    z, log_q = standard_draws(jax.random.key(0), (2000, 3), degrees, jnp.result_type(float))
    law = (
        multivariate_normal(np.zeros(3)) if math.isinf(degrees) else multivariate_t(np.zeros(3), np.eye(3), df=degrees)
    )
    assert_allclose(log_q, law.logpdf(np.asarray(z, float)), rtol=tol(1e-10, 1e-4))
    assert_allclose(jnp.median(jnp.abs(z)), 0.675 if math.isinf(degrees) else 0.727, rtol=0.05)


def test_resampling_is_unbiased():
    weights = np.array([0.5, 0.3, 0.1, 0.07, 0.03, 0.0])
    pick = jax.jit(jax.vmap(lambda key: resample(key, jnp.log(weights), 7)))
    picked = np.asarray(pick(jax.random.split(jax.random.key(0), 4000)))
    counts = np.stack([(picked == i).sum(1) for i in range(6)])
    assert np.all(np.abs(counts - 7 * weights[:, None]) < 1)  # each within one of its share, in every single draw
    assert_allclose(counts.mean(1), 7 * weights, atol=0.03)


def test_resampled_points_stay_in_their_order():
    picked = np.asarray(resample(jax.random.key(0), jnp.log(jnp.array([0.1, 0.5, 0.15, 0.25])), 100))
    assert np.all(np.diff(picked) >= 0)  # so a point taken twice stands beside itself
    assert np.all(np.abs(np.bincount(picked) - [10, 50, 15, 25]) <= 1)


def test_weighted_error_of_equal_weights_is_the_textbook_one():
    x = jax.random.normal(jax.random.key(0), (1000, 2)) * jnp.array([1.0, 5.0])
    error, sd = weighted_error(jnp.full(1000, 1e-3), x)
    assert_allclose(sd, x.std(0), rtol=1e-4)
    assert_allclose(error, x.std(0) / math.sqrt(1000), rtol=1e-4)


def test_the_certificate():
    assert acceptable(0.5, 500.0, 0.04, 4000, 4000)
    assert not acceptable(0.71, 500.0, 0.04, 4000, 4000)
    assert not acceptable(0.5, 399.0, 0.04, 4000, 4000)
    assert not acceptable(0.5, 500.0, 0.06, 4000, 4000)
    assert not acceptable(math.nan, 500.0, 0.04, 4000, 4000)
    assert (least_ess(4000), least_ess(100)) == (400.0, 50.0)


def test_the_limit_of_k_hat_is_that_of_the_draws_weighed():
    limit = 1 - 1 / math.log10(500)
    assert acceptable(limit - 0.01, 60.0, 0.04, 100, 500)
    assert not acceptable(limit + 0.01, 60.0, 0.04, 100, 500)
    assert acceptable(limit + 0.01, 60.0, 0.04, 100, LEAST_POOL)


def test_how_many_draws_are_weighed():
    assert pk.Laplace().weighed == 4000
    assert pk.Laplace(draws=100).weighed == LEAST_POOL == 2000
    assert pk.Laplace(draws=100, pool=500).weighed == 500
    assert pk.Laplace(draws=100, pool=500, importance=False).weighed == 100


@pytest.mark.once
def test_a_pool_is_used():
    """Two hundred draws of 8,000: the certificate is that of the pool, and so is the accuracy."""
    method = pk.Laplace(draws=200, pool=8000)
    posterior = fitted(method)
    report, draws = posterior.report, posterior.sites["theta"]
    assert report.method == repr(method) and draws.shape == (1, 200, 2)
    assert report.converged and "effective draws of 8000" in report.reason
    assert 0.8 * 8000 < report.ess <= 8000
    assert_allclose(report.k_threshold, 0.7)
    mean, covariance, evidence = exact_gaussian()
    assert_allclose(report.log_evidence, evidence, atol=0.015)
    # Systematic resampling adds a quarter of the variance of 200 independent draws to what the pool has.
    wanted = np.sqrt(np.diag(covariance) * (1 / 800 + 1 / report.ess))
    assert_allclose(report.mcse["theta"], wanted, rtol=0.1)
    assert_allclose(draws.mean((0, 1)), mean, atol=4 * wanted.max())


# -- proposals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degrees", [4, 5])
def test_chi_square_against_its_moments_and_quantiles(degrees):
    draws = np.asarray(_chi_square(jax.random.key(5), degrees, 40_000, jnp.result_type(float)), float)
    assert stats.kstest(draws, stats.chi2(degrees).cdf).pvalue > 1e-3


def test_the_density_of_widened_draws_is_that_of_the_mixture():
    z, _ = standard_draws(jax.random.key(6), (8, 3), 5, jnp.result_type(float))
    wider, log_q = _widened(z, jnp.array(True), 5)
    assert_allclose(wider, np.where(np.arange(8)[:, None] % 4 == 0, 2.5, 1.0) * z, rtol=1e-6)
    narrow = stats.multivariate_t(np.zeros(3), np.eye(3), df=5).pdf(wider)
    wide = stats.multivariate_t(np.zeros(3), 2.5**2 * np.eye(3), df=5).pdf(wider)
    assert_allclose(np.exp(log_q), 0.75 * narrow + 0.25 * wide, rtol=1e-5)
    same, log_q = _widened(z, jnp.array(False), 5)
    assert_allclose(same, z)
    assert_allclose(log_q, stats.multivariate_t(np.zeros(3), np.eye(3), df=5).logpdf(z), rtol=1e-5)
