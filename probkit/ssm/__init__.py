"""State space: filters and smoothers, the local level, and structural time series made of parts."""
