"""The filter by an associative scan is the filter in turn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tol
from numpy.testing import assert_allclose

from probkit.ssm import kalman, parallel
from probkit.ssm.statespace import StateSpace, diffuse_start, known_start

N = 21
RNG = np.random.default_rng(0)
T = 0.5 * RNG.normal(size=(N, 3, 3))
Z = RNG.normal(size=(2, 3))
Q, H = np.diag([0.5, 0.0, 0.2]), np.array([[0.4, 0.1], [0.1, 0.6]])
Y = RNG.normal(size=(N, 2))
Y[3, 0] = Y[5, 1] = Y[7] = Y[0, 0] = np.nan


def model(scale):
    return StateSpace(Z, H, T, np.eye(3), scale * Q, np.array([0.3, -0.2]), np.array([0.1, 0.0, 0.2]))


@pytest.mark.once
def test_equal_to_the_filter_in_turn():
    start = known_start(np.array([0.5, -0.5, 0.0]), np.eye(3))

    @jax.jit
    def run(scale):
        both = [jax.value_and_grad(lambda q, f=f: f(q))(scale) for f in (
            lambda q: parallel.run_filter(Y, model(q), start).log_likelihood,
            lambda q: kalman.log_likelihood(Y, model(q), start),
        )]  # fmt: skip
        return both, parallel.run_filter(Y, model(scale), start), kalman.run_filter(Y, model(scale), start)

    (ours, theirs), found, turn = run(jnp.asarray(1.3))
    assert_allclose(ours, theirs, rtol=tol(1e-8, 1e-3))
    # The state before the next time, given all up to this one.
    ahead = np.array([0.1, 0.0, 0.2]) + np.einsum("tij,tj->ti", T, found.mean)
    assert_allclose(ahead[:-1], turn.a[1:], rtol=tol(1e-8, 1e-3), atol=tol(1e-8, 1e-3))
    spread = T @ np.asarray(found.variance) @ np.swapaxes(T, 1, 2) + 1.3 * Q
    assert_allclose(spread[:-1], turn.P[1:], rtol=tol(1e-8, 1e-3), atol=tol(1e-8, 1e-3))


def test_chosen_by_platform_and_start():
    flat = diffuse_start([True, False, False])
    with pytest.raises(ValueError, match="flat directions"):
        parallel.run_filter(Y, model(1.0), flat)
    assert_allclose(parallel.log_likelihood(Y, model(1.0), flat), kalman.log_likelihood(Y, model(1.0), flat), rtol=1e-6)


@pytest.mark.gpu
def test_a_long_series_on_an_accelerator():
    y = np.random.default_rng(1).normal(size=(100_000, 1)).cumsum(0)
    level = StateSpace(np.ones((1, 1)), np.eye(1), np.eye(1), np.eye(1), np.eye(1))
    start = known_start(np.zeros(1), np.eye(1))
    assert_allclose(parallel.log_likelihood(y, level, start), kalman.log_likelihood(y, level, start), rtol=1e-4)


@pytest.mark.once
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_as_on_an_accelerator(noise, monkeypatch):
    """A smooth trend seen without noise has no map a step: the filter in turn answers; with noise, the scan."""
    monkeypatch.setattr(parallel.jax, "default_backend", lambda: "gpu")
    matrices = np.array([[1.0, 0.0]]), np.full((1, 1), noise), np.array([[1.0, 1.0], [0.0, 1.0]])
    smooth = StateSpace(*matrices, np.eye(2), np.diag([0.0, 0.1]))
    y = jnp.asarray(RNG.normal(size=parallel.LONG).cumsum())
    start = known_start(np.zeros(2), np.eye(2))
    found = parallel.log_likelihood(y, smooth, start)
    assert_allclose(found, kalman.log_likelihood(y, smooth, start), rtol=1e-9)
