"""Gaussian processes."""

from probkit.gp.covariance import ChangePoint, Covariance, Power, Product, Sum, Warped, learned
from probkit.gp.distribution import GaussianProcess
from probkit.gp.large import HSGP, BasisProcess, Sparse, SparseProcess
from probkit.gp.latent import LatentGP, LatentProcess, SampledGP
from probkit.gp.line_process import Markov, MarkovProcess
from probkit.gp.means import LinearMean
from probkit.gp.model import GP, Exact
from probkit.gp.product_covariances import ArcCosine, Categorical, Constant, Coregion, Linear, Polynomial, White
from probkit.gp.stationary_covariances import (
    RBF,
    SHO,
    Cosine,
    Matern12,
    Matern32,
    Matern52,
    Periodic,
    RationalQuadratic,
    SpectralMixture,
)

__all__ = [
    "GP",
    "HSGP",
    "RBF",
    "SHO",
    "ArcCosine",
    "BasisProcess",
    "Categorical",
    "ChangePoint",
    "Constant",
    "Coregion",
    "Cosine",
    "Covariance",
    "Exact",
    "GaussianProcess",
    "LatentGP",
    "LatentProcess",
    "Linear",
    "LinearMean",
    "Markov",
    "MarkovProcess",
    "Matern12",
    "Matern32",
    "Matern52",
    "Periodic",
    "Polynomial",
    "Power",
    "Product",
    "RationalQuadratic",
    "SampledGP",
    "Sparse",
    "SparseProcess",
    "SpectralMixture",
    "Sum",
    "Warped",
    "White",
    "learned",
]
