"""Default priors of exponential smoothing: the usual or the admissible region, and starting states scaled to the data.

References:
    Hyndman, R. J., Akram, Md. and Archibald, B. C. (2008). The admissible parameter space for exponential smoothing
        models. Annals of the Institute of Statistical Mathematics 60, 407-426.
"""

from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float

from probkit import priors
from probkit.ets.seasonal_distribution import SeasonalFactors
from probkit.model import given

#: R's bounds of the damping; below the lower one a trend is gone after a few steps, above the upper it is no damping.
PHI = (0.8, 0.98)


def early(y: Float[Array, " n"], count: int) -> Float[Array, ""]:
    """Mean of the first so many observed values."""
    seen = ~jnp.isnan(y)
    used = seen & (jnp.cumsum(seen) <= count)
    return priors.centre(jnp.where(used, y, jnp.nan))


def relative_spread(y: Float[Array, " n"]) -> Float[Array, ""]:
    """Standard deviation over mean of a positive series."""
    return priors.spread(y) / jnp.abs(priors.centre(y))


def alpha(model: Any, y: Array, X: Any) -> Any:
    """Uniform on (0, 1); of the admissible region on (0, 2), or (1 - 1/phi, 1 + 1/phi) with damping."""
    zero = jnp.zeros((), y.dtype)
    if not model.admissible:
        return dist.Uniform(zero, 1.0)
    return given(_alpha_damped, hierarchy=False) if model.form.damped else dist.Uniform(zero, 2.0)


def _alpha_damped(model: Any) -> dist.Distribution:
    return dist.Uniform(1 - 1 / model.phi, 1 + 1 / model.phi)


def beta(model: Any, y: Array, X: Any) -> Any:
    """Uniform on (0, alpha), given alpha; of the admissible region on (alpha (phi - 1), (1 + phi) (2 - alpha))."""
    if model.form.trend == "N":
        return jnp.zeros((), y.dtype)
    if not model.admissible:
        return given(_beta_usual, hierarchy=False)
    return given(_beta_damped if model.form.damped else _beta_admissible, hierarchy=False)


def _beta_usual(model: Any) -> dist.Distribution:
    return dist.Uniform(0.0, model.alpha)


def _beta_admissible(model: Any) -> dist.Distribution:
    return dist.Uniform(0.0, 4 - 2 * model.alpha)


def _beta_damped(model: Any) -> dist.Distribution:
    return dist.Uniform(model.alpha * (model.phi - 1), (1 + model.phi) * (2 - model.alpha))


def gamma(model: Any, y: Array, X: Any) -> Any:
    """Uniform on (0, 1 - alpha), given alpha."""
    return jnp.zeros((), y.dtype) if model.form.season == "N" else given(_gamma_usual, hierarchy=False)


def _gamma_usual(model: Any) -> dist.Distribution:
    return dist.Uniform(0.0, 1 - model.alpha)


def phi(model: Any, y: Array, X: Any) -> Any:
    """Uniform on (0.8, 0.98), as R bounds it."""
    one = jnp.ones((), y.dtype)
    return dist.Uniform(PHI[0] * one, PHI[1] * one) if model.form.damped else one


def level(model: Any, y: Array, X: Any) -> Any:
    """Around the mean of the first two periods, ten values at least, with twice the spread of y; positive if y is."""
    middle = early(y, max(10, 2 * model.period))
    if model.form.positive:
        return dist.LogNormal(jnp.log(middle), 2 * relative_spread(y))
    return dist.Normal(middle, 2 * priors.spread(y))


def slope(model: Any, y: Array, X: Any) -> Any:
    """Around 0 (or the ratio 1), with twice the spread of y over the root of its length."""
    step = 2 / jnp.sqrt(jnp.sum(~jnp.isnan(y))).astype(y.dtype)
    if model.form.trend == "A":
        return dist.Normal(jnp.zeros((), y.dtype), step * priors.spread(y))
    if model.form.trend == "M":
        return dist.LogNormal(jnp.zeros((), y.dtype), step * relative_spread(y))
    return jnp.zeros((), y.dtype)


def half_trend(model: Any, y: Array, X: Any) -> Any:
    """Half the slope of a line through y, least squares, each place of the season with a mean of its own."""
    seen = ~jnp.isnan(y)
    place = (jnp.arange(y.shape[0])[:, None] % model.period == jnp.arange(model.period)) & seen[:, None]
    apart = lambda v: v - place @ (v @ place / jnp.maximum(jnp.sum(place, 0), 1))
    time = jnp.where(seen, apart(jnp.where(seen, jnp.arange(y.shape[0], dtype=y.dtype), 0.0)), 0.0)
    length = jnp.sum(time**2)
    return 0.5 * jnp.sum(time * jnp.where(seen, y, 0.0)) / jnp.where(length > 0, length, 1.0)


def seasonal(model: Any, y: Array, X: Any) -> Any:
    """Zero-sum normal with the spread of y; factors of mean 1 with its relative spread."""
    if model.form.season == "A":
        return dist.ZeroSumNormal(priors.spread(y), (model.period,))
    if model.form.season == "M":
        return SeasonalFactors(relative_spread(y), model.period)
    return jnp.zeros((), y.dtype)


def scale(model: Any, y: Array, X: Any) -> Any:
    """Half-normal with the spread of y, relative where errors are multiplicative; cut off at the rounding error."""
    if model.form.error == "A":
        return priors.noise(y)
    relative, mean = relative_spread(y), jnp.abs(priors.centre(y))
    return dist.TruncatedNormal(jnp.zeros_like(relative), relative, low=priors.rounding(y) / mean)
