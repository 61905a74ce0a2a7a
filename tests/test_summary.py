"""Summary tables: ArviZ's for draws; estimates, standard errors and information criteria for points."""

import csv

import jax
import numpy as np
import numpyro.distributions as dist
import pytest
from helpers import shared, tol
from numpy.testing import assert_allclose
from toys import Line, posterior_of

import probkit as pk

KEY = jax.random.key(0)
Y = np.random.default_rng(6).normal(5.0, 1.0, 20)
VALUES = {
    "intercept": np.random.default_rng(7).normal(5.0, 0.2, (2, 500)),
    "obs_scale": np.random.default_rng(8).gamma(20.0, 0.05, (2, 500)),
}
LINE = Line(intercept=dist.Normal(0, 10), obs_scale=dist.HalfNormal(2.0))


@pytest.fixture(scope="module")
def arima():
    return pk.fit(pk.ARIMA(0, 1, 1), pk.datasets.nile(), key=KEY, method=pk.MLE())


def r_arima(series, order):
    with shared("reference/r_arima.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if (row["series"], row["order"]) == (series, order)]
    return {
        name: np.array([float(v) for v in rows[0][name].split()]) for name in ("coef", "se", "sigma2", "loglik", "aic")
    }


def test_the_point_table_is_that_of_r(arima):
    r = r_arima("Nile", "0 1 1")
    table = arima.summary()
    assert list(table.columns) == ["estimate", "std_error"]
    assert list(table.index) == ["ma[1]", "scale", "log_likelihood", "AIC", "AICc", "BIC"]
    assert_allclose(table.estimate["ma[1]"], r["coef"][0], atol=1e-3)
    assert_allclose(table.estimate["scale"] ** 2, r["sigma2"][0], rtol=1e-3)
    assert_allclose(table.std_error["ma[1]"], r["se"][0], rtol=0.02)
    atol = tol(1e-5, 1e-2)
    k, n, value = 2, 99, r["loglik"][0]
    assert_allclose(table.estimate["log_likelihood"], value, atol=atol)
    assert_allclose(table.estimate["AIC"], r["aic"][0], atol=2 * atol)
    assert_allclose(table.estimate["AICc"], r["aic"][0] + 2 * k * (k + 1) / (n - k - 1), atol=2 * atol)
    assert_allclose(table.estimate["BIC"], -2 * value + k * np.log(n), atol=2 * atol)


def test_information_criteria_of_independent_observations():
    y = np.where(np.arange(20) == 3, np.nan, Y)
    table = pk.fit(LINE, y, key=KEY, method=pk.MLE()).summary()
    seen = y[~np.isnan(y)]
    value = -0.5 * 19 * (np.log(2 * np.pi * seen.var()) + 1)
    assert_allclose(table.estimate["intercept"], seen.mean(), rtol=tol(1e-6, 1e-4))
    assert_allclose(table.estimate["obs_scale"], seen.std(), rtol=tol(1e-5, 1e-3))
    assert_allclose(table.std_error["intercept"], seen.std() / np.sqrt(19), rtol=tol(1e-5, 1e-3))
    assert_allclose(table.std_error["obs_scale"], seen.std() / np.sqrt(38), rtol=tol(1e-4, 1e-2))
    assert_allclose(table.estimate["AICc"], 4 - 2 * value + 12 / 16, rtol=1e-5)
    assert_allclose(table.estimate["BIC"], 2 * np.log(19) - 2 * value, rtol=1e-5)


def test_draws_by_importance_show_the_figures_of_their_weights(nile_level):
    table = nile_level.summary()
    assert list(table.index) == ["level_scale", "obs_scale"]
    assert "r_hat" not in table.columns and "ess_tail" not in table.columns
    assert {"mean", "sd", "ess", "mcse_mean"} <= set(table.columns)
    assert (table["ess"] == int(nile_level.report.ess)).all()
    for name in table.index:
        assert_allclose(table["mcse_mean"][name], nile_level.report.mcse[name], rtol=1e-5)
        assert_allclose(table["mean"][name], nile_level.sites[name].mean(), rtol=2e-2)


def test_draws_of_a_chain_show_arviz_diagnostics():
    import dataclasses

    posterior = posterior_of(LINE, Y, VALUES)
    report = dataclasses.replace(posterior.report, rung="nuts")
    posterior = dataclasses.replace(posterior, outcome=dataclasses.replace(posterior.outcome, report=report))
    table = posterior.summary(round_to="none")
    assert {"mean", "sd", "ess_bulk", "ess_tail", "r_hat", "mcse_mean", "mcse_sd"} <= set(table.columns)
    for name, draws in VALUES.items():
        assert_allclose(table["mean"][name], draws.mean(), rtol=1e-4)
        assert_allclose(table["sd"][name], draws.std(ddof=1), rtol=1e-3)
    assert list(posterior.summary(var_names=["obs_scale"]).index) == ["obs_scale"]


def test_rows_of_a_vector_are_numbered_from_one():
    values = {
        "ma": np.full((1, 300, 1), -0.5) + VALUES["intercept"][:1, :300, None],
        "scale": VALUES["obs_scale"][:1, :300],
    }
    posterior = posterior_of(pk.ARIMA(0, 1, 1), Y, values)
    assert list(posterior.summary().index) == ["ma[1]", "scale"]


def test_a_model_without_leave_one_out_terms_still_has_a_summary():
    class Joint(Line):
        def distribution(self, X, length):
            return dist.MultivariateStudentT(5.0, self.intercept * np.ones(length), self.obs_scale * np.eye(length))

    model = Joint(intercept=dist.Normal(0, 10), obs_scale=dist.HalfNormal(2.0))
    assert list(posterior_of(model, Y, VALUES).summary().index) == ["intercept", "obs_scale"]


def test_a_model_of_numbers_has_nothing_to_summarise():
    with pytest.raises(TypeError, match="The model holds no prior, so there is nothing to summarise"):
        pk.fit(pk.LocalLevel(1.0, 2.0), Y, key=KEY).summary()
