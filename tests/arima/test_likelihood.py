"""ARIMA(0,1,1), held against the covariance of its differences, R, and its twin among the local levels."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from helpers import shared, tol
from numpy.testing import assert_allclose
from scipy.stats import multivariate_normal

from probkit.arima.likelihood import arima011, log_likelihood
from probkit.ssm import level

RTOL = tol(1e-8, 1e-4)
Y = np.array([1.2, 0.3, -0.4, 2.1, 1.7, 0.2, 3.3, 2.9, 4.0, 2.2])
GAPS = Y.copy()
GAPS[[0, 4, 5, 9]] = np.nan

thetas = pytest.mark.parametrize("theta", [-1.0, -0.6, 0.0, 0.5, 0.95, 1.7])


@pytest.mark.parametrize("y", [Y, GAPS], ids=["complete", "gaps"])
@thetas
def test_it_is_the_density_of_the_differences(y, theta):
    seen = np.flatnonzero(~np.isnan(y))
    ma = 1.44 * ((1 + theta**2) * np.eye(9) + theta * (np.eye(9, k=1) + np.eye(9, k=-1)))
    walk = np.tril(np.ones((10, 9)), -1)  # y_t - y_1 = the sum of the differences before t
    spans = np.diff(walk[seen], axis=0)
    expected = multivariate_normal(cov=spans @ ma @ spans.T).logpdf(np.diff(y[seen]))
    assert_allclose(log_likelihood(y, theta, 1.44), expected - 0.5 * np.log(2 * np.pi), rtol=RTOL)


@thetas
def test_a_root_and_its_inverse_are_one_model(theta):
    if theta:
        twin = log_likelihood(GAPS, 1 / theta, 1.44 * theta**2)
        assert_allclose(log_likelihood(GAPS, theta, 1.44), twin, rtol=RTOL)


@pytest.mark.parametrize("alpha", [0.05, 0.4, 1.0])
def test_for_alpha_up_to_one_it_is_a_local_level(alpha):
    s2 = 1.44
    ours, twin = arima011(alpha - 1, s2), ((1 - alpha) * s2, alpha**2 * s2)
    assert_allclose(log_likelihood(GAPS, alpha - 1, s2), level.log_likelihood(GAPS, *twin), rtol=RTOL)
    assert_allclose(level.leave_one_out(GAPS, *ours), level.leave_one_out(GAPS, *twin), rtol=RTOL, atol=tol(1e-8, 1e-5))
    ahead = [s[0] for s in (level.run_filter(GAPS, *ours).next, level.run_filter(GAPS, *twin).next)]
    assert_allclose(*ahead, rtol=RTOL)


@pytest.mark.once
def test_gradient_is_that_of_the_variances():
    f = lambda p: log_likelihood(jnp.asarray(GAPS), p[0], p[1])
    p = jnp.array([-0.4, 1.3])
    step = tol(1e-6, 1e-2)
    for i, g in enumerate(jax.grad(f)(p)):
        slope = (f(p.at[i].add(step)) - f(p.at[i].add(-step))) / (2 * step)
        assert_allclose(g, slope, rtol=tol(1e-7, 1e-2), atol=tol(1e-8, 1e-2))
    assert np.isfinite(jax.jacfwd(jax.grad(f))(p)).all()


def test_a_negative_variance_is_minus_infinity():
    assert log_likelihood(Y, 0.3, -1.0) == -np.inf


def test_r():
    """R's figure lacks the first observation's constant, and has a start of variance 1e6 sigma2 for the flat one."""
    table = pd.read_csv(shared("reference/r_arima.csv"))
    table = table[(table["order"] == "0 1 1") & (table["seasonal"] == "0 0 0") & (table["convergence"] == 0)]
    assert len(table) >= 10
    for row in table.itertuples():
        y = pd.read_csv(shared(f"data/ts/{row.series}.csv"))["y"].dropna().to_numpy(float)
        n, padded = len(y), np.full(600, np.nan)
        padded[:n] = np.log(y) if row.log else y
        value = log_likelihood(padded, float(row.coef), row.sigma2)
        assert_allclose(value + 0.5 * np.log(2 * np.pi), row.loglik, atol=5e-3, rtol=tol(1e-10, 2e-4))
        ahead = np.asarray(level.leave_one_out(padded, *arima011(float(row.coef), row.sigma2)))[:, n : n + 12]
        assert_allclose(ahead[0], np.array(row.forecast.split(), float), rtol=tol(1e-5, 1e-4))
        assert_allclose(ahead[1] ** 0.5, np.array(row.forecast_se.split(), float), rtol=tol(1e-5, 1e-3))
