"""Regimes: hidden Markov models with Gaussian, Poisson and categorical observations."""

from probkit.hmm.distribution import HiddenMarkov, Increasing
from probkit.hmm.model import HMM, Categorical, Emission, Gaussian, Poisson

__all__ = ["HMM", "Categorical", "Emission", "Gaussian", "HiddenMarkov", "Increasing", "Poisson"]
