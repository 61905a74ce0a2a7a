"""What a parametrised ARIMA tells of itself, against statsmodels; simulation against its own law."""

import jax
import numpy as np
import pytest
from helpers import tol
from numpy.testing import assert_allclose
from statsmodels.tsa.arima_process import ArmaProcess

import probkit as pk

MODEL = pk.ARIMA(1, 0, 1, seasonal=(1, 0, 0, 4), ar=[0.5], ma=[0.4], sar=[-0.3], scale=2.0, mean=1.0)
TWIN = ArmaProcess(np.convolve([1, -0.5], [1, 0, 0, 0, 0.3]), [1, 0.4])


def test_weights_roots_and_autocovariances():
    assert_allclose(MODEL.psi_weights(9), TWIN.arma2ma(9), rtol=tol(1e-10, 1e-4), atol=tol(1e-12, 1e-6))
    assert_allclose(MODEL.autocovariance(6), 4 * TWIN.acovf(7), rtol=tol(1e-8, 1e-4))
    roots = MODEL.roots()
    assert_allclose(np.abs(roots["ar"]), np.sort(np.abs(TWIN.arroots)), rtol=tol(1e-8, 1e-4))
    assert_allclose(roots["ma"], [-2.5], rtol=1e-6)
    walk = pk.ARIMA(0, 1, 0, scale=1.0)
    assert_allclose(walk.psi_weights(4), 1.0)
    with pytest.raises(ValueError, match="ma, scale of ARIMA"):
        pk.ARIMA(0, 1, 1).psi_weights(3)
    with pytest.raises(ValueError, match="not stationary"):
        pk.ARIMA(1, 0, 0, ar=[1.2], scale=1.0, mean=0.0).autocovariance(3)


@pytest.mark.slow
def test_simulation():
    X = np.linspace(0, 1, 12)
    model = pk.ARIMA(1, 0, 1, ar=[0.5], ma=[0.4], scale=2.0, mean=1.0, beta=[10.0])
    y = model.simulate(12, key=jax.random.key(0), X=X, draws=4000)
    assert y.shape == (4000, 12)
    gamma = model.autocovariance(1)
    assert_allclose(y.mean(0), 1 + 10 * X, atol=5 * np.sqrt(gamma[0] / 4000))
    rest = y - y.mean(0)
    assert_allclose((rest[:, 1:] * rest[:, :-1]).mean(), gamma[1], rtol=0.06)
    assert pk.ARIMA(0, 1, 1, ma=[0.3], scale=1.0).simulate(1, key=jax.random.key(0)).shape == (1,)
