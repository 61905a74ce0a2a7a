"""State-space models as pytrees with words for names."""

from probkit.ssm.structural import (
    Additive,
    Autoregression,
    BasicStructural,
    Component,
    Cycle,
    Intervention,
    LocalLevel,
    LocalLinearTrend,
    Regression,
    Seasonal,
    SmoothTrend,
    Structural,
    TrigonometricSeasonal,
)

__all__ = [
    "Additive",
    "Autoregression",
    "BasicStructural",
    "Component",
    "Cycle",
    "Intervention",
    "LocalLevel",
    "LocalLinearTrend",
    "Regression",
    "Seasonal",
    "SmoothTrend",
    "Structural",
    "TrigonometricSeasonal",
]
