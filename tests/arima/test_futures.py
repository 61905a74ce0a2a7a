"""Futures by the lattice, against the law in level form; fits with gaps, against those without."""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tol
from numpy.testing import assert_allclose

from probkit.arima.distribution import SARIMADistribution
from probkit.arima.exact import Order
from probkit.arima.futures import futures
from probkit.arima.gaps import fit_with_gaps
from probkit.arima.lanes import Orders, fit_lanes, unpack
from probkit.arima.polynomials import psi_weights

ORDERS = Orders(1, 1, 0, 1, 4)
X = np.array([[0.5, -0.3], [0.2, 0.4], [0.3, 0.6], [0.0, 0.0]])
W = np.random.default_rng(0).normal(size=(24, 2))


@pytest.mark.slow
def test_paths_are_forecasts_and_psi_weights():
    seen = np.ones(W.shape, bool)
    seen[20:, 1] = False
    errors = np.zeros((5, 2, 2))
    errors[0, 1] = 1.0  # the second path of each lane has an innovation at the first step
    paths = futures(jnp.asarray(W), seen, jnp.asarray(X), jnp.asarray([0.3, 0.0]), jnp.asarray(errors), ORDERS)
    c = unpack(jnp.asarray(X), ORDERS)[0]
    y = np.where(seen, W, np.nan)
    for lane, late in ((0, 0), (1, 4)):
        own = [np.asarray(part[:, lane]) for part in c]
        law = SARIMADistribution(*own, 1.0, 24, (0, 0, 4), mean=[0.3, 0.0][lane])
        ahead = law.forecast(jnp.asarray(y[:, lane]), 5).mean[: 5 - late]
        assert_allclose(paths[late:, 0, lane], ahead, rtol=tol(1e-8, 1e-3), atol=1e-6)
        ma = np.r_[own[1], np.zeros(2), own[3], own[1] * own[3]]
        psi = psi_weights(own[0], ma, 5)
        assert_allclose(paths[:, 1, lane] - paths[:, 0, lane], psi, rtol=tol(1e-3, 1e-2), atol=1e-3)  # F is not quite 1


@pytest.mark.once
def test_a_series_without_gaps_is_fitted_as_by_the_lattice():
    y = W[:, 0].cumsum()
    w = np.diff(y)
    masks = np.array([[True, False], [True, True], [False, False], [True, True]])
    start = jnp.asarray(np.full((4, 2), 0.1) * masks)
    lattice = fit_lanes(jnp.asarray(np.stack([w, w], 1)), np.ones((23, 2), bool), masks, start, ORDERS)
    late = jnp.asarray(np.r_[y, np.nan, np.nan])
    unit = (jnp.asarray(x, late.dtype) for x in (w.mean(), w.std()))
    found = fit_with_gaps(late, *unit, masks, start, Order(1, 1, 1, 0, 0, 1, 4))
    assert_allclose(found.log_likelihood, lattice.log_likelihood, rtol=tol(1e-8, 1e-3))
    assert_allclose(found.constant, lattice.constant, atol=tol(1e-4, 2e-2))
    assert_allclose(found.sigma2, lattice.sigma2, rtol=tol(1e-4, 2e-2))
