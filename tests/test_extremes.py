"""Data at the edge of a number format: huge and tiny units, a large offset, a constant. The default fit must serve."""

import jax
import numpy as np
import pytest
from helpers import tol
from numpy.testing import assert_allclose

import probkit as pk

NILE = pk.datasets.nile().to_numpy(float)
FAMILIES = {"level": pk.LocalLevel(), "arima": pk.ARIMA(0, 1, 1), "process": pk.GP()}
SERIES = {
    "huge": 1e8 * NILE,
    "tiny": 1e-8 * NILE,
    # Two digits are left to the float32 series, eight to the float64 one.
    "offset": 1.0 + tol(1e-8, 1e-5) * NILE,
    "constant": np.full(100, 5.0),
}
in_single = pytest.mark.skipif(tol(0, 1) == 0, reason="test_units.py asks the same in float64, and for equal answers")


@pytest.mark.parametrize(
    "series", [*(pytest.param(s, marks=in_single) for s in ("huge", "tiny")), "offset", "constant"]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_default_fit_needs_no_sampler(family, series):
    method = pk.Auto(draws=500, starts=3 if family == "process" else 8)
    report = pk.fit(FAMILIES[family], SERIES[series], key=jax.random.key(1), method=method, progress=False).report
    assert (report.rung, report.converged) == ("importance", True), report


@pytest.mark.parametrize("family", ["level", "arima"])
def test_the_mode_moves_with_the_units_in_float32_too(family):
    scale = "obs_scale" if family == "level" else "scale"
    found = {
        unit: pk.fit(FAMILIES[family], (unit * NILE).astype(np.float32), key=jax.random.key(2), method=pk.MAP())
        for unit in (1.0, 2.0**27, 2.0**-27)
    }
    for unit, posterior in found.items():
        assert posterior.report.converged, posterior.report
        assert_allclose(posterior.sites[scale] / unit, found[1.0].sites[scale], rtol=2e-3)
