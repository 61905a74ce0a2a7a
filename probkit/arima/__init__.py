"""ARIMA models."""

from probkit.arima.distribution import ARIMADistribution, SARIMADistribution
from probkit.arima.invertible_distribution import InvertibleMA
from probkit.arima.model import ARIMA
from probkit.ssm.stationary_distribution import StationaryAR

__all__ = ["ARIMA", "ARIMADistribution", "InvertibleMA", "SARIMADistribution", "StationaryAR"]
