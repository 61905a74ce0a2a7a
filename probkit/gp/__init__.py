"""Gaussian processes."""

from probkit.gp.covariance import ChangePoint, Covariance, Power, Product, Sum, Warped, learned
from probkit.gp.derivative import Derivative
from probkit.gp.distribution import GaussianProcess
from probkit.gp.grid_process import Grid, GridProcess
from probkit.gp.integral import Integral
from probkit.gp.large import HSGP, BasisProcess, Sparse, SparseProcess
from probkit.gp.latent import LatentGP, LatentProcess, SampledGP
from probkit.gp.line_process import Markov, MarkovProcess
from probkit.gp.means import LinearMean
from probkit.gp.model import GP, Exact
from probkit.gp.pathwise import Functions, functions
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
from probkit.gp.svgp import SVGP, SVGPProcess
from probkit.gp.svgp_fit import StochasticVI
from probkit.gp.vecchia_process import Vecchia, VecchiaProcess

__all__ = [
    "GP",
    "HSGP",
    "RBF",
    "SHO",
    "SVGP",
    "ArcCosine",
    "BasisProcess",
    "Categorical",
    "ChangePoint",
    "Constant",
    "Coregion",
    "Cosine",
    "Covariance",
    "Derivative",
    "Exact",
    "Functions",
    "GaussianProcess",
    "Grid",
    "GridProcess",
    "Integral",
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
    "SVGPProcess",
    "SampledGP",
    "Sparse",
    "SparseProcess",
    "SpectralMixture",
    "StochasticVI",
    "Sum",
    "Vecchia",
    "VecchiaProcess",
    "Warped",
    "White",
    "functions",
    "learned",
]
