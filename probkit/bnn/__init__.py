"""Bayesian neural nets: nets and the priors of their weights, the model, and the methods that only nets understand."""

from probkit.bnn.methods.dropout import MCDropout
from probkit.bnn.methods.ensemble import Ensemble
from probkit.bnn.methods.laplace import LaplaceGGN
from probkit.bnn.methods.predictions import convergence
from probkit.bnn.methods.sghmc import SGHMC
from probkit.bnn.methods.swag import SWAG
from probkit.bnn.weights import Weights

__all__ = ["SGHMC", "SWAG", "Ensemble", "LaplaceGGN", "MCDropout", "Weights", "convergence"]
