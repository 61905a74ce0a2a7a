"""Default priors are free of units: the same posterior, after the change of units, for any scale and offset of y."""

import jax
import numpy as np
import pytest
from helpers import tol
from numpy.testing import assert_allclose

import probkit as pk

MODELS = {"level": pk.LocalLevel(), "arima": pk.ARIMA(0, 1, 1), "process": pk.GP()}
#: Sites without the units of y; ``mean`` moves with y, the other sites are scales.
FREE = ("ma", "kernel.lengthscale")

pytestmark = pytest.mark.skipif(tol(0, 1) == 1, reason="a change of units by 1e8, or an offset of 1e6, is for float64")

changes = pytest.mark.parametrize(
    ("scale", "offset"), [(1e-8, 0.0), (1e8, 0.0), (1.0, 1e6)], ids=["tiny", "huge", "offset"]
)
models = pytest.mark.parametrize("name", MODELS)


def back(name, value, scale, offset):
    """A value in the units of the changed series, in those of the plain one."""
    if name in FREE:
        return value
    return (value - offset) / scale if name == "mean" else value / scale


@pytest.mark.once
@models
@changes
def test_the_mode_and_its_standard_errors(name, scale, offset):
    def fit(y):
        return pk.fit(MODELS[name], y, key=jax.random.key(2), method=pk.MAP())

    y = pk.datasets.nile().to_numpy()
    plain, changed = fit(y), fit(scale * y + offset)
    assert plain.report.converged and changed.report.converged
    for site, value in plain.sites.items():
        assert_allclose(back(site, changed.sites[site], scale, offset), value, rtol=1e-6)
        error, reference = changed.outcome.standard_errors[site], plain.outcome.standard_errors[site]
        assert_allclose(error if site in FREE else error / scale, reference, rtol=1e-5)
    ahead, reference = changed.forecast(3), plain.forecast(3)
    assert_allclose(back("mean", ahead.mean, scale, offset), reference.mean, rtol=1e-6)
    assert_allclose(ahead.std / scale, reference.std, rtol=1e-6)


@models
@changes
def test_the_posterior(name, scale, offset, request):
    plain = request.getfixturevalue({"level": "nile_level", "arima": "nile_arima", "process": "nile_gp"}[name])
    y = scale * np.asarray(plain.series.y) + offset
    changed = pk.fit(MODELS[name], y, key=jax.random.key(1), method=plain.method)
    assert changed.report.rung == plain.report.rung == "importance" and changed.report.converged
    # One key, one set of standard draws: the answers differ by rounding alone.
    assert_allclose(changed.report.ess, plain.report.ess, rtol=1e-5)
    for site, draws in plain.sites.items():
        found = back(site, changed.sites[site], scale, offset)
        assert_allclose(found.mean(), draws.mean(), atol=1e-5 * draws.std())
        assert_allclose(found.std(), draws.std(), rtol=1e-5)
    if name != "process":
        assert_allclose(changed.loo().elpd, plain.loo().elpd - 100 * np.log(scale), atol=1e-3)
