"""Markov processes on a line against the dense process: value, derivatives, smoother, leave-one-out, draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tol
from numpy.testing import assert_allclose

import probkit as pk
from probkit.gp import markov
from probkit.gp.distribution import GaussianProcess
from probkit.gp.line_process import MarkovProcess

RTOL = tol(1e-8, 2e-3)
RNG = np.random.default_rng(0)
X = RNG.uniform(0, 10, 40)  # unsorted
X[7] = X[9] = X[3]
Y = np.sin(2 * X) + 0.3 * RNG.normal(size=40)
Y[[5, 9]] = np.nan
X, Y = jnp.asarray(X), jnp.asarray(Y)
X_NEW = jnp.asarray([-1.0, 2.0, 11.5, float(X[3])])
#: lengthscale, scale, noise, quality
THETA = jnp.array([0.8, 1.2, 0.3, 0.7])
KERNELS = {
    "matern12": lambda t: pk.Matern12(t[0], t[1]),
    "matern32": lambda t: pk.Matern32(t[0], t[1]),
    "matern52": lambda t: pk.Matern52(t[0], t[1]),
    "sho": lambda t: pk.SHO(3 * t[0], t[3], t[1]),
    "sum": lambda t: pk.Matern32(t[0], t[1]) + pk.SHO(2.0, t[3], 0.3),
}


def laws(kernel, t):
    noise = t[2] * jnp.linspace(0.5, 1.5, 40) if kernel == "matern12" else t[2]
    return [law(KERNELS[kernel](t), X, noise, 0.2) for law in (MarkovProcess, GaussianProcess)]


QUICK = ("matern12", "sum")


@pytest.mark.once
@pytest.mark.parametrize(
    "kernel", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in KERNELS]
)
def test_against_the_dense_process(kernel):
    def everything(t, which):
        value, gradient = jax.value_and_grad(lambda t: laws(kernel, t)[which].log_prob(Y))(t)
        law = laws(kernel, t)[which]
        one, at, new = law.leave_one_out(Y), law.predict(Y), law.predict(Y, X_NEW)
        return value, gradient, one.mean, one.variance, at.mean, at.variance, new.mean, new.variance

    # Oscillating, critically damped and overdamped, for the one that does.
    thetas = jnp.stack([THETA, THETA.at[3].set(0.5), THETA.at[3].set(0.2)])[: 3 if kernel == "sho" else 1]
    ours, dense = (jax.jit(jax.vmap(lambda t, w=which: everything(t, w)))(thetas) for which in (0, 1))
    for got, want in zip(ours, dense, strict=True):
        assert_allclose(got, want, rtol=RTOL, atol=RTOL * float(jnp.abs(want).max()))


@pytest.mark.once
def test_second_derivatives_and_lanes():
    def value(t, which):
        return laws("matern32", t)[which].log_prob(Y)

    ours, dense = (jax.jit(jax.hessian(lambda t, w=which: value(t, w)))(THETA) for which in (0, 1))
    assert_allclose(ours, dense, rtol=tol(1e-7, 1e-2), atol=tol(1e-6, 0.3))
    both = jnp.stack([THETA, 1.3 * THETA, THETA.at[0].set(jnp.nan)])
    lanes = jax.jit(jax.vmap(jax.value_and_grad(lambda t: value(t, 0))))(both)
    single = jax.jit(jax.value_and_grad(lambda t: value(t, 0)))(both[1])
    assert_allclose(lanes[0][1], single[0], rtol=RTOL)
    assert_allclose(lanes[1][1], single[1], rtol=RTOL, atol=RTOL)
    assert lanes[0][2] == -jnp.inf and jnp.all(jnp.isfinite(lanes[1][:2]))


@pytest.mark.parametrize("order", [0.5, 1.5, 2.5])
def test_noise_of_short_gaps_keeps_its_digits(order):
    # Leading term of the last state's variance over a gap t: q t, and t^3 / 3 of it one state up.
    gaps = jnp.asarray([1e-6, 1e-4])
    A, Q = markov.matern(order, jnp.asarray(1.0), jnp.asarray(1.0)).step(gaps)
    t = (2 * order) ** 0.5 * np.asarray(gaps)
    q = {0.5: 2.0, 1.5: 4.0, 2.5: 16 / 3}[order]
    m = len(A)
    assert_allclose(Q[m - 1][m - 1], q * t, rtol=1e-3)
    if m > 1:
        assert_allclose(Q[m - 2][m - 2], q * t**3 / 3, rtol=1e-3)
    _, far = markov.matern(order, jnp.asarray(1.0), jnp.asarray(1.0)).step(jnp.asarray([100.0]))
    P = markov.matern(order, jnp.asarray(1.0), jnp.asarray(1.0)).stationary
    assert_allclose(np.array(far)[..., 0], np.array(P, dtype=float), atol=tol(1e-12, 1e-5))


@pytest.mark.slow
def test_draws_follow_their_laws():
    t = THETA
    markov_law, dense = laws("sho", t)
    draws = jax.jit(lambda key: markov_law.sample(key, (1500,)))(jax.random.key(0))
    assert_allclose(np.cov(draws.T), dense.covariance(), atol=0.4)
    new, want = markov_law.predict(Y, X_NEW), dense.predict(Y, X_NEW)
    draws = np.asarray(jax.jit(lambda key: new.sample(key, (1500,)))(jax.random.key(1)))
    S = np.asarray(want.covariance_matrix)
    error = np.sqrt((np.outer(np.diag(S), np.diag(S)) + S**2) / 1500)
    assert np.all(np.abs(np.cov(draws.T) - S) < 4.5 * error)
    assert np.all(np.abs(draws.mean(0) - want.mean) < 4.5 * np.sqrt(np.diag(S) / 1500))
    value = jnp.asarray([0.1, 0.2, -0.3, 0.4])
    assert_allclose(new.log_prob(value), want.log_prob(value), rtol=tol(1e-7, 1e-2))


@pytest.mark.once
def test_failures_are_minus_infinity():
    kernel = pk.Matern32(0.8, jnp.nan)
    assert MarkovProcess(kernel, X, 0.3).log_prob(Y) == -jnp.inf
    exact = MarkovProcess(pk.Matern32(1e3, 1.0), X, 0.0)  # three observations of one point, no noise
    value, gradient = jax.value_and_grad(lambda s: MarkovProcess(pk.Matern32(1e3, s), X, 0.0).log_prob(Y))(1.0)
    assert value == -jnp.inf == exact.log_prob(Y) and gradient == 0
    with pytest.raises(ValueError, match="Markov process takes one column"):
        MarkovProcess(pk.RBF(1.0, 1.0), X, 0.3)
    with pytest.raises(ValueError, match="Markov process takes one column"):
        MarkovProcess(pk.Matern32(1.0, 1.0), jnp.ones((5, 2)), 0.3)


def test_the_model_chooses_by_itself():
    long = jnp.linspace(0, 1, 300)
    model = pk.GP(pk.Matern52(0.1, 1.0), obs_scale=0.2, mean=0.0)
    assert isinstance(model.distribution(long, 300), MarkovProcess)
    assert isinstance(model.distribution(long[:100], 100), GaussianProcess)
    assert isinstance(model.distribution(jnp.ones((300, 2)), 300), GaussianProcess)
    smooth = pk.GP(pk.RBF(0.1, 1.0), obs_scale=0.2, mean=0.0)
    assert isinstance(smooth.distribution(long, 300), GaussianProcess)
    asked = pk.GP(pk.Matern52(0.1, 1.0), obs_scale=0.2, mean=0.0, solver=pk.gp.Exact())
    assert isinstance(asked.distribution(long, 300), GaussianProcess)
    assert "Markov" in model.notes(long, long)[0] and "Cholesky" in asked.notes(long, long)[0]
