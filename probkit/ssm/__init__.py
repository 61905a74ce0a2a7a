"""State space: filters and smoothers, structural time series made of parts, several series together."""

from probkit.ssm.several_distribution import Correlations, Loadings

__all__ = ["Correlations", "Loadings"]
