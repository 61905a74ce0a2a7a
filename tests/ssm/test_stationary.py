"""Stationary autoregressions: roots, dense algebra, autodiff, the area of the region, and a fit."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from helpers import tol
from numpy.testing import assert_allclose

import probkit as pk
from probkit.ssm.stationary import ar_to_pacf, autocorrelations, log_jacobian, pacf_to_ar
from probkit.ssm.stationary_distribution import StationaryAR, stationary_ar

RTOL = tol(1e-9, 2e-4)
R = np.random.default_rng(0).uniform(-0.9, 0.9, (6, 4))


def roots(phi):
    """The largest modulus of the companion's eigenvalues; below 1 for a stationary autoregression."""
    p = len(phi)
    return np.abs(np.linalg.eigvals(np.vstack([phi, np.eye(p)[:-1]]))).max()


def test_there_and_back_and_inside_the_region():
    phi = pacf_to_ar(R)
    assert_allclose(ar_to_pacf(phi), R, rtol=tol(1e-9, 1e-3))
    assert all(roots(one) < 1 for one in np.asarray(phi, float))
    assert_allclose(phi[0], pacf_to_ar(R[0]), rtol=RTOL)
    assert pacf_to_ar(np.zeros(0)).shape == (0,)


@pytest.mark.once
def test_the_constraint_is_that_of_the_roots():
    phi = np.random.default_rng(1).uniform(-1.6, 1.6, (200, 3))
    assert_allclose(stationary_ar(phi), [roots(one) < 1 for one in phi])
    assert not stationary_ar(np.array([1.0])) and stationary_ar(np.array([0.99]))


@pytest.mark.once
def test_jacobians_against_autodiff():
    for r in jnp.asarray(R[:2]):
        assert_allclose(log_jacobian(r), jnp.linalg.slogdet(jax.jacobian(pacf_to_ar)(r))[1], rtol=RTOL)
    to_support = dist.biject_to(stationary_ar)
    u = jnp.asarray([0.3, -1.1, 0.4, 2.0])
    reference = jnp.linalg.slogdet(jax.jacobian(to_support)(u))[1]
    assert_allclose(to_support.log_abs_det_jacobian(u, to_support(u)), reference, rtol=RTOL)
    assert_allclose(to_support.inv(to_support(u)), u, rtol=tol(1e-9, 1e-3))
    far = jnp.asarray([30.0, -30.0])
    assert np.isfinite(to_support(far)).all() and np.isfinite(to_support.log_abs_det_jacobian(far, to_support(far)))


def test_autocorrelations_against_a_dense_solve():
    phi = np.asarray(pacf_to_ar(R[1]), float)
    T = np.vstack([phi, np.eye(4)[:-1]])
    P = np.linalg.solve(np.eye(16) - np.kron(T, T), np.eye(16)[0]).reshape(4, 4)
    variance, rho = autocorrelations(jnp.asarray(phi), 7)
    assert_allclose(variance * rho[:4], P[0], rtol=tol(1e-8, 1e-3))
    later = [(np.linalg.matrix_power(T, k) @ P)[0, 0] / P[0, 0] for k in range(7)]
    assert_allclose(rho, later, rtol=tol(1e-8, 1e-3), atol=tol(1e-12, 1e-5))


@pytest.mark.once
def test_the_default_is_uniform_over_the_region():
    law = StationaryAR(2)  # the triangle with corners (-2, -1), (2, -1), (0, 1)
    assert_allclose(
        law.log_prob(jnp.asarray([[0.5, 0.3], [-1.5, -0.9], [0.0, 1.1]])), [-np.log(4)] * 2 + [-np.inf], rtol=1e-5
    )
    draws = law.sample(jax.random.key(0), (4000,))
    assert bool(stationary_ar(draws).all())
    # A uniform triangle: its centroid, and covariances a 36th of the sum of squared sides projected.
    assert_allclose(draws.mean(0), [0, -1 / 3], atol=0.05)
    assert_allclose(law.mean, [0, -1 / 3], atol=1e-6)
    assert_allclose(np.cov(draws.T), [[2 / 3, 0], [0, 2 / 9]], atol=0.04)


def test_another_prior_integrates_to_one():
    law = StationaryAR(2, a=3.0, b=3.0)
    grid = (np.arange(200) + 0.5) / 200
    x, y = np.meshgrid(4 * grid - 2, 2 * grid - 1)
    density = np.exp(law.log_prob(jnp.asarray(np.stack([x, y], -1))))
    assert_allclose(density.sum() * 8 / 200**2, 1, rtol=2e-3)


@pytest.mark.once
def test_it_fits_as_a_prior():
    rng = np.random.default_rng(2)
    y = np.zeros(150)
    for t in range(2, 150):
        y[t] = 0.6 * y[t - 1] + 0.3 * y[t - 2] + rng.normal()

    def model(y):
        phi = numpyro.sample("phi", StationaryAR(2))
        numpyro.sample("y", dist.Normal(phi[0] * y[1:-1] + phi[1] * y[:-2], 1.0), obs=y[2:])

    fitted = pk.fit(model, args=(y,), key=jax.random.key(0), progress=False)
    assert fitted.report.converged
    assert bool(stationary_ar(fitted.sites["phi"]).all())
    plain = np.linalg.lstsq(np.stack([y[1:-1], y[:-2]], 1), y[2:], rcond=None)[0]
    assert_allclose(fitted.sites["phi"].mean((0, 1)), plain, atol=0.05)


@pytest.mark.parametrize("order", [0, 2.0, True])
def test_a_wrong_order_is_an_error(order):
    with pytest.raises(ValueError, match="order is"):
        StationaryAR(order)
