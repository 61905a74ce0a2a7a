"""The stochastic engine against exact answers and the full-data Laplace fit, and what it says where it fails."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from helpers import count_compilations
from numpy.testing import assert_allclose
from numpyro.infer.autoguide import AutoBNAFNormal, AutoDelta, AutoMultivariateNormal

import probkit as pk
from probkit.infer.svi import SVI

KEY = jax.random.key(0)
ROWS, BATCH = 5000, 100


def normal_regression(x, y):
    """Known noise: the posterior is normal, with mean and covariance in closed form."""
    beta = numpyro.sample("beta", dist.Normal(0.0, 10.0).expand([2]).to_event(1))
    numpyro.deterministic("first", beta[0])
    numpyro.sample("y", dist.Normal(x @ beta, 2.0), obs=y)


@functools.cache
def regression_data():
    """Inputs whose coefficients are correlated in the posterior (0.6), with its exact mean and covariance."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(80, 2)) @ np.array([[1.0, -0.8], [0.0, 0.9]])
    y = x @ [1.0, -2.0] + 2.0 * rng.normal(size=80)
    covariance = np.linalg.inv(x.T @ x / 4.0 + np.eye(2) / 100.0)
    return (jnp.asarray(x), jnp.asarray(y)), covariance @ (x.T @ y) / 4.0, covariance


@functools.cache
def regression_fit(method):
    return pk.fit(normal_regression, args=regression_data()[0], key=KEY, method=method, progress=False)


FULL = SVI(guide=AutoMultivariateNormal)


def test_a_conjugate_regression():
    posterior = regression_fit(FULL)
    _, mean, covariance = regression_data()
    draws, sd = posterior.sites["beta"], np.sqrt(np.diag(covariance))
    assert draws.shape == (1, 4000, 2)
    assert posterior.report.converged, posterior.report
    assert_allclose((draws[0].mean(0) - mean) / sd, 0.0, atol=0.1)
    assert_allclose(draws[0].std(0) / sd, 1.0, atol=0.1)
    assert_allclose(np.corrcoef(draws[0].T)[0, 1], covariance[0, 1] / sd.prod(), atol=0.1)
    assert_allclose(posterior.sites["first"], draws[..., 0])
    assert not posterior.targets_posterior


def test_its_report():
    posterior = regression_fit(FULL)
    report, stats = posterior.report, posterior.outcome.stats
    x, y = regression_data()[0]
    marginal = np.asarray(x) @ np.asarray(x).T * 100.0 + 4.0 * np.eye(80)
    evidence = -0.5 * (np.asarray(y) @ np.linalg.solve(marginal, y) + np.linalg.slogdet(2 * np.pi * marginal)[1])
    assert report.rung == "svi"
    assert evidence - 0.1 < report.elbo < evidence + 3 * report.elbo_error
    assert report.guide_error <= 0.05
    assert report.steps % 400 == 0
    assert report.k_hat < report.k_threshold
    assert set(report.mcse) == {"beta", "first"}
    assert report.starts_agreeing is None
    assert "k-hat" in report.reason
    assert {name: s.shape for name, s in stats.items()} == dict.fromkeys(
        ("lp", "log_prior", "log_likelihood"), (1, 4000)
    )
    one = posterior.target.evaluate(jnp.asarray(posterior.sites["beta"][0, 7]))
    assert_allclose(stats["lp"][0, 7], one.log_prior + one.log_likelihood, rtol=1e-4)


@pytest.mark.once
def test_a_mean_field_guide_is_not_believed_where_it_is_narrow():
    report = regression_fit(SVI()).report
    assert not report.converged
    assert report.reason.startswith("The guide is not the posterior")
    assert report.guide_ratio < 0.9
    assert_allclose(regression_fit(SVI()).sites["beta"][0].mean(0), regression_data()[1], atol=0.05)


def flow(model):
    return AutoBNAFNormal(model, hidden_factors=[4])


@pytest.mark.slow
def test_a_flow_made_by_a_function():
    posterior = regression_fit(SVI(guide=flow, step_size=0.01, tolerance=0.1))
    _, mean, covariance = regression_data()
    draws, sd = posterior.sites["beta"][0], np.sqrt(np.diag(covariance))
    assert_allclose((draws.mean(0) - mean) / sd, 0.0, atol=0.25)
    assert_allclose(draws.std(0) / sd, 1.0, atol=0.2)
    assert np.isfinite(posterior.report.k_hat)


@pytest.mark.once
def test_a_probkit_model():
    posterior = pk.fit(pk.LocalLevel(), pk.datasets.nile(), key=KEY, method=FULL, progress=False)
    laplace = pk.fit(pk.LocalLevel(), pk.datasets.nile(), key=KEY, method=pk.Laplace(), progress=False)
    assert posterior.report.guide_error <= 0.05, posterior.report
    for name, draws in laplace.sites.items():
        assert_allclose((posterior.sites[name].mean() - draws.mean()) / draws.std(), 0.0, atol=0.15)
        assert_allclose(posterior.sites[name].std() / draws.std(), 1.0, atol=0.2)
    assert posterior.predict().mean.shape[-1] == 100


def logistic(X, y, batch):
    beta = numpyro.sample("beta", dist.Normal(0.0, 1.0).expand([X.shape[1]]).to_event(1))
    with numpyro.plate("rows", X.shape[0], subsample_size=batch) as i:
        numpyro.sample("y", dist.Bernoulli(logits=X[i] @ beta), obs=y[i])


@functools.cache
def logistic_data():
    rng = np.random.default_rng(4)
    X = rng.normal(size=(ROWS, 4))
    y = rng.random(ROWS) < 1 / (1 + np.exp(-X @ [1.0, -0.5, 0.0, 0.3]))
    return jnp.asarray(X), jnp.asarray(y, float)


