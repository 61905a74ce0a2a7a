"""Simulation-based calibration of exponential smoothing under fixed proper priors."""

import jax
import numpyro.distributions as dist
import pytest

import probkit as pk
from probkit.ets import priors

STATES = {
    "level": dist.Normal(0.0, 1.0),
    "scale": dist.LogNormal(0.0, 0.5),
    "alpha": dist.Uniform(0.0, 1.0),
    "phi": 1.0,
}
MODELS = {
    "SES": pk.ETS("ANN", beta=0.0, gamma=0.0, slope=0.0, seasonal=0.0, **STATES),
    "Holt-Winters": pk.ETS(
        "AAA",
        period=4,
        **STATES,
        slope=dist.Normal(0.0, 0.1),
        beta=pk.given(priors._beta_usual, hierarchy=False),
        gamma=pk.given(priors._gamma_usual, hierarchy=False),
        seasonal=dist.ZeroSumNormal(1.0, (4,)),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(MODELS))
def test_the_default_method_is_calibrated(name):
    """Not rejected at 1% after Bonferroni."""
    found = pk.calibrate(
        MODELS[name], 60, key=jax.random.key(1), method=pk.Auto(draws=400, starts=2), replications=200, progress=False
    )
    assert found.uniform(), found.table()
