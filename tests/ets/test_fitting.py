"""The batched fits of exponential smoothing: derivatives against linearised passes, and the prior."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tol
from numpy.testing import assert_allclose

from probkit.ets import fitting


def panel(gaps):
    """Five series of period 4: one begins late, at another place of the season, one ends early; gaps where asked."""
    rng = np.random.default_rng(0)
    y = np.exp(0.1 * rng.normal(size=(30, 5)) + 1 + 0.2 * np.sin(np.arange(30) * np.pi / 2)[:, None])
    y[:3, 1] = y[:2, 2] = y[-2:, 3] = np.nan
    if gaps:
        y[10, 0] = y[20:22, 4] = np.nan
    return jnp.asarray(y, float)


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize(("trend", "season"), [("A", "N"), ("A", "A"), ("A", "M"), ("M", "A")])
def test_derivatives_are_those_of_the_pass(trend, season, gaps):
    """Every mix of errors and damping, and one tangent delayed for all seasons where the recursion allows it."""
    form, y = fitting.program(trend, season), panel(gaps)
    m = fitting.masks([form], fitting.phases(y, 4))
    m = m._replace(multiplicative=jnp.asarray([0, 1, 1, 0, 1], bool), damped=jnp.asarray([0, 1, 0, 1, 1], bool))
    x = fitting.starting_point(form, y, 4).at[:4].set(jnp.asarray([[0.3], [0.2], [0.1], [0.9]]))

    @jax.jit
    def both(x):
        r, push = jax.linearize(lambda x: fitting.residuals(form, x, y, m), x)
        J = jax.vmap(lambda e: push(jnp.broadcast_to(e[:, None], x.shape)))(jnp.eye(len(x), dtype=x.dtype))
        return (r, J), fitting.with_jacobian(form, x, y, m, whole=not gaps)

    (r, J), ours = both(x)
    assert np.isfinite(r).all() and np.abs(J).max() > 0.1
    assert_allclose(ours[0], r, rtol=tol(1e-12, 1e-4), atol=tol(1e-13, 1e-5))
    assert_allclose(ours[1], J, rtol=tol(1e-10, 1e-3), atol=tol(1e-12, 1e-4))


def test_the_prior_moves_the_trend_alone():
    """P is minus the log of the prior at the fit; the penalised optimum has less trend, more P - l than neither."""
    form, y = fitting.program("A", "N"), panel(False)
    m = fitting.masks([form], fitting.phases(y, 1))._replace(trend=jnp.asarray([1, 1, 1, 1, 0], bool))
    plain, held = (fitting.fit(form, y, m, 1, prior=prior) for prior in ((0.0, 0.0), (10.0, 2.0)))
    assert_allclose(plain.penalty, 0.0, atol=0)
    assert_allclose(held.penalty[:4], -10 * np.log(1 - np.asarray(held.x[1, :4])), rtol=tol(1e-8, 1e-3), atol=1e-6)
    assert held.penalty[4] == 0
    loss = lambda fits: -np.asarray(fits.log_likelihood) - 10 * np.log1p(-np.minimum(np.asarray(fits.x[1]), 0.9999))
    slack = tol(1e-4, 1e-2)
    assert (np.asarray(held.log_likelihood) <= np.asarray(plain.log_likelihood) + slack).all()
    assert (loss(held)[:4] <= loss(plain)[:4] + slack).all()
    assert_allclose(held.log_likelihood[4], plain.log_likelihood[4], atol=slack)


def test_errors_in_ratios_of_a_series_that_grows_from_near_zero():
    """The line through its first values leaves the positive; relative errors have a start all the same."""
    y = jnp.asarray(np.arange(1.0, 31.0) * np.arange(2.0, 32.0) / 2)[:, None]
    form = fitting.program("A", "N")
    m = fitting.masks([form], jnp.zeros(1, int))._replace(multiplicative=jnp.ones(1, bool))
    found = fitting.fit(form, y, m, 1)
    assert np.isfinite(found.log_likelihood[0]) and found.sigma[0] < 0.1
