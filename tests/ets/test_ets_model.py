"""Exponential smoothing as a model: on real data through the verbs, and what the border refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from helpers import tol
from numpy.testing import assert_allclose

import probkit as pk
from probkit.ets.recursions import Form


@pytest.fixture(scope="module")
def nile():
    y = pk.datasets.nile()
    fit = lambda model: pk.fit(model, y, key=jax.random.key(1), progress=False)
    return {"ANN": fit(pk.ETS("ANN")), "SES": fit(pk.SES())}


def test_the_default_fit_is_certified_and_forecasts(nile):
    for posterior in nile.values():
        assert posterior.report.converged, posterior.report
        ahead = posterior.forecast(5)
        assert_allclose(ahead.mean, 805.0, atol=40.0)  # R's ets: 805.4
        low, high = ahead.interval(95)
        assert ((high - low) > 500).all() and ((high - low) < 800).all()


def test_a_fit_comes_back_from_disk(nile, tmp_path):
    again = pk.load(pk.save(nile["ANN"], tmp_path / "nile.npz"))
    assert again.model.form.name == "ANN"
    assert_allclose(again.forecast(3).mean, nile["ANN"].forecast(3).mean, rtol=1e-6)


@pytest.mark.once
def test_a_flat_start_and_a_weak_prior_agree(nile, nile_level):
    table = pk.compare(nile | {"level": nile_level})
    assert np.abs(table["elpd_diff"]).max() < 3.0
    shares = [nile[name].sites["alpha"].mean() for name in ("ANN", "SES")]
    assert_allclose(shares[0], shares[1], atol=0.06)


@pytest.mark.once
def test_maximum_likelihood_is_that_of_r():
    """R's ets on the Nile: alpha 0.2455, level 1110.69, log-likelihood -726.390519999206 by its own constant."""
    found = pk.fit(pk.ETS("ANN"), pk.datasets.nile(), key=jax.random.key(0), method=pk.MLE(starts=4))
    value = found.report.log_density + 0.5 * 100 * (np.log(2 * np.pi / 100) + 1)
    assert_allclose(value, -726.390519999206, atol=tol(1e-3, 0.05))
    assert_allclose(found.sites["alpha"], 0.2455, atol=tol(1e-3, 2e-2))


@pytest.mark.once
def test_bounds_that_move_are_no_hierarchy():
    """MLE takes beta in (0, alpha) and gamma in (0, 1 - alpha), and refuses what is a hierarchy."""
    y = pk.datasets.air_passengers()[:36]
    found = pk.fit(pk.HoltWinters("multiplicative", period=12), y, key=jax.random.key(0), method=pk.MLE(starts=1))
    alpha, beta, gamma = (found.sites[name].item() for name in ("alpha", "beta", "gamma"))
    assert 0 <= beta <= alpha <= 1 and 0 <= gamma <= 1 - alpha + 1e-6
    assert_allclose(found.sites["seasonal"].mean(), 1.0, rtol=1e-5)
    model = pk.ETS("AAN", beta=pk.given(lambda m: dist.Normal(m.alpha, 1.0)))
    with pytest.raises(TypeError, match="hierarchy"):
        pk.fit(model, y, key=jax.random.key(0), method=pk.MLE())


@pytest.mark.parametrize("name", ["MNN", "AMdN", "MAdM", "AAA"])
def test_default_priors_give_series_in_any_units(name):
    """Draws from the prior are finite, and change with the units of the data; a fixed model is a NumPyro model."""
    y = np.array([8.0, 9.5, 7.0, 10.0, 11.0, 9.0, np.nan, 12.0])
    model = pk.ETS(name, period=4)
    small, large = (pk.prior_predictive(model, unit * y, draws=50, key=jax.random.key(0)) for unit in (1.0, 1e6))
    assert np.isfinite(small.draws).all()
    assert_allclose(large.draws, 1e6 * small.draws, rtol=tol(1e-6, 5e-2), atol=tol(1e-2, 1e4))


def test_names():
    assert pk.ETS("A", "Ad", "M", period=12).form == pk.ETS("AAdM", period=12).form == Form("A", "A", True, "M")
    assert pk.Holt().form.name == "AAN" and pk.Holt(damped=True).form.name == "AAdN"
    assert pk.HoltWinters(period=4).form.name == "AAA"
    assert pk.HoltWinters("multiplicative", damped=True, period=4).form.name == "MAdM"


@pytest.mark.slow
def test_theta_drifts_by_half_the_slope_of_a_line():
    """Its drift is half that of least squares, gaps left out; a season that repeats does not touch it."""
    y = np.array([3.0, 1.0, np.nan, 4.0, 6.0, 5.0, 9.0, np.nan, 8.0])
    seen = ~np.isnan(y)
    slope = lambda model, y: float(pk.model.with_defaults(model, jnp.asarray(y)).slope)
    assert_allclose(slope(pk.Theta(), y), np.polyfit(np.arange(9)[seen], y[seen], 1)[0] / 2, rtol=tol(1e-12, 1e-5))
    line = 3.0 * np.arange(16) + np.tile([5.0, -20.0, 10.0, 0.0], 4)
    assert_allclose(slope(pk.Theta(period=4), np.where(np.arange(16) == 6, np.nan, line)), 1.5, rtol=tol(1e-12, 1e-5))
    assert slope(pk.Theta(), [4.0]) == 0.0
    ahead = fit(pk.Theta(), line[::4]).forecast(3).mean
    assert_allclose(np.diff(ahead), slope(pk.Theta(), line[::4]), rtol=tol(1e-6, 1e-3))


def test_the_admissible_region_is_wider():
    y = jnp.asarray([1.0, 3.0, 2.0, 4.0])
    model = pk.model.with_defaults(pk.ETS("AAdN", admissible=True), y)
    drawn = [pk.model.resolve(model, lambda n, law, k=k: law.sample(jax.random.key(k))) for k in range(100)]
    alpha, beta, phi = (np.array([float(getattr(m, name)) for m in drawn]) for name in ("alpha", "beta", "phi"))
    assert (alpha > 1 - 1 / phi).all() and (alpha < 1 + 1 / phi).all() and alpha.max() > 1.2
    assert (beta > alpha * (phi - 1)).all() and (beta < (1 + phi) * (2 - alpha)).all() and (beta > alpha).any()


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: pk.ETS("AXN"), "no exponential smoothing model"),
        (lambda: pk.ETS("A", "N"), "all letters in one string"),
        (lambda: pk.ETS("AAA"), "pass period="),
        (lambda: pk.ETS("AAA", period=0), "period is 0"),
        (lambda: pk.ETS("AAA", period=4, admissible=True), "without a season"),
        (lambda: pk.HoltWinters("multiplicativ", period=4), "'additive' or 'multiplicative'"),
        (lambda: fit(pk.ETS("MNN"), [1.0, 0.0, 2.0]), "1 values that are not positive"),
        (lambda: fit(pk.ETS("ANA", period=12), [1.0, 2.0]), "needs a whole season"),
        (lambda: fit(pk.ETS("ANA", period=2, seasonal=[1.0, 0.0, -1.0]), [1.0, 2.0, 3.0]), "seasonal has shape"),
    ],
)
def test_what_is_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def fit(model, y):
    return pk.fit(model, y, key=jax.random.key(0), method=pk.MAP())


def test_inputs_are_refused():
    with pytest.raises(TypeError, match="takes no X"):
        pk.fit(pk.ETS("ANN"), [1.0, 2.0], [1.0, 2.0], key=jax.random.key(0))
