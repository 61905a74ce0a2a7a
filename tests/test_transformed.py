"""Models of log y and of powers of y: densities change by the Jacobian, forecasts come back in the units of y."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from helpers import tol
from numpy.testing import assert_allclose
from scipy import stats

import probkit as pk
from probkit.transformed import backward, forward

KEY = jax.random.key(0)
Y = np.exp(np.random.default_rng(0).normal(size=30).cumsum() * 0.2 + 2)
Y[7] = np.nan
INNER = pk.ARIMA(0, 1, 1, ma=[-0.4], scale=0.2)


def model(kind, power):
    return pk.model.strong(pk.Transformed(INNER, kind, power), jnp.result_type(float))


@pytest.mark.once
@pytest.mark.parametrize(("kind", "power"), [("log", None), ("boxcox", 0.5), ("boxcox", -0.3), ("boxcox", 0.0)])
def test_density_and_leave_one_out_carry_the_jacobian(kind, power):
    one, lam = model(kind, power), 0.0 if power is None else power
    y, seen = jnp.asarray(Y), ~np.isnan(Y)
    z = jnp.asarray(np.where(seen, np.log(Y) if lam == 0 else (Y**lam - 1) / lam, np.nan))
    inner = pk.model.strong(INNER, jnp.result_type(float))
    jacobian = (lam - 1) * np.log(Y)
    assert_allclose(one.log_likelihood(y), inner.log_likelihood(z) + np.nansum(jacobian), rtol=tol(1e-10, 1e-4))
    assert_allclose(one.loo(y)[seen], (inner.loo(z) + jacobian)[seen], rtol=tol(1e-9, 1e-3), atol=tol(1e-9, 1e-3))
    ahead = one.forecast(y, 3)
    law = inner.forecast(z, 3)
    assert_allclose(ahead.median, backward(law.mean, jnp.asarray(lam, law.mean.dtype)), rtol=tol(1e-10, 1e-5))
    if lam == 0:
        assert_allclose(ahead.mean, np.exp(law.mean + law.variance / 2), rtol=tol(1e-8, 1e-4))
    draws = np.asarray(ahead.sample(KEY, (4000,)))
    assert_allclose(np.median(draws, 0), ahead.median, rtol=0.05)
    if lam >= 0:  # else the mean is infinite
        assert_allclose(draws.mean(0), ahead.mean, rtol=0.1)


def test_there_and_back():
    y = jnp.asarray([1e-3, 0.5, 1.0, 3.0, 1e3])
    for power in (-0.5, -1e-6, 0.0, 1e-6, 0.3, 1.0, 2.0):
        lam = jnp.asarray(power, y.dtype)
        assert_allclose(backward(forward(y, lam), lam), y, rtol=tol(1e-7, 1e-2))
        assert np.isfinite(jax.grad(lambda p: jnp.sum(forward(y, p)))(lam))
    assert_allclose(forward(y, jnp.asarray(0.3)), stats.boxcox(np.asarray(y), 0.3), rtol=tol(1e-10, 1e-4))


@pytest.mark.slow
def test_a_fit_is_that_of_the_logarithm():
    """Defaults are those of the transformed data, so the posterior is the same, draw by draw."""
    y = Y[~np.isnan(Y)]
    fits = [pk.fit(pk.Transformed(pk.ARIMA(0, 1, 1), "log"), y, key=KEY, method=pk.MAP()),
            pk.fit(pk.ARIMA(0, 1, 1), np.log(y), key=KEY, method=pk.MAP())]  # fmt: skip
    assert fits[0].report.converged
    assert_allclose(fits[0].sites["model.ma"], fits[1].sites["ma"], rtol=tol(1e-6, 1e-2))
    assert_allclose(fits[0].sites["model.scale"], fits[1].sites["scale"], rtol=tol(1e-6, 1e-2))
    ahead = fits[0].forecast(3)
    assert (ahead.draws > 0).all()
    assert_allclose(ahead.quantile(0.5), np.exp(fits[1].forecast(3).mean), rtol=0.05)


def test_places_of_the_inner_model_lean_on_the_inner_model():
    inner = pk.LocalLevel(level_scale=0.1, obs_scale=pk.given(lambda m: 2 * m.level_scale))
    one = pk.resolve(pk.Transformed(inner, "log"), lambda name, prior: None)
    assert_allclose(one.model.obs_scale, 0.2)


@pytest.mark.once
def test_a_power_that_is_unknown_is_fitted():
    inner = pk.LocalLevel(dist.HalfNormal(0.5), dist.HalfNormal(0.5))
    # One value is missing: it must not turn the derivative in the power to NaN.
    fitted = pk.fit(pk.Transformed(inner, "boxcox", dist.Uniform(-1.0, 1.0)), Y, key=KEY, method=pk.MAP(starts=2))
    assert set(fitted.sites) == {"power", "model.level_scale", "model.obs_scale"}
    assert -1 < fitted.sites["power"].item() < 1
    assert fitted.report.converged, fitted.report
    assert np.all(fitted.forecast(2).draws > 0)


@pytest.mark.once
@pytest.mark.parametrize("solver", [pk.gp.Grid(), pk.gp.Vecchia(9)], ids=["grid", "neighbours"])
def test_solvers_that_look_at_the_data_see_the_inner_model(solver):
    y, law = Y[:10], dict(kernel=pk.Matern32(2.0, 1.0), obs_scale=0.2, mean=2.0)
    found = pk.fit(pk.Transformed(pk.GP(**law, solver=solver)), y, key=KEY)
    assert len(found.report.notes) == 2  # the gap, and the solver
    one = pk.model.strong(pk.Transformed(pk.GP(**law)), jnp.result_type(float))
    assert_allclose(found.loo_terms[0, 0], one.loo(jnp.asarray(y)), rtol=1e-6)


def test_what_cannot_be_is_told():
    with pytest.raises(TypeError, match="SVGP, which is fitted by a method of its own"):
        pk.Transformed(pk.gp.SVGP())
    with pytest.raises(TypeError, match="of several series together"):
        pk.Transformed(pk.MultivariateStructural(pk.LocalLevel()))
    with pytest.raises(ValueError, match="2 values that are not positive"):
        pk.fit(pk.Transformed(pk.LocalLevel(), "log"), np.array([1.0, 0.0, -2.0]), key=KEY)
    with pytest.raises(ValueError, match="needs power"):
        pk.Transformed(pk.LocalLevel(), "boxcox")
    with pytest.raises(ValueError, match="'log' or 'boxcox'"):
        pk.Transformed(pk.LocalLevel(), "sqrt")
    with pytest.raises(ValueError, match="power is a prior"):
        pk.Transformed(pk.LocalLevel(), "boxcox", dist.Uniform(0.0, 1.0))
