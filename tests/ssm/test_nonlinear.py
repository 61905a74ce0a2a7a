"""Nonlinear filters: the Kalman filter where all is linear, moments that are known, an unbiased likelihood."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tol
from numpy.testing import assert_allclose

from probkit.ssm import kalman, nonlinear
from probkit.ssm.statespace import StateSpace, known_start

T = np.array([[0.9, 0.3], [-0.2, 0.8]])
Z = np.array([[1.0, 0.5], [0.0, 1.0]])
Q, R = np.array([[0.5, 0.1], [0.1, 0.3]]), np.array([[0.4, 0.1], [0.1, 0.6]])
A1, P1 = np.array([0.5, -0.5]), np.eye(2)
Y = np.random.default_rng(0).normal(size=(12, 2))
Y[3, 0] = Y[5, 1] = Y[7] = np.nan
LINEAR = nonlinear.Nonlinear(lambda x, t: jnp.asarray(T) @ x, lambda x, t: jnp.asarray(Z) @ x, Q, R, A1, P1)


@pytest.fixture(scope="module")
def exact():
    model = StateSpace(Z, R, T, np.eye(2), Q)
    return kalman.log_likelihood(jnp.asarray(Y), model, known_start(A1, P1))


@pytest.mark.parametrize("run", [nonlinear.extended, nonlinear.unscented])
def test_linear_models_are_exact(run, exact):
    found = jax.jit(lambda y: run(y, LINEAR))(jnp.asarray(Y))
    assert_allclose(found.log_likelihood, exact, rtol=tol(1e-10, 1e-4))
    a, P = A1, P1
    for t in range(12):
        keep = ~np.isnan(Y[t])
        S = Z[keep] @ P @ Z[keep].T + R[np.ix_(keep, keep)]
        K = P @ Z[keep].T @ np.linalg.inv(S)
        a, P = a + K @ (Y[t, keep] - Z[keep] @ a), P - K @ S @ K.T
        assert_allclose(found.mean[t], a, rtol=tol(1e-9, 1e-3), atol=1e-5)
        assert_allclose(found.variance[t], P, rtol=tol(1e-9, 1e-3), atol=1e-5)
        a, P = T @ a, T @ P @ T.T + Q


def test_a_start_that_is_known():
    """No variance at the first time: both are the Kalman filter still."""
    model = LINEAR._replace(P=np.zeros((2, 2)))
    exact = kalman.log_likelihood(jnp.asarray(Y), StateSpace(Z, R, T, np.eye(2), Q), known_start(A1, np.zeros((2, 2))))
    for run in (nonlinear.extended, nonlinear.unscented):
        assert_allclose(run(jnp.asarray(Y), model).log_likelihood, exact, rtol=tol(1e-9, 1e-4))


def test_squares():
    """Of x ~ N(a, P) the square has mean a² + P, which the unscented filter knows and the extended one does not."""
    model = nonlinear.Nonlinear(lambda x, t: x**2, lambda x, t: x, np.eye(1) * 0.1, np.eye(1), np.ones(1), np.eye(1))
    y = jnp.array([np.nan, 2.0])
    log_normal = lambda mean, variance: -0.5 * np.log(2 * np.pi * variance) - 0.5 * (2 - mean) ** 2 / variance
    # With kappa = 2 the points have the kurtosis of a normal law: the variance of x² is 4 a² P + 2 P².
    assert_allclose(nonlinear.unscented(y, model, 2.0).log_likelihood, log_normal(2.0, 7.1), rtol=tol(1e-9, 1e-4))
    assert_allclose(nonlinear.extended(y, model).log_likelihood, log_normal(1.0, 5.1), rtol=tol(1e-9, 1e-4))
    with pytest.raises(ValueError, match="kappa is -1"):
        nonlinear.unscented(y, model, -1.0)


@pytest.mark.once
def test_particles_estimate_the_likelihood_without_bias(exact):
    root_P, root_Q = np.linalg.cholesky(P1), np.linalg.cholesky(Q)
    first = lambda key: A1 + root_P @ jax.random.normal(key, (2,))
    move = lambda key, x, t: jnp.asarray(T) @ x + root_Q @ jax.random.normal(key, (2,))

    def log_density(y, x, t):
        seen = ~jnp.isnan(y)
        S = jnp.where(seen[:, None] & seen, jnp.asarray(R), jnp.eye(2))
        error = jnp.where(seen, y - jnp.asarray(Z) @ x, 0.0)
        value = -0.5 * error @ jnp.linalg.solve(S, error) - 0.5 * jnp.linalg.slogdet(S)[1]
        return value - 0.5 * np.log(2 * np.pi) * jnp.sum(seen)

    run = jax.jit(lambda keys: jax.lax.map(lambda k: nonlinear.bootstrap(k, Y, first, move, log_density, 200), keys))
    found = run(jax.random.split(jax.random.key(0), 400))
    ratio = np.exp(np.asarray(found.log_likelihood, float) - float(exact))
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / np.sqrt(400)
    assert ratio.std() < 1.0
    assert ((found.effective >= 1) & (found.effective <= 200.01)).all()
    exact_mean = nonlinear.extended(Y, LINEAR).mean
    assert_allclose(found.mean.mean(0), exact_mean, atol=0.06)
    with pytest.raises(ValueError, match="particles is 0"):
        nonlinear.bootstrap(jax.random.key(0), Y, first, move, log_density, 0)


def test_an_observation_that_no_particle_explains():
    never = lambda y, x, t: jnp.where(t == 1, -jnp.inf, 0.0)
    found = nonlinear.bootstrap(
        jax.random.key(0), np.zeros(3), lambda k: jnp.zeros(1), lambda k, x, t: x, never, particles=4
    )
    assert found.log_likelihood == -np.inf and np.isfinite(found.mean).all()
