"""ARIMA as a pytree with words for names."""

from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions import constraints

from probkit import priors
from probkit.arima.distribution import ARIMADistribution
from probkit.model import Model, Param, param


def _ma_prior(self: "ARIMA", y: Any, X: Any) -> dist.Distribution:
    one = jnp.ones(self.q, y.dtype)
    return dist.Uniform(-one, one).to_event(1)


class ARIMA(Model):
    """ARIMA(p, d, q) in level form: ``(1 - B)^d y_t = (1 + ma_1 B + ...) e_t``, ``e_t ~ N(0, scale²)``.

    The series itself is scored, its starting level integrated out under a flat prior, so that terms compare with those
    of any other model and missing values need no care. So far the order is (0, 1, 1).

    Args:
        p: autoregressive order.
        d: order of differencing.
        q: moving-average order.
        ma: moving-average coefficients, (q,), with R's and statsmodels' sign. Default: uniform on (-1, 1), the
            invertible region. ``ma = -(1 - alpha)`` is simple exponential smoothing.
        scale: standard deviation of the innovations, in the units of y. Default: half-normal with the spread of y as
            its scale, cut off below at the rounding error of y.

    References:
        Box and Jenkins (1976), Time Series Analysis: Forecasting and Control, chapter 4.
    """

    integrates_states: ClassVar[bool] = True

    p: int = eqx.field(static=True)
    d: int = eqx.field(static=True)
    q: int = eqx.field(static=True)
    ma: Param = param(dims=("ma_lag",), default=_ma_prior)
    scale: Param = param(support=constraints.nonnegative, default=lambda self, y, X: priors.noise(y))

    def __check_init__(self) -> None:
        if (self.p, self.d, self.q) != (0, 1, 1):
            raise NotImplementedError(f"ARIMA({self.p}, {self.d}, {self.q}): so far the order is (0, 1, 1).")

    def distribution(self, X: Any, length: int) -> ARIMADistribution:
        """The distribution of y given the coefficients and the innovation scale."""
        if X is not None:
            raise TypeError("ARIMA takes no X so far.")
        if jnp.shape(self.ma) not in ((), (self.q,)):
            order = f"ARIMA({self.p}, {self.d}, {self.q})"
            raise ValueError(f"ma has shape {jnp.shape(self.ma)}; {order} takes ({self.q},).")
        return ARIMADistribution(jnp.reshape(self.ma, (self.q,)), self.scale, length)
