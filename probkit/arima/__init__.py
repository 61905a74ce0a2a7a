"""ARIMA models."""

from probkit.arima.correlations import acf, pacf
from probkit.arima.distribution import ARIMADistribution, SARIMADistribution
from probkit.arima.invertible_distribution import InvertibleMA
from probkit.arima.model import ARIMA
from probkit.arima.seasonal_roots import ocsb
from probkit.arima.unit_roots import adf, kpss, seasonal_strength
from probkit.ssm.stationary_distribution import StationaryAR

__all__ = [
    "ARIMA",
    "ARIMADistribution",
    "InvertibleMA",
    "SARIMADistribution",
    "StationaryAR",
    "acf",
    "adf",
    "kpss",
    "ocsb",
    "pacf",
    "seasonal_strength",
]
