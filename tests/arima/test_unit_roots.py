"""KPSS and the strength of a season, against statsmodels; (d, D) against what R's auto.arima took."""

import csv

import numpy as np
import pandas as pd
import pytest
from helpers import shared
from numpy.testing import assert_allclose
from statsmodels.tsa.seasonal import STL
from statsmodels.tsa.stattools import kpss

from probkit.arima import unit_roots


@pytest.mark.filterwarnings("ignore:The test statistic", "ignore:kpss currently returns")
def test_kpss_is_that_of_statsmodels():
    y = np.random.default_rng(0).normal(size=90)
    for z in (y, y.cumsum()):
        for lags in (0, 4):
            assert_allclose(unit_roots.kpss(z, lags), kpss(z, nlags=lags)[0], rtol=1e-10)


def test_differences_are_those_that_r_takes():
    with shared("reference/r_auto_arima.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            y = pd.read_csv(shared(f"data/ts/{row['series']}.csv"))["y"].to_numpy(float)
            y = np.log(y) if row["log"] == "TRUE" else y
            orders = [int(x) for x in row["order"].split()]
            s = int(row["period"])
            assert unit_roots.differences_wanted(y, s) == (orders[1], orders[4] if len(orders) > 4 else 0), row
            if s > 1:
                parts = STL(y, period=s, seasonal=11).fit()
                strength = 1 - np.var(parts.resid) / np.var(parts.resid + parts.seasonal)
                assert abs(unit_roots.seasonal_strength(y, s) - strength) < 0.1


@pytest.mark.parametrize("y", [np.full(60, 3.0), np.full(60, 1e12) + 0.1], ids=["constant", "large"])
def test_a_constant_series_is_not_differenced(y):
    assert unit_roots.differences_wanted(y, 12) == (0, 0)


def test_no_more_differences_than_allowed():
    y = np.random.default_rng(2).normal(size=80).cumsum().cumsum()
    assert [unit_roots.differences_wanted(y, 1, most)[0] for most in (0, 1, 2)] == [0, 1, 2]


def test_noise_has_no_season_and_short_series_none_to_look_at():
    y = np.random.default_rng(1).normal(size=120)
    assert unit_roots.seasonal_strength(y, 12) < 0.5
    assert unit_roots.seasonal_strength(y[:20], 12) == 0
