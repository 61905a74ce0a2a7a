"""Calibration and skill of class probabilities: functions of p, (n,) of class 1 or (n, classes), and classes y.

Every figure is an average over the n cases; NaN in y leaves a case out.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from probkit import border


def cases(p: Any, y: Any) -> tuple[Float[np.ndarray, "n classes"], Int[np.ndarray, " n"]]:
    """Probabilities (n, classes) and classes as they were seen, checked.

    Raises:
        ValueError: shapes that do not agree, no probabilities, classes outside those of p, no case at all.
    """
    p, y = np.asarray(p, float), np.asarray(y, float)
    p = np.stack([1 - p, p], axis=1) if p.ndim == 1 else p
    if p.ndim != 2 or y.shape != p.shape[:1]:
        raise ValueError(f"p has shape {p.shape} and y {y.shape}; (n,) or (n, classes), and (n,), are wanted.")
    seen = ~np.isnan(y)
    p, y = p[seen], y[seen]
    if len(y) == 0:
        raise ValueError("y holds no case that is not NaN.")
    if np.any(p < -1e-6) or np.any(np.abs(p.sum(1) - 1) > 1e-4):
        raise ValueError("p holds rows that are no probabilities: they must be at least 0 and add up to 1.")
    if np.any(y != np.floor(y)) or y.min() < 0 or y.max() >= p.shape[1]:
        raise ValueError(f"y holds classes outside 0 to {p.shape[1] - 1}, those of p.")
    return np.clip(p, 0.0, 1.0), y.astype(int)


class Bins(NamedTuple):
    """Cases gathered by their probability.

    Attributes:
        cases: how many lie in each bin that holds any.
        confidence: mean probability.
        frequency: share of cases that came true.
    """

    cases: Int[np.ndarray, " bins"]
    confidence: Float[np.ndarray, " bins"]
    frequency: Float[np.ndarray, " bins"]


def binned(p: Float[np.ndarray, " n"], hit: Any, bins: int = 15, adaptive: bool = False) -> Bins:
    """Gather cases in bins of equal width, or (``adaptive``) of equal count."""
    at = place(p, bins, adaptive)
    count = np.bincount(at, minlength=bins)
    held = count > 0
    mean = lambda x: np.bincount(at, np.asarray(x, float), minlength=bins)[held] / count[held]
    return Bins(count[held], mean(p), mean(hit))


def place(p: Float[np.ndarray, " n"], bins: int, adaptive: bool) -> Int[np.ndarray, " n"]:
    """The bin of each case."""
    if isinstance(bins, bool) or not isinstance(bins, int | np.integer) or bins < 1:
        raise ValueError(f"bins is {bins!r}; a whole number of at least 1 is wanted.")
    if adaptive:
        return np.argsort(np.argsort(p, kind="stable"), kind="stable") * bins // len(p)
    return np.clip(np.ceil(p * bins).astype(int) - 1, 0, bins - 1)


def calibration_error(
    p: Any,
    y: Any,
    bins: int = 15,
    *,
    adaptive: bool = False,
    class_wise: bool = False,
    debiased: bool = False,
    maximum: bool = False,
) -> float:
    """Expected calibration error, ``sum_b n_b / n |frequency_b - confidence_b|``, or the largest of its terms.

    The plain estimate is above 0 by chance even where a forecast is calibrated. ``debiased`` takes most of that off: a
    true gap g looks like the mean F(g, s) of a folded normal, with ``s² = c (1 - c) / n_b`` for confidence c, and
    ``F(g, s) - g`` is taken off at ``g² = max(gap² - s², 0)``. Of the bias of a calibrated forecast three quarters go
    (tests), a large gap stays as it is; the result may be below 0.

    Args:
        p: probabilities, (n,) of class 1 or (n, classes).
        y: classes, (n,).
        bins: number of bins.
        adaptive: bins of equal count in place of equal width.
        class_wise: the mean over classes of each against the rest; by default the class of largest probability.
        debiased: whether to take off the bias of few cases.
        maximum: the largest gap (MCE) in place of their mean.

    References:
        Guo, Pleiss, Sun and Weinberger (2017), On calibration of modern neural networks. Nixon et al. (2019), Measuring
        calibration in deep learning. Kumar, Liang and Ma (2019), Verified uncertainty
        calibration (on why the plain estimate is biased).
    """
    p, y = cases(p, y)
    if class_wise:
        pairs = [(p[:, c], y == c) for c in range(p.shape[1])]
    else:
        top = p.argmax(1)
        pairs = [(p[np.arange(len(y)), top], top == y)]
    found = []
    for one, hit in pairs:
        b = binned(one, hit, bins, adaptive)
        gap = np.abs(b.frequency - b.confidence)
        if debiased:
            variance = b.confidence * (1 - b.confidence) / b.cases
            true = np.sqrt(np.maximum(gap**2 - variance, 0.0))
            gap = gap - (_folded(true, np.sqrt(variance)) - true)
        found.append(gap.max() if maximum else np.sum(b.cases * gap) / b.cases.sum())
    return float(np.mean(found))


def _folded(mean: np.ndarray, sd: np.ndarray) -> np.ndarray:
    """Mean of ``|N(mean, sd²)|``."""
    from scipy.special import erf

    safe = np.where(sd > 0, sd, 1.0)
    value = safe * np.sqrt(2 / np.pi) * np.exp(-0.5 * (mean / safe) ** 2) + mean * erf(mean / (safe * np.sqrt(2)))
    return np.where(sd > 0, value, np.abs(mean))


def bootstrap(
    metric: Callable[[Any, Any], float], p: Any, y: Any, *, key: Any, level: float = 95, draws: int = 1000
) -> tuple[float, float, float]:
    """A metric of (p, y) with its interval over cases drawn again with replacement: (value, lower, upper).

    The interval is the basic one, ``2 value - quantile``: where a metric is biased by few cases (the calibration
    error) its draws carry the bias twice, and percentiles would miss the value itself.

    References:
        Davison and Hinkley (1997), Bootstrap methods and their application, section 5.2.
    """
    border.check_key(key, "bootstrap")
    rng = generator(key)
    p, y = cases(p, y)
    value = metric(p, y)
    index = rng.integers(0, len(y), (draws, len(y)))
    found = np.array([metric(p[i], y[i]) for i in index])
    low, high = np.quantile(found, [0.5 - level / 200, 0.5 + level / 200])
    return float(value), float(2 * value - high), float(2 * value - low)


def generator(key: Any) -> np.random.Generator:
    """NumPy's generator from a JAX key."""
    return np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())


