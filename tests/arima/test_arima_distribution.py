"""ARIMA(0,1,1) as a NumPyro distribution."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from helpers import tol
from numpy.testing import assert_allclose

import probkit as pk
from probkit.arima.distribution import ARIMADistribution
from probkit.arima.likelihood import arima011, log_likelihood
from probkit.ssm import level

RTOL = tol(1e-9, 1e-4)
Y = jnp.array([1.2, np.nan, -0.4, 2.1, 1.7, 0.2])


@pytest.mark.parametrize("theta", [-0.6, 0.5])
@pytest.mark.parametrize("start", [None, (0.5, 2.0)], ids=["diffuse", "known"])
def test_methods_are_those_of_the_maths(theta, start):
    law = ARIMADistribution(jnp.array([theta]), 1.2, 6, start)
    assert (law.batch_shape, law.event_shape) == ((), (6,))
    assert_allclose(law.log_prob(Y), log_likelihood(Y, theta, 1.44, start), rtol=RTOL)
    variances = arima011(theta, 1.44)
    loo = law.leave_one_out(Y)
    assert_allclose((loo.mean, loo.variance), level.leave_one_out(Y, *variances, start), rtol=RTOL, atol=RTOL)
    future = jnp.array([1.0, 0.1])
    ahead = law.forecast(Y, 2)
    joint = log_likelihood(jnp.concatenate([Y, future]), theta, 1.44, start)
    assert_allclose(ahead.log_prob(future), joint - law.log_prob(Y), rtol=RTOL)


def test_draws_have_the_covariance_of_the_process():
    theta, n, draws = 0.5, 5, 40_000
    law = ARIMADistribution([theta], 1.2, n, start=(0.0, 0.0))
    y = np.asarray(law.sample(jax.random.key(0), (draws,)), np.float64)
    steps = 1.2 * (np.eye(n) + (1 + theta) * np.tril(np.ones((n, n)), -1))
    covariance = steps @ steps.T
    error = np.sqrt((np.outer(np.diag(covariance), np.diag(covariance)) + covariance**2) / draws)
    assert (np.abs(np.cov(y.T) - covariance) < 5 * error).all()
    assert_allclose(law.variance, np.diag(covariance), rtol=RTOL)


def test_leading_axes_of_the_parameters():
    ma, scale = jnp.array([[-0.6], [0.5], [0.1]]), jnp.array([1.0, 1.2, 0.4])
    law = ARIMADistribution(ma, scale, 6)
    assert law.batch_shape == (3,)
    single = [ARIMADistribution(m, s, 6).log_prob(Y) for m, s in zip(ma, scale, strict=True)]
    assert_allclose(jax.jit(lambda p: p.log_prob(Y))(law), single, rtol=RTOL)
    assert law.forecast(Y, 3).mean.shape == (3, 3)


@pytest.mark.parametrize("ma", [0.5, [0.5, 0.1]])
def test_one_coefficient_is_wanted(ma):
    with pytest.raises(ValueError, match="ma has shape"):
        ARIMADistribution(ma, 1.0, 6)


@pytest.mark.parametrize(
    ("ma", "shape"),
    [([0.1, 0.2], "(2,)"), ([[0.1]], "(1, 1)"), (dist.Uniform(-jnp.ones(2), jnp.ones(2)).to_event(1), "(2,)")],
    ids=["numbers", "nested", "prior"],
)
def test_the_model_says_what_shape_it_wants(ma, shape):
    with pytest.raises(ValueError, match=re.escape(f"ma has shape {shape}; ARIMA(0, 1, 1) takes (1,).")):
        pk.fit(pk.ARIMA(0, 1, 1, ma=ma, scale=1.0), np.asarray(Y), key=jax.random.key(0), method=pk.MAP())
