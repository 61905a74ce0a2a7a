"""The local level model as a NumPyro distribution over whole series, and the base it shares with ARIMA(0,1,1)."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float
from numpyro.distributions import constraints

from probkit.ssm import kalman, level, smoother
from probkit.ssm.statespace import Start as StateStart
from probkit.ssm.statespace import StateSpace, depends_on_time

Start = tuple[ArrayLike, ArrayLike] | None


class LevelDistribution(dist.Distribution):
    r"""Abstract: a random walk observed with noise, the two disturbances possibly correlated.

    $$y_t = a_t + h e_t, \qquad a_{t+1} = a_t + c e_t + q w_t, \qquad e_t, w_t \sim N(0, 1).$$

    A subclass holds its parameters under the names in `arg_constraints`, gives (h, c, q) by `loadings`, and takes the
    keywords `length` and `start`. Parameters may have batch axes, as in any NumPyro distribution; so may y, in front.
    """

    support = constraints.real_vector
    normal_marginals = True
    pytree_data_fields: tuple[str, ...] = ("start",)
    pytree_aux_fields: tuple[str, ...] = ("length",)

    def __init__(self, length: int, start: Start, validate_args: bool | None):
        if length < 1:
            raise ValueError(f"length is {length}; a series has at least one time.")
        self.length = length
        self.start = None if start is None else (as_float(start[0]), as_float(start[1]))
        shapes = [jnp.shape(parameter) for parameter in (*self.loadings(), *(self.start or ()))]
        super().__init__(jnp.broadcast_shapes(*shapes), (length,), validate_args=validate_args)

    @property
    def diffuse_states(self) -> int:
        """How many states start diffuse: each takes one observation and a constant out of information criteria."""
        return 1 if self.start is None else 0

    def loadings(self) -> tuple[Array, Array, Array]:
        """(h, c, q) of the class docstring."""
        raise NotImplementedError

    def variances(self) -> tuple[Array, Array, Array]:
        """(H, Q, C) of `probkit.ssm.level`: the variances of observation and level, and their covariance."""
        return _variances(*self.loadings())

    def replaced_noise(self) -> Array:
        """Variance of the part of y_t that moves no other observation, which a replicate draws anew; here all of H."""
        return self.variances()[0]

    @property
    def mean(self) -> Float[Array, "*batch time"]:
        """Mean of y before any is seen: that of the starting level, 0 if it is diffuse."""
        mean = 0.0 if self.start is None else self.start[0][..., None]
        return jnp.broadcast_to(mean, self.shape())

    @property
    def variance(self) -> Float[Array, "*batch time"]:
        """Variance of y before any is seen, P_1 + (t - 1) Q + H; infinite if the start is diffuse."""
        if self.start is None:
            return jnp.full(self.shape(), jnp.inf)
        H, Q, P = (x[..., None] for x in (*self.variances()[:2], self.start[1]))
        return jnp.broadcast_to(P + jnp.arange(self.length) * Q + H, self.shape())

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Float[Array, "*shape time"]:
        """Draws of y, shape `sample_shape + batch_shape + (time,)`. From a diffuse start the level begins at 0."""
        h, c, q = (x[..., None] for x in self.loadings())
        m, P = (jnp.zeros_like(h),) * 2 if self.start is None else (x[..., None] for x in self.start)
        e, w = jax.random.normal(key, (2, *self.shape(sample_shape)), jnp.result_type(h, m))
        # The last level step moves nothing that is seen, so its w is free for the starting level.
        steps = jnp.concatenate([m + jnp.sqrt(P) * w[..., -1:], (c * e + q * w)[..., :-1]], axis=-1)
        return jnp.cumsum(steps, axis=-1) + h * e

    def log_prob(self, value: Float[Array, "*batch time"], intermediates: None = None) -> Float[Array, "*batch"]:
        """Joint log density of y (`level.log_likelihood`, which says which constants count); NaN in y is missing.

        Computed in units of the range of y, where the squares of variances that derivatives hold stay in range.

        Args:
            value: y, shape (..., time).
            intermediates: not used; part of NumPyro's signature.
        """
        return self._each(_log_likelihood, value, "()", self.loadings())

    def leave_one_out(self, y: Float[Array, "*batch time"]) -> dist.Normal:
        """The law of each y_t given all other observations, batch shape (..., time); its `log_prob(y)` are LOO terms.

        Where y is missing, the law of what was not seen; NaN where nothing else was observed.
        """
        mean, variance = self._each(level.leave_one_out, y, "(n),(n)")
        return dist.Normal(mean, jnp.sqrt(variance), validate_args=False)

    def predict(self, y: Float[Array, "*batch time"], X_new: None = None) -> dist.Distribution:
        """Marginals of a fresh observation at each time of y, given y: the smoothed signal with its noise drawn anew.

        With H the variance of the part of y that leaves no trace in later observations (`replaced_noise`) and
        ``m, V`` the mean and variance of y_t given all others: mean ``y - (H / V)(y - m)``, variance ``H (2 - H / V)``.
        Where y is missing, the law of what was not seen.

        Raises:
            ValueError: `X_new` is given; a level has no inputs.
        """
        if X_new is not None:
            raise ValueError(
                "X_new was given; a level model has no inputs. Later times come from forecast(y, horizon)."
            )
        m, V = self._each(level.leave_one_out, y, "(n),(n)")
        H = self.replaced_noise()[..., None]
        share = jnp.where(V > 0, H / V, 0.0)  # 0 too where V is NaN: nothing else was observed
        mean = jnp.where(jnp.isnan(y), m, y - jnp.where(share > 0, share * (y - m), 0.0))
        variance = jnp.where(jnp.isnan(y), V, H * (2.0 - share))
        return dist.Normal(mean, jnp.sqrt(variance), validate_args=False).to_event(1)

    def one_step(self, y: Float[Array, "*batch time"]) -> dist.Normal:
        """The law of each y_t given those before it, batch shape (..., time); NaN before the level is known."""
        a, P = self._each(lambda *arguments: level.run_filter(*arguments)[:2], y, "(n),(n)")
        variance = P + self.variances()[0][..., None]
        known = jnp.isfinite(variance)
        scale = jnp.where(known, jnp.sqrt(variance), jnp.nan)
        return dist.Normal(jnp.where(known, a, jnp.nan), scale, validate_args=False)

    def forecast(self, y: Float[Array, "*batch time"], horizon: int, X_new: None = None) -> "LevelDistribution":
        """The joint law of the next `horizon` observations given y: the same model, from a known start.

        Raises:
            ValueError: `X_new` is given; a level has no inputs.
        """
        if X_new is not None:
            raise ValueError(f"{type(self).__name__} takes no X_new: a level has no inputs.")
        start = self._each(lambda *arguments: level.run_filter(*arguments).next, y, "(),()")
        parameters = {name: getattr(self, name) for name in self.arg_constraints}
        return type(self)(**parameters, length=horizon, start=start)

    def _each(
        self,
        function: Callable[..., Any],
        y: ArrayLike,
        out: str,
        parameters: tuple[Array, Array, Array] | None = None,
    ) -> Any:
        """Applies a function of (y, H, Q, C, start), or of other parameters, to every series of the batch."""
        y = jnp.asarray(y)
        if y.shape[-1:] != self.event_shape:
            raise ValueError(
                f"y has shape {y.shape}; its last axis must have length {self.length}, the `length` given."
            )
        scalars = (*(self.variances() if parameters is None else parameters), *(self.start or ()))
        signature = f"(n){',()' * len(scalars)}->{out}"
        return jnp.vectorize(lambda y, *s: function(y, *s[:3], s[3:] or None), signature=signature)(y, *scalars)


def _variances(h: Array, c: Array, q: Array) -> tuple[Array, Array, Array]:
    return h * h, c * c + q * q, h * c


def _log_likelihood(y: Array, h: Array, c: Array, q: Array, start: Start) -> Array:
    """`level.log_likelihood` of y in units of its range, from its first value, as a density of y."""
    observed = ~jnp.isnan(y)
    origin = lax.stop_gradient(jnp.where(jnp.any(observed), y[jnp.argmax(observed)], 0))
    span = lax.stop_gradient(jnp.max(jnp.where(observed, jnp.abs(y - origin), 0)))
    unit = jnp.where(span > 0, span, jnp.where(origin != 0, jnp.abs(origin), 1))
    moved = None if start is None else ((start[0] - origin) / unit, start[1] / unit / unit)
    scored = jnp.maximum(jnp.sum(observed) - (start is None), 0)
    value = level.log_likelihood((y - origin) / unit, *_variances(h / unit, c / unit, q / unit), moved)
    return value - scored * jnp.log(unit)


class LocalLevelDistribution(LevelDistribution):
    r"""The local level model: $y_t = a_t + \varepsilon_t$, $a_{t+1} = a_t + \eta_t$, as a law of the series y.

    Args:
        level_scale: standard deviation of the level's steps eta.
        obs_scale: standard deviation of the observation noise epsilon.
        length: number of times.
        start: mean and variance of the first level; None for exact diffuse, a flat prior.

    References:
        Durbin and Koopman (2012), Time Series Analysis by State Space Methods, chapter 2.
    """

    arg_constraints = {"level_scale": constraints.nonnegative, "obs_scale": constraints.nonnegative}
    pytree_data_fields = ("level_scale", "obs_scale")

    def __init__(
        self,
        level_scale: ArrayLike,
        obs_scale: ArrayLike,
        length: int,
        start: Start = None,
        *,
        validate_args: bool | None = None,
    ):
        self.level_scale, self.obs_scale = as_float(level_scale), as_float(obs_scale)
        super().__init__(length, start, validate_args)

    def loadings(self) -> tuple[Array, Array, Array]:
        return self.obs_scale, jnp.zeros_like(self.obs_scale), self.level_scale


def as_float(value: ArrayLike) -> Array:
    """A parameter as a floating array."""
    value = jnp.asarray(value)
    return value if jnp.issubdtype(value.dtype, jnp.floating) else value.astype(float)


# --- the general model, over `probkit.ssm.kalman` and `probkit.ssm.smoother` ---


class LinearGaussian(dist.Distribution):
    r"""Any linear Gaussian state space model as a law of the series y.

    $$y_t = Z_t \alpha_t + d_t + \varepsilon_t, \qquad \alpha_{t+1} = T_t \alpha_t + c_t + R_t \eta_t.$$

    One entry at each time gives the event shape `(time,)`, more give `(time, p)`. y may have batch axes in front; the
    matrices may not, since an axis in front of them is time: batches of models are `jax.vmap` over this class.

    Args:
        model: the matrices, constant or with a time axis (`probkit.ssm.statespace`, which has the references).
        start: law of the first state, from `known_start` or `diffuse_start`.
        length: number of times.
    """

    arg_constraints: dict[str, Any] = {}
    normal_marginals = True
    pytree_data_fields = ("model", "start")
    pytree_aux_fields = ("length",)

    def __init__(self, model: StateSpace, start: StateStart, length: int, *, validate_args: bool | None = None):
        if length < 1:
            raise ValueError(f"length is {length}; a series has at least one time.")
        R = None if model.R is None else as_float(model.R)
        Z, H, T, Q, d, c = (as_float(x) for x in (model.Z, model.H, model.T, model.Q, model.d, model.c))
        self.model = StateSpace(Z, H, T, R, Q, d, c)
        self.start = StateStart(*(as_float(x) for x in start))
        self.length = length
        p = jnp.shape(self.model.Z)[-2]
        super().__init__((), (length,) if p == 1 else (length, p), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, self.event_dim)

    @property
    def diffuse_states(self) -> int:
        """How many states start diffuse: each takes one observation and a constant out of information criteria."""
        return jnp.shape(self.start.A)[-1]

    @property
    def mean(self) -> Array:
        """Mean of y before any is seen, flat states taken at their start's a."""
        return kalman.forecast(self.model, self.start, self.length).mean.reshape(self.event_shape)

    @property
    def variance(self) -> Array:
        """Variance of each entry of y before any is seen; infinite where it sees a flat state."""
        S = kalman.forecast(self.model, self.start, self.length).variance
        return jnp.diagonal(S, axis1=-2, axis2=-1).reshape(self.event_shape)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws of y, shape `sample_shape + event_shape`. Flat states begin at their start's a."""
        keys = jax.random.split(key, math.prod(sample_shape))
        draw = lambda key: smoother.simulate(key, self.model, self.start, self.length)[1]
        return jax.vmap(draw)(keys).reshape(*sample_shape, *self.event_shape)

    def log_prob(self, value: Array, intermediates: None = None) -> Float[Array, "*batch"]:
        """Joint log density of y (`kalman.log_likelihood`, which says which constants count); NaN in y is missing.

        Args:
            value: y, shape (..., time) or (..., time, p).
            intermediates: not used; part of NumPyro's signature.
        """
        return self._each(lambda y: kalman.log_likelihood(y, self.model, self.start), value)

    def leave_one_out(self, y: Array) -> dist.Normal:
        """The law of each entry of y given all other entries, in the shape of y; its `log_prob(y)` are LOO terms.

        Where y is missing, the law of what was not seen; NaN where nothing else determines it.
        """
        mean, variance = self._each(lambda y: smoother.leave_one_out(y, self.model, self.start), y)
        return dist.Normal(mean, jnp.sqrt(variance), validate_args=False)

    def predict(self, y: Array, X_new: None = None) -> dist.Distribution:
        """Marginals of a fresh observation of the smoothed state at each time of y; takes no `X_new`."""
        _refuse_inputs(X_new)
        mean, variance = self._each(lambda y: smoother.predict(y, self.model, self.start), y)
        return dist.Normal(mean, jnp.sqrt(variance), validate_args=False).to_event(self.event_dim)

    def forecast(
        self, y: Array, horizon: int, X_new: None = None, *, model: StateSpace | None = None
    ) -> "LinearGaussian":
        """The joint law of the next `horizon` observations given one y: the same model, from what y says of the state.

        Args:
            y: the observations; batches are `jax.vmap`.
            horizon: number of times.
            X_new: not used; inputs of a state space model are part of its matrices.
            model: matrices of the future; needed where one depends on time.

        Raises:
            ValueError: a matrix depends on time and no `model` is given, or `X_new` is.
        """
        _refuse_inputs(X_new)
        if model is None and depends_on_time(self.model):
            raise ValueError("A matrix of this model depends on time: pass forecast(..., model=) with its next values.")
        start = kalman.run_filter(self._checked(y), self.model, self.start).next
        return LinearGaussian(self.model if model is None else model, start, horizon)

    def _checked(self, y: ArrayLike) -> Array:
        y = jnp.asarray(y)
        if y.shape[y.ndim - self.event_dim :] != self.event_shape:
            raise ValueError(f"y has shape {y.shape}; its last axes must be {self.event_shape}, (time,) or (time, p).")
        return y

    def _each(self, function: Callable[..., Any], y: ArrayLike) -> Any:
        """Applies a function of y to every series of the batch."""
        y = self._checked(y)
        batch = y.shape[: y.ndim - self.event_dim]
        if not batch:
            return function(y)
        result = jax.vmap(function)(y.reshape(-1, *self.event_shape))
        return jax.tree.map(lambda x: x.reshape(*batch, *x.shape[1:]), result)


def _refuse_inputs(X_new: None) -> None:
    if X_new is not None:
        raise ValueError("X_new was given; inputs of a state space model are part of its matrices (Z or d, over time).")
