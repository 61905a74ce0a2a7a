"""Calibration of predictions of numbers: PIT, coverage at many levels, CRPS, recalibration of quantiles."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from probkit.evaluate.scaling import Isotonic, isotonic


def _draws(draws: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    draws, y = np.asarray(draws, float), np.asarray(y, float)
    draws = draws.reshape(-1, draws.shape[-1])
    if y.shape != draws.shape[1:]:
        raise ValueError(f"draws has shape {draws.shape} and y {y.shape}; (..., n) and (n,) are wanted.")
    return draws, y


def pit(draws: Any, y: Any) -> Float[np.ndarray, " n"]:
    """Probability integral transform of each y among its draws, in (0, 1): uniform where the forecast is calibrated.

    Ties count half; with S draws the transform is ``(below + ties / 2 + 1/2) / (S + 1)``. NaN where y is.

    Args:
        draws: draws of the observable, (..., n): ``prediction.draws``.
        y: what came, (n,).
    """
    draws, y = _draws(draws, y)
    below, ties = np.sum(draws < y, axis=0), np.sum(draws == y, axis=0)
    return np.where(np.isnan(y), np.nan, (below + 0.5 * ties + 0.5) / (len(draws) + 1))


def pit_normal(mean: Any, std: Any, y: Any) -> Float[np.ndarray, " n"]:
    """The same under normal forecasts."""
    from scipy.special import ndtr

    return ndtr((np.asarray(y, float) - mean) / std)


class Coverage(NamedTuple):
    """Share of what came inside central intervals.

    Attributes:
        level: percentages asked.
        share: percentages that came inside.
        error: mean absolute difference, in percentage points.
    """

    level: Float[np.ndarray, " levels"]
    share: Float[np.ndarray, " levels"]
    error: float


def coverage(pits: Any, level: Any = None) -> Coverage:
    """Coverage of central intervals at many levels, from PITs: inside means ``|2 PIT - 1| <= level / 100``.

    Args:
        pits: of :func:`pit`; NaN is left out.
        level: percentages; 5, 10, ..., 95 by default.
    """
    pits = np.asarray(pits, float)
    pits = pits[~np.isnan(pits)]
    level = np.arange(5.0, 100.0, 5.0) if level is None else np.atleast_1d(np.asarray(level, float))
    share = 100 * np.mean(np.abs(2 * pits[:, None] - 1) <= level / 100, axis=0)
    return Coverage(level, share, float(np.mean(np.abs(share - level))))


def crps(draws: Any, y: Any) -> Float[np.ndarray, " n"]:
    """Continuous ranked probability score of draws, ``E|x - y| - E|x - x'| / 2``, entry by entry.

    References:
        Gneiting and Raftery (2007), Strictly proper scoring rules, prediction, and estimation, eq. 21.
    """
    draws, y = _draws(draws, y)
    ordered, size = np.sort(draws, axis=0), len(draws)
    rank = 2 * np.arange(1, size + 1) - size - 1
    return np.abs(draws - y).mean(0) - (rank[:, None] * ordered).sum(0) / size**2


def crps_normal(mean: Any, std: Any, y: Any) -> Float[np.ndarray, " n"]:
    """The same of normal forecasts: ``s (z (2 Phi(z) - 1) + 2 phi(z) - 1 / sqrt(pi))`` with ``z = (y - m) / s``."""
    from scipy.special import ndtr

    mean, std, y = (np.asarray(a, float) for a in (mean, std, y))
    z = (y - mean) / std
    return std * (z * (2 * ndtr(z) - 1) + np.sqrt(2 / np.pi) * np.exp(-0.5 * z**2) - 1 / np.sqrt(np.pi))


class Recalibrated(NamedTuple):
    """Which probability to ask a forecast for, to have one that holds.

    Attributes:
        ask: rising map from the probability wanted to the one to ask the forecast for.
    """

    ask: Isotonic

    def quantile(self, prediction: Any, q: Any) -> np.ndarray:
        """Calibrated quantiles of a :class:`probkit.Prediction`."""
        least = 1e-4
        return prediction.quantile(np.clip(self.ask(np.asarray(q, float)), least, 1 - least))

    def interval(self, prediction: Any, level: float = 95) -> np.ndarray:
        """Calibrated central interval, (2, n)."""
        return self.quantile(prediction, [0.5 - level / 200, 0.5 + level / 200])


def recalibrate(pits: Any) -> Recalibrated:
    """Learn from held-out PITs how to ask: a quantile that held p of the cases is the p-quantile.

    References:
        Kuleshov, Fenner and Ermon (2018), Accurate uncertainties for deep learning using calibrated regression.
    """
    pits = np.sort(np.asarray(pits, float)[~np.isnan(np.asarray(pits, float))])
    if pits.size < 2:
        raise ValueError(f"pits holds {pits.size} numbers; two at least are wanted.")
    held = np.arange(1, pits.size + 1) / (pits.size + 1)
    return Recalibrated(isotonic(np.r_[0.0, held, 1.0], np.r_[0.0, pits, 1.0]))
