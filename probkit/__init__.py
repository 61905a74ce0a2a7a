"""probkit: probabilistic models on JAX.

A model is a pytree, a prior stands where a number would go, and fitting gives the same pytree back with draws where
the priors were.
"""

from probkit import arima, bnn, datasets, ets, evaluate, gp, hmm, likelihoods, ssm, var, vi
from probkit.active import Learning, active_learning
from probkit.arima.auto import auto_arima
from probkit.arima.model import ARIMA
from probkit.bnn.model import BNN
from probkit.bnn.nets import mlp
from probkit.compare import compare
from probkit.ets.auto import auto_ets
from probkit.ets.model import ETS, SES, Holt, HoltWinters, Theta
from probkit.evaluate.calibration import Calibration, calibrate
from probkit.evaluate.kfold import kfold
from probkit.fit import fit
from probkit.gp.model import GP
from probkit.gp.product_covariances import ArcCosine, Constant, Linear, Polynomial, White
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
from probkit.hmm.model import HMM
from probkit.impact import CausalImpact, causal_impact
from probkit.infer.auto import Auto
from probkit.infer.laplace import Laplace
from probkit.infer.nuts import NUTS
from probkit.infer.point import MAP, MLE
from probkit.infer.svi import SVI
from probkit.infer.vi import VI
from probkit.lanes import LanePosterior
from probkit.model import Model, Param, bind, given, param, resolve
from probkit.posterior import Posterior
from probkit.prediction import Prediction
from probkit.prior import prior_predictive
from probkit.report import Report
from probkit.selection import Average, Selection, average
from probkit.ssm.model import (
    Autoregression,
    BasicStructural,
    Cycle,
    DynamicFactor,
    Intervention,
    LatentStructural,
    LocalLevel,
    LocalLinearTrend,
    MultivariateStructural,
    Regression,
    Seasonal,
    SmoothTrend,
    Structural,
    TrigonometricSeasonal,
)
from probkit.store import load, save
from probkit.transformed import Transformed
from probkit.var.model import VAR

__version__ = "0.1.0"

__all__ = [
    "ARIMA",
    "BNN",
    "ETS",
    "GP",
    "HMM",
    "MAP",
    "MLE",
    "NUTS",
    "RBF",
    "SES",
    "SHO",
    "SVI",
    "VAR",
    "VI",
    "ArcCosine",
    "Auto",
    "Autoregression",
    "Average",
    "BasicStructural",
    "Calibration",
    "CausalImpact",
    "Constant",
    "Cosine",
    "Cycle",
    "DynamicFactor",
    "Holt",
    "HoltWinters",
    "Intervention",
    "LanePosterior",
    "Laplace",
    "LatentStructural",
    "Learning",
    "Linear",
    "LocalLevel",
    "LocalLinearTrend",
    "Matern12",
    "Matern32",
    "Matern52",
    "Model",
    "MultivariateStructural",
    "Param",
    "Periodic",
    "Polynomial",
    "Posterior",
    "Prediction",
    "RationalQuadratic",
    "Regression",
    "Report",
    "Seasonal",
    "Selection",
    "SmoothTrend",
    "SpectralMixture",
    "Structural",
    "Theta",
    "Transformed",
    "TrigonometricSeasonal",
    "White",
    "active_learning",
    "arima",
    "auto_arima",
    "auto_ets",
    "average",
    "bind",
    "bnn",
    "calibrate",
    "causal_impact",
    "compare",
    "datasets",
    "ets",
    "evaluate",
    "fit",
    "given",
    "gp",
    "hmm",
    "kfold",
    "likelihoods",
    "load",
    "mlp",
    "param",
    "prior_predictive",
    "resolve",
    "save",
    "ssm",
    "var",
    "vi",
]