@functools.cache
def minibatch_fit():
    return pk.fit(logistic, args=(*logistic_data(), BATCH), key=KEY, method=SVI(), progress=False)


@pytest.mark.slow
def test_minibatches_against_all_the_data():
    posterior = minibatch_fit()
    laplace = pk.fit(logistic, args=(*logistic_data(), None), key=KEY, method=pk.Laplace(), progress=False)
    mean, sd = laplace.sites["beta"][0].mean(0), laplace.sites["beta"][0].std(0)
    assert posterior.report.converged, posterior.report
    assert_allclose((posterior.sites["beta"][0].mean(0) - mean) / sd, 0.0, atol=0.15)
    assert_allclose(posterior.sites["beta"][0].std(0) / sd, 1.0, atol=0.2)
    whole = laplace.report.log_evidence
    assert_allclose(posterior.report.elbo, whole, atol=4 * posterior.report.elbo_error + 1.0)


@pytest.mark.once
def test_the_report_of_minibatches():
    report = minibatch_fit().report
    assert report.k_hat is None
    assert "k-hat was not computed" in report.reason
    assert report.notes == (f"rows: {report.steps * BATCH / ROWS:.3g} passes over 5,000 rows, 100 at a time",)
    assert minibatch_fit().outcome.stats == {}


def test_another_fit_compiles_nothing():
    minibatch_fit()
    regression_fit(FULL)
    X, y = logistic_data()
    args, key = (X[::-1] + 0.0, y[::-1] + 0.0, BATCH), jax.random.key(5)
    (x, z), *_ = regression_data()
    others = (x * 2.0, z + 1.0)
    with count_compilations() as compiled:
        pk.fit(logistic, args=args, key=key, method=SVI(), progress=False)
        pk.fit(normal_regression, args=others, key=key, method=FULL, progress=False)
    assert compiled.count == 0


def test_the_same_key_gives_the_same_answer():
    first = minibatch_fit().sites["beta"]
    again = pk.fit(logistic, args=(*logistic_data(), BATCH), key=KEY, method=SVI(), progress=False)
    assert_allclose(again.sites["beta"], first, rtol=0)


def test_too_few_steps_are_told():
    report = regression_fit(SVI(guide=AutoMultivariateNormal, max_steps=400)).report
    assert not report.converged
    assert report.steps == 400
    assert "400 steps" in report.reason
    assert "max_steps" in report.advice


def two_modes():
    numpyro.sample(
        "x", dist.Mixture(dist.Categorical(probs=jnp.array([0.2, 0.8])), dist.Normal(jnp.array([-9.0, 9.0]), 0.5))
    )


@pytest.mark.slow
def test_of_restarts_the_best_answers():
    posterior = pk.fit(two_modes, key=KEY, method=SVI(restarts=8, tolerance=0.1), progress=False)
    assert_allclose(posterior.sites["x"].mean(), 9.0, atol=0.2)
    assert 0 < posterior.report.starts_agreeing < 1
    assert_allclose(posterior.report.elbo, np.log(0.8), atol=0.05)


@pytest.mark.slow
def test_init_is_where_it_starts():
    start = {"x": jnp.asarray(-9.0)}
    posterior = pk.fit(two_modes, key=KEY, method=SVI(tolerance=0.1), init=start, progress=False)
    assert_allclose(posterior.sites["x"].mean(), -9.0, atol=0.2)


@pytest.mark.once
def test_a_step_far_too_large_ends_in_a_report():
    report = pk.fit(two_modes, key=KEY, method=SVI(step_size=1e6, max_steps=2000), progress=False).report
    assert not report.converged
    assert report.advice


def test_the_bar_can_be_silenced(capsys):
    pk.fit(normal_regression, args=regression_data()[0], key=KEY, method=FULL, progress=False)
    silent = capsys.readouterr()
    assert silent.err == silent.out == ""
    pk.fit(normal_regression, args=regression_data()[0], key=KEY, method=FULL, progress=True)
    assert "SVI" in capsys.readouterr().err


def local(y):
    with numpyro.plate("rows", 10, subsample_size=2) as i:
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y[i])


def with_params(y):
    a = numpyro.param("a", 1.0)
    numpyro.sample("y", dist.Normal(numpyro.sample("z", dist.Normal(a, 1.0)), 1.0), obs=y)


@pytest.mark.parametrize(("model", "named"), [(local, "z"), (with_params, "a")])
def test_models_it_cannot_fit(model, named):
    with pytest.raises(ValueError, match=f"'{named}'"):
        pk.fit(model, args=(jnp.zeros(10),), key=KEY, method=SVI(), progress=False)


def test_a_guide_that_forgets_a_site():
    def forgetful(model):
        return lambda x, y: numpyro.sample("gamma", dist.Normal(numpyro.param("loc", 0.0), 1.0))

    with pytest.raises(ValueError, match="beta"):
        pk.fit(normal_regression, args=regression_data()[0], key=KEY, method=SVI(guide=forgetful), progress=False)


@pytest.mark.parametrize(
    ("option", "kind"),
    [
        ({"guide": "normal"}, TypeError),
        ({"guide": AutoDelta}, ValueError),
        ({"draws": 0}, ValueError),
        ({"max_steps": 0}, ValueError),
        ({"tolerance": 0.0}, ValueError),
        ({"step_size": -1.0}, ValueError),
        ({"decay": 1.0}, ValueError),
        ({"particles": 3}, ValueError),
        ({"restarts": 1.5}, ValueError),
    ],
    ids=str,
)
def test_options_are_checked(option, kind):
    with pytest.raises(kind, match=next(iter(option))):
        SVI(**option)
