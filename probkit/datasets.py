"""Small public-domain series for examples, documentation and tests.

Every loader returns a `pandas.Series` of floats with `attrs["title"]`, `attrs["units"]` and `attrs["source"]`. Yearly
series are indexed by the year as an integer, monthly ones by a `DatetimeIndex` of frequency "MS".
"""

from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["air_passengers", "co2", "lake_huron", "lynx", "nile", "nottem", "sunspots", "uk_driver_deaths"]


def nile() -> "pd.Series":
    """Annual flow of the Nile at Aswan, 1871 to 1970 (100 values, in 10^8 m^3).

    The level drops near 1898, when the first dam at Aswan was begun: the classic series for a local level.

    References:
        Cobb (1978), The problem of the Nile: conditional solution to a changepoint problem, Biometrika 65(2).
        Durbin and Koopman (2012), Time Series Analysis by State Space Methods, 2nd edition, chapter 2.
    """
    return _load(
        "nile",
        title="Annual flow of the Nile at Aswan, 1871-1970",
        units="10^8 m^3",
        source="Cobb (1978), Biometrika 65(2), 243-251",
    )


def air_passengers() -> "pd.Series":
    """Monthly international airline passengers, 1949 to 1960 (144 values, in thousands).

    Trend and season grow with the level, so it is usually modelled in logarithms.

    References:
        Box and Jenkins (1976), Time Series Analysis: Forecasting and Control, series G.
    """
    return _load(
        "air_passengers",
        title="International airline passengers, 1949-1960",
        units="thousands of passengers",
        source="Box and Jenkins (1976), Time Series Analysis: Forecasting and Control, series G",
    )


def co2() -> "pd.Series":
    """Monthly mean carbon dioxide at Mauna Loa, March 1958 to December 2001 (526 values, 5 missing, in ppmv).

    Means of the weekly values from continuous air samples; a month without one is NaN.

    References:
        Keeling and Whorf (2004), Atmospheric CO2 concentrations from sites in the SIO air sampling network, Trends:
        A Compendium of Data on Global Change, Carbon Dioxide Information Analysis Center.
    """
    return _load(
        "co2",
        title="Atmospheric carbon dioxide at Mauna Loa, 1958-2001",
        units="ppmv",
        source="Keeling and Whorf (2004), Scripps Institution of Oceanography air sampling network",
    )


def lake_huron() -> "pd.Series":
    """Annual level of Lake Huron, 1875 to 1972 (98 values, in feet).

    References:
        Brockwell and Davis (1991), Time Series: Theory and Methods, 2nd edition, series A.
    """
    return _load(
        "lake_huron",
        title="Level of Lake Huron, 1875-1972",
        units="feet",
        source="Brockwell and Davis (1991), Time Series: Theory and Methods, series A",
    )


def lynx() -> "pd.Series":
    """Annual lynx trappings in Canada, 1821 to 1934 (114 values, in animals).

    A cycle of about ten years with sharp peaks; usually modelled in logarithms.

    References:
        Campbell and Walker (1977), A survey of statistical work on the Mackenzie River series of annual Canadian lynx
        trappings for the years 1821-1934 and a new analysis, Journal of the Royal Statistical Society A 140(4).
    """
    return _load(
        "lynx",
        title="Canadian lynx trappings, 1821-1934",
        units="animals",
        source="Campbell and Walker (1977), Journal of the Royal Statistical Society A 140(4), 411-431",
    )


def nottem() -> "pd.Series":
    """Monthly mean air temperature at Nottingham Castle, 1920 to 1939 (240 values, in degrees Fahrenheit).

    A steady season without trend.

    References:
        Anderson (1976), Time Series Analysis and Forecasting: The Box-Jenkins Approach, series R.
    """
    return _load(
        "nottem",
        title="Mean air temperature at Nottingham Castle, 1920-1939",
        units="degrees Fahrenheit",
        source="Anderson (1976), Time Series Analysis and Forecasting: The Box-Jenkins Approach, series R",
    )


def sunspots() -> "pd.Series":
    """Yearly mean sunspot number, 1700 to 2008 (309 values, dimensionless).

    References:
        National Geophysical Data Center, National Oceanic and Atmospheric Administration, yearly sunspot numbers.
    """
    return _load(
        "sunspots",
        title="Yearly mean sunspot number, 1700-2008",
        units="sunspot number",
        source="National Geophysical Data Center, National Oceanic and Atmospheric Administration",
    )


def uk_driver_deaths() -> "pd.Series":
    """Monthly car drivers killed or seriously injured in Great Britain, 1969 to 1984 (192 values, in persons).

    Seat belts became compulsory on 31 January 1983: a step down from February 1983 on.

    References:
        Harvey and Durbin (1986), The effects of seat belt legislation on British road casualties: a case study in
        structural time series modelling, Journal of the Royal Statistical Society A 149(3).
    """
    return _load(
        "uk_driver_deaths",
        title="Car drivers killed or seriously injured in Great Britain, 1969-1984",
        units="persons per month",
        source="Harvey and Durbin (1986), Journal of the Royal Statistical Society A 149(3), 187-227",
    )


def _load(name: str, **attrs: str) -> "pd.Series":
    """The series of `data/<name>.csv`; the first column, `year` or `month`, says which index it gets."""
    import pandas as pd

    with (files("probkit") / "data" / f"{name}.csv").open(encoding="utf-8") as file:
        series = pd.read_csv(file, index_col=0)["y"].astype(float).rename(name)
    if series.index.name == "month":
        series.index = pd.DatetimeIndex(series.index, freq="MS", name="month")
    series.attrs = dict(attrs)
    return series
