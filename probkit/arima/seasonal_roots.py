r"""The test of Osborn, Chui, Smith and Birchenhall: does a series need a seasonal difference?

With $w_t = \Delta \Delta_s y_t$ and $\lambda(B)$ an autoregression fitted to it,

$$w_t = \beta_1 \lambda(B) \Delta_s y_{t-1} + \beta_2 \lambda(B) \Delta y_{t-s} + \sum_{j \le l} b_j w_{t-j} + e_t;$$

under a unit root at the season $\beta_2 = 0$, and its t value has no standard law. Critical values are quantiles of
30,000 simulated series each, of 20 periods with both unit roots; between periods they are interpolated in $\log s$.

References:
    Osborn, D. R., Chui, A. P. L., Smith, J. P. and Birchenhall, C. R. (1988). Seasonality and the order of integration
        for consumption. Oxford Bulletin of Economics and Statistics 50, 361-377.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

#: Simulated quantiles at 1, 5 and 10% by the period.
_PERIODS = (2, 3, 4, 6, 7, 12, 24, 52)
_QUANTILES = {
    "1%": (-2.61, -2.58, -2.57, -2.53, -2.51, -2.50, -2.44, -2.41),
    "5%": (-1.94, -1.93, -1.91, -1.86, -1.845, -1.80, -1.76, -1.72),
    "10%": (-1.61, -1.585, -1.56, -1.495, -1.48, -1.44, -1.39, -1.355),
}
#: The longest autoregression that is tried.
MOST_LAGS = 3


class SeasonalRoot(NamedTuple):
    """The outcome of :func:`ocsb`: a statistic below a critical value speaks against a seasonal unit root.

    Attributes:
        statistic: the t value.
        lags: l.
        values: the number of values in the regression.
        critical: at 1, 5 and 10%.
    """

    statistic: float
    lags: int
    values: int
    critical: dict[str, float]


def ocsb(y: Float[np.ndarray, " time"], period: int, lags: int | None = None) -> SeasonalRoot:
    """Test whether the season has a unit root, that is, whether D should be 1.

    Args:
        y: the series, complete.
        period: s, from 2 to 52.
        lags: l; by default the one of least AIC up to 3.

    Returns:
        The statistic, l, the number of values in the regression, and critical values at 1, 5 and 10%.

    Raises:
        ValueError: values missing or too few for the lags; the same differences throughout; a period out of range.
    """
    y = np.asarray(y, float)
    if isinstance(period, bool) or not 2 <= period <= _PERIODS[-1] or period != int(period):
        raise ValueError(f"period is {period!r}; a whole number from 2 to {_PERIODS[-1]} is wanted.")
    if y.ndim != 1 or not np.isfinite(y).all():
        raise ValueError(f"y has shape {y.shape}; one complete series is wanted.")
    most = MOST_LAGS if lags is None else lags
    least = 2 * int(period) + 2 * max(int(most), 0) + 10
    if isinstance(most, bool) or most != int(most) or most < 0 or y.size < least:
        raise ValueError(f"y has {y.size} values and lags is {lags!r}; {least} values at least are wanted for them.")
    w = np.diff(y[int(period) :] - y[: -int(period)])
    if np.abs(w).max() <= 64 * np.finfo(float).eps * np.abs(y).max():
        raise ValueError("y has no differences left once its trend and season are taken out; nothing can be tested.")
    y = (y - y[0]) / np.abs(w).max()  # the statistic has no unit
    if lags is None:
        lags = min(range(most + 1), key=lambda l: _regression(y, int(period), l, most)[1])
    statistic, _, n = _regression(y, int(period), int(lags), int(lags))
    at = {name: float(np.interp(np.log(period), np.log(_PERIODS), q)) for name, q in _QUANTILES.items()}
    return SeasonalRoot(statistic, int(lags), n, at)


def _regression(y: np.ndarray, s: int, lags: int, skipped: int) -> tuple[float, float, int]:
    """The t value of the seasonal term, AIC and the number of values, the first 2 ``skipped`` left out."""
    yearly, step = y[s:] - y[:-s], np.diff(y)
    w = np.diff(yearly)
    past = lambda a, first: np.stack([a[first - j : a.size - j] for j in range(1, lags + 1)], 1)
    coefficients = np.linalg.lstsq(past(w, lags), w[lags:], rcond=None)[0] if lags else np.zeros(0)

    def whitened(a: np.ndarray) -> np.ndarray:
        return a[lags:] - (past(a, lags) @ coefficients if lags else 0.0)

    n = w.size - 2 * skipped
    level = whitened(yearly)[:-1][-n:]  # one time before w
    season = whitened(step)[: w.size - lags][-n:]  # s times before w
    X = np.column_stack([level, season, past(w, w.size - n)]) if lags else np.column_stack([level, season])
    target = w[-n:]
    b, _, rank, _ = np.linalg.lstsq(X, target, rcond=None)
    rest = target - X @ b
    squares = float(rest @ rest)
    if squares <= n * (64 * np.finfo(float).eps * np.abs(y).max()) ** 2:
        raise ValueError("y has no differences left that its past does not tell to rounding; nothing can be tested.")
    spread = np.linalg.pinv(X.T @ X)[1, 1] * squares / max(n - X.shape[1], 1)
    return float(b[1] / np.sqrt(max(spread, 1e-300))), float(n * np.log(max(squares, 1e-300) / n) + 2 * rank), n
