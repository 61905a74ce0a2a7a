"""Vector autoregressions."""

from probkit.var.model import VAR, Responses, VARPosterior

__all__ = ["VAR", "Responses", "VARPosterior"]
