"""Variational inference by hand: bounds on the evidence, divergences, Gaussian guides. `probkit.VI` is the method."""

from probkit.vi.divergences import Divergence, entropy, jensen_shannon, kl, wasserstein2
from probkit.vi.guides import FullRank, Guide, LowRank, MeanField
from probkit.vi.objectives import Estimate, elbo, elbo_estimate, elbo_with_kl, iwae, minibatch_joint, renyi

__all__ = [
    "Divergence",
    "Estimate",
    "FullRank",
    "Guide",
    "LowRank",
    "MeanField",
    "elbo",
    "elbo_estimate",
    "elbo_with_kl",
    "entropy",
    "iwae",
    "jensen_shannon",
    "kl",
    "minibatch_joint",
    "renyi",
    "wasserstein2",
]
