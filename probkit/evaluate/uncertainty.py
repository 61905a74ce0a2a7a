"""Use of uncertainty: entropies and what parameters add to them, ranking of strangers, which case to label next."""

from typing import Any

import numpy as np
from jaxtyping import Float, Int


def entropy(p: Any) -> np.ndarray:
    """Entropy in nats along the last axis."""
    p = np.asarray(p, float)
    return -np.sum(p * np.log(np.where(p > 0, p, 1.0)), axis=-1)


def mutual_information(p: Any) -> Float[np.ndarray, " n"]:
    """What knowing the parameters would tell of the class, in nats: ``H(mean p) - mean H(p)`` (BALD).

    Args:
        p: probabilities by draw, (draw, n, classes), or (chain, draw, n, classes).

    References:
        Houlsby, Huszár, Ghahramani and Lengyel (2011), Bayesian active learning for classification and preference
        learning.
    """
    p = np.asarray(p, float)
    if p.ndim < 3:
        raise ValueError(f"p has shape {p.shape}; (draw, n, classes) is wanted.")
    p = p.reshape(-1, *p.shape[-2:])
    return np.maximum(entropy(p.mean(0)) - entropy(p).mean(0), 0.0)


def auroc(score: Any, positive: Any) -> float:
    """Probability that a positive case scores above a negative one, ties counting half.

    Args:
        score: (n,), larger for what should be positive: the entropy of strangers, for instance.
        positive: (n,), True where it is.

    Raises:
        ValueError: one of the two kinds is missing.
    """
    from scipy.stats import rankdata

    score, positive = np.asarray(score, float), np.asarray(positive, bool)
    m, n = int(positive.sum()), int((~positive).sum())
    if m == 0 or n == 0:
        raise ValueError(f"positive holds {m} True and {n} False; some of each are wanted.")
    return float((rankdata(score)[positive].sum() - m * (m + 1) / 2) / (m * n))


def batch_bald(p: Any, size: int) -> Int[np.ndarray, " size"]:
    """A batch of cases that together tell most of the parameters, chosen one by one (greedy BatchBALD).

    The joint entropy of the batch is taken over all combinations of classes, for as long as there are no more than
    10,000; the cases after
    that are chosen as a new batch.

    Args:
        p: probabilities by draw, (draw, n, classes).
        size: number of cases.

    References:
        Kirsch, van Amersfoort and Gal (2019), BatchBALD: efficient and diverse batch acquisition.
    """
    p = np.asarray(p, float)
    p = p.reshape(-1, *p.shape[-2:])
    draws, n, classes = p.shape
    if not 1 <= size <= n:
        raise ValueError(f"size is {size}; 1 to {n}, the cases there are, is wanted.")
    given = entropy(p).mean(0)
    joint = np.ones((draws, 1))
    chosen: list[int] = []
    while len(chosen) < size:
        if joint.shape[1] * classes > 10_000:
            joint = np.ones((draws, 1))  # begin anew beside those chosen: their exact joint no longer fits
        table = np.einsum("sj,snc->njc", joint, p) / draws
        gain = entropy(table.reshape(n, -1)) - given
        gain[chosen] = -np.inf
        best = int(np.argmax(gain))
        chosen.append(best)
        joint = (joint[:, :, None] * p[:, best, None, :]).reshape(draws, -1)
    return np.array(chosen)
