"""probkit: probabilistic models on JAX.

A model is a pytree, a prior stands where a number would go, and fitting gives the same pytree back with draws where
the priors were.
"""

from probkit import arima, datasets, ets, gp, ssm, vi
from probkit.arima.model import ARIMA
from probkit.compare import compare
from probkit.ets.model import ETS, SES, Holt, HoltWinters
from probkit.evaluate.calibration import Calibration, calibrate
from probkit.evaluate.kfold import kfold
from probkit.fit import fit
from probkit.gp.model import GP, Matern32
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
from probkit.ssm.model import LocalLevel
from probkit.store import load, save

__version__ = "0.1.0"

__all__ = [
    "ARIMA",
    "ETS",
    "GP",
    "MAP",
    "MLE",
    "NUTS",
    "SES",
    "SVI",
    "VI",
    "Auto",
    "Calibration",
    "Holt",
    "HoltWinters",
    "LanePosterior",
    "Laplace",
    "LocalLevel",
    "Matern32",
    "Model",
    "Param",
    "Posterior",
    "Prediction",
    "Report",
    "arima",
    "bind",
    "calibrate",
    "compare",
    "datasets",
    "ets",
    "fit",
    "given",
    "gp",
    "kfold",
    "load",
    "param",
    "prior_predictive",
    "resolve",
    "save",
    "ssm",
    "vi",
]
