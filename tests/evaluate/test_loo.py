"""Leave-one-out: terms against brute-force conditioning, elpd against quadrature, refits where they are needed."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from helpers import tol
from numpy.testing import assert_allclose
from quadrature import local_level_posterior
from scipy.stats import norm
from toys import Line

import probkit as pk
from probkit.evaluate import loo as loo_module
from probkit.evaluate.loo import exact_terms, integrates_states, relative_efficiency

KEY = jax.random.key(0)
N = 24
GAPS = {"complete": [], "inside": [5, 6, 15], "ends": [0, 1, 9, 22, 23]}


def series(gap):
    rng = np.random.default_rng(0)
    y = 3.0 + np.cumsum(rng.normal(size=N)) + rng.normal(size=N)
    y[gap] = np.nan
    return y


def walk(n):
    return np.tril(np.ones((n, n)), -1)


def local_level():
    covariance = 1.3**2 * np.eye(N) + 0.8**2 * walk(N) @ walk(N).T
    return pk.LocalLevel(level_scale=0.8, obs_scale=1.3), covariance, None


def arima():
    shocks = np.eye(N) + (1 - 0.6) * walk(N)
    return pk.ARIMA(0, 1, 1, ma=[-0.6], scale=1.4), 1.4**2 * shocks @ shocks.T, None


def process():
    r = np.sqrt(3.0) * np.abs(np.subtract.outer(np.arange(N), np.arange(N))) / 4.0
    covariance = 1.5**2 * (1 + r) * np.exp(-r) + 0.9**2 * np.eye(N)
    return pk.GP(pk.Matern32(lengthscale=4.0, scale=1.5), obs_scale=0.9, mean=2.5), covariance, 2.5


def condition(i, y, covariance, mean):
    """Mean and variance of y_i given all other observed entries; under a flat mean (None), universal kriging."""
    others = np.flatnonzero(~np.isnan(y) & (np.arange(len(y)) != i))
    K, k = covariance[np.ix_(others, others)], covariance[others, i]
    if mean is not None:
        weights = np.linalg.solve(K, k)
        return mean + weights @ (y[others] - mean), covariance[i, i] - weights @ k
    ones = np.ones((len(others), 1))
    bordered = np.block([[K, ones], [ones.T, np.zeros((1, 1))]])
    right = np.append(k, 1.0)
    solution = np.linalg.solve(bordered, right)
    return solution[:-1] @ y[others], covariance[i, i] - solution @ right


@pytest.mark.parametrize("gap", GAPS.values(), ids=GAPS)
@pytest.mark.parametrize("family", [local_level, arima, process], ids=["local level", "ARIMA(0,1,1)", "GP"])
def test_terms_are_brute_force_conditioning(family, gap):
    y = series(gap)
    model, covariance, mean = family()
    model = pk.model.strong(model, jnp.result_type(float))
    terms = jax.jit(lambda y: model.loo(y))(jnp.asarray(y))
    assert np.array_equal(np.isnan(terms), np.isnan(y))
    moments = [condition(i, y, covariance, mean) for i in range(N)]
    expected = [norm(m, np.sqrt(v)).logpdf(value) for value, (m, v) in zip(y, moments, strict=True)]
    assert_allclose(terms, expected, rtol=tol(1e-8, 1e-3), atol=tol(1e-8, 1e-3))
    law = model.leave_one_out(jnp.asarray(y))
    assert_allclose(law.mean, [m for m, _ in moments], rtol=tol(1e-8, 1e-3), atol=tol(1e-8, 1e-3))
    assert_allclose(law.variance, [v for _, v in moments], rtol=tol(1e-8, 1e-3))


@pytest.mark.parametrize("family", [local_level, arima], ids=["local level", "ARIMA(0,1,1)"])
def test_the_only_observation_has_no_term_under_a_flat_start(family):
    y = np.full(N, np.nan)
    y[7] = 2.0
    assert np.all(np.isnan(pk.model.strong(family()[0], jnp.result_type(float)).loo(jnp.asarray(y))))


# -- importance sampling over the terms -------------------------------------------------------------------------------


@functools.cache
def nile_fit():
    # Draws enough that the Monte Carlo error of the term of a flow far out is small beside the tolerances below.
    return pk.fit(pk.LocalLevel(), pk.datasets.nile(), key=KEY, method=pk.Auto(draws=20_000))


def by_quadrature(y, entries):
    """log p(y_i | y_-i) as a ratio of evidences; the priors stay those of the whole data."""
    spread, grid = float(y.std()), functools.partial(local_level_posterior, points=121)
    whole = grid(y, spread).log_evidence
    return np.array([whole - grid(np.where(np.arange(len(y)) == i, np.nan, y), spread).log_evidence for i in entries])


@pytest.mark.once
def test_psis_of_the_nile_against_quadrature():
    found = nile_fit().loo()
    expected = by_quadrature(pk.datasets.nile().to_numpy(float), range(100))
    assert_allclose(found.elpd_i.values, expected, atol=0.05)
    assert_allclose(found.elpd, expected.sum(), atol=0.3)
    assert_allclose(found.se, 10 * expected.std(), rtol=0.02)
    assert found.pareto_k.values.max() < 0.7


#: The largest and smallest flows, the ends, the years around the dam.
TEN = np.array([0, 1, 8, 27, 28, 42, 45, 76, 98, 99])


@pytest.mark.slow
def test_ten_exact_refits_of_the_nile():
    exact = exact_terms(nile_fit(), TEN)
    assert_allclose(exact, by_quadrature(pk.datasets.nile().to_numpy(float), TEN), atol=0.02)
    assert_allclose(nile_fit().loo().elpd_i.values[TEN].sum(), exact.sum(), atol=0.1)


@pytest.mark.slow
def test_all_exact_refits_of_the_nile():
    exact = exact_terms(nile_fit(), np.arange(100))
    assert_allclose(nile_fit().loo().elpd, exact.sum(), atol=0.3)


def test_states_that_are_integrated_out_have_no_p_loo():
    assert integrates_states(nile_fit())
    assert np.isnan(nile_fit().loo().p)


def test_missing_values_have_no_term():
    y = pk.datasets.nile().copy()
    y.iloc[[3, 40, 41]] = np.nan
    posterior = pk.fit(pk.LocalLevel(), y, key=KEY)
    found = posterior.loo()
    assert posterior.scored.sum() == found.n_data_points == 97
    assert found.elpd_i.coords[found.elpd_i.dims[0]].values[:4].tolist() == [1871, 1872, 1873, 1875]


@functools.cache
def with_outlier(value):
    y = pk.datasets.nile().copy()
    y.iloc[30] = value
    return pk.fit(pk.LocalLevel(), y, key=KEY)


@pytest.mark.once
def test_only_bad_points_are_refitted():
    posterior = with_outlier(4000.0)
    plain, found = posterior.loo(), posterior.loo(refit=True)
    bad = plain.pareto_k.values > 0.7
    assert bad[30] and bad.sum() < 5
    assert plain.warning
    assert not found.warning
    assert np.all(found.elpd_i.values[~bad] == plain.elpd_i.values[~bad])
    assert np.all(found.pareto_k.values[~bad] == plain.pareto_k.values[~bad])
    assert np.all(found.pareto_k.values[bad] == 0)
    assert_allclose(found.elpd_i.values[bad], exact_terms(posterior, np.flatnonzero(bad)), rtol=tol(1e-12, 1e-6))
    assert_allclose(found.elpd, found.elpd_i.values.sum(), rtol=1e-6)
    assert_allclose(found.se, np.sqrt(100 * np.var(found.elpd_i.values)), rtol=1e-6)


@pytest.mark.once
@pytest.mark.parametrize("value", [1600.0, 2200.0, 4000.0])
def test_a_refit_is_exact_however_far_out(value):
    """A mean over draws is not: at 4,000 the few draws in the tail that carry it are never made (off by 56 nats)."""
    y = np.asarray(with_outlier(value).series.y, float)
    without = np.where(np.arange(100) == 30, np.nan, y)
    whole = local_level_posterior(y, y.std(), level=(0.0, 400.0), obs=(50.0, 800.0), points=201)
    left = local_level_posterior(without, y.std(), level=(0.0, 300.0), obs=(50.0, 300.0), points=201)
    exact = exact_terms(with_outlier(value), np.array([30]))[0]
    assert_allclose(exact, whole.log_evidence - left.log_evidence, atol=0.1)


def test_nothing_bad_refits_nothing(monkeypatch):
    monkeypatch.setattr(loo_module, "exact_terms", lambda *_: pytest.fail("a refit that nobody needs"))
    assert nile_fit().loo(refit=True).elpd == nile_fit().loo().elpd


def independent(y):
    mu = numpyro.sample("mu", dist.Normal(0, 10))
    with numpyro.plate("n", y.shape[0]):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


@pytest.mark.once
def test_independent_terms_of_a_plain_function():
    """Conjugate: y_i | y_-i is normal around the posterior mean of the others."""
    y = np.array([0.3, -1.2, 0.8, 2.5, 0.1, -0.4], dtype=jnp.result_type(float))
    posterior = pk.fit(independent, args=(y,), key=KEY)
    found = posterior.loo()
    variance = [1 / (1 / 100 + 5)] * 6
    mean = [(y.sum() - value) * v for value, v in zip(y, variance, strict=True)]
    expected = norm(mean, np.sqrt(np.array(variance) + 1)).logpdf(y)
    assert_allclose(found.elpd_i.values, expected, atol=0.05)
    assert 0.5 < found.p < 2.0
    with pytest.raises(TypeError, match="refit=True is for probkit models"):
        exact_terms(posterior, np.array([0]))


def test_point_estimates_have_no_loo():
    posterior = pk.fit(pk.LocalLevel(), pk.datasets.nile(), key=KEY, method=pk.MLE())
    with pytest.raises(TypeError, match="loo needs draws of the posterior, and MLE"):
        posterior.loo()


def test_relative_efficiency_follows_the_report():
    posterior = nile_fit()
    assert_allclose(relative_efficiency(posterior), posterior.report.ess / 20_000)

    def with_ess(ess):
        report = dataclasses.replace(posterior.report, ess=ess)
        return dataclasses.replace(posterior, outcome=dataclasses.replace(posterior.outcome, report=report))

    assert relative_efficiency(with_ess(None)) == 1.0
    assert relative_efficiency(with_ess(90_000.0)) == 1.0
    assert relative_efficiency(with_ess(0.0)) == 1e-3


# -- terms that no parameter moves -------------------------------------------------------------------------------------


def known(y):
    return pk.fit(pk.LocalLevel(level_scale=30.0, obs_scale=120.0), y, key=KEY)


def test_a_model_without_priors_has_exact_terms():
    posterior = known(pk.datasets.nile())
    found = posterior.loo()
    np.testing.assert_array_equal(found.elpd_i.values, posterior.loo_terms[0, 0])
    assert_allclose(found.elpd, posterior.loo_terms.sum(), rtol=1e-12)
    assert np.all(found.pareto_k.values == 0) and not found.warning
    table = pk.compare({"known": posterior, "fitted": nile_fit()})
    assert_allclose(table["elpd"]["known"], found.elpd, rtol=1e-12)
    assert (table["max_k_hat"]["known"], table["bad_k"]["known"], table["method"]["known"]) == (0.0, 0, "fixed")


def test_no_entry_with_a_term_is_told():
    with pytest.raises(ValueError, match="No entry has a LOO term"):
        known([3.0]).loo()


@pytest.mark.once
def test_an_entry_that_no_draw_tells_apart_has_no_tail():
    """Through the origin at x = 0 the slope does not matter: the first term is the same in every draw."""
    y = np.array([0.4, 1.2, 1.7, 3.3, 4.1], dtype=jnp.result_type(float))
    model = Line(intercept=0.0, slope=dist.Normal(0.0, 10.0), obs_scale=1.0)
    found = pk.fit(model, y, key=KEY).loo()
    x = np.arange(5)
    variance = 1 / (1 / 100 + (x @ x) - x**2)
    mean = x * variance * (x @ y - x * y)
    assert found.pareto_k.values[0] == 0 and np.all(found.pareto_k.values[1:] != 0)
    assert_allclose(found.elpd_i.values[0], norm(0.0, 1.0).logpdf(0.4), rtol=tol(1e-12, 1e-6))
    assert_allclose(found.elpd_i.values, norm(mean, np.sqrt(1 + x**2 * variance)).logpdf(y), atol=0.05)
