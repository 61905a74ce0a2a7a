"""ARIMA as a NumPyro distribution over whole series."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float
from numpyro.distributions import constraints

from probkit.arima import exact
from probkit.arima.polynomials import least_spectrum
from probkit.ssm.distribution import LevelDistribution, LinearGaussian, Start, as_float
from probkit.ssm.statespace import known_start


class ARIMADistribution(LevelDistribution):
    r"""ARIMA(0,1,1) in level form: $y_t - y_{t-1} = e_t + \theta e_{t-1}$, as a law of the series y.

    The level is $l_{t-1} = y_t - e_t$, which moves by $\alpha e_t$, $\alpha = 1 + \theta$ (`probkit.arima.likelihood`).

    Args:
        ma: moving-average coefficients (theta,), shape (1,).
        scale: standard deviation of the innovations e.
        length: number of times.
        start: mean and variance of the first level; None for exact diffuse, a flat prior.

    Raises:
        ValueError: `ma` has another number of coefficients than one.
    """

    arg_constraints = {"ma": constraints.real_vector, "scale": constraints.nonnegative}
    pytree_data_fields = ("ma", "scale")

    def __init__(
        self,
        ma: ArrayLike,
        scale: ArrayLike,
        length: int,
        start: Start = None,
        *,
        validate_args: bool | None = None,
    ):
        self.ma, self.scale = as_float(ma), as_float(scale)
        if self.ma.shape[-1:] != (1,):
            raise ValueError(f"ma has shape {self.ma.shape}; ARIMADistribution is (0, 1, 1) and takes (1,).")
        super().__init__(length, start, validate_args)

    def replaced_noise(self) -> Array:
        """``-theta scale²`` for theta < 0, the observation noise of the local level that this ARIMA is; else 0."""
        return jnp.maximum(-self.ma[..., 0], 0.0) * self.scale**2

    def loadings(self) -> tuple[Array, Array, Array]:
        """(h, c, q) of the base: the level takes the share ``1 + theta`` of each innovation."""
        return self.scale, (1 + self.ma[..., 0]) * self.scale, jnp.zeros_like(self.scale)


class SARIMADistribution(dist.Distribution):
    r"""Any ARIMA as a law of the series in levels, with a mean, a drift and a regression.

    $$y_t = \mu + \delta t + x_t' \beta + \eta_t, \qquad
      \phi(B) \Phi(B^s) (1 - B)^d (1 - B^s)^D \eta_t = \theta(B) \Theta(B^s) e_t, \quad t = 1, 2, \dots$$

    The d + s D starting values are integrated out under a flat prior (`probkit.arima.exact`). y may have batch axes in
    front, the parameters may not: batches of laws are `jax.vmap` over this class.

    Args:
        ar, ma, sar, sma: coefficients, (p,), (q,), (P,), (Q,), with R's and statsmodels' signs.
        scale: standard deviation of the innovations.
        length: number of times.
        differences: (d, D, s).
        mean: mu; without effect where d or D is positive.
        drift: delta, the slope a time step.
        beta: coefficients of X, (k,).
        X: inputs, (time, k).
    """

    arg_constraints: dict[str, Any] = {"scale": constraints.nonnegative}
    support = constraints.real_vector
    normal_marginals = True
    pytree_data_fields = ("ar", "ma", "sar", "sma", "scale", "level", "drift", "beta", "X")
    pytree_aux_fields = ("length", "differences")

    def __init__(
        self,
        ar: ArrayLike,
        ma: ArrayLike,
        sar: ArrayLike,
        sma: ArrayLike,
        scale: ArrayLike,
        length: int,
        differences: tuple[int, int, int] = (0, 0, 1),
        mean: ArrayLike = 0.0,
        drift: ArrayLike = 0.0,
        beta: ArrayLike | None = None,
        X: ArrayLike | None = None,
        *,
        validate_args: bool | None = None,
    ):
        if length < 1:
            raise ValueError(f"length is {length}; a series has at least one time.")
        self.ar, self.ma, self.sar, self.sma = (as_float(x) for x in (ar, ma, sar, sma))
        self.scale, self.level, self.drift = as_float(scale), as_float(mean), as_float(drift)
        self.beta = None if beta is None else as_float(beta)
        self.X = None if X is None else as_float(X)
        self.length, self.differences = length, differences
        super().__init__((), (length,), validate_args=validate_args)

    @property
    def order(self) -> exact.Order:
        """The orders as the maths takes them."""
        d, D, s = self.differences
        sizes = (jnp.shape(x)[-1] for x in (self.ar, self.ma, self.sar, self.sma))
        p, q, P, Q = sizes
        return exact.Order(p, d, q, P, D, Q, s)

    @property
    def coefficients(self) -> exact.Coefficients:
        """The four polynomials."""
        return exact.Coefficients(self.ar, self.ma, self.sar, self.sma)

    @property
    def diffuse_states(self) -> int:
        """How many states start diffuse: each takes one observation and a constant out of information criteria."""
        return self.order.diffuse

    def location(self, X: Array | None, begin: int, length: int) -> Float[Array, " time"]:
        """The regression at the times begin + 1, ..., begin + length."""
        times = jnp.arange(begin + 1, begin + length + 1, dtype=self.scale.dtype)
        where = self.level + self.drift * times
        return where if X is None or self.beta is None else where + X @ self.beta

    @property
    def mean(self) -> Float[Array, " time"]:
        """Mean of y before any is seen, flat starting values taken as 0."""
        return self.location(self.X, 0, self.length)

    @property
    def variance(self) -> Float[Array, " time"]:
        """Variance of y before any is seen; infinite where the start is flat."""
        if self.diffuse_states:
            return jnp.full((self.length,), jnp.inf, self.scale.dtype)
        _, P = exact.state_space(self.coefficients, self.scale, self.order)
        return jnp.full((self.length,), P[0, 0])

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Float[Array, "*shape time"]:
        """Draws of y; from a flat start the values before the first are taken as 0."""
        model, P = exact.state_space(self.coefficients, self.scale, self.order)
        law = LinearGaussian(model, known_start(jnp.zeros(P.shape[0], P.dtype), P), self.length)
        return law.sample(key, sample_shape) + self.location(self.X, 0, self.length)

    def log_prob(self, value: Float[Array, "*batch time"], intermediates: None = None) -> Float[Array, "*batch"]:
        """Joint log density of y in levels (`exact.log_likelihood`, which says which constants count); NaN is missing.

        Args:
            value: y, shape (..., time).
            intermediates: not used; part of NumPyro's signature.
        """
        where = self.location(self.X, 0, self.length)

        def one(y: Array) -> Array:
            return exact.log_likelihood(y - where, self.coefficients, self.scale, self.order, ~jnp.isnan(y))

        return self._each(one, value)

    def leave_one_out(self, y: Float[Array, "*batch time"]) -> dist.Normal:
        """The law of each y_t given all other observations, batch shape (..., time); its `log_prob(y)` are LOO terms.

        Where y is missing, the law of what was not seen; NaN at a value that the flat start needs.
        """
        where = self.location(self.X, 0, self.length)
        mean, variance = self._each(
            lambda y: exact.leave_one_out(y - where, self.coefficients, self.scale, self.order), y
        )
        return dist.Normal(mean + where, jnp.sqrt(variance), validate_args=False)

    def predict(self, y: Float[Array, "*batch time"], X_new: None = None) -> dist.Distribution:
        """Marginals of a fresh observation at each time of y: the series with its white-noise part drawn anew.

        That part is the largest that the model can hold, H, the least value of the spectrum (`least_spectrum`). With
        ``m, V`` the mean and variance of y_t given all others: mean ``y - (H / V)(y - m)``, variance ``H (2 - H / V)``.
        Where y is missing, the law of what was not seen.

        Raises:
            ValueError: `X_new` is given; values at other times come from `forecast`.
        """
        if X_new is not None:
            raise ValueError("X_new was given; values of an ARIMA at later times come from forecast(horizon, X_new).")
        law = self.leave_one_out(y)
        phi, theta = exact.whole(self.coefficients, self.order.s)
        unit = jnp.asarray(self.order.difference(), phi.dtype)
        ar = -jnp.convolve(jnp.concatenate([jnp.ones(1, phi.dtype), -phi]), unit)[1:]
        H = least_spectrum(ar, theta) * self.scale**2
        share = jnp.where(law.variance > 0, jnp.minimum(H / law.variance, 1.0), 0.0)  # 0 too where V is NaN
        mean = jnp.where(jnp.isnan(y), law.mean, y - jnp.where(share > 0, share * (y - law.mean), 0.0))
        variance = jnp.where(jnp.isnan(y), law.variance, H * (2.0 - share))
        return dist.Normal(mean, jnp.sqrt(variance), validate_args=False).to_event(1)

    def forecast(self, y: Float[Array, " time"], horizon: int, X_new: Array | None = None) -> LinearGaussian:
        """The joint law of the next `horizon` observations given one y; batches are `jax.vmap`.

        Args:
            y: the observations, (time,).
            horizon: number of times.
            X_new: inputs of those times, (horizon, k), where the law has X.

        Raises:
            ValueError: `X_new` is missing or not wanted.
        """
        if (X_new is None) != (self.X is None):
            raise ValueError("X_new goes with X: give inputs for the times to come exactly where the law has inputs.")
        X_new = None if X_new is None else jnp.reshape(X_new, (horizon, -1))
        where = self.location(self.X, 0, self.length)
        start = exact.last_state(self._checked(y) - where, self.coefficients, self.scale, self.order)
        model, _ = exact.state_space(self.coefficients, self.scale, self.order)
        ahead = self.location(X_new, self.length, horizon)
        return LinearGaussian(model._replace(d=ahead[:, None]), start, horizon)

    def _checked(self, y: ArrayLike) -> Array:
        y = jnp.asarray(y)
        if y.shape[-1:] != self.event_shape:
            raise ValueError(f"y has shape {y.shape}; its last axis must have the `length` given, {self.length}.")
        return y

    def _each(self, function: Callable[..., Any], y: ArrayLike) -> Any:
        """Applies a function of y to every series of the batch."""
        y = self._checked(y)
        if y.ndim == 1:
            return function(y)
        result = jax.vmap(function)(y.reshape(-1, self.length))
        return jax.tree.map(lambda x: x.reshape(*y.shape[:-1], *x.shape[1:]), result)
