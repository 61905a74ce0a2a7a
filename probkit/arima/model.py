"""ARIMA as a pytree with words for names."""

from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Float
from numpyro.distributions import constraints

from probkit import border, priors
from probkit.arima import exact, polynomials
from probkit.arima.distribution import ARIMADistribution, SARIMADistribution
from probkit.arima.invertible_distribution import InvertibleMA
from probkit.model import Default, Model, Param, is_place, param
from probkit.ssm.stationary_distribution import StationaryAR

#: A field that was left at its default.
LEFT: Any = type("Left", (), {"__repr__": lambda self: "default"})()


def _scale_prior(self: "ARIMA", y: Any, X: Any) -> dist.Distribution:
    return priors.noise(y)


def _mean_prior(self: "ARIMA", y: Any, X: Any) -> dist.Distribution:
    return dist.Normal(priors.centre(y), 5.0 * priors.spread(y))


def _drift_prior(self: "ARIMA", y: Any, X: Any) -> dist.Distribution:
    return dist.Normal(0.0, 10.0 * priors.spread(y) / y.shape[0])


def _beta_prior(self: "ARIMA", y: Any, X: Any) -> Any:
    """Normal with ten spreads of y for a spread of each column."""
    if X is None:
        return jnp.zeros(0, y.dtype)
    X = jnp.reshape(X, (X.shape[0], -1))
    size = jnp.std(X, axis=0)
    scale = 10.0 * priors.spread(y) / jnp.where(size > 0, size, jnp.maximum(jnp.max(jnp.abs(X), axis=0), 1e-30))
    return dist.Normal(jnp.zeros_like(scale), scale).to_event(1)


