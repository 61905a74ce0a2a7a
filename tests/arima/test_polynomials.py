"""The algebra of ARMA polynomials, against statsmodels and sums written out."""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tol
from numpy.testing import assert_allclose
from statsmodels.tsa.arima_process import arma2ar, arma2ma, arma_acovf

from probkit.arima import polynomials

AR, MA = np.array([0.5, -0.3, 0.2]), np.array([0.4, -0.2])


@pytest.mark.parametrize(("ar", "ma"), [(AR, MA), (AR, MA[:0]), (AR[:0], MA)], ids=["arma", "ar", "ma"])
def test_weights_and_autocovariances_are_those_of_statsmodels(ar, ma):
    lag_ar, lag_ma = np.r_[1, -ar], np.r_[1, ma]
    assert_allclose(polynomials.psi_weights(ar, ma, 9), arma2ma(lag_ar, lag_ma, 9), atol=tol(1e-12, 1e-6))
    assert_allclose(polynomials.ar_weights(ar, ma, 9), -arma2ar(lag_ar, lag_ma, 10)[1:], atol=tol(1e-12, 1e-6))
    found = polynomials.autocovariance(jnp.asarray(ar), jnp.asarray(ma), 12)
    assert_allclose(found, arma_acovf(lag_ar, lag_ma, 12), atol=tol(1e-10, 1e-5))


def test_a_seasonal_polynomial_is_a_product():
    found = polynomials.seasonal_polynomial(jnp.asarray([0.5]), jnp.asarray([0.3, -0.2]), 4, -1)
    expected = np.polymul([1, -0.5][::-1], [1, 0, 0, 0, -0.3, 0, 0, 0, 0.2][::-1])[::-1]
    assert_allclose(found, expected, atol=tol(1e-14, 1e-7))


def test_stepping_down_undoes_the_recursion_and_knows_its_region():
    from probkit.ssm.stationary import pacf_to_ar

    kappa = np.array([0.5, -0.4, 0.7, 0.2])
    assert_allclose(polynomials.ar_to_pacf(pacf_to_ar(kappa)), kappa, atol=tol(1e-12, 1e-5))
    assert (np.abs(polynomials.ar_to_pacf(jnp.asarray([1.2]))) > 1).all()


def test_roots_of_the_textbook():
    assert_allclose(polynomials.roots([1.5, -0.56]), [1 / 0.8, 1 / 0.7], rtol=1e-12)
    assert_allclose(polynomials.roots([0.4], 1), [-2.5], rtol=1e-12)
    assert polynomials.roots([]).size == 0


def test_the_largest_white_noise_part_of_an_autoregression():
    assert_allclose(polynomials.least_spectrum(jnp.asarray([0.5]), jnp.zeros(0)), 1 / 1.5**2, rtol=tol(1e-12, 1e-5))
