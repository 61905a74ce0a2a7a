"""Exponential smoothing as a NumPyro distribution over whole series."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float
from numpyro.distributions import constraints

from probkit.ets import linear
from probkit.ets.recursions import Form, States, Weights, log_likelihood, run, simulate
from probkit.ssm.distribution import LevelDistribution, as_float
from probkit.ssm.statespace import factor


class ETSDistribution(dist.Distribution):
    r"""An innovations state space model as a law of the series y: the product of its one-step densities.

    $$p(y) = \prod_t N(y_t \mid \mu_t, \sigma^2) \quad\text{or}\quad \prod_t N(y_t \mid \mu_t, \mu_t^2 \sigma^2)$$

    for additive and multiplicative errors (`probkit.ets.recursions`), or Student-t densities. With normal errors, and
    additive errors, trend and season, it is Gaussian: leave-one-out and what is missing are then exact. Elsewhere the
    states go through a missing value as expected. A series begins at its first observed value. Batches of models are
    `jax.vmap` over this class.

    Args:
        form: a :class:`Form` or its letters, such as ``"AAdM"``.
        alpha, beta, gamma, phi: smoothing parameters and damping, as in R's `ets`; those a form lacks are not read.
        level, slope: states before the first value; the slope is a ratio where the trend is multiplicative.
        seasonal: seasons of y[0], ..., y[period - 1], (period,): deviations, or factors where multiplicative.
        scale: standard deviation of the errors, relative ones where they are multiplicative.
        length: number of times.
        df: degrees of freedom of Student-t errors, whose scale ``scale`` then is; None for normal ones.
        covariance: of level, slope and seasons, where they are uncertain (Gaussian forms only).
    """

    arg_constraints: dict[str, Any] = {"scale": constraints.nonnegative}
    support = constraints.real_vector
    _fields = ("alpha", "beta", "gamma", "phi", "level", "slope", "seasonal", "scale")
    pytree_data_fields = (*_fields, "df", "covariance")
    pytree_aux_fields = ("form", "length")

    def __init__(
        self,
        form: Form | str,
        *,
        alpha: ArrayLike,
        beta: ArrayLike = 0.0,
        gamma: ArrayLike = 0.0,
        phi: ArrayLike = 1.0,
        level: ArrayLike,
        slope: ArrayLike = 0.0,
        seasonal: ArrayLike = 0.0,
        scale: ArrayLike,
        length: int,
        df: ArrayLike | None = None,
        covariance: ArrayLike | None = None,
        validate_args: bool | None = None,
    ):
        if length < 1:
            raise ValueError(f"length is {length}; a series has at least one time.")
        self.form = Form.parse(form) if isinstance(form, str) else form
        given = (alpha, beta, gamma, phi, level, slope, seasonal, scale)
        for name, value in zip(self._fields, map(as_float, given), strict=True):
            axes = 1 if name == "seasonal" and self.form.season != "N" else 0
            if value.ndim != axes:
                wanted = "(period,)" if axes else "()"
                raise ValueError(f"{name} has shape {value.shape}; {self.form.name} takes {wanted}.")
            setattr(self, name, value)
        self.df = None if df is None else as_float(df)
        self.covariance = None if covariance is None else as_float(covariance)
        self.length = length
        super().__init__((), (length,), validate_args=validate_args)

    @property
    def weights(self) -> Weights:
        """The smoothing parameters, in letters."""
        return Weights(self.alpha, self.beta, self.gamma, self.phi)

    @property
    def start(self) -> States:
        """The states before the first value, in letters."""
        return States(self.level, self.slope, self.seasonal)

    @property
    def period(self) -> int:
        """Length of the season; 1 where there is none."""
        return self.seasonal.shape[0] if self.form.season != "N" else 1

    @property
    def normal_marginals(self) -> bool:
        """Whether y is normal: it is in a Gaussian form with normal errors."""
        return self.form.gaussian and self.df is None

    @property
    def mean(self) -> Float[Array, " time"]:
        """The path without errors: the mean, where the form is linear; near it where it is not."""
        errors = jnp.zeros(self.length, jnp.result_type(self.level, self.alpha))
        return simulate(self.form, self.weights, self.start, errors)[0]

    @property
    def variance(self) -> Float[Array, " time"]:
        """Variance of each entry of y.

        Raises:
            NotImplementedError: the form is not linear: it has no variance in closed form; draw from it.
        """
        if not self.form.linear:
            raise NotImplementedError(f"{self.form.name} has no variance in closed form; use that of draws.")
        scale = self.scale
        if self.df is not None:
            scale = scale * jnp.where(self.df > 2, jnp.sqrt(self.df / jnp.maximum(self.df - 2, 1e-9)), jnp.inf)
        known = linear.forecast_variance(self.form, self.weights, self.period, self.mean, scale)
        if self.covariance is None:
            return known
        k = self.covariance.shape[0]
        unit = linear.as_states(self.form, jnp.eye(k, dtype=known.dtype))  # a lane for each state
        response = simulate(self.form, self.weights, unit, jnp.zeros((self.length, k), known.dtype))[0]
        return known + jnp.sum((response @ self.covariance) * response, 1)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Float[Array, "*shape time"]:
        """Draws of y, shape `sample_shape + (time,)`; positive where something is multiplicative."""
        k_error, k_start = jax.random.split(key)
        dtype = jnp.result_type(self.level, self.alpha, self.scale)
        draws = math.prod(sample_shape)
        errors = self.scale * self._error(jnp.ones((), dtype)).sample(k_error, (self.length, draws))
        start = self.start
        if self.covariance is not None:
            x = linear.as_vector(self.form, start, dtype)
            noise = jax.random.normal(k_start, (x.size, draws), dtype)
            start = linear.as_states(self.form, x[:, None] + factor(self.covariance) @ noise)
        y, _ = simulate(self.form, self.weights, start, errors)
        return jnp.moveaxis(y, 0, -1).reshape(*sample_shape, self.length)

    def log_prob(self, value: Float[Array, "*batch time"], intermediates: None = None) -> Float[Array, "*batch"]:
        """Joint log density of y; NaN in y is missing.

        Args:
            value: y, shape (..., time).
            intermediates: not used; part of NumPyro's signature.
        """
        return self._each(self._log_prob, value)

    def _log_prob(self, y: Array) -> Array:
        arguments = (self.weights, self.start, self.scale)
        if not self.normal_marginals:
            return log_likelihood(self.form, y, *arguments, self.df)

        def exact(y: Array) -> Array:
            return linear.filtered(self.form, y, *arguments, covariance=self.covariance).log_likelihood

        if self.covariance is not None:
            return exact(y)
        return lax.cond(linear.has_gaps(y), exact, lambda y: log_likelihood(self.form, y, *arguments), y)

    def leave_one_out(self, y: Float[Array, "*batch time"]) -> dist.Normal:
        """The law of each y_t given all other observations, batch shape (..., time), of a Gaussian form.

        Raises:
            TypeError: the law is not Gaussian; no closed form is known.
        """
        if self.df is not None:
            raise TypeError(
                f"ETS({self.form.name}) with Student-t errors has no leave-one-out terms in closed form: compare it "
                "with others by pk.kfold."
            )
        if not self.normal_marginals:
            raise TypeError(
                f"ETS({self.form.name}) has no leave-one-out terms in closed form, as its errors, trend or season are "
                "multiplicative: compare it with others by pk.kfold, or take the logarithm and an additive form."
            )
        one = lambda y: linear.leave_one_out(self.form, y, self.weights, self.start, self.scale)
        mean, variance = self._each(one, y)
        return dist.Normal(mean, jnp.sqrt(variance), validate_args=False)

    def predict(self, y: Float[Array, " time"], X_new: None = None) -> dist.Distribution:
        """Marginals of a fresh observation at each time of y, its states known from y, its error drawn anew.

        Raises:
            ValueError: `X_new` is given; exponential smoothing has no inputs.
        """
        _refuse_inputs(X_new)
        arguments = (self.weights, self.start)
        if self.normal_marginals:
            mean, variance = linear.replicate(self.form, y, *arguments, self.scale)
            return dist.Normal(mean, jnp.sqrt(variance), validate_args=False).to_event(1)
        mean = run(self.form, y, *arguments).mean
        scale = self.scale * (mean if self.form.error == "M" else 1.0)
        return self._error(scale, mean).to_event(1)

    def _error(self, scale: Array, mean: ArrayLike = 0.0) -> dist.Distribution:
        """The law of errors of this scale around a mean."""
        if self.df is None:
            return dist.Normal(mean, scale, validate_args=False)
        return dist.StudentT(self.df, mean, scale, validate_args=False)

    def forecast(self, y: Float[Array, " time"], horizon: int, X_new: None = None) -> "ETSDistribution":
        """The joint law of the next `horizon` observations given y: the same form, from the states after y.

        Raises:
            ValueError: `X_new` is given; exponential smoothing has no inputs.
        """
        _refuse_inputs(X_new)
        arguments = (self.weights, self.start)
        covariance = None
        if self.normal_marginals:
            # One structure for y with and without gaps; the filter costs little beside the draws that follow.
            found = linear.filtered(self.form, y, *arguments, self.scale, self.covariance)
            last, covariance = linear.as_states(self.form, found.last), found.covariance
        else:
            last = run(self.form, y, *arguments).last
        return ETSDistribution(
            self.form,
            **{name: getattr(self, name) for name in self._fields[:4]},
            level=last.l,
            slope=last.b,
            seasonal=last.s if self.form.season != "N" else 0.0,
            scale=self.scale,
            length=horizon,
            df=self.df,
            covariance=covariance,
        )

    def _each(self, function: Any, y: ArrayLike) -> Any:
        """Applies a function of one series to every series of a batch."""
        y = as_float(y)
        if y.shape[-1:] != self.event_shape:
            raise ValueError(
                f"y has shape {y.shape}; its last axis must have length {self.length}, the `length` given."
            )
        for _ in y.shape[:-1]:
            function = jax.vmap(function)
        return function(y)


def _refuse_inputs(X_new: Any) -> None:
    if X_new is not None:
        raise ValueError("X_new was given; exponential smoothing has no inputs. Later times come from forecast.")


class SESDistribution(LevelDistribution):
    r"""Simple exponential smoothing from a flat start: $y_t = l_{t-1} + e_t$, $l_t = l_{t-1} + \alpha e_t$.

    Args:
        alpha: share of an error that the level takes.
        scale: standard deviation of the errors.
        length: number of times.
        start: mean and variance of the first level; None for a flat prior.
    """

    arg_constraints = {"alpha": constraints.real, "scale": constraints.nonnegative}
    pytree_data_fields = ("alpha", "scale")

    def __init__(self, alpha: Any, scale: Any, length: int, start: Any = None, *, validate_args: bool | None = None):
        self.alpha, self.scale = as_float(alpha), as_float(scale)
        super().__init__(length, start, validate_args)

    def replaced_noise(self) -> Array:
        """``(1 - alpha) scale²`` for alpha < 1, the observation noise of the local level that this is; else 0."""
        return jnp.maximum(1 - self.alpha, 0.0) * self.scale**2

    def loadings(self) -> tuple[Array, Array, Array]:
        """(h, c, q) of the base: the level takes the share alpha of each error."""
        return self.scale, self.alpha * self.scale, jnp.zeros_like(self.scale)
