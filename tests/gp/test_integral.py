"""Covariances of integrals against closed forms; functions found from totals and averages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tol
from numpy.testing import assert_allclose
from scipy.special import erf

import probkit as pk

X = jnp.asarray([[0.0, 1.0], [0.5, 2.5], [1.2, 1.2], [3.0, 3.0], [2.0, 3.5]])


def once(t, length):
    """The integral of ``exp(-t² / 2 length²)`` from 0 to t."""
    return length * np.sqrt(np.pi / 2) * erf(t / (length * np.sqrt(2)))


def twice(t, length):
    return t * once(t, length) + length**2 * (np.exp(-0.5 * (t / length) ** 2) - 1)


def rbf(one, other, length):
    """Covariance of two rows under a unit RBF, from antiderivatives."""
    (a, b), (c, d) = one, other
    if a == b and c == d:
        return np.exp(-0.5 * ((a - c) / length) ** 2)
    if c == d:
        return once(b - c, length) - once(a - c, length)
    if a == b:
        return rbf(other, one, length)
    return twice(b - c, length) + twice(a - d, length) - twice(a - c, length) - twice(b - d, length)


def test_closed_form_of_the_rbf():
    want = np.array([[1.44 * rbf(a, b, 0.8) for b in np.asarray(X)] for a in np.asarray(X)])
    kernel = pk.gp.Integral(pk.RBF(0.8, 1.2), 0.1)
    got, diagonal, noise = jax.jit(lambda X: (kernel(X, X), kernel.diagonal(X), kernel.observed_noise(X, 0.25)))(X)
    assert_allclose(got, want, rtol=tol(1e-10, 1e-4), atol=tol(1e-10, 1e-5))
    assert_allclose(diagonal, np.diag(want), rtol=tol(1e-10, 1e-4))
    assert_allclose(noise, [0.01, 0.01, 0.25, 0.25, 0.01], rtol=1e-5)
    average = pk.gp.Integral(pk.RBF(0.8, 1.2), 0.1, average=True)
    length = np.array([1.0, 2.0, 1.0, 1.0, 1.5])
    assert_allclose(jax.jit(lambda X: average(X, X))(X), want / length[:, None] / length, rtol=tol(1e-9, 1e-3))
    mean = kernel.observed_mean(lambda x: 3 + 2 * x, X)
    assert_allclose(mean, [4.0, 12.0, 5.4, 9.0, 12.75], rtol=1e-5)


@pytest.mark.once
def test_rough_covariances_come_near_and_gradients_are_right():
    """The integral of a Matérn 1/2 over an interval of length t has variance ``2 l (t - l + l exp(-t / l))``."""
    kernel = lambda nodes: pk.gp.Integral(pk.Matern12(0.8, 1.0), 0.0, nodes=nodes)
    want = 2 * 0.8 * (1.5 - 0.8 + 0.8 * np.exp(-1.5 / 0.8))
    errors = [abs(float(kernel(n).diagonal(X[4:])[0]) - want) for n in (6, 24)]
    assert errors[0] < 0.03 and errors[1] < errors[0] / 12
    y = jnp.asarray([0.3, 1.0, -0.2, 1.1, 0.1])

    def of(u):
        inside = pk.gp.Integral(pk.Matern32(u[0], u[1]), 0.1)
        return pk.gp.GaussianProcess(inside, X, 0.2, u[2]).log_prob(y)

    both, u = jax.jit(jax.value_and_grad(of)), jnp.asarray([0.8, 1.2, 0.3])
    for i, e in enumerate(1e-6 * jnp.eye(3)):
        assert_allclose(both(u)[1][i], (both(u + e)[0] - both(u - e)[0]) / 2e-6, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_a_function_from_its_totals(tmp_path):
    """Weekly totals with one missing, in ugly units: the function inside the weeks, and the missing total."""
    edges = np.linspace(0, 70, 11)
    weeks = np.c_[edges[:-1], edges[1:]]
    wave = lambda t: 1e4 * (20 * t - 30 * np.cos(t / 6) * 5)
    y = wave(weeks[:, 1]) - wave(weeks[:, 0])
    total = y[6]
    y[6] = np.nan
    posterior = pk.fit(pk.GP(pk.gp.Integral(pk.RBF())), y, weeks, key=jax.random.key(0), method=pk.MAP())
    assert posterior.report.converged
    days = np.linspace(7, 60, 9)
    found = posterior.predict(np.r_[np.c_[days, days], weeks[6:7]])
    assert_allclose(found.mean[:-1], 1e4 * (20 + 25 * np.sin(days / 6)), rtol=0.05, atol=3e4)
    assert_allclose(found.mean[-1], total, rtol=0.05)
    back = pk.load(pk.save(posterior, tmp_path / "totals"))
    assert_allclose(back.predict(weeks[6:7]).mean, found.mean[-1:], rtol=1e-6)


@pytest.mark.once
def test_border():
    with pytest.raises(ValueError, match="takes \\(n, 2\\)"):
        pk.fit(pk.GP(pk.gp.Integral(pk.RBF())), np.ones(4), np.arange(4.0), key=jax.random.key(0))
    with pytest.raises(ValueError, match="in row 1; the end must not lie before"):
        pk.fit(pk.GP(pk.gp.Integral(pk.RBF())), np.ones(2), np.array([[0, 1.0], [2, 1]]), key=jax.random.key(0))
    with pytest.raises(TypeError, match="stands outermost"):
        pk.gp.Integral(pk.gp.Derivative(pk.RBF()))
    with pytest.raises(TypeError, match="White has no integral"):
        pk.gp.Integral(pk.RBF() + pk.gp.White())
    with pytest.raises(ValueError, match="nodes is 1"):
        pk.gp.Integral(pk.RBF(), nodes=1)
