"""The parts of structural time series: models by themselves, which add up by `+`."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions import constraints, transforms

from probkit import priors
from probkit.model import Default, Param, param
from probkit.ssm import components
from probkit.ssm.distribution import LevelDistribution, LocalLevelDistribution
from probkit.ssm.stationary_distribution import StationaryAR, stationary_ar
from probkit.ssm.structural import Component, Structural


def _spread(factor: float = 1.0) -> Any:
    """A standard deviation that may be 0, by default half-normal with `factor` times the spread of y."""
    return param(support=constraints.nonnegative, default=lambda self, y, X: priors.half_normal(y, factor))


def _noise() -> Any:
    return param(support=constraints.nonnegative, default=lambda self, y, X: priors.noise(y))


class LocalLevel(Component):
    """The local level model: a random walk observed with noise (simple exponential smoothing's model).

    ``y_t = level_t + e_t``, ``e_t ~ N(0, obs_scale²)``; ``level_(t+1) = level_t + w_t``, ``w_t ~ N(0, level_scale²)``.
    The starting level is exact diffuse. NaN in y is missing.

    Args:
        level_scale: standard deviation of the level's steps, in the units of y. Default: half-normal with the spread of
            y as its scale.
        obs_scale: standard deviation of the observation noise, in the units of y. Default: the same, cut off below at
            the rounding error of y.

    References:
        Durbin and Koopman (2012), Time Series Analysis by State Space Methods, chapter 2.
    """

    has_level: ClassVar[bool] = True
    scales: ClassVar[tuple[str, ...]] = ("level_scale",)

    level_scale: Param = _spread()
    obs_scale: Param = _noise()

    @property
    def name(self) -> str:
        return "level"

    def block(self, X: Any, times: np.ndarray, fitted: int) -> components.Block:
        return components.level(jnp.square(self.level_scale))

    def distribution(self, X: Any, length: int) -> LevelDistribution:
        """The distribution of y given the two scales."""
        if X is not None:
            raise TypeError("LocalLevel takes no X.")
        return LocalLevelDistribution(self.level_scale, self.obs_scale, length)


class LocalLinearTrend(Component):
    """A level with a slope, both random walks: ``level' = level + slope + w``, ``slope' = damping * slope + u``.

    Both start exact diffuse; a damped slope starts from its stationary law, N(0, slope_scale² / (1 - damping²)).

    Args:
        level_scale: standard deviation of w. Default: half-normal with the spread of y as its scale. 0 makes a smooth
            trend (:func:`SmoothTrend`).
        slope_scale: standard deviation of u, by time step. Default: the same with a tenth of the spread.
        damping: a number or a prior in (0, 1): the slope dies away. 1, the default, is no damping.
        damped: whether to damp by the default prior, Beta(9, 1): half of it above 0.93.
        obs_scale: standard deviation of the observation noise; default as in :class:`LocalLevel`.

    References:
        Harvey (1989), Forecasting, Structural Time Series Models and the Kalman Filter, section 2.3.
    """

    has_level: ClassVar[bool] = True
    scales: ClassVar[tuple[str, ...]] = ("level_scale", "slope_scale")

    level_scale: Param = _spread()
    slope_scale: Param = _spread(0.1)
    damping: Param = param(support=constraints.interval(0.0, 1.0), default=1.0)
    damped: bool = eqx.field(static=True, default=False)
    obs_scale: Param = _noise()

    def __post_init__(self) -> None:
        plain = isinstance(self.damping, int | float) and self.damping == 1.0
        if self.damped and plain:
            self.damping = Default(_damping)
        self.damped = self.damped or not plain

    @property
    def name(self) -> str:
        return "trend"

    def block(self, X: Any, times: np.ndarray, fitted: int) -> components.Block:
        damping = self.damping if self.damped else None
        return components.trend(jnp.square(self.level_scale), jnp.square(self.slope_scale), damping)

    def inner(self, block: components.Block) -> dict[str, Any]:
        return {"slope": np.array([0.0, 1.0])}


def _damping(self: Any, y: Any, X: Any) -> dist.Distribution:
    return dist.Beta(9.0, 1.0)


def SmoothTrend(slope_scale: Any = None, **fields: Any) -> LocalLinearTrend:
    """A trend whose level has no steps of its own (an integrated random walk): `LocalLinearTrend(level_scale=0)`."""
    if slope_scale is not None:
        fields["slope_scale"] = slope_scale
    return LocalLinearTrend(level_scale=0.0, **fields)


def BasicStructural(period: int, obs_scale: Any = None) -> Structural:
    """Trend and dummy season of a whole period, `LocalLinearTrend() + Seasonal(period)`, as R's `StructTS` has it.

    Args:
        period: number of times in a season, such as 4 or 12.
        obs_scale: standard deviation of the observation noise; default as in :class:`Structural`.
    """
    noise = {} if obs_scale is None else {"obs_scale": obs_scale}
    return LocalLinearTrend(**noise) + Seasonal(period)


class Seasonal(Component):
    """A season of a whole period whose effects sum to noise: ``sum of s effects in a row = w``, exact diffuse.

    Args:
        period: s, the number of times in a season, at least 2.
        scale: standard deviation of w; 0 is a season that never changes. Default: half-normal with a tenth of the
            spread of y as its scale.
        obs_scale: standard deviation of the observation noise; default as in :class:`LocalLevel`.

    References:
        Harvey (1989), section 2.3.4.
    """

    scales: ClassVar[tuple[str, ...]] = ("scale",)

    period: int = eqx.field(static=True)
    scale: Param = _spread(0.1)
    obs_scale: Param = _noise()

    def __check_init__(self) -> None:
        if isinstance(self.period, bool) or not isinstance(self.period, int | np.integer) or self.period < 2:
            raise ValueError(
                f"period is {self.period!r}; a whole number of at least 2 is wanted. "
                "pk.TrigonometricSeasonal takes any real period."
            )

    @property
    def name(self) -> str:
        return f"seasonal_{self.period}"

    def block(self, X: Any, times: np.ndarray, fitted: int) -> components.Block:
        return components.seasonal(jnp.square(self.scale), int(self.period), times)


class TrigonometricSeasonal(Component):
    """A season by sines and cosines, whose coefficients are random walks; any real period, such as 365.25.

    Args:
        period: number of times in a season.
        harmonics: how many pairs, at most half the period. Default: all of them, up to 10.
        scale: standard deviation of the steps of every coefficient; 0 is a season that never changes. Default:
            half-normal with a tenth of the spread of y as its scale.
        obs_scale: standard deviation of the observation noise; default as in :class:`LocalLevel`.

    References:
        Harvey (1989), section 2.3.4; West and Harrison (1997), Bayesian Forecasting and Dynamic Models, section 8.6.
    """

    scales: ClassVar[tuple[str, ...]] = ("scale",)

    period: float = eqx.field(static=True)
    harmonics: int | None = eqx.field(static=True, default=None)
    scale: Param = _spread(0.1)
    obs_scale: Param = _noise()

    def __check_init__(self) -> None:
        if not isinstance(self.period, int | float) or not 2 <= self.period < np.inf:
            raise ValueError(f"period is {self.period!r}; a number of at least 2 is wanted.")
        count = self.harmonics
        if count is not None and not (isinstance(count, int) and 1 <= count <= self.period / 2):
            raise ValueError(f"harmonics is {count!r}; a whole number from 1 to half the period is wanted.")

    @property
    def name(self) -> str:
        return f"seasonal_{self.period:g}".replace(".", "_")

    def block(self, X: Any, times: np.ndarray, fitted: int) -> components.Block:
        harmonics = self.harmonics or min(int(self.period // 2), 10)
        return components.trigonometric(jnp.square(self.scale), float(self.period), harmonics, times)


class Cycle(Component):
    """A damped stochastic cycle, from its stationary law.

    A point goes round by ``2 pi / period`` a step, is drawn towards 0 by ``damping`` and pushed by noise of standard
    deviation ``scale``; the cycle is its first coordinate, of variance ``scale² / (1 - damping²)``.

    Args:
        period: number of times a turn, above 2. Default: 2 + log-normal with median an eighth of the length of y and
            log-sd 1.
        damping: in (0, 1). Default: Beta(4, 1), half of it above 0.84.
        scale: standard deviation of the noise. Default: half-normal with the spread of y as its scale.
        obs_scale: standard deviation of the observation noise; default as in :class:`LocalLevel`.

    References:
        Harvey (1989), section 2.3.3.
    """

    scales: ClassVar[tuple[str, ...]] = ("scale",)

    period: Param = param(support=constraints.greater_than(2.0), default=lambda self, y, X: _cycle_period(y))
    damping: Param = param(support=constraints.interval(0.0, 1.0), default=lambda self, y, X: dist.Beta(4.0, 1.0))
    scale: Param = _spread()
    obs_scale: Param = _noise()

    @property
    def name(self) -> str:
        return "cycle"

    def starts_of(self, y: Any) -> list[dict[str, Any]]:
        """All but a fixed wave, at the three highest peaks of the periodogram.

        The likelihood may have a mode at damping 1 and one at every such peak, which others do not lead to.
        """
        damping = jnp.asarray(0.999, y.dtype)
        scale = 0.3 * _spreads(y) * jnp.sqrt(1 - damping**2)
        return [{"period": one, "damping": damping, "scale": scale} for one in _peaks(y)]

    def block(self, X: Any, times: np.ndarray, fitted: int) -> components.Block:
        return components.cycle(jnp.square(self.scale), self.period, self.damping)


def _spreads(y: Any) -> Array:
    """The spread of y, () or (series,)."""
    return jax.vmap(priors.spread, in_axes=1)(y) if y.ndim == 2 else priors.spread(y)


def _peaks(y: Any, count: int = 3) -> list[Array]:
    """Periods of the highest local peaks of the periodogram of y less a line, from 2 to half its length.

    Of several series, (time, series), the peaks of the sum of their periodograms, each in units of its spread.
    """
    n = y.shape[0]
    if n < 12:
        return []
    power = jnp.sum(jax.vmap(_power, in_axes=1)(y / _spreads(y)), axis=0) if y.ndim == 2 else _power(y)
    peak = (power[1:-1] > power[:-2]) & (power[1:-1] > power[2:]) & (np.arange(1, 2 * n) >= 8)
    _, places = jax.lax.top_k(jnp.where(peak, power[1:-1], -1.0), count)
    return list((4 * n / (places + 1)).astype(y.dtype))


def _power(y: Float[Array, " n"]) -> Float[Array, " frequencies"]:
    """The periodogram of y less a line, 4 places for each frequency that n values tell apart."""
    n = y.shape[0]
    t, seen = np.linspace(-1, 1, n), ~jnp.isnan(y)
    plain = jnp.where(seen, y - priors.centre(y), 0.0)
    plain = plain - jnp.where(seen, t, 0.0) * (jnp.sum(plain * t) / jnp.sum(jnp.where(seen, t * t, 0.0)))
    return jnp.abs(jnp.fft.rfft(plain, 4 * n)) ** 2


def _cycle_period(y: Any) -> dist.Distribution:
    middle = jnp.log(jnp.asarray(max(y.shape[0] / 8, 2.0), y.dtype))
    # The domain tells NumPyro that the support is what lies above 2: without it a period may be negative.
    above = transforms.AffineTransform(2.0, 1.0, domain=constraints.positive)
    return dist.TransformedDistribution(dist.LogNormal(middle, 1.0), above)


class Autoregression(Component):
    """A stationary autoregression around 0, ``x_t = phi_1 x_(t-1) + ... + phi_p x_(t-p) + w_t``, from its own law.

    Args:
        order: p.
        coefficients: phi, (p,) or a number for one lag, stationary. Default: uniform over the region of stationarity
            (:class:`probkit.ssm.stationary_distribution.StationaryAR`).
        scale: standard deviation of w. Default: half-normal with the spread of y as its scale.
        obs_scale: standard deviation of the observation noise; default as in :class:`LocalLevel`.
    """

    scales: ClassVar[tuple[str, ...]] = ("scale",)

    order: int = eqx.field(static=True)
    coefficients: Param = param(
        dims=("lag",), support=stationary_ar, default=lambda self, y, X: StationaryAR(int(self.order))
    )
    scale: Param = _spread()
    obs_scale: Param = _noise()

    def __post_init__(self) -> None:
        if isinstance(self.coefficients, int | float):
            self.coefficients = np.array([float(self.coefficients)])

    def __check_init__(self) -> None:
        if isinstance(self.order, bool) or not isinstance(self.order, int | np.integer) or self.order < 1:
            raise ValueError(f"order is {self.order!r}; a whole number of lags, at least 1, is wanted.")

    @property
    def name(self) -> str:
        return "autoregression"

    def block(self, X: Any, times: np.ndarray, fitted: int) -> components.Block:
        phi = jnp.asarray(self.coefficients)
        if phi.shape != (self.order,):
            raise ValueError(f"coefficients has shape {phi.shape}; order {self.order} takes ({self.order},).")
        return components.autoregression(jnp.square(self.scale), phi)


class Regression(Component):
    """Regression on the inputs X, ``y_t = X_t b + ...``, with constant or random-walk coefficients.

    By default the coefficients are states, integrated out under a flat prior like a level (so LOO and forecasts count
    their uncertainty, and they are no parameters); ``posterior.components()`` gives them back.

    Args:
        coefficients: None for coefficients that are states, or a number, an array (features,) or a prior for
            coefficients that are parameters.
        scale: standard deviation of the coefficients' steps, a number, (features,) or a prior. 0, the default, keeps
            them constant.
        prior_scale: where given, the coefficients start from N(0, prior_scale²) instead of a flat prior; a number,
            (features,) or a prior.
        columns: which columns of X it takes; None for all.
        obs_scale: standard deviation of the observation noise; default as in :class:`LocalLevel`.
    """

    takes_X: ClassVar[bool] = True
    scales: ClassVar[tuple[str, ...]] = ("scale",)

    coefficients: Any = None
    scale: Param = param(support=constraints.nonnegative, default=0.0)
    prior_scale: Any = None
    columns: tuple[int, ...] | None = eqx.field(static=True, default=None)
    obs_scale: Param = _noise()

    @property
    def name(self) -> str:
        return "regression"

    def block(self, X: Any, times: np.ndarray, fitted: int) -> components.Block:
        X = X if self.columns is None else X[:, np.array(self.columns)]
        if self.coefficients is not None:
            return components.intercept(X @ jnp.broadcast_to(jnp.asarray(self.coefficients, X.dtype), X.shape[1:]))
        prior = None if self.prior_scale is None else jnp.square(self.prior_scale)
        return components.regression(X, jnp.square(self.scale), prior, _sizes(X[:fitted]))

    def inner(self, block: components.Block) -> dict[str, Any]:
        if self.coefficients is not None:
            return {}
        size, k = jnp.asarray(block.size), np.shape(block.z)[1]
        return {f"coefficient_{j + 1}": jnp.eye(k)[j] / size for j in range(k)}


def _sizes(X: Array) -> Array:
    """The largest absolute value of each column, 1 where it is 0."""
    largest = jnp.max(jnp.abs(X), axis=0)
    return jnp.where(largest > 0, largest, 1.0)


class Intervention(Component):
    """A known event with an unknown effect, integrated out under a flat prior: a regression on a made input.

    Args:
        time: the position in y, from 0, at which it begins.
        kind: ``"step"`` (a lasting shift), ``"pulse"`` (that time alone) or ``"slope"`` (a change of trend, 1 at
            `time`).
        obs_scale: standard deviation of the observation noise; default as in :class:`LocalLevel`.
    """

    time: int = eqx.field(static=True)
    kind: str = eqx.field(static=True, default="step")
    obs_scale: Param = _noise()

    def __check_init__(self) -> None:
        if isinstance(self.time, bool) or not isinstance(self.time, int | np.integer) or self.time < 0:
            raise ValueError(f"time is {self.time!r}; a position in y, from 0, is wanted: y.index.get_loc(date).")
        if self.kind not in ("step", "pulse", "slope"):
            raise ValueError(f"kind is {self.kind!r}; 'step', 'pulse' or 'slope' is wanted.")

    @property
    def name(self) -> str:
        return f"{self.kind}_{self.time}"

    def block(self, X: Any, times: np.ndarray, fitted: int) -> components.Block:
        since = times - self.time
        kinds = {"step": since >= 0, "pulse": since == 0, "slope": np.maximum(since + 1, 0)}
        x = kinds[self.kind].astype(float)
        return components.regression(x[:, None], 0.0, None, max(x[:fitted].max(initial=0.0), 1.0))

    def inner(self, block: components.Block) -> dict[str, Any]:
        return {"effect": 1.0 / jnp.reshape(jnp.asarray(block.size), (1,))}
