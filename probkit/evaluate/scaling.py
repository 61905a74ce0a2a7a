"""Recalibration learnt on held-out cases: temperature, vector, Platt, beta and isotonic scaling.

Each function learns and gives back a frozen value that maps new forecasts. Learn on cases that trained nothing.
"""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float

from probkit.evaluate.classification import cases


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities of logits, along the last axis."""
    z = np.exp(logits - logits.max(-1, keepdims=True))
    return z / z.sum(-1, keepdims=True)


def as_logits(p: Any) -> np.ndarray:
    """Logits of probabilities: their logs, with 0 at the least positive number."""
    return np.log(np.maximum(np.asarray(p, float), np.finfo(float).tiny))


@dataclasses.dataclass(frozen=True)
class VectorScaling:
    """``softmax(scale * logits + shift)``; call it with logits (n, classes).

    Attributes:
        scale: (classes,), or () for a temperature.
        shift: (classes,), zeros for a temperature.
    """

    scale: np.ndarray
    shift: np.ndarray

    @property
    def temperature(self) -> float:
        """One over the scale, where there is one."""
        if np.ndim(self.scale):
            raise TypeError("vector scaling has a scale for each class, no one temperature.")
        return float(1 / self.scale)

    def __call__(self, logits: Any) -> Float[np.ndarray, "n classes"]:
        """Calibrated probabilities."""
        return softmax(np.asarray(logits, float) * self.scale + self.shift)


def temperature(logits: Any, y: Any) -> VectorScaling:
    """One temperature for all logits, of least log loss: ``softmax(logits / T)``; it never changes the decision.

    Args:
        logits: (n, classes); logs of probabilities serve.
        y: classes, (n,).

    References:
        Guo, Pleiss, Sun and Weinberger (2017), On calibration of modern neural networks.
    """
    z, hit = _targets(logits, y)

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        p = softmax(np.exp(x[0]) * z)
        slope = np.mean(np.sum((p - hit) * z, axis=1)) * np.exp(x[0])
        return _log_loss(p, hit), np.array([slope])

    return VectorScaling(np.exp(_minimise(loss, np.zeros(1), [(-8.0, 8.0)])[0]), np.zeros(z.shape[1]))


def vector(logits: Any, y: Any) -> VectorScaling:
    """A scale and a shift for each class, of least log loss.

    References:
        Guo, Pleiss, Sun and Weinberger (2017), On calibration of modern neural networks, section 4.2.
    """
    z, hit = _targets(logits, y)
    classes = z.shape[1]

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        p = softmax(x[:classes] * z + x[classes:])
        # A trace of a quadratic keeps cases that can be told apart exactly from running away.
        slope = np.concatenate([np.mean((p - hit) * z, axis=0), np.mean(p - hit, axis=0)])
        start = np.r_[np.ones(classes), np.zeros(classes)]
        return _log_loss(p, hit) + 0.5e-6 * np.sum((x - start) ** 2), slope + 1e-6 * (x - start)

    x = _minimise(loss, np.r_[np.ones(classes), np.zeros(classes)])
    return VectorScaling(x[:classes], x[classes:])


def _targets(logits: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    z = np.asarray(logits, float)
    if z.ndim != 2:
        raise ValueError(f"logits has shape {z.shape}; (n, classes) is wanted.")
    seen = ~np.isnan(np.asarray(y, float))
    _, classes = cases(softmax(z), y)
    return z[seen], np.eye(z.shape[1])[classes]


def _log_loss(p: np.ndarray, hit: np.ndarray) -> float:
    return float(-np.mean(np.sum(hit * np.log(np.maximum(p, 1e-300)), axis=1)))


def _minimise(loss: Any, x: np.ndarray, bounds: Any = None) -> np.ndarray:
    from scipy.optimize import minimize

    found = minimize(loss, x, jac=True, bounds=bounds, method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-10})
    return found.x


@dataclasses.dataclass(frozen=True)
class Logistic:
    """``1 / (1 + exp(-(weights . features + shift)))`` of one score; call it with scores or probabilities (n,).

    Attributes:
        weights: of the features.
        shift: added.
        kind: ``"platt"``, the feature being the score; ``"beta"``, the features being log p and -log(1 - p).
    """

    weights: np.ndarray
    shift: float
    kind: str

    def __call__(self, score: Any) -> Float[np.ndarray, " n"]:
        """Calibrated probabilities of class 1."""
        from scipy.special import expit

        return expit(_features(score, self.kind) @ self.weights + self.shift)


def _features(score: Any, kind: str) -> np.ndarray:
    score = np.asarray(score, float)
    if kind == "platt":
        return score[:, None]
    p = np.clip(score, 1e-12, 1 - 1e-12)
    return np.stack([np.log(p), -np.log1p(-p)], axis=1)


def platt(score: Any, y: Any) -> Logistic:
    """Logistic regression on a score, with Platt's targets ``(n_1 + 1) / (n_1 + 2)`` and ``1 / (n_0 + 2)``.

    References:
        Platt (1999), Probabilistic outputs for support vector machines. Lin, Lin and Weng (2007), A note on Platt's
        probabilistic outputs.
    """
    y = np.asarray(y, float)
    ones, zeros = np.sum(y == 1), np.sum(y == 0)
    target = np.where(y == 1, (ones + 1) / (ones + 2), 1 / (zeros + 2))
    return _logistic(score, y, target, "platt", None)


def beta(p: Any, y: Any) -> Logistic:
    """Beta calibration: ``log(q / (1 - q)) = a log p - b log(1 - p) + c`` with a and b at least 0.

    References:
        Kull, Silva Filho and Flach (2017), Beta calibration, AISTATS.
    """
    y = np.asarray(y, float)
    return _logistic(p, y, y, "beta", [(0.0, None), (0.0, None), (None, None)])


def _logistic(score: Any, y: np.ndarray, target: np.ndarray, kind: str, bounds: Any) -> Logistic:
    from scipy.special import expit

    if np.ndim(score) != 1 or np.shape(score) != y.shape:
        raise ValueError(f"scores have shape {np.shape(score)} and y {y.shape}; (n,) each is wanted.")
    seen = ~np.isnan(y)
    if not np.all(np.isin(y[seen], (0, 1))) or np.unique(y[seen]).size < 2:
        raise ValueError("y must hold 0 and 1, both of them.")
    features, target = _features(score, kind)[seen], target[seen]

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        z = features @ x[:-1] + x[-1]
        rest = expit(z) - target
        value = np.mean(np.logaddexp(0, z) - target * z) + 0.5e-9 * np.sum(x**2)
        return float(value), np.r_[features.T @ rest, rest.sum()] / len(rest) + 1e-9 * x

    x = _minimise(loss, np.r_[np.ones(features.shape[1]), 0.0], bounds)
    return Logistic(x[:-1], float(x[-1]), kind)


@dataclasses.dataclass(frozen=True)
class Isotonic:
    """A rising function, straight between its knots and level beyond them.

    Attributes:
        x: knots, rising.
        value: the function there.
    """

    x: np.ndarray
    value: np.ndarray

    def __call__(self, score: Any) -> np.ndarray:
        """The function at new scores."""
        return np.interp(np.asarray(score, float), self.x, self.value)


def isotonic(score: Any, y: Any) -> Isotonic:
    """The rising function of least squares, by pooling adjacent violators; equal scores share a value.

    References:
        Ayer et al. (1955), An empirical distribution function for sampling with incomplete information. Zadrozny and
        Elkan (2002), Transforming classifier scores into accurate multiclass probability estimates.
    """
    score, y = np.asarray(score, float), np.asarray(y, float)
    if score.ndim != 1 or score.shape != y.shape:
        raise ValueError(f"score has shape {score.shape} and y {y.shape}; (n,) each is wanted.")
    seen = ~np.isnan(y)
    x, at = np.unique(score[seen], return_inverse=True)
    weight = np.bincount(at).astype(float)
    return Isotonic(x, pool(np.bincount(at, y[seen]) / weight, weight))


def pool(y: Float[np.ndarray, " n"], weight: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Pool adjacent violators: the rising sequence nearest to y in weighted squares, in O(n)."""
    means: list[float] = []
    weights: list[float] = []
    counts: list[int] = []
    for value, w in zip(y, weight, strict=True):
        means.append(float(value))
        weights.append(float(w))
        counts.append(1)
        while len(means) > 1 and means[-2] >= means[-1]:
            total = weights[-2] + weights[-1]
            means[-2] = (means[-2] * weights[-2] + means[-1] * weights[-1]) / total
            weights[-2], counts[-2] = total, counts[-2] + counts[-1]
            del means[-1], weights[-1], counts[-1]
    return np.repeat(means, counts)
