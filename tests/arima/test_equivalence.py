r"""An ARIMA(0,1,1) with theta = -(1 - alpha), 0 < alpha <= 1, is a local level: as models, in everything observable.

The variances are $(1 - \alpha) \sigma^2$ and $\alpha^2 \sigma^2$ (Muth 1960); both integrate the starting level out.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tol
from numpy.testing import assert_allclose

import probkit as pk

pytestmark = pytest.mark.once

SIGMA = 140.0
RTOL = tol(1e-8, 1e-4)
alphas = pytest.mark.parametrize("alpha", [0.05, 0.27, 0.9, 1.0])


def twins(alpha, sigma=SIGMA):
    arima = pk.ARIMA(0, 1, 1, ma=[alpha - 1.0], scale=sigma)
    level = pk.LocalLevel(level_scale=alpha * sigma, obs_scale=np.sqrt(1 - alpha) * sigma)
    return [pk.model.strong(model, jnp.result_type(float)) for model in (arima, level)]


def series(gaps):
    y = pk.datasets.nile().to_numpy(float).copy()
    if gaps:
        y[[0, 1, 30, 31, 32, 60, 99]] = np.nan
    return jnp.asarray(y, jnp.result_type(float))


@pytest.mark.parametrize("gaps", [False, True], ids=["complete", "gaps"])
@alphas
def test_likelihood_and_leave_one_out(alpha, gaps):
    y = series(gaps)
    arima, level = twins(alpha)
    assert_allclose(arima.log_likelihood(y), level.log_likelihood(y), rtol=RTOL)
    assert_allclose(arima.loo(y), level.loo(y), rtol=RTOL)
    laws = [model.leave_one_out(y) for model in (arima, level)]
    assert_allclose(laws[0].mean, laws[1].mean, rtol=RTOL)
    assert_allclose(laws[0].variance, laws[1].variance, rtol=RTOL)


@pytest.mark.parametrize("gaps", [False, True], ids=["complete", "gaps"])
@alphas
def test_forecasts(alpha, gaps):
    """Means and variances of every step, and the joint density of a whole path."""
    ahead = [model.forecast(series(gaps), 12) for model in twins(alpha)]
    path = 850.0 + 100.0 * jax.random.normal(jax.random.key(0), (12,))
    for quantity in (lambda law: law.mean, lambda law: law.variance, lambda law: law.log_prob(path)):
        assert_allclose(quantity(ahead[0]), quantity(ahead[1]), rtol=RTOL)


@functools.cache
def mle(kind):
    model = pk.LocalLevel() if kind == "level" else pk.ARIMA(0, 1, 1)
    return pk.fit(model, pk.datasets.nile(), key=jax.random.key(0), method=pk.MLE())


@pytest.mark.slow
def test_the_maximum_is_the_same():
    level = {name: float(draws[0, 0]) for name, draws in mle("level").sites.items()}
    arima = mle("arima").sites
    alpha, sigma = 1 + float(arima["ma"][0, 0, 0]), float(arima["scale"][0, 0])
    assert_allclose(mle("level").report.log_density, mle("arima").report.log_density, rtol=tol(1e-10, 1e-6))
    assert_allclose(level["level_scale"], alpha * sigma, rtol=tol(1e-5, 2e-2))
    assert_allclose(level["obs_scale"], np.sqrt(1 - alpha) * sigma, rtol=tol(1e-5, 1e-2))


@pytest.mark.slow
def test_the_forecasts_of_the_fits_are_the_same():
    ahead = [mle(kind).forecast(10) for kind in ("level", "arima")]
    assert_allclose(ahead[0].mean, ahead[1].mean, rtol=tol(1e-6, 1e-2))
    assert_allclose(ahead[0].std, ahead[1].std, rtol=tol(1e-5, 1e-2))
    assert_allclose(ahead[0].quantile(0.9), ahead[1].quantile(0.9), rtol=tol(1e-5, 1e-2))