class ARIMA(Model):
    """Seasonal ARIMA(p, d, q)(P, D, Q)_s with regression, in level form.

    ``y_t = mean + drift t + x_t' beta + n_t``, t = 1, 2, ..., and
    ``ar(B) sar(B^s) (1 - B)^d (1 - B^s)^D n_t = ma(B) sma(B^s) e_t``, ``e_t ~ N(0, scale²)``, where
    ``ar(B) = 1 - ar_1 B - ...`` and ``ma(B) = 1 + ma_1 B + ...``: R's and statsmodels' signs.

    The series itself is scored, its d + s D starting values integrated out under a flat prior, so that terms compare
    with those of any other model and missing values need no care. `probkit.arima.exact` has the constants.

    AR(p) is ``ARIMA(p, 0, 0)``, MA(q) ``ARIMA(0, 0, q)``, white noise ``ARIMA(0, 0, 0)``, a random walk
    ``ARIMA(0, 1, 0)``, simple exponential smoothing ``ARIMA(0, 1, 1)`` with ``ma = -(1 - alpha)``.

    Args:
        p: autoregressive order.
        d: order of differencing.
        q: moving-average order.
        seasonal: (P, D, Q, s): the seasonal orders and the period.
        ar: autoregressive coefficients, (p,). Default: uniform partial autocorrelations, so always stationary
            (`probkit.arima.StationaryAR`).
        ma: moving-average coefficients, (q,). Default: the same for invertibility (`probkit.arima.InvertibleMA`); for
            one coefficient it is uniform on (-1, 1).
        sar: seasonal autoregressive coefficients, (P,). Default: as ``ar``.
        sma: seasonal moving-average coefficients, (Q,). Default: as ``ma``.
        scale: standard deviation of the innovations, in the units of y. Default: half-normal with the spread of y as
            its scale, cut off below at the rounding error of y.
        mean: the mean, where d = D = 0. Default: normal around the mean of y with five times its spread.
            0 leaves it out.
        drift: the slope a time step, where d + D is at most 1. Default 0, none; True takes a normal prior with ten
            spreads of y over the length of the series.
        beta: coefficients of the columns of X, (k,). Default: normal with ten spreads of y for a spread of the column.

    Raises:
        ValueError: orders that are not whole numbers; a mean under differencing; a drift under two differences.

    References:
        Box and Jenkins (1976), Time Series Analysis: Forecasting and Control, chapters 4 and 9.
        Harvey (1989), Forecasting, Structural Time Series Models and the Kalman Filter, chapter 3.
    """

    integrates_states: ClassVar[bool] = True

    p: int = eqx.field(static=True)
    d: int = eqx.field(static=True)
    q: int = eqx.field(static=True)
    seasonal: tuple[int, int, int, int] = eqx.field(static=True)
    ar: Param = param(dims=("ar_lag",))
    ma: Param = param(dims=("ma_lag",))
    sar: Param = param(dims=("sar_lag",))
    sma: Param = param(dims=("sma_lag",))
    scale: Param = param(support=constraints.nonnegative)
    mean: Param = param()
    drift: Param = param()
    beta: Param = param(dims=("column",))

    def __init__(
        self,
        p: int,
        d: int,
        q: int,
        *,
        seasonal: tuple[int, int, int, int] = (0, 0, 0, 1),
        ar: Any = LEFT,
        ma: Any = LEFT,
        sar: Any = LEFT,
        sma: Any = LEFT,
        scale: Any = LEFT,
        mean: Any = LEFT,
        drift: Any = 0.0,
        beta: Any = LEFT,
    ):
        self.p, self.d, self.q, self.seasonal = p, d, q, seasonal
        self._check_orders()
        self.ar, self.sar = _given(ar, StationaryAR, p), _given(sar, StationaryAR, seasonal[0])
        self.ma, self.sma = _given(ma, InvertibleMA, q), _given(sma, InvertibleMA, seasonal[2])
        self.scale = Default(_scale_prior) if scale is LEFT else scale
        differenced = d + seasonal[1] > 0
        if mean is LEFT:
            mean = 0.0 if differenced else Default(_mean_prior)
        elif differenced and not (isinstance(mean, float | int) and mean == 0):
            raise ValueError(f"mean was given to {self._name()}; differencing takes it out (drift=True is a slope).")
        self.mean = mean
        if drift is True and d + seasonal[1] > 1:
            raise ValueError(f"drift was given to {self._name()}; two differences take a slope out.")
        self.drift = Default(_drift_prior) if drift is True else 0.0 if drift is False else drift
        self.beta = Default(_beta_prior) if beta is LEFT else beta

    def _check_orders(self) -> None:
        wanted = "whole numbers, none negative, and seasonal=(P, D, Q, s) with a period s of at least 2"
        if not isinstance(self.seasonal, tuple) or len(self.seasonal) != 4:
            raise ValueError(f"seasonal is {self.seasonal}; (P, D, Q, s) is wanted.")
        orders = (self.p, self.d, self.q, *self.seasonal)
        if not all(isinstance(n, int | np.integer) and not isinstance(n, bool) and n >= 0 for n in orders):
            raise ValueError(f"ARIMA{orders[:3]} with seasonal={self.seasonal}: orders are {wanted}.")
        if any(self.seasonal[:3]) and self.seasonal[3] < 2:
            raise ValueError(f"seasonal is {self.seasonal}; orders are {wanted}.")

    def _name(self) -> str:
        P, D, Q, s = self.seasonal
        return f"ARIMA({self.p}, {self.d}, {self.q})" + (f"({P}, {D}, {Q})[{s}]" if P or D or Q else "")

    def __call__(self, y: Any = None, X: Any = None, *, length: int | None = None) -> Any:
        """The model as a NumPyro model; without X there is no beta to draw (`probkit.Model`)."""
        bare = X is None and isinstance(self.beta, Default)
        model = eqx.tree_at(lambda m: m.beta, self, jnp.zeros(0)) if bare else self
        return Model.__call__(model, y, X, length=length)

    def distribution(self, X: Any, length: int) -> ARIMADistribution | SARIMADistribution:
        """The distribution of y given the coefficients and the innovation scale.

        Raises:
            ValueError: a field of the wrong shape, or a series no longer than its differences take.
        """
        P, D, Q, s = self.seasonal
        sizes = {"ar": self.p, "ma": self.q, "sar": P, "sma": Q}
        ar, ma, sar, sma = (self._shaped(name, size) for name, size in sizes.items())
        plain = X is None and isinstance(self.drift, float | int | np.number) and float(self.drift) == 0
        if (self.p, self.d, self.q, P, D, Q) == (0, 1, 1, 0, 0, 0) and plain:
            return ARIMADistribution(ma, self.scale, length)
        if length <= self.d + s * D:
            raise ValueError(f"y has {length} values; {self._name()} takes more than d + s D = {self.d + s * D}.")
        columns = 0 if X is None else 1 if jnp.ndim(X) == 1 else X.shape[1]
        beta = self._shaped("beta", columns)
        return SARIMADistribution(
            ar,
            ma,
            sar,
            sma,
            self.scale,
            length,
            (self.d, D, s),
            self.mean,
            self.drift,
            beta if columns else None,
            jnp.reshape(X, (length, columns)) if columns else None,
        )

    def simulate(
        self, length: int, *, key: Any, X: Any = None, draws: int | None = None
    ) -> Float[np.ndarray, "*draws time"]:
        """Draws of the series; values before the first are taken as 0 where there is differencing.

        Args:
            length: number of times.
            key: a new-style key.
            X: inputs, (time, k), where the model has ``beta``.
            draws: number of series, an axis in front; None for one without it.

        Raises:
            ValueError: a field holds a prior (`pk.prior_predictive` draws those too).
        """
        law = self._whole(max(length, 1 + self.d + self.seasonal[1] * self.seasonal[3]), X)
        return np.asarray(law.sample(border.check_key(key, "simulate"), () if draws is None else (draws,)))[
            ..., :length
        ]

    def psi_weights(self, count: int) -> Float[np.ndarray, " count"]:
        """The response of the series to one innovation at 0, 1, ... steps, unit roots and all; the first is 1.

        Args:
            count: how many.

        Raises:
            ValueError: a field holds a prior.
        """
        law = self._whole()
        phi, theta = exact.whole(law.coefficients, law.order.s)
        whole = np.convolve(np.r_[1.0, -np.asarray(phi, float)], law.order.difference())
        return np.asarray(polynomials.psi_weights(-whole[1:], theta, count))

    def roots(self) -> dict[str, np.ndarray]:
        """Roots of ``ar(B) sar(B^s)`` and of ``ma(B) sma(B^s)``, ``{"ar": ..., "ma": ...}``, smallest modulus first.

        All outside the unit circle: stationary once differenced, and invertible. Unit roots of differencing not listed.

        Raises:
            ValueError: a field holds a prior.
        """
        law = self._whole()
        phi, theta = exact.whole(law.coefficients, law.order.s)
        return {"ar": polynomials.roots(phi, -1), "ma": polynomials.roots(theta, 1)}

    def autocovariance(self, lags: int) -> Float[np.ndarray, "lags+1"]:
        """Autocovariances of the differenced series at lags 0 .. ``lags``; divide by the first for the ACF.

        Args:
            lags: the largest lag.

        Raises:
            ValueError: a field holds a prior; the process is not stationary.
        """
        law = self._whole()
        if not bool(exact.stationary(law.coefficients)):
            raise ValueError(f"{self._name()} is not stationary with ar={self.ar}, sar={self.sar}.")
        phi, theta = exact.whole(law.coefficients, law.order.s)
        return np.asarray(polynomials.autocovariance(phi, theta, lags + 1) * law.scale**2)

    def _whole(self, length: int | None = None, X: Any = None) -> SARIMADistribution:
        """The law with the numbers of the fields, also where the model has a shorter one."""
        fields = {name: getattr(self, name) for name in ("ar", "ma", "sar", "sma", "scale", "mean", "drift", "beta")}
        sizes = {"ar": self.p, "ma": self.q, "sar": self.seasonal[0], "sma": self.seasonal[2]}
        open_ = [
            n for n, held in fields.items() if is_place(held) and sizes.get(n, 1) and not (n == "beta" and X is None)
        ]
        if open_:
            raise ValueError(f"{', '.join(open_)} of {self._name()} hold no numbers but priors; give them numbers.")
        _, D, _, s = self.seasonal
        ar, ma, sar, sma = (self._shaped(name, size) for name, size in sizes.items())
        X = None if X is None else jnp.reshape(jnp.asarray(X, float), (length, -1))
        beta = None if X is None else self._shaped("beta", X.shape[1])
        parts = self.scale, length or 1 + self.d + s * D, (self.d, D, s), self.mean, self.drift, beta, X
        return SARIMADistribution(ar, ma, sar, sma, *parts)

    def _shaped(self, name: str, size: int) -> Any:
        held = getattr(self, name)
        if isinstance(held, Default) and size == 0:
            return jnp.zeros(0)
        if jnp.shape(held) == (size,) or (jnp.shape(held) == () and size == 1):
            return jnp.reshape(held, (size,))
        takes = f"X has {size} columns" if name == "beta" else f"{self._name()} takes ({size},)"
        raise ValueError(f"{name} has shape {jnp.shape(held)}; {takes}.")


def _given(held: Any, kind: type[StationaryAR], order: int) -> Any:
    """What a field of coefficients holds: what was given; else the prior over their region, or no coefficient."""
    if held is not LEFT:
        return held
    return kind(order, a=1.0, b=1.0) if order else np.zeros(0)
