"""VI: exact where the posterior is Gaussian, right elsewhere or flagged; LOO by the guide's weights; its borders."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from helpers import count_compilations, shared, tol
from numpy.testing import assert_allclose
from quadrature import local_level_posterior
from scipy.stats import multivariate_normal

import probkit as pk

KEY = jax.random.key(0)
#: Draws enough that leave-one-out terms are sharp.
NILE = pk.VI(draws=20_000)
X = np.random.default_rng(0).normal(size=(40, 3)) @ np.array([[1.0, 0.9, 0.0], [0.0, 0.5, 0.3], [0.0, 0.0, 1.0]])
Y = X @ np.array([1.0, -2.0, 0.5]) + np.random.default_rng(1).normal(size=40)


def regression(X, y):
    beta = numpyro.sample("beta", dist.Normal(0, 2).expand([3]).to_event(1))
    numpyro.sample("y", dist.Normal(X @ beta, 1.0), obs=y)


@functools.cache
def exact():
    covariance = np.linalg.inv(X.T @ X + np.eye(3) / 4)
    evidence = multivariate_normal(np.zeros(40), np.eye(40) + 4 * X @ X.T).logpdf(Y)
    return covariance @ X.T @ Y, covariance, evidence


@functools.cache
def fitted(**options):
    return pk.fit(regression, args=(X.astype(float), Y.astype(float)), key=KEY, method=pk.VI(**options), progress=False)


@pytest.mark.once
@pytest.mark.parametrize("guide", ["mean-field", "full-rank"])
def test_a_gaussian_posterior_is_exact(guide):
    posterior = fitted(guide=guide)
    mean, covariance, evidence = exact()
    draws, report = posterior.sites["beta"], posterior.report
    assert draws.shape == (1, 2000, 3)
    assert_allclose(draws.mean((0, 1)), mean, rtol=tol(1e-6, 1e-4), atol=tol(1e-8, 1e-4))  # antithetic draws: no noise
    assert_allclose(np.cov(draws[0].T), covariance, rtol=0.15, atol=0.05 * covariance.max())
    assert report.converged and report.rung == "vi", report
    assert report.guide_error < 1e-3 and abs(report.guide_ratio - 1) < 0.1
    # The guide is the posterior: its ELBO is the evidence, without noise.
    assert_allclose(report.elbo, evidence, rtol=tol(1e-8, 1e-5))
    assert report.elbo_error < tol(1e-6, 1e-3)


@pytest.mark.once
def test_mean_field_alone_loses_spread_and_says_so():
    posterior = fitted(linear_response=False, draws=20_000)
    _, covariance, evidence = exact()
    own = 1 / np.sqrt(np.diag(np.linalg.inv(covariance)))
    assert_allclose(posterior.sites["beta"].std((0, 1)), own, rtol=0.05)
    report = posterior.report
    gap = 0.5 * (np.sum(np.log(1 / own**2)) + np.linalg.slogdet(covariance)[1])
    assert_allclose(evidence - report.elbo, gap, atol=5 * report.elbo_error)  # KL(q || posterior), closed form
    assert not report.converged and "The guide is not the posterior" in report.reason
    assert_allclose(report.spread_ratio, 1.0)
    assert_allclose(fitted().report.spread_ratio, np.max(np.sqrt(np.diag(covariance)) / own), rtol=1e-3)


@pytest.mark.slow
def test_the_nile_against_quadrature(nile, grid):
    posterior = pk.fit(pk.LocalLevel(), nile, key=KEY, method=NILE)
    off = {name: (draws.mean() - grid.mean[name]) / grid.std[name] for name, draws in posterior.sites.items()}
    for name, draws in posterior.sites.items():
        assert abs(off[name]) < 0.2
        assert_allclose(draws.std(), grid.std[name], rtol=0.15)
    # The report tells how far the guide is off, as quadrature does: 3,000 effective draws leave 0.02 sd of noise.
    assert_allclose(posterior.report.guide_shift, max(map(abs, off.values())), atol=0.1)
    again = pk.fit(pk.LocalLevel(), nile, key=KEY, method=NILE)
    for name, draws in again.sites.items():
        np.testing.assert_array_equal(draws, posterior.sites[name])
    y, key = nile + 50.0, jax.random.key(9)
    with count_compilations() as compiled:
        pk.fit(pk.LocalLevel(), y, key=key, method=pk.VI(draws=20_000, tolerance=0.01))
    assert compiled.count == 0
    # LOO by the guide's weights, for the largest and smallest flows, the ends and the years of the dam.
    loo, y = posterior.loo(), nile.to_numpy(float)
    held = lambda y, spread=float(nile.std()): local_level_posterior(y, spread, points=121).log_evidence
    for i in (0, 8, 27, 28, 42, 99):
        expected = held(y) - held(np.where(np.arange(100) == i, np.nan, y))
        assert_allclose(loo.elpd_i.values[i], expected, atol=0.05)
    assert np.isnan(loo.p) and loo.pareto_k.values.max() < 0.7
    table = pk.compare({"guide": posterior, "draws": pk.fit(pk.LocalLevel(), nile, key=KEY)})
    assert abs(table["elpd_diff"].iloc[1]) < 0.3
    with pytest.raises(TypeError, match="refit=True needs draws of the posterior"):
        posterior.loo(refit=True)
    assert "log_weight" in posterior.to_arviz().sample_stats


def eight_schools(y, sigma):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    eta = numpyro.sample("eta", dist.Normal(0, 1).expand([8]).to_event(1))
    numpyro.sample("y", dist.Normal(mu + tau * eta, sigma), obs=y)


def centred(y, sigma):
    mu, tau = numpyro.sample("mu", dist.Normal(0, 5)), numpyro.sample("tau", dist.HalfCauchy(5))
    theta = numpyro.sample("theta", dist.Normal(mu, tau).expand([8]).to_event(1))
    numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


SCHOOLS = (np.array([28.0, 8, -3, 7, -1, 1, 18, 12]), np.array([15.0, 10, 16, 11, 9, 11, 10, 18]))


@pytest.mark.slow
def test_eight_schools_are_flagged_and_put_right_by_weights():
    reference = np.load(shared("data/posteriordb/reference/eight_schools-eight_schools_noncentered.npz"))
    plain = pk.fit(eight_schools, args=SCHOOLS, key=KEY, method=pk.VI(), progress=False)
    assert not plain.report.converged and "an sd is off by" in plain.report.reason
    assert "importance=True" in plain.report.advice
    assert plain.report.guide_ratio > 1.3
    weighed = pk.fit(eight_schools, args=SCHOOLS, key=KEY, method=pk.VI(importance=True, pool=32_000), progress=False)
    assert weighed.report.converged and weighed.targets_posterior, weighed.report
    held = dict(zip(reference["names"], zip(reference["mean"], reference["sd"], strict=True), strict=True))
    for name in ("mu", "tau"):
        mean, sd = held[name]
        assert_allclose(weighed.sites[name].mean(), mean, atol=0.1 * sd)
        assert_allclose(weighed.sites[name].std(), sd, rtol=0.12)


@pytest.mark.once
def test_a_funnel_is_not_believed():
    """Draws miss its neck, and so do their weights: only the height of the density there tells."""
    report = pk.fit(centred, args=SCHOOLS, key=KEY, method=pk.VI(importance=True), progress=False).report
    assert not report.converged
    assert "nats higher elsewhere" in report.reason, report


def counts(y):
    scale = numpyro.sample("scale", dist.HalfNormal(1))
    x = numpyro.sample("x", dist.Normal(0, 1).expand([len(y)]).to_event(1))
    numpyro.sample("y", dist.Poisson(jnp.exp(1 + scale * x)), obs=y)


@pytest.mark.once
def test_auto_climbs_to_a_guide():
    """Latent counts, 26 parameters: the mode is far from the mass, the guide is not. NUTS takes 20 times as long."""
    rng = np.random.default_rng(0)
    y = rng.poisson(np.exp(1 + 0.6 * rng.normal(size=25))).astype(float)
    posterior = pk.fit(counts, args=(y,), key=KEY, progress=False)
    report = posterior.report
    assert report.rung == "vi" and report.converged and report.method == repr(pk.Auto())
    assert len(report.notes) == 1 and "climbed from importance resampling" in report.notes[0]
    assert posterior.targets_posterior and posterior.sites["x"].shape == (1, 4000, 25)
    # x is integrated out by quadrature: scale's posterior on a grid.
    nodes, w = np.polynomial.hermite_e.hermegauss(60)
    scales = np.linspace(0.005, 2.5, 800)
    rate = 1 + scales[:, None, None] * nodes
    factorials = np.array([math.lgamma(v + 1) for v in y])
    each = y[:, None] * rate - np.exp(rate) - factorials[:, None]
    log_p = np.log(np.exp(each) @ (w / w.sum())).sum(-1) - 0.5 * scales**2
    p = np.exp(log_p - log_p.max())
    p /= p.sum()
    mean = p @ scales
    sd = np.sqrt(p @ (scales - mean) ** 2)
    assert_allclose(posterior.sites["scale"].mean(), mean, atol=0.1 * sd)
    assert_allclose(posterior.sites["scale"].std(), sd, rtol=0.1)


def wide(y):
    mu = numpyro.sample("mu", dist.Normal(0, 2))
    x = numpyro.sample("x", dist.Normal(mu, 1).expand([70]).to_event(1))
    numpyro.sample("y", dist.Normal(x, 0.5), obs=y)


@pytest.mark.slow
def test_in_many_dimensions_only_products_of_the_hessian_are_taken():
    y = np.random.default_rng(2).normal(size=70) + 1.5
    posterior = pk.fit(wide, args=(y,), key=KEY, method=pk.VI(), progress=False)
    report = posterior.report
    assert report.gradient_norm < tol(1e-6, 1e-2) and report.guide_error <= 0.05
    variance = 1 / (1 / 4 + 70 / 1.25)
    mean = variance * y.sum() / 1.25
    assert_allclose(posterior.sites["mu"].mean(), mean, rtol=tol(1e-6, 1e-3))
    assert_allclose(posterior.sites["mu"].std(), np.sqrt(variance), rtol=0.08)  # 1,000 pairs: 3.6 standard errors
    # The guide's own scales carry the noise of 16 pairs; the linear response does not.
    assert_allclose(report.spread_ratio, np.sqrt(variance * (70 + 1 / 4)), rtol=0.1)


@pytest.mark.slow
def test_what_is_told_when_it_does_not_end(nile):
    report = pk.fit(pk.LocalLevel(), nile, key=KEY, method=pk.VI(draws=20_000, max_steps=1)).report
    assert not report.converged and "ascent did not end" in report.reason and report.advice
    report = pk.fit(pk.LocalLevel(), nile, key=KEY, method=pk.VI(draws=20_000, tolerance=1e-9)).report
    assert not report.converged and "2048 fixed draws leave" in report.reason and "max_draws" in report.advice


@pytest.mark.once
def test_lanes_and_a_model_without_priors(nile):
    held = np.asarray(nile, float)
    posterior = pk.fit(pk.LocalLevel(), np.stack([held, held[::-1]], axis=1), key=KEY, method=NILE, progress=False)
    assert posterior[0].sites["obs_scale"].shape == (1, 20_000)
    assert_allclose(posterior[0].sites["obs_scale"].mean(), posterior[1].sites["obs_scale"].mean(), rtol=0.02)
    fixed = pk.LocalLevel(level_scale=40.0, obs_scale=120.0)
    assert pk.fit(fixed, nile, key=KEY, method=pk.VI()).report.rung == "fixed"


@pytest.mark.parametrize(
    "options, told",
    [
        ({"guide": "flow"}, "guide is 'flow'; one of 'mean-field', 'full-rank', 'low-rank'"),
        ({"draws": 0}, "draws is 0"),
        ({"tolerance": -1.0}, "tolerance is -1.0; a positive number"),
        ({"pool": 10}, "pool is 10"),
    ],
)
def test_bad_options(options, told):
    with pytest.raises(ValueError, match=told):
        pk.VI(**options)


def test_weights_in_thousands_of_dimensions_are_refused():
    def model():
        numpyro.sample("x", dist.Normal(0, 1).expand([1001]).to_event(1))

    with pytest.raises(ValueError, match="importance=True in 1001 dimensions"):
        pk.fit(model, key=KEY, method=pk.VI(importance=True), progress=False)