def log_loss(p: Any, y: Any) -> float:
    """Mean negative log probability of what came: infinite where something came that was held impossible."""
    p, y = cases(p, y)
    with np.errstate(divide="ignore"):
        return float(-np.mean(np.log(p[np.arange(len(y)), y])))


class Brier(NamedTuple):
    """Brier's score and Murphy's parts: ``score = reliability - resolution + uncertainty``."""

    score: float
    reliability: float
    resolution: float
    uncertainty: float


def brier(p: Any, y: Any, bins: int | None = None) -> Brier:
    """Brier's score, ``mean_i sum_c (p_ic - [y_i = c])²`` (over class 1 alone where p is (n,)), with its parts.

    Args:
        p: probabilities, (n,) of class 1 or (n, classes).
        y: classes, (n,).
        bins: bins of equal width; by default every value of p is a bin of its own. The parts add up either way: what
            varies within bins counts as resolution.

    References:
        Murphy (1973), A new vector partition of the probability score. Stephenson, Coelho and Jolliffe (2008), Two
        extra components in the Brier score decomposition.
    """
    single = np.ndim(p) == 1
    p, y = cases(p, y)
    total = np.zeros(4)
    for c in range(1, 2) if single else range(p.shape[1]):
        one, hit = p[:, c], (y == c).astype(float)
        at = np.unique(one, return_inverse=True)[1] if bins is None else place(one, bins, False)
        count = np.bincount(at)
        safe = np.maximum(count, 1)
        forecast, seen = np.bincount(at, one) / safe, np.bincount(at, hit) / safe
        score, base, share = np.mean((one - hit) ** 2), hit.mean(), count / len(y)
        reliability, uncertainty = np.sum(share * (forecast - seen) ** 2), base * (1 - base)
        total += [score, reliability, reliability + uncertainty - score, uncertainty]
    return Brier(*map(float, total))


@dataclasses.dataclass(frozen=True)
class Reliability:
    """A reliability diagram: frequency against confidence, bin by bin, and where it would lie by chance.

    Attributes:
        bins: the cases gathered.
        low: lower end of the consistency band of each bin.
        high: upper end.
    """

    bins: Bins
    low: Float[np.ndarray, " bins"]
    high: Float[np.ndarray, " bins"]

    def plot(self, ax: Any = None) -> Any:
        """Draw it; returns the matplotlib axes."""
        import matplotlib.pyplot as plt

        ax = plt.subplots(figsize=(4, 4), layout="constrained")[1] if ax is None else ax
        x = self.bins.confidence
        ax.plot([0, 1], [0, 1], color="0.6", lw=0.8)
        ax.vlines(x, self.low, self.high, color="C0", alpha=0.3, lw=6)
        ax.plot(x, self.bins.frequency, "o-", color="C0", ms=4, lw=1.2)
        ax.set(xlabel="confidence", ylabel="frequency", xlim=(0, 1), ylim=(0, 1))
        ax.spines[["top", "right"]].set_visible(False)
        return ax


