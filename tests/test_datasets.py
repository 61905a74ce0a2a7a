"""Every series has the length, sum, ends and index that its source gives."""

import re

import numpy as np
import pandas as pd
import pytest
from helpers import shared

from probkit import datasets

# name: (length, NaN, sum, first value, last value, first label, last label, file and column of the shared data)
SERIES = {
    "air_passengers": (144, 0, 40363, 112, 432, "1949-01", "1960-12", "AirPassengers", "y"),
    "co2": (526, 5, 177047.608333, 316.1, 371.02, "1958-03", "2001-12", "statsmodels_co2_monthly", "y"),
    "lake_huron": (98, 0, 56742.4, 580.38, 579.96, 1875, 1972, "LakeHuron", "y"),
    "lynx": (114, 0, 175334, 269, 3396, 1821, 1934, "lynx", "y"),
    "nile": (100, 0, 91935, 1120, 740, 1871, 1970, "Nile", "y"),
    "nottem": (240, 0, 11769.5, 40.6, 37.8, "1920-01", "1939-12", "nottem", "y"),
    "sunspots": (309, 0, 15373.4, 5, 2.9, 1700, 2008, "statsmodels_sunspots", "SUNACTIVITY"),
    "uk_driver_deaths": (192, 0, 320699, 1687, 1763, "1969-01", "1984-12", "UKDriverDeaths", "y"),
}


def test_every_public_loader_is_tested():
    assert sorted(SERIES) == sorted(datasets.__all__)


@pytest.mark.parametrize("name", SERIES)
def test_values(name):
    length, missing, total, first, last, *_ = SERIES[name]
    y = getattr(datasets, name)()
    assert y.name == name
    assert y.dtype == np.float64
    assert len(y) == length
    assert y.isna().sum() == missing
    assert y.sum() == pytest.approx(total, rel=1e-9)
    assert (y.iloc[0], y.iloc[-1]) == (first, last)


@pytest.mark.parametrize("name", SERIES)
def test_index(name):
    start, end = SERIES[name][5:7]
    y = getattr(datasets, name)()
    if isinstance(start, int):
        assert y.index.name == "year"
        assert y.index.tolist() == list(range(start, end + 1))
    else:
        assert y.index.name == "month"
        assert y.index.freqstr == "MS"
        assert y.index.equals(pd.date_range(start, end, freq="MS"))


@pytest.mark.parametrize("name", SERIES)
def test_attrs_say_what_it_is(name):
    loader = getattr(datasets, name)
    attrs = loader().attrs
    assert set(attrs) == {"title", "units", "source"}
    assert all(attrs.values())
    values = re.search(r"\((\d+) values", loader.__doc__)
    assert int(values[1]) == SERIES[name][0]


def test_missing_months_of_co2():
    y = datasets.co2()
    assert y.index[y.isna()].strftime("%Y-%m").tolist() == ["1958-06", "1958-10", "1964-02", "1964-03", "1964-04"]


def test_each_call_gives_a_new_series():
    y = datasets.nile()
    y.iloc[:] = 0.0
    assert datasets.nile().sum() == 91935


@pytest.mark.parametrize("name", SERIES)
def test_agrees_with_the_shared_data(name):
    file, column = SERIES[name][7:]
    reference = pd.read_csv(shared(f"data/ts/{file}.csv"))[column]
    np.testing.assert_array_equal(getattr(datasets, name)().to_numpy(), reference.to_numpy(float))
