"""Every order at once: against R's auto.arima, single exact likelihoods, and a panel with bad lanes."""

import csv

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from helpers import shared, tol
from numpy.testing import assert_allclose

import probkit as pk
from probkit.arima.lanes import Orders, fit_lanes
from probkit.ssm.statespace import differenced_log_likelihood

KEY = jax.random.key(0)


def air():
    return np.log(pk.datasets.air_passengers().to_numpy(float))


def test_the_airline_model_by_least_squares():
    y = air()
    w = np.diff(y[12:] - y[:-12])
    pair = jnp.asarray(np.stack([w, 100 * w], axis=1))
    mask = np.array([[True, True], [True, True], [False, False]])
    found = fit_lanes(pair, np.ones(pair.shape, bool), mask, None, Orders(0, 1, 0, 1, 12), most=2)
    assert_allclose(found.log_likelihood[0], 244.6965, atol=tol(1e-4, 5e-2))
    assert_allclose(found.coefficients.ma[0], [-0.4018, -0.4018], atol=tol(1e-4, 1e-2))
    assert_allclose(found.coefficients.sma[0], [-0.5569, -0.5569], atol=tol(1e-4, 1e-2))
    assert_allclose(found.sigma2, [0.001348, 13.48], rtol=1e-2)
    assert np.all(found.found.converged)


@pytest.fixture(scope="module")
def nile():
    return pk.auto_arima(pk.datasets.nile(), key=KEY, max_p=2, max_q=1)


@pytest.mark.once
def test_the_nile(nile):
    assert nile.chosen == "ARIMA(1,1,1)"  # R's choice
    assert abs(nile.table["aicc"][0] - 1267.5074) < 0.1
    assert_allclose(nile.table["weight"].sum(), 1)
    best = pk.model.strong(nile.best, jnp.result_type(float))
    y = jnp.asarray(pk.datasets.nile().to_numpy(float))
    exact = differenced_log_likelihood(best.log_likelihood(y), 1)
    assert_allclose(exact, nile.table["log_likelihood"][0], rtol=tol(1e-8, 1e-4))


def test_its_forecast(nile):
    """R's means; intervals a little wider, since they carry the parameters."""
    ahead = nile.forecast(12, draws=4000)
    means = [816.18, 835.56, 840.49, 841.74, 842.06, 842.14]
    assert_allclose(ahead.mean[:6], means, atol=12)
    half = (ahead.quantile(0.975) - ahead.quantile(0.025)) / 2
    assert 277 * 0.95 < half[0] < 277 * 1.2
    assert 336 * 0.98 < half[-1] < 336 * 1.6


@pytest.mark.once
def test_a_panel_with_lanes_that_cannot_be_fitted():
    y = pk.datasets.nile().to_numpy(float)
    late = y.copy()
    late[:20] = np.nan
    found = pk.auto_arima(np.stack([y, np.full(100, 3.0), late], axis=1), key=KEY, max_p=1, max_q=1, average=True)
    assert found.status[0] == found.status[2] == "ok"
    assert "constant" in found.status[1]
    paths = found.forecast(3, draws=50).draws
    assert np.isfinite(paths[:, :, [0, 2]]).all()
    assert np.isnan(paths[:, :, 1]).all()
    assert np.isnan(found.best[1].scale)


@pytest.mark.slow
def test_a_series_with_a_gap():
    """The value of the table is that of the model, and one value less changes the forecasts little."""
    y = pk.datasets.nile().to_numpy(float)
    gap = y.copy()
    gap[50] = np.nan
    found = pk.auto_arima(np.stack([y, gap], axis=1), key=KEY, max_p=1, max_q=1)
    assert found.status == ("ok", "ok")
    paths = found.forecast(3, draws=400).draws
    assert_allclose(paths[0, :, 1].mean(0), paths[0, :, 0].mean(0), rtol=0.05)
    model = pk.model.strong(found.best[1], jnp.result_type(float))
    value = found.table.query("lane == 1")["log_likelihood"].iloc[0]
    scored = differenced_log_likelihood(model.log_likelihood(jnp.asarray(gap)), model.d)
    assert_allclose(scored, value, rtol=tol(1e-7, 1e-3))


@pytest.mark.slow
def test_no_worse_than_r():
    """AICc at our choice, where d and D are R's."""
    with shared("reference/r_auto_arima.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            y = pd.read_csv(shared(f"data/ts/{row['series']}.csv"))["y"].to_numpy(float)
            y = np.log(y) if row["log"] == "TRUE" else y
            found = pk.auto_arima(y, int(row["period"]), key=KEY, max_d=2)
            assert found.table["aicc"][0] < float(row["aicc"]) + 0.5, (row["series"], found.table.head(3))


@pytest.mark.slow
def test_no_lane_harms_another():
    """Equal to the bit where bad lanes stand in for good ones; the bad have a status, or forecasts all the same."""
    rng = np.random.default_rng(0)
    t = np.arange(96)[:, None]
    good = 50 + 0.1 * t + 5 * np.sin(2 * np.pi * t / 12) + rng.normal(size=(96, 8)).cumsum(axis=0)
    bad = good.copy()
    bad[:, 1], bad[:, 3], bad[:, 5] = 5.0, 0.0, np.nan
    bad[:94, 6] = np.nan
    bad[:, 2] *= 1e12
    bad[60, 4] = 1e9
    one, other = (pk.auto_arima(y, 12, key=KEY) for y in (good, bad))
    draws = [np.asarray(found.forecast(6, draws=64).draws)[0] for found in (one, other)]
    assert np.array_equal(draws[0][:, [0, 7]], draws[1][:, [0, 7]])
    assert one.status == ("ok",) * 8
    assert [other.status[i] == "ok" for i in range(8)] == [True, False, True, False, True, False, False, True]
    assert np.isfinite(draws[1][:, [2, 4]]).all()
    assert np.isnan(draws[1][:, [1, 3, 5, 6]]).all()
    assert other.chosen[2] == one.chosen[2]
    assert_allclose(draws[1][:, 2] / 1e12, draws[0][:, 2], rtol=tol(1e-3, 1e-1))
