"""The posterior of the local level under its default priors, by quadrature in float64 and apart from the library."""

from typing import NamedTuple

import numpy as np
from scipy.stats import halfnorm


class Grid(NamedTuple):
    """Means, standard deviations and log evidence of a posterior over (level_scale, obs_scale)."""

    mean: dict[str, float]
    std: dict[str, float]
    log_evidence: float


def local_level(y, level_scale, obs_scale):
    """The textbook filter under the exact diffuse start, for arrays of parameters at once; NaN is missing."""
    first = int(np.flatnonzero(~np.isnan(y))[0])
    a, P = y[first], obs_scale**2 + level_scale**2
    total = np.full(np.broadcast_shapes(level_scale.shape, obs_scale.shape), -0.5 * np.log(2 * np.pi))
    for value in y[first + 1 :]:
        if np.isnan(value):
            P = P + level_scale**2
            continue
        F = P + obs_scale**2
        v, K = value - a, P / F
        total -= 0.5 * (np.log(2 * np.pi * F) + v**2 / F)
        a, P = a + K * v, P * (1 - K) + level_scale**2
    return total


def local_level_posterior(y, spread=None, points=401, level=(0.0, 250.0), obs=(50.0, 220.0)):
    """Half-normal priors with the spread of y (or a given one), on a grid that must hold the posterior."""
    level, obs = np.linspace(*level, points)[:, None], np.linspace(*obs, points)
    spread = float(np.nanstd(y)) if spread is None else spread
    joint = local_level(y, level, obs) + halfnorm.logpdf(level, scale=spread) + halfnorm.logpdf(obs, scale=spread)
    weights = np.exp(joint - joint.max())
    weights[[0, -1]] /= 2
    total = weights.sum()
    marginals = {"level_scale": (level[:, 0], weights.sum(1)), "obs_scale": (obs, weights.sum(0))}
    mean = {n: float(x @ w / total) for n, (x, w) in marginals.items()}
    std = {n: float(np.sqrt((x - mean[n]) ** 2 @ w / total)) for n, (x, w) in marginals.items()}
    cell = (level[1, 0] - level[0, 0]) * (obs[1] - obs[0])
    return Grid(mean, std, float(joint.max() + np.log(total * cell)))
