r"""The exact likelihood of ARIMA models in level form, the starting level integrated out.

So far ARIMA(0,1,1), $y_t - y_{t-1} = e_t + \theta e_{t-1}$ with $e_t \sim N(0, \sigma^2)$.

**As a level model.** With $l_{t-1} = y_t - e_t$ and $\alpha = 1 + \theta$,

$$y_t = l_{t-1} + e_t, \qquad l_t = l_{t-1} + \alpha e_t,$$

since $y_t - y_{t-1} = l_{t-1} - l_{t-2} + e_t - e_{t-1} = e_t + (\alpha - 1) e_{t-1}$. That is simple exponential
smoothing, and `probkit.ssm.level` with $a_t = l_{t-1}$, $\varepsilon_t = e_t$, $\eta_t = \alpha e_t$. For
$0 < \alpha \le 1$ it has the likelihood of the local level with variances $(1 - \alpha) \sigma^2$ and
$\alpha^2 \sigma^2$.

**Constants.** $-\frac12 \log 2\pi$ counts for each observed value, the first included. R's `arima` and statsmodels'
differenced or burned likelihoods leave the first out: ours = theirs $- \frac12 \log 2\pi$.

References:
    Hyndman, R. J., Koehler, A. B., Ord, J. K. and Snyder, R. D. (2008). Forecasting with Exponential Smoothing, ch. 11.
    Muth, J. F. (1960). Optimal properties of exponentially weighted forecasts. JASA 55, 299-306.
"""

from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num

from probkit.ssm import level

Scalar = Num[ArrayLike, ""]


def arima011(theta: Scalar, sigma2: Scalar) -> tuple[Scalar, Scalar, Scalar]:
    r"""The level model that is ARIMA(0,1,1): $H = \sigma^2$, $Q = \alpha^2 \sigma^2$, $C = \alpha \sigma^2$.

    Args:
        theta: moving-average coefficient, with R's and statsmodels' sign; any real number.
        sigma2: variance of the innovations.

    Returns:
        (H, Q, C) for the functions of `probkit.ssm.level`.
    """
    alpha = 1 + theta
    return sigma2, alpha * alpha * sigma2, alpha * sigma2


def log_likelihood(
    y: Num[ArrayLike, " time"], theta: Scalar, sigma2: Scalar, start: level.Start = None
) -> Float[Array, ""]:
    """Joint log density of the observed values of an ARIMA(0,1,1) series.

    Args:
        y: observations, NaN where missing.
        theta: moving-average coefficient; outside (-1, 1) the value is that of the invertible twin.
        sigma2: variance of the innovations.
        start: mean and variance of the level before the first value, or None for a flat prior.

    Returns:
        The log-likelihood, with the exact derivatives of `probkit.ssm.level.log_likelihood`.
    """
    return level.log_likelihood(y, *arima011(theta, sigma2), start)
