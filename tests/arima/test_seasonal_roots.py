"""The test of a seasonal unit root: its regression by hand, its size and power, known series, what it refuses."""

import numpy as np
import pandas as pd
import pytest
from helpers import shared
from numpy.testing import assert_allclose

from probkit.arima import ocsb

pytestmark = pytest.mark.once


@pytest.mark.parametrize("lags", [0, 2])
def test_the_statistic_is_that_of_the_regression(lags):
    """Written out time by time."""
    rng, s = np.random.default_rng(0), 4
    y = np.cumsum(rng.normal(size=60)) + 5
    d = lambda t: y[t] - y[t - 1]
    ds = lambda t: y[t] - y[t - s]
    w = lambda t: ds(t) - ds(t - 1)
    times = range(s + 1 + lags, 60)
    past = np.array([[w(t - j) for j in range(1, lags + 1)] for t in times]).reshape(len(times), lags)
    ar = np.linalg.lstsq(past, np.array([w(t) for t in times]), rcond=None)[0]
    white = lambda f, t: f(t) - sum(ar[j] * f(t - 1 - j) for j in range(lags))
    later = range(s + 1 + 2 * lags, 60)
    X = np.array([[white(ds, t - 1), white(d, t - s), *(w(t - j) for j in range(1, lags + 1))] for t in later])
    target = np.array([w(t) for t in later])
    b = np.linalg.solve(X.T @ X, X.T @ target)
    e = target - X @ b
    t_value = b[1] / np.sqrt(np.linalg.inv(X.T @ X)[1, 1] * (e @ e) / (len(e) - len(b)))
    found = ocsb(y, s, lags)
    assert_allclose(found.statistic, t_value, rtol=1e-8)
    assert (found.lags, found.values) == (lags, len(e))
    for unit in (1e-200, 1e9, 1e200):
        assert_allclose(ocsb(unit * y, s, lags).statistic, found.statistic, rtol=1e-6)


@pytest.mark.parametrize(("s", "least", "most"), [(4, 0.02, 0.09), (12, 0.02, 0.09)])
def test_it_errs_as_often_as_it_says_and_finds_fixed_seasons(s, least, most):
    """With both unit roots about one series in twenty is below 5%; with a fixed season nearly all are."""
    rng = np.random.default_rng(1)
    rooted = fixed = 0
    for _ in range(300):
        y = rng.normal(size=20 * s).cumsum()
        for t in range(s, y.size):
            y[t] += y[t - s]
        one = ocsb(y, s, lags=0)
        rooted += one.statistic < one.critical["5%"]
        z = np.tile(rng.normal(size=s), 20) + rng.normal(size=20 * s)
        two = ocsb(z, s, lags=0)
        fixed += two.statistic < two.critical["5%"]
    assert least < rooted / 300 < most
    assert fixed > 290


def test_the_airline_needs_a_seasonal_difference():
    y = np.log(pd.read_csv(shared("data/ts/AirPassengers.csv"))["y"].to_numpy(float))
    found = ocsb(y, 12)
    assert found.statistic > found.critical["5%"] and 0 <= found.lags <= 3


@pytest.mark.parametrize(
    ("y", "period", "lags", "match"),
    [
        (np.zeros(80), 4, None, "no differences left"),
        (np.arange(80.0) ** 2, 4, None, "no differences left"),
        (np.arange(80.0) ** 3, 4, None, "no differences left"),
        (np.arange(80.0), 1, None, "period is 1"),
        (np.arange(80.0), 60, None, "period is 60"),
        (np.arange(10.0), 4, None, "values at least"),
        (np.arange(80.0), 4, -1, "lags is -1"),
        (np.append(np.arange(80.0), np.nan), 4, None, "one complete series"),
    ],
)
def test_what_is_refused(y, period, lags, match):
    with pytest.raises(ValueError, match=match):
        ocsb(y, period, lags)
