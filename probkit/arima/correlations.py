r"""Sample autocorrelations and partial autocorrelations, of one series or of a panel, missing values left out.

$$r_k = \hat\gamma_k / \hat\gamma_0, \qquad \hat\gamma_k = \frac1n \sum_t (y_t - \bar y)(y_{t+k} - \bar y),$$

over the pairs that are observed, n the number of observed values. Host arithmetic.

References:
    Brockwell, P. J. and Davis, R. A. (1991). Time Series: Theory and Methods, ch. 1 and 3.4 (Durbin and Levinson).
    Parzen, E. (1963). On spectral analysis with missing observations and amplitude modulation. Sankhya A 25, 383-392.
"""

from typing import Any

import numpy as np
from jaxtyping import Float


def acf(y: Any, lags: int) -> Float[np.ndarray, "lags+1 *lane"]:
    """Sample autocorrelations at lags 0 .. ``lags``; white noise stays within ``1.96 / sqrt(n)`` 95 times of 100.

    Args:
        y: the series, (time,) or (time, lane); NaN is missing.
        lags: the largest lag, below the number of times.

    Returns:
        r_0 = 1, r_1, ...; NaN for a constant series.

    Raises:
        ValueError: values of another shape, or lags that do not fit.
    """
    e = _centred(y, lags)
    products = np.stack([np.sum(e[k:] * e[: e.shape[0] - k], axis=0) for k in range(lags + 1)])
    with np.errstate(invalid="ignore", divide="ignore"):
        return products / np.where(products[0] > 0, products[0], np.nan)


def pacf(y: Any, lags: int) -> Float[np.ndarray, "lags+1 *lane"]:
    """Sample partial autocorrelations at lags 0 .. ``lags``, from those of :func:`acf` by Durbin and Levinson.

    Args:
        y: the series, (time,) or (time, lane); NaN is missing.
        lags: the largest lag, below the number of times.

    Returns:
        1, kappa_1, ...: kappa_k is the last coefficient of the best linear predictor from k values. With missing values
        the autocorrelations need not be those of any process, and kappa may leave (-1, 1).

    Raises:
        ValueError: values of another shape, or lags that do not fit.
    """
    return np.concatenate([np.ones_like(acf(y, 0)), partial_autocorrelations(acf(y, lags)[1:])])


def partial_autocorrelations(r: Float[np.ndarray, "lags *lane"]) -> Float[np.ndarray, "lags *lane"]:
    r"""$\kappa_k = (r_k - \sum_j \phi^{(k-1)}_j r_{k-j}) / (1 - \sum_j \phi^{(k-1)}_j r_j)$, Durbin and Levinson.

    Args:
        r: autocorrelations at lags 1, 2, ...
    """
    out, phi = np.empty_like(r), r[:0]
    for k in range(len(r)):
        left = 1 - np.sum(phi * r[:k], axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            out[k] = (r[k] - np.sum(phi * r[:k][::-1], axis=0)) / left
        phi = np.concatenate([phi - out[k] * phi[::-1], out[k : k + 1]])
    return out


def _centred(y: Any, lags: int) -> np.ndarray:
    """Deviations from the mean of what is observed, 0 where missing."""
    y = np.asarray(y, float)
    if y.ndim not in (1, 2) or y.shape[0] < 1:
        raise ValueError(f"y has shape {y.shape}; (time,) or (time, lane) is wanted.")
    if isinstance(lags, bool) or not isinstance(lags, int | np.integer) or not 0 <= lags < y.shape[0]:
        raise ValueError(f"lags is {lags!r}; a whole number from 0 to {y.shape[0] - 1} is wanted.")
    seen = ~np.isnan(y)
    mean = np.sum(np.where(seen, y, 0), axis=0) / np.maximum(np.sum(seen, axis=0), 1)
    e = np.where(seen, y - mean, 0)
    # The rounding errors of a constant series are no series.
    return np.where(np.max(np.abs(e), axis=0) > 1e-12 * np.abs(mean), e, 0)
