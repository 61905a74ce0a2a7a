"""Split conformal prediction: intervals and sets that cover at least their level, whatever the model, on average.

The guarantee needs held-out cases exchangeable with the new ones, and holds over both together, not case by case.
"""

import math
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from probkit.evaluate.classification import cases


def quantile(scores: Any, level: float) -> float:
    """The ``ceil((n + 1) level / 100)``-th smallest score of n held-out cases; infinite where n is too small."""
    if not 0 < level < 100:
        raise ValueError(f"level is {level}; a percentage between 0 and 100 is wanted, as in level=90.")
    scores = np.asarray(scores, float)
    scores = np.sort(scores[~np.isnan(scores)])
    # A percentage such as 90 must not miss a whole number by rounding.
    rank = math.ceil(round((scores.size + 1) * level / 100, 9))
    return float(scores[rank - 1]) if rank <= scores.size else math.inf


def interval(
    held_mean: Any, held_y: Any, mean: Any, level: float = 90, held_std: Any = 1.0, std: Any = 1.0
) -> Float[np.ndarray, "2 n"]:
    """Intervals ``mean ± q std`` with q the conformal quantile of ``|y - mean| / std`` over held-out cases.

    Args:
        held_mean: predictions of the held-out cases, (m,).
        held_y: what came, (m,); NaN is left out.
        mean: predictions of the new cases, (n,).
        level: percentage.
        held_std: predictive sd of the held-out cases: intervals then widen with it.
        std: of the new cases.

    References:
        Lei, G'Sell, Rinaldo, Tibshirani and Wasserman (2018), Distribution-free predictive inference for regression.
    """
    q = quantile(np.abs(np.asarray(held_y, float) - held_mean) / held_std, level)
    mean, half = np.asarray(mean, float), q * np.asarray(std, float)
    return np.stack([mean - half, mean + half])


def quantile_interval(held: Any, held_y: Any, new: Any, level: float = 90) -> Float[np.ndarray, "2 n"]:
    """Intervals of a model, (2, m) on held-out and (2, n) on new cases, moved so that they cover.

    References:
        Romano, Patterson and Candès (2019), Conformalized quantile regression.
    """
    held, new, y = np.asarray(held, float), np.asarray(new, float), np.asarray(held_y, float)
    q = quantile(np.maximum(held[0] - y, y - held[1]), level)
    return np.stack([new[0] - q, new[1] + q])


def label_sets(
    held_p: Any, held_y: Any, p: Any, level: float = 90, adaptive: bool = False
) -> Bool[np.ndarray, "n classes"]:
    """Sets of classes that hold the true one in at least ``level`` percent of cases.

    Args:
        held_p: probabilities of the held-out cases, (m, classes).
        held_y: their classes, (m,).
        p: probabilities of the new cases, (n, classes).
        level: percentage.
        adaptive: False takes every class above one probability (the smallest sets); True the most probable classes
            until their sum passes one number (sets that grow where the model is unsure).

    References:
        Sadinle, Lei and Wasserman (2019), Least ambiguous set-valued classifiers with bounded error levels. Romano,
        Sesia and Candès (2020), Classification with valid and adaptive coverage.
    """
    held, y = cases(held_p, held_y)
    p = np.asarray(p, float)
    score = _mass if adaptive else (lambda p: 1 - p)
    return score(p) <= quantile(score(held)[np.arange(len(y)), y], level)


def _mass(p: np.ndarray) -> np.ndarray:
    """Probability of all classes at least as probable as each, itself included."""
    order = np.argsort(-p, axis=1, kind="stable")
    total = np.cumsum(np.take_along_axis(p, order, 1), axis=1)
    out = np.empty_like(p)
    np.put_along_axis(out, order, total, 1)
    return out
