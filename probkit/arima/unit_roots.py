r"""How often to difference: the KPSS test, the strength of the season, and the rule that order selection makes of them.

Host arithmetic on whole panels, `(time, lane)`; a lane may begin and end with missing values, which are cut off.

References:
    Kwiatkowski, D., Phillips, P. C. B., Schmidt, P. and Shin, Y. (1992). Testing the null hypothesis of stationarity
        against the alternative of a unit root. J. Econometrics 54, 159-178.
    Wang, X., Smith, K. and Hyndman, R. J. (2006). Characteristic-based clustering for time series data. Data Mining and
        Knowledge Discovery 13, 335-364.
    Hyndman, R. J. and Khandakar, Y. (2008). Automatic time series forecasting. J. Statistical Software 27(3).
"""

import numpy as np
from jaxtyping import Float

#: Critical value of the KPSS statistic around a level, at 5%.
KPSS_5 = 0.463
#: The strength above which a season is differenced (forecast::nsdiffs).
STRONG = 0.64


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
