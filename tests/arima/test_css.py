"""Conditional least squares: statsmodels' filter, derivatives against autodiff, and where the search ends."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from helpers import tol
from numpy.testing import assert_allclose
from scipy.signal import lfilter

from probkit.arima import css, many, search
from probkit.arima.exact import Coefficients, whole
from probkit.arima.innovations import innovations
from probkit.arima.lanes import Orders, unpack
from probkit.arima.search import Candidate

ORDERS = Orders(2, 1, 1, 1, 4)
Z = np.random.default_rng(0).normal(size=(30, 2))
X = 0.4 * np.random.default_rng(1).normal(size=(6, 2))


@jax.jit
def everything(x, z):
    own, counted = jnp.ones_like(x), jnp.ones(z.shape, bool)
    run = partial(css.errors, z=z, counted=counted, own=own, orders=ORDERS)
    c, shift, _ = unpack(x, ORDERS)
    return run(x), jax.jacfwd(lambda x: run(x)[0])(x), whole(c, 4), shift


def test_errors_and_their_derivatives():
    (e, J), slow, (phi, theta), shift = everything(jnp.asarray(X), jnp.asarray(Z))
    kappa = np.tanh(X)
    for lane in range(2):
        top, below = np.r_[1, -phi[:, lane]], np.r_[1, theta[:, lane]]
        F, t = np.ones(30), np.arange(30)
        for i, end in ((0, 1), (1, 2), (3, 4)):
            F[t < end] /= 1 - kappa[i, lane] ** 2
        weighed = lfilter(top, below, Z[:, lane] - shift[lane]) / np.sqrt(F) * np.exp(0.5 * np.log(F).mean())
        assert_allclose(e[:, lane], weighed, rtol=tol(1e-9, 1e-3), atol=tol(1e-12, 1e-4))
        assert_allclose(J[:, :, lane].T, slow[:, lane, :, lane], rtol=tol(1e-9, 1e-3), atol=tol(1e-10, 1e-4))


def test_a_seasonal_autoregression_is_exact():
    """Its cost is that of the exact likelihood."""
    x = np.zeros((6, 2))
    x[3] = 0.9, -0.5
    (r, _), _, polynomials, _ = everything(jnp.asarray(x), jnp.asarray(Z))
    v, F = jax.jit(innovations)(jnp.asarray(Z), *polynomials)
    assert_allclose((r * r).sum(0), (v * v / F).sum(0) * np.exp(np.log(F).mean(0)), rtol=tol(1e-9, 1e-4))


def test_roots_are_those_of_the_polynomials():
    c = Coefficients(np.array([[1.2], [-0.5]]), np.array([[0.3]]), np.array([[0.6]]), np.array([[-0.9]]))
    assert_allclose(many.largest_root(c, 4), 0.9 ** (1 / 4))
    assert_allclose(many.largest_root(c._replace(sma=c.sma * 0, sar=c.sar * 0), 4), np.sqrt(0.5))


def test_neighbours_differ_by_one_step():
    c = Candidate(1, 1, 0, 1, True)
    near = search.neighbours(c)
    assert len(set(near)) == 17
    assert c not in near
    assert {Candidate(1, 1, 0, 1, False), Candidate(2, 2, 0, 1, True), Candidate(1, 1, 1, 0, True)} < set(near)
