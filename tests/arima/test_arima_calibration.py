"""Simulation-based calibration of ARIMA under fixed proper priors."""

import jax
import numpy as np
import numpyro.distributions as dist
import pytest

import probkit as pk

SCALE = dist.LogNormal(0.0, 0.5)
MODELS = {
    "ARIMA(1,1,1)": pk.ARIMA(1, 1, 1, scale=SCALE, beta=np.zeros(0)),
    "SARIMA(0,1,1)(0,1,1)[4]": pk.ARIMA(0, 1, 1, seasonal=(0, 1, 1, 4), scale=SCALE, beta=np.zeros(0)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(MODELS))
def test_the_default_method_is_calibrated(name):
    """Not rejected at 1% after Bonferroni."""
    found = pk.calibrate(
        MODELS[name], 60, key=jax.random.key(1), method=pk.Auto(draws=400, starts=2), replications=200, progress=False
    )
    assert found.uniform(), found.table()
