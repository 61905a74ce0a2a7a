"""The local level as a NumPyro distribution: a thin layer over the maths, closed under conditioning."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from helpers import count_compilations, tol
from numpy.testing import assert_allclose
from numpyro.infer.util import log_density

from probkit.ssm import level
from probkit.ssm.distribution import LocalLevelDistribution

RTOL = tol(1e-9, 1e-4)
Y = jnp.array([1.2, np.nan, -0.4, 2.1, 1.7, 0.2])
VARIANCES = (0.8**2, 0.5**2)

starts = pytest.mark.parametrize("start", [None, (0.5, 2.0)], ids=["diffuse", "known"])


def law(length=6, start=None):
    return LocalLevelDistribution(level_scale=0.5, obs_scale=0.8, length=length, start=start)


@starts
def test_methods_are_those_of_the_maths(start):
    p = law(start=start)
    assert (p.batch_shape, p.event_shape) == ((), (6,))
    assert_allclose(p.log_prob(Y), level.log_likelihood(Y, *VARIANCES, start=start), rtol=RTOL)

    mean, variance = level.leave_one_out(Y, *VARIANCES, start=start)
    loo = p.leave_one_out(Y)
    assert isinstance(loo, dist.Normal) and loo.batch_shape == (6,)
    assert_allclose((loo.mean, loo.variance), (mean, variance), rtol=RTOL)

    mean, variance = level.smooth(Y, *VARIANCES, start=start)
    fresh = p.predict(Y)
    assert fresh.event_shape == (6,)
    assert_allclose((fresh.mean, fresh.variance), (mean, variance + 0.64), rtol=RTOL)


@starts
def test_forecast_is_the_conditional_and_closed(start):
    future = jnp.array([1.0, 0.1, np.nan, 0.7])
    p = law(start=start).forecast(Y, 4)
    assert isinstance(p, LocalLevelDistribution) and p.event_shape == (4,)
    joint = law(10, start).log_prob(jnp.concatenate([Y, future]))
    assert_allclose(p.log_prob(future), joint - law(start=start).log_prob(Y), rtol=RTOL)
    mean, variance = level.leave_one_out(jnp.concatenate([Y, np.nan * future]), *VARIANCES, start=start)
    assert_allclose((p.mean, p.variance), (mean[6:], variance[6:]), rtol=RTOL)
    again = p.forecast(future, 2)
    assert_allclose(again.mean, law(10, start).forecast(jnp.concatenate([Y, future]), 2).mean, rtol=RTOL)


def test_draws_have_the_moments_of_the_law():
    n, draws = 4, 40_000
    p = law(n, (0.5, 2.0))
    y = np.asarray(p.sample(jax.random.key(0), (draws,)), np.float64)
    s = np.arange(n)
    covariance = 2.0 + 0.25 * np.minimum(s, s[:, None]) + 0.64 * np.eye(n)
    error = np.sqrt((np.outer(np.diag(covariance), np.diag(covariance)) + covariance**2) / draws)
    assert_allclose(p.mean, np.full(n, 0.5))
    assert_allclose(p.variance, np.diag(covariance), rtol=RTOL)
    assert (np.abs(y.mean(0) - 0.5) < 5 * np.sqrt(np.diag(covariance) / draws)).all()
    assert (np.abs(np.cov(y.T) - covariance) < 5 * error).all()


def test_a_diffuse_path_starts_at_level_zero():
    p = law(3)
    y = np.asarray(p.sample(jax.random.key(1), (20_000,)))
    assert_allclose(y.var(0), 0.64 + 0.25 * np.arange(3), rtol=0.05)
    assert_allclose(p.mean, np.zeros(3))
    assert np.isposinf(p.variance).all()


@pytest.mark.once
def test_leading_axes_of_y_and_of_the_scales():
    y = jnp.stack([Y, Y + 1, 2 * Y])
    one = jax.jit(lambda row: law().log_prob(row))
    assert_allclose(law().log_prob(y), [one(row) for row in y], rtol=RTOL)
    assert law().predict(y).batch_shape == (3,)
    assert law().forecast(y, 2).batch_shape == (3,)

    scales = jnp.array([0.3, 0.5, 0.9])
    p = LocalLevelDistribution(scales, 0.8, 6)

    @jax.jit
    def single(scale):
        q = LocalLevelDistribution(scale, 0.8, 6)
        return q.log_prob(Y), q.forecast(Y, 2).variance

    values, variances = zip(*map(single, scales), strict=True)
    assert p.batch_shape == (3,)
    assert_allclose(p.log_prob(Y), values, rtol=RTOL)
    assert_allclose(p.forecast(Y, 2).variance, variances, rtol=RTOL)
    assert p.sample(jax.random.key(0), (2,)).shape == (2, 3, 6)


def test_it_is_a_pytree_of_its_numbers():
    f = jax.jit(lambda p, y: p.log_prob(y))
    p, q = law(start=(0.5, 2.0)), LocalLevelDistribution(0.1, 0.2, 6, start=(1.0, 3.0))
    assert_allclose(f(p, Y), p.log_prob(Y), rtol=RTOL)
    with count_compilations() as compiled:
        f(q, Y)
    assert compiled.count == 0
    # built inside vmap and handed out, a batch of laws
    laws = jax.vmap(lambda s: LocalLevelDistribution(s, 0.8, 6).forecast(Y, 3))(jnp.array([0.3, 0.5]))
    assert jax.vmap(lambda p: p.variance)(laws).shape == (2, 3)


def test_inside_a_numpyro_model():
    def model(y):
        scale = numpyro.sample("scale", dist.HalfNormal(1.0))
        numpyro.sample("y", LocalLevelDistribution(scale, 0.8, 6), obs=y)

    value, _ = log_density(model, (Y,), {}, {"scale": 0.5})
    assert_allclose(value, dist.HalfNormal(1.0).log_prob(0.5) + law().log_prob(Y), rtol=RTOL)
    with numpyro.handlers.seed(rng_seed=0):
        numpyro.sample("y", law())


def test_messages_name_the_argument():
    with pytest.raises(ValueError, match=r"y has shape \(5,\); .* length 6"):
        law().log_prob(Y[:5])
    with pytest.raises(ValueError, match="no inputs"):
        law().predict(Y, X_new=jnp.ones(3))
    with pytest.raises(ValueError, match="length is 0"):
        law().forecast(Y, 0)
