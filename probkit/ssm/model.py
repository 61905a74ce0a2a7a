"""State-space models as pytrees with words for names."""

from probkit.ssm.factors import DynamicFactor
from probkit.ssm.latent import LatentStructural
from probkit.ssm.multivariate import MultivariateStructural
from probkit.ssm.parts import (
    Autoregression,
    BasicStructural,
    Cycle,
    Intervention,
    LocalLevel,
    LocalLinearTrend,
    Regression,
    Seasonal,
    SmoothTrend,
    TrigonometricSeasonal,
)
from probkit.ssm.structural import Additive, Component, Structural

__all__ = [
    "Additive",
    "Autoregression",
    "BasicStructural",
    "Component",
    "Cycle",
    "DynamicFactor",
    "Intervention",
    "LatentStructural",
    "LocalLevel",
    "LocalLinearTrend",
    "MultivariateStructural",
    "Regression",
    "Seasonal",
    "SmoothTrend",
    "Structural",
    "TrigonometricSeasonal",
]