def reliability(
    p: Any,
    y: Any,
    bins: int = 10,
    *,
    key: Any,
    level: float = 90,
    of: int | None = None,
    adaptive: bool = False,
    draws: int = 1000,
) -> Reliability:
    """A reliability diagram with consistency bands: what each bin would show if the forecast were calibrated.

    Args:
        p: probabilities, (n,) of class 1 or (n, classes).
        y: classes, (n,).
        bins: number of bins.
        key: a new-style key, for the bands.
        level: percentage of the bands, bin by bin.
        of: the class whose probability is judged; by default class 1 of two, else the most probable class.
        adaptive: bins of equal count.
        draws: sets of outcomes drawn for the bands.

    References:
        Bröcker and Smith (2007), Increasing the reliability of reliability diagrams, Weather and Forecasting 22.
    """
    border.check_key(key, "reliability")
    p, y = cases(p, y)
    of = 1 if of is None and p.shape[1] == 2 else of
    one, hit = (p.max(1), p.argmax(1) == y) if of is None else (p[:, of], y == of)
    found, at = binned(one, hit, bins, adaptive), place(one, bins, adaptive)
    rng = generator(key)
    held = np.bincount(at, minlength=bins) > 0
    chance = [np.bincount(at, rng.random(len(one)) < one, minlength=bins)[held] for _ in range(draws)]
    low, high = np.quantile(np.array(chance) / found.cases, [0.5 - level / 200, 0.5 + level / 200], axis=0)
    return Reliability(found, low, high)


class Skill(NamedTuple):
    """Figures of a yes-no decision for each class against the rest, (classes,); NaN where a class never came."""

    precision: Float[np.ndarray, " classes"]
    recall: Float[np.ndarray, " classes"]
    f1: Float[np.ndarray, " classes"]
    true_skill: Float[np.ndarray, " classes"]
    support: Int[np.ndarray, " classes"]


def skill(decided: Any, y: Any, classes: int | None = None) -> Skill:
    """Precision, recall, F1 and the true-skill statistic (recall + specificity - 1) of each class.

    Args:
        decided: the class decided for, (n,), or probabilities (n, classes), of which the largest decides.
        y: classes, (n,).
        classes: how many there are, where decisions do not tell.

    References:
        Hanssen and Kuipers (1965), On the relationship between the frequency of rain and various meteorological
        parameters (the true-skill statistic).
    """
    decided, y = np.asarray(decided), np.asarray(y, float)
    classes = decided.shape[1] if decided.ndim == 2 else classes
    decided = decided.argmax(1) if decided.ndim == 2 else decided
    seen = ~np.isnan(y)
    decided, y = decided[seen].astype(int), y[seen].astype(int)
    size = max(int(max(decided.max(), y.max())) + 1, classes or 0)
    table = np.zeros((size, size))
    np.add.at(table, (y, decided), 1)
    hits, came, said = np.diag(table), table.sum(1), table.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(said > 0, hits / np.maximum(said, 1), 0.0)
        recall = np.where(came > 0, hits / np.maximum(came, 1), np.nan)
        f1 = np.where(came > 0, 2 * hits / np.maximum(said + came, 1), np.nan)
        specificity = 1 - (said - hits) / (len(y) - came)
    return Skill(precision, recall, f1, recall + specificity - 1, came.astype(int))


def shift_priors(p: Any, trained: Any, wanted: Any = None, steps: int = 1000) -> Float[np.ndarray, "n classes"]:
    """Probabilities for a population whose classes have other shares: ``p_c wanted_c / trained_c``, made to add up.

    Args:
        p: probabilities, (n, classes).
        trained: shares of the classes where p was learnt, (classes,).
        wanted: shares in the new population; None estimates them from p itself, by EM.
        steps: the most steps of EM.

    References:
        Saerens, Latinne and Decaestecker (2002), Adjusting the outputs of a classifier to new a priori probabilities.
    """
    p, trained = np.asarray(p, float), np.asarray(trained, float)
    if p.ndim != 2 or trained.shape != p.shape[1:] or np.any(trained <= 0):
        raise ValueError(f"trained has shape {trained.shape}; positive shares of the {p.shape[-1]} classes are wanted.")

    def moved(share: np.ndarray) -> np.ndarray:
        q = p * share / trained
        return q / q.sum(1, keepdims=True)

    if wanted is not None:
        return moved(np.asarray(wanted, float))
    share = trained
    for _ in range(steps):
        new = moved(share).mean(0)
        if np.max(np.abs(new - share)) < 1e-12:
            break
        share = new
    return moved(share)


def threshold(false_alarm: float, miss: float) -> float:
    """The probability from which "yes" costs less than "no": ``false_alarm / (false_alarm + miss)`` (Elkan 2001)."""
    if min(false_alarm, miss) < 0 or false_alarm + miss <= 0:
        raise ValueError(f"costs are {false_alarm} and {miss}; numbers of at least 0, not both 0, are wanted.")
    return false_alarm / (false_alarm + miss)


def decide(p: Any, costs: Any) -> Int[np.ndarray, " n"]:
    """The decision of least expected cost: ``costs[c, d]`` is the cost of deciding d where c is true."""
    p = np.asarray(p, float)
    p = np.stack([1 - p, p], axis=1) if p.ndim == 1 else p
    return np.argmin(p @ np.asarray(costs, float), axis=1)
