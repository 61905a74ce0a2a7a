r"""How often to difference: KPSS and Dickey-Fuller tests, the strength of the season, and the rule made of them.

Host arithmetic on one series. The rule goes by the strength of the season, as R's `nsdiffs` does by default; the test
of a seasonal unit root is in `probkit.arima.seasonal_roots`.

References:
    Kwiatkowski, D., Phillips, P. C. B., Schmidt, P. and Shin, Y. (1992). Testing the null hypothesis of stationarity
        against the alternative of a unit root. J. Econometrics 54, 159-178.
    Wang, X., Smith, K. and Hyndman, R. J. (2006). Characteristic-based clustering for time series data. Data Mining and
        Knowledge Discovery 13, 335-364.
    Hyndman, R. J. and Khandakar, Y. (2008). Automatic time series forecasting. J. Statistical Software 27(3).
    Said, S. E. and Dickey, D. A. (1984). Testing for unit roots in autoregressive-moving average models of unknown
        order. Biometrika 71, 599-607.
    MacKinnon, J. G. (2010). Critical values for cointegration tests. Queen's Economics Department WP 1227, table 2.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

#: Critical value of the KPSS statistic around a level, at 5%.
KPSS_5 = 0.463
#: The strength above which a season is differenced (forecast::nsdiffs).
STRONG = 0.64


#: MacKinnon's surfaces, b0 + b1 / n + b2 / n² + b3 / n³, at 1, 5 and 10%, by the terms of the regression.
_SURFACES = {
    "n": ((-2.56574, -2.2358, -3.627, 0), (-1.941, -0.2686, -3.365, 31.223), (-1.61682, 0.2656, -2.714, 25.364)),
    "c": ((-3.43035, -6.5393, -16.786, -79.433), (-2.86154, -2.8903, -4.234, -40.04), (-2.56677, -1.5384, -2.809, 0)),
    "ct": ((-3.95877, -9.0531, -28.428, -134.155), (-3.41049, -4.3904, -9.036, -45.374),
           (-3.12705, -2.5856, -3.925, -22.38)),
}  # fmt: skip


class DickeyFuller(NamedTuple):
    """The outcome of :func:`adf`: a statistic below a critical value speaks against a unit root."""

    statistic: float
    lags: int
    values: int
    critical: dict[str, float]


def adf(y: Float[np.ndarray, " time"], lags: int | None = None, terms: str = "c") -> DickeyFuller:
    r"""The augmented Dickey-Fuller test, the t value of $\rho$ in a regression of the differences.

    $\Delta y_t = c + \delta t + \rho y_{t-1} + \sum_{j \le l} b_j \Delta y_{t-j} + e_t$.

    Args:
        y: the series, complete.
        lags: l; by default the one of least AIC up to $\lceil 12 (n / 100)^{1/4} \rceil$.
        terms: ``"c"`` for the constant, ``"ct"`` for a trend as well, ``"n"`` for neither.

    Returns:
        The statistic, l, the number of values in the regression, and MacKinnon's critical values at 1, 5 and 10%.

    Raises:
        ValueError: unknown terms; values missing, constant, or too few for the lags.
    """
    y = np.asarray(y, float)
    if terms not in _SURFACES:
        raise ValueError(f"terms is {terms!r}; 'n', 'c' or 'ct' is wanted.")
    own = {"n": 0, "c": 1, "ct": 2}[terms]
    if y.ndim != 1 or not np.isfinite(y).all() or y.size < 5 + 2 * own or np.ptp(y) == 0:
        raise ValueError(f"y has shape {y.shape}; one complete series that is not constant, of some length, is wanted.")
    y = (y - (y.mean() if own else 0.0)) / np.std(y)  # the statistic has no unit, but X'X is inverted
    end = (y.size - 1 - own) // 2
    most = min(int(np.ceil(12 * (y.size / 100) ** 0.25)), y.size // 2 - own - 1, end - 1) if lags is None else lags
    if not 0 <= most < end:
        raise ValueError(f"lags is {lags!r}; a number from 0 to {end - 1} is wanted.")
    if lags is None:
        lags = min(range(most + 1), key=lambda l: _dickey_fuller(y, l, own, most)[1])
    statistic, _, n = _dickey_fuller(y, lags, own, lags)
    at = {name: float(np.polyval(b[::-1], 1 / n)) for name, b in zip(("1%", "5%", "10%"), _SURFACES[terms],
                                                                      strict=True)}  # fmt: skip
    return DickeyFuller(statistic, lags, n, at)


def _dickey_fuller(y: np.ndarray, lags: int, own: int, skipped: int) -> tuple[float, float, int]:
    """The t value, AIC, and the number of values, of the regression after ``skipped`` differences."""
    w = np.diff(y)
    n = w.size - skipped
    past = [w[skipped - j : w.size - j] for j in range(1, lags + 1)]
    X = np.stack([y[skipped:-1], *past, np.ones(n), np.arange(n) / n][: 1 + lags + own], axis=1)
    target = w[skipped:]
    b, _, rank, _ = np.linalg.lstsq(X, target, rcond=None)
    rest = target - X @ b
    squares = rest @ rest
    spread = np.linalg.pinv(X.T @ X)[0, 0] * squares / max(n - X.shape[1], 1)
    aic = n * np.log(max(squares, 1e-300) / n) + 2 * rank
    return float(b[0] / np.sqrt(max(spread, 1e-300))), float(aic), n


def kpss(y: Float[np.ndarray, " time"], lags: int | None = None) -> float:
    r"""The KPSS statistic around a level: $\sum_t S_t^2 / (n^2 s^2(l))$, $S_t$ the partial sums of $y - \bar y$.

    Args:
        y: the series, complete.
        lags: l of the Bartlett window; by default the whole part of $3 \sqrt{n} / 13$, as in R's forecast.

    Returns:
        The statistic, large where there is a unit root (5%: 0.463); 0 for a constant series.
    """
    y = np.asarray(y, float)
    n = y.size
    e = y - y.mean()
    lags = int(3 * np.sqrt(n) / 13) if lags is None else lags
    long_run = e @ e / n
    for j in range(1, lags + 1):
        long_run += 2 * (1 - j / (lags + 1)) * (e[j:] @ e[:-j]) / n
    sums = np.cumsum(e)
    # Rounding errors of a constant series are no unit root.
    return float(sums @ sums / (n * n * long_run)) if long_run > 1e-20 * (y @ y) / n else 0.0


def seasonal_strength(y: Float[np.ndarray, " time"], period: int) -> float:
    r"""$\max(0, 1 - \mathrm{Var}(R) / \mathrm{Var}(S + R))$ of a decomposition y = T + S + R whose season may change.

    The trend is a centred moving average over one period, the season at each place of the year the mean of that place
    over up to five years around.

    Args:
        y: the series, complete.
        period: s, at least 2.

    Returns:
        A number in [0, 1]; 0 where there are fewer than three periods to look at.
    """
    y = np.asarray(y, float)
    if period < 2 or y.size < 3 * period:
        return 0.0
    window = np.ones(period) / period
    if period % 2 == 0:
        window = np.convolve(window, [0.5, 0.5])
    half = (window.size - 1) // 2
    rest = y[half : y.size - half] - np.convolve(y, window, mode="valid")
    years = -(-rest.size // period)
    table = np.append(rest, np.full(years * period - rest.size, np.nan)).reshape(years, period)
    season = np.empty_like(table)
    for year in range(years):
        season[year] = np.nanmean(table[max(0, min(year - 2, years - 5)) : max(year + 3, 5)], axis=0)
    total = np.var(rest)
    left = np.var(rest - season.ravel()[: rest.size])
    return float(max(0.0, 1 - left / total)) if total > 1e-20 * np.mean(y * y) else 0.0


def differences_wanted(y: Float[np.ndarray, " time"], period: int = 1, max_d: int = 2) -> tuple[int, int]:
    """(d, D) of a series: one seasonal difference where the season is strong, then differences until KPSS is content.

    Args:
        y: the series, complete.
        period: s; 1 for none.
        max_d: the most ordinary differences.
    """
    y = np.asarray(y, float)
    D = int(period > 1 and y.size > 2 * period + 5 and seasonal_strength(y, period) > STRONG)
    w = y[period:] - y[:-period] if D else y
    d = 0
    while d < max_d and w.size > 5 and kpss(w) > KPSS_5:
        w, d = np.diff(w), d + 1
    return d, D


def filled(y: Float[np.ndarray, " time"], period: int = 1) -> Float[np.ndarray, " time"]:
    """A series with its gaps filled, for a first look: by the same season of the years around, else by straight lines.

    Args:
        y: the series, observed at both ends, NaN where missing.
        period: s; 1 for none.
    """
    gaps = np.isnan(y)
    if not gaps.any():
        return y
    times = np.arange(y.size)
    straight = lambda z: np.interp(times, times[~np.isnan(z)], z[~np.isnan(z)])
    if period < 2 or y.size < 3 * period:
        return straight(y)
    rest = y - np.polyval(np.polyfit(times[~gaps], y[~gaps], 1), times)
    seasons = np.zeros(y.size)
    for place in range(period):
        own = rest[place::period]
        seasons[place::period] = np.mean(own[~np.isnan(own)]) if not np.isnan(own).all() else 0.0
    return np.where(gaps, straight(y - seasons) + seasons, y)
