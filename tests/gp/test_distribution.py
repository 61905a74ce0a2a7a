"""The GP as a NumPyro distribution: against SciPy and the maths below it, and inside NumPyro."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from helpers import tol
from numpy.testing import assert_allclose
from scipy.stats import multivariate_normal

from probkit.gp.distribution import GaussianProcess
from probkit.gp.kernels import matern32, squared_distance

RTOL = tol(1e-8, 2e-3)
X = jnp.asarray(np.sort(np.random.default_rng(0).uniform(0, 4, 15)))
Y = jnp.sin(2 * X) + 0.3
Y_MISSING = Y.at[jnp.array([0, 6])].set(jnp.nan)


class Matern32(eqx.Module):
    lengthscale: jax.Array | float
    scale: jax.Array | float

    def __call__(self, X1, X2):
        return self.scale**2 * matern32(squared_distance(X1, X2, self.lengthscale))

    def diagonal(self, X):
        return jnp.full(len(X), self.scale**2, X.dtype)


def process(lengthscale=0.7, scale=1.3, noise_scale=0.4, loc=0.2, X=X):
    return GaussianProcess(Matern32(lengthscale, scale), X, noise_scale, loc)


def conditional(gp, y, X_new):
    """Mean and covariance of fresh noisy observations by dense algebra in float64."""
    seen = np.flatnonzero(~np.isnan(y))
    K = np.asarray(gp.covariance(), np.float64)[np.ix_(seen, seen)]
    C = np.asarray(gp.kernel(gp.X, X_new), np.float64)[seen]
    S = np.asarray(gp.kernel(X_new, X_new), np.float64) + float(gp.noise_scale) ** 2 * np.eye(len(X_new))
    mean = float(gp.loc) + C.T @ np.linalg.solve(K, np.asarray(y, np.float64)[seen] - float(gp.loc))
    return mean, S - C.T @ np.linalg.solve(K, C)


@pytest.mark.parametrize("y", [Y, Y_MISSING])
def test_log_prob_against_scipy(y):
    gp = process()
    seen = ~np.isnan(y)
    K = np.asarray(gp.covariance(), np.float64)[np.ix_(seen, seen)]
    want = multivariate_normal(np.full(seen.sum(), 0.2), K).logpdf(np.asarray(y)[seen])
    assert_allclose(gp.log_prob(y), want, rtol=RTOL)
    assert_allclose(jax.jit(lambda gp, y: gp.log_prob(y))(gp, y), want, rtol=RTOL)


def test_log_prob_over_leading_axes():
    gp = process()
    ys = jnp.stack([Y, Y_MISSING, 2 * Y, -Y]).reshape(2, 2, -1)
    assert_allclose(gp.log_prob(ys), [[gp.log_prob(y) for y in pair] for pair in ys], rtol=RTOL)
    assert gp.expand([2, 2]).log_prob(ys).shape == (2, 2)


def test_lanes_of_parameters():
    parameters = jnp.array([[0.7, 1.3, 0.4, 0.2], [0.3, 1.0, 0.5, 0.0], [0.7, 1.3, 0.4, jnp.nan], [-jnp.nan, 1, 1, 0]])
    values = jax.vmap(lambda p: process(*p).log_prob(Y_MISSING))(parameters)
    assert_allclose(values[:2], [process(*p).log_prob(Y_MISSING) for p in parameters[:2]], rtol=RTOL)
    assert jnp.all(values[2:] == -jnp.inf)


def test_a_pytree_that_comes_back_whole():
    gp = process()
    leaves, tree = jax.tree.flatten(gp)
    assert len(leaves) == 5
    again = jax.tree.unflatten(tree, leaves)
    assert again.event_shape == (15,)
    assert again.batch_shape == ()
    assert again.log_prob(Y) == gp.log_prob(Y)


def test_moments_of_the_sample():
    gp = process(X=X[:5])
    draws = gp.sample(jax.random.key(0), (40_000,))
    assert draws.shape == (40_000, 5)
    assert gp.sample(jax.random.key(0)).shape == (5,)
    assert_allclose(draws.mean(0), gp.mean, atol=0.04)
    assert_allclose(jnp.cov(draws.T), gp.covariance(), atol=0.08)
    assert_allclose(gp.variance, jnp.diagonal(gp.covariance()), rtol=RTOL)


@pytest.mark.once
def test_sample_is_differentiable():
    def total(p):
        return process(*p).sample(jax.random.key(0)).sum()

    gradient = jax.grad(total)(jnp.array([0.7, 1.3, 0.4, 0.2]))
    assert jnp.all(jnp.isfinite(gradient))
    assert gradient[3] == pytest.approx(15.0)


def test_leave_one_out_by_leaving_out():
    gp = process()
    terms = gp.leave_one_out(Y_MISSING)
    assert terms.batch_shape == (15,)
    log_prob = terms.log_prob(Y_MISSING)
    whole = gp.log_prob(Y_MISSING)
    for i in range(15):
        if jnp.isnan(Y_MISSING[i]):
            assert jnp.isnan(log_prob[i])
        else:
            assert_allclose(log_prob[i], whole - gp.log_prob(Y_MISSING.at[i].set(jnp.nan)), rtol=10 * RTOL, atol=RTOL)


@pytest.mark.parametrize("y", [Y, Y_MISSING])
def test_predict_at_the_training_inputs(y):
    gp = process()
    law = gp.predict(y)
    mean, S = conditional(gp, y, X)
    assert law.event_shape == (15,)
    assert_allclose(law.mean, mean, rtol=RTOL, atol=RTOL)
    assert_allclose(law.variance, np.diag(S), rtol=RTOL)


@pytest.mark.once
@pytest.mark.parametrize("y", [Y, Y_MISSING])
def test_predict_at_new_inputs(y):
    gp = process()
    X_new = jnp.linspace(-1.0, 6.0, 4)
    law = jax.jit(lambda gp: gp.predict(y, X_new))(gp)
    mean, S = conditional(gp, y, X_new)
    assert_allclose(law.mean, mean, rtol=RTOL, atol=RTOL)
    assert_allclose(law.covariance_matrix, S, rtol=RTOL, atol=RTOL)
    assert_allclose(gp.forecast(y, 4, X_new).mean, law.mean, rtol=RTOL, atol=RTOL)
    draws = law.sample(jax.random.key(0), (40_000,))
    assert_allclose(draws.mean(0), mean, atol=0.04)
    assert_allclose(jnp.cov(draws.T), S, atol=0.08)


@pytest.mark.once
def test_forecast_continues_the_inputs():
    gp = process(X=jnp.arange(15.0))
    assert_allclose(gp.forecast(Y, 3).mean, gp.predict(Y, jnp.array([15.0, 16.0, 17.0])).mean, rtol=RTOL)
    with pytest.raises(ValueError, match="several columns"):
        process(X=jnp.ones((15, 2))).forecast(Y, 3)


def test_many_columns():
    wide = jnp.asarray(np.random.default_rng(1).normal(size=(15, 4)))
    gp = GaussianProcess(Matern32(jnp.array([1.0, 2.0, 0.5, 1.0]), 1.0), wide, 0.3)
    assert jnp.isfinite(gp.log_prob(Y))
    mean, _ = conditional(gp, Y, wide[:3] + 0.1)
    assert_allclose(gp.predict(Y, wide[:3] + 0.1).mean, mean, rtol=RTOL, atol=RTOL)


def test_whole_number_inputs():
    years = GaussianProcess(Matern32(5.0, 1.0), jnp.arange(2000, 2015), 0.3)
    assert years.log_prob(Y) == pytest.approx(
        float(GaussianProcess(Matern32(5.0, 1.0), jnp.arange(15.0), 0.3).log_prob(Y)), rel=RTOL
    )


def test_failure_is_data():
    gp = GaussianProcess(Matern32(jnp.nan, 1.0), X, 0.3)
    assert gp.log_prob(Y) == -jnp.inf
    assert jnp.all(jnp.isnan(gp.leave_one_out(Y).mean))
    assert jnp.all(jnp.isnan(gp.predict(Y).mean))
    assert jnp.all(jnp.isnan(gp.predict(Y, X[:2]).mean))


def test_inside_a_numpyro_model():
    def model(y):
        lengthscale = numpyro.sample("lengthscale", dist.LogNormal(0.0, 1.0))
        numpyro.sample("y", process(lengthscale), obs=y)

    got, trace = numpyro.infer.util.log_density(model, (Y_MISSING,), {}, {"lengthscale": jnp.array(0.7)})
    want = dist.LogNormal(0.0, 1.0).log_prob(jnp.array(0.7)) + process().log_prob(Y_MISSING)
    assert_allclose(got, want, rtol=RTOL)
    assert trace["y"]["fn"].event_shape == (15,)


@pytest.mark.parametrize(
    ("build", "what"),
    [
        (lambda: process(X=jnp.zeros((2, 2, 2))), r"X has shape \(2, 2, 2\)"),
        (lambda: process(noise_scale=jnp.ones(3)), r"noise_scale has shape \(3,\)"),
        (lambda: process(loc=jnp.ones(3)), r"loc has shape \(3,\)"),
        (lambda: process().log_prob(Y[:3]), r"y has shape \(3,\)"),
        (lambda: process().predict(Y, jnp.zeros((3, 2))), r"X_new has shape \(3, 2\)"),
    ],
)
def test_wrong_shapes_are_named(build, what):
    with pytest.raises(ValueError, match=what):
        build()
