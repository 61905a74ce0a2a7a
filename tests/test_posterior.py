"""Posteriors: draws, predictions, leave-one-out terms, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pandas as pd
import pytest
from helpers import count_compilations, label, tol
from numpy.testing import assert_allclose, assert_array_equal
from toys import Line, posterior_of

import probkit as pk

KEY = jax.random.key(0)
RNG = np.random.default_rng(4)
Y = RNG.normal(0, 0.5, 15).cumsum() + RNG.normal(5, 1, 15)
GAPS = np.where(np.isin(np.arange(15), [0, 1, 6]), np.nan, Y)
LEVEL = pk.LocalLevel(level_scale=dist.HalfNormal(1.0), obs_scale=dist.HalfNormal(1.0))
DRAWS = {"level_scale": RNG.uniform(0.2, 1.0, (2, 4)), "obs_scale": RNG.uniform(0.5, 1.5, (2, 4))}
MODELS = {
    "level": (LEVEL, DRAWS),
    "arima": (pk.ARIMA(0, 1, 1), {"ma": -DRAWS["level_scale"][..., None], "scale": DRAWS["obs_scale"]}),
    "gp": (
        pk.GP(kernel=pk.Matern32(lengthscale=4.0)),
        {"kernel.scale": DRAWS["level_scale"], "obs_scale": DRAWS["obs_scale"], "mean": 4 + DRAWS["obs_scale"]},
    ),
    "line": (Line(slope=0.1), {"intercept": 4 + DRAWS["obs_scale"], "obs_scale": DRAWS["obs_scale"]}),
}


def level(y=Y, **options):
    return posterior_of(LEVEL, y, DRAWS, **options)


# -- draws -------------------------------------------------------------------------------------------------------------


def test_draws_are_the_same_pytree():
    model, values = MODELS["gp"]
    posterior = posterior_of(model, Y, values)
    draws = posterior.draws
    assert isinstance(draws, pk.GP) and isinstance(draws.kernel, pk.Matern32)
    assert draws.kernel.lengthscale == 4.0
    assert_array_equal(draws.kernel.scale, posterior.sites["kernel.scale"])
    assert draws.obs_scale.shape == (2, 4)
    # One draw of the posterior is a concrete model.
    one = jax.tree_util.tree_map(lambda a: a[1, 2] if jnp.ndim(a) else a, draws)
    assert_allclose(one.loo(jnp.asarray(Y)), posterior.loo_terms[1, 2], rtol=tol(1e-8, 1e-3))


def test_vector_sites_keep_their_axes_behind():
    model, values = MODELS["arima"]
    posterior = posterior_of(model, Y, values)
    assert posterior.sites["ma"].shape == posterior.draws.ma.shape == (2, 4, 1)
    assert "2 x 4 draws of ['ma', 'scale']" in repr(posterior)


def test_what_a_posterior_knows():
    posterior = level()
    assert posterior.model is posterior.target.model
    assert posterior.targets_posterior and not level(method=pk.MAP()).targets_posterior
    assert not level(method=pk.Laplace(importance=False)).targets_posterior
    assert_allclose(posterior.observed()["y"], Y, rtol=1e-6)


# -- forecasts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("horizon", [0, -1, 2.5, True, None, "3"], ids=label)
def test_bad_horizons(horizon):
    with pytest.raises(ValueError, match=r"horizon is .*; a whole number of steps, at least 1"):
        level().forecast(horizon)


def test_forecasts_and_their_inputs():
    model, values = MODELS["gp"]
    X = np.stack([np.arange(15.0), np.ones(15)], axis=1)
    with_inputs = posterior_of(model, Y, values, X=X)
    with pytest.raises(ValueError, match="fitted with X; forecast it with X_new of 3 rows"):
        with_inputs.forecast(3)
    with pytest.raises(ValueError, match="fitted without X; forecast it without X_new"):
        posterior_of(model, Y, values).forecast(3, np.ones(3))
    with pytest.raises(ValueError, match=r"X_new has shape \(2, 2\); \(3,\) or \(3, features\)"):
        with_inputs.forecast(3, X[:2])
    with pytest.raises(ValueError, match="X_new has 1 entries that are not finite"):
        with_inputs.forecast(1, [[1.0, np.nan]])
    with pytest.raises(ValueError, match=r"X_new has shape \(4, 3\); columns as in X"):
        with_inputs.predict(np.ones((4, 3)))
    with pytest.raises(ValueError, match="fitted without X; forecast it without X_new"):
        level().forecast(3, np.ones(3))
    with pytest.raises(ValueError, match="X_new was given; a level model has no inputs"):
        level().predict(np.ones(3))
    ahead = with_inputs.forecast(2, [[15.0, 1.0], [16.0, 1.0]])
    assert_allclose(ahead.means, posterior_of(model, Y, values).forecast(2).means, rtol=tol(1e-6, 1e-3))


def test_without_a_time_axis_there_is_no_forecast():
    model, values = MODELS["line"]
    with pytest.raises(TypeError, match=r"Line has no time axis, so it cannot forecast; use predict\(X_new\)"):
        posterior_of(model, Y, values).forecast(3)


def test_keys_of_predictions():
    posterior = level()
    first = posterior.forecast(3)
    assert first.draws.shape == first.means.shape == first.stds.shape == (2, 4, 3)
    assert_array_equal(first.draws, posterior.forecast(3).draws)
    other = posterior.forecast(3, key=jax.random.key(9))
    assert np.all(other.draws != first.draws)
    assert_array_equal(other.means, first.means)
    with pytest.raises(TypeError, match=r"forecast: key is .*; one new-style key"):
        posterior.forecast(3, key=jax.random.PRNGKey(0))
    with pytest.raises(TypeError, match="predict: key is int"):
        posterior.predict(key=0)


def test_new_data_and_draws_compile_nothing():
    level().forecast(3), level().predict(), level().loo_terms
    other = posterior_of(LEVEL, Y[::-1] + 1.0, {name: 2 * v for name, v in DRAWS.items()})
    with count_compilations() as compiled:
        other.forecast(3), other.predict(), other.loo_terms
    assert compiled.count == 0


@pytest.mark.parametrize(
    ("index", "name", "wanted"),
    [
        (pd.Index(np.arange(1871, 1886), name="year"), "year", [1886, 1887]),
        (pd.period_range("2001Q1", periods=15, freq="Q"), "time", ["2004Q4", "2005Q1"]),
        (pd.date_range("2001-01-31", periods=15, freq="ME", name="ds"), "ds", ["2002-04-30", "2002-05-31"]),
    ],
    ids=["years", "quarters", "months"],
)
def test_labels_of_forecast_and_prediction(index, name, wanted):
    posterior = level(pd.Series(Y, index))
    ahead = posterior.forecast(2)
    frame = ahead.to_frame()
    assert frame.columns[0] == name
    assert [str(v)[:10] if name == "ds" else str(v) for v in frame[name]] == [str(w) for w in wanted]
    assert_array_equal(posterior.predict().labels, np.asarray(index))
    times, y = ahead.history
    assert_array_equal(times, np.asarray(index))
    assert_allclose(y, Y, rtol=1e-6)


def test_a_prediction_is_signal_plus_fresh_noise():
    model, values = MODELS["line"]
    found = posterior_of(model, Y, values).predict()
    assert_allclose(found.means[1, 2], values["intercept"][1, 2] + 0.1 * np.arange(15), rtol=1e-5)
    assert_allclose(found.stds, np.broadcast_to(values["obs_scale"][..., None], (2, 4, 15)), rtol=1e-5)
    at = posterior_of(model, Y, values, X=np.arange(15.0)).predict(np.array([0.0, 10.0]))
    assert_allclose(at.means[0, 0], values["intercept"][0, 0] + np.array([0.0, 1.0]), rtol=1e-5)
    # A state-space model smooths: the mean lies between the data and the level alone.
    smoothed = level(GAPS).predict()
    assert np.isfinite(smoothed.draws).all() and smoothed.mean.shape == (15,)


# -- leave-one-out -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_terms_are_nan_exactly_where_y_is_missing(name):
    model, values = MODELS[name]
    posterior = posterior_of(model, GAPS, values)
    terms = posterior.loo_terms
    assert terms.shape == (2, 4, 15) and terms.dtype == np.float64
    assert_array_equal(np.isnan(terms), np.broadcast_to(np.isnan(GAPS), terms.shape))
    assert_array_equal(posterior.scored, ~np.isnan(GAPS))
    one = pk.bind(posterior.target.resolved().model, {n: v[0, 3] for n, v in posterior.sites.items()})
    assert_allclose(terms[0, 3], one.loo(posterior.target.args[0]), rtol=tol(1e-8, 1e-3))


@pytest.mark.parametrize("name", MODELS)
def test_terms_are_conditional_densities(name):
    """A term is the joint density of all entries less that of the others."""
    model, values = MODELS[name]
    posterior = posterior_of(model, GAPS, values)
    one = pk.bind(posterior.target.resolved().model, {n: v[1, 1] for n, v in posterior.sites.items()})
    y = posterior.target.args[0]
    rows = jnp.where(jnp.eye(15, dtype=bool), jnp.nan, y)
    wanted = one.log_likelihood(y) - jax.lax.map(one.log_likelihood, rows)
    seen = ~np.isnan(GAPS)
    assert_allclose(posterior.loo_terms[1, 1][seen], wanted[seen], rtol=tol(1e-8, 1e-3), atol=tol(1e-8, 1e-3))


def test_one_finite_observation_leaves_nothing_under_a_diffuse_start():
    y = np.where(np.arange(15) == 7, Y, np.nan)
    for name in ("level", "arima"):
        posterior = posterior_of(MODELS[name][0], y, MODELS[name][1])
        assert np.isnan(posterior.loo_terms).all() and not posterior.scored.any()
    # A model with proper priors on everything keeps its term.
    posterior = posterior_of(MODELS["gp"][0], y, MODELS["gp"][1])
    assert_array_equal(np.flatnonzero(posterior.scored), [7])


@pytest.mark.parametrize("method", [pk.MLE(), pk.MAP(), pk.Laplace(importance=False)], ids=lambda m: type(m).__name__)
def test_what_does_not_target_the_posterior_has_no_loo(method):
    with pytest.raises(TypeError, match=f"loo needs draws of the posterior, and {type(method).__name__} does not"):
        level(method=method).loo()


def test_term_labels():
    posterior = level(pd.Series(Y, pd.Index(np.arange(1871, 1886), name="year")))
    labels, name = posterior.term_labels()
    assert name == "year" and labels[0] == 1871


# -- a whole fit -------------------------------------------------------------------------------------------------------


def test_the_nile_end_to_end(nile_level):
    assert nile_level.report.converged
    assert nile_level.draws.level_scale.shape == nile_level.sites["level_scale"].shape
    frame = nile_level.forecast(10).to_frame(level=[80, 95])
    assert list(frame["year"]) == list(range(1971, 1981))
    assert (frame["lo-95"] < frame["lo-80"]).all() and (frame["hi-80"] < frame["hi-95"]).all()
    assert_allclose(frame["mean"], 798, atol=15)
    assert abs(nile_level.loo().elpd + 633) < 2
