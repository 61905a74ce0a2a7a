"""Default priors: weakly informative, and in the units of the data, so that any real series can be fitted as it is."""

from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Bool, Float


def spread(y: Float[Array, " n"]) -> Float[Array, ""]:
    """Standard deviation of the observed values; where it is 0, the absolute mean; where that is 0 too, 1."""
    mean = jnp.abs(centre(y))
    return jnp.where(constant(y), jnp.where(mean > 0, mean, 1.0), deviation(y))


def deviation(y: Float[Array, " n"]) -> Float[Array, ""]:
    """Standard deviation of the observed values, 0 where there is one."""
    seen = ~jnp.isnan(y)
    count = jnp.maximum(jnp.sum(seen), 1)
    return jnp.sqrt(jnp.sum(jnp.where(seen, y - centre(y), 0.0) ** 2) / count)


def constant(y: Float[Array, " n"]) -> Bool[Array, ""]:
    """Whether the observed values differ by a few roundings at most."""
    return deviation(y) <= 8 * jnp.finfo(y.dtype).eps * jnp.abs(centre(y))


def centre(y: Float[Array, " n"]) -> Float[Array, ""]:
    """Mean of the observed values, in two passes so that a large offset costs no digits."""
    seen = ~jnp.isnan(y)
    count = jnp.maximum(jnp.sum(seen), 1)
    rough = jnp.sum(jnp.where(seen, y, 0.0)) / count
    return rough + jnp.sum(jnp.where(seen, y - rough, 0.0)) / count


def rounding(y: Float[Array, " n"]) -> Float[Array, ""]:
    """The rounding error of the largest value: no scale below it can be told from 0.

    A constant series is taken as exact to half its digits: its scales are driven to this bound, and a likelihood
    evaluated at the last digit is all rounding.
    """
    largest = jnp.max(jnp.where(jnp.isnan(y), 0.0, jnp.abs(y)))
    eps = jnp.finfo(y.dtype).eps
    return jnp.where(constant(y), eps**0.5, eps) * jnp.where(largest > 0, largest, 1.0)


def half_normal(y: Float[Array, " n"], factor: float = 1.0) -> dist.Distribution:
    """Half-normal with scale ``factor`` times the spread of y: for scales that may well be 0."""
    return dist.HalfNormal(factor * spread(y))


def noise(y: Float[Array, " n"], factor: float = 1.0) -> dist.Distribution:
    """Half-normal with scale ``factor`` times the spread of y, cut off below at the rounding error of y.

    A noise of 0 would make the likelihood of a constant series infinite, and its posterior improper.
    """
    scale = factor * spread(y)
    return dist.TruncatedNormal(jnp.zeros_like(scale), scale, low=rounding(y))


def lengthscale(y: Float[Array, " n"], X: Any) -> dist.Distribution:
    """Log-normal around a quarter of the span of each column of X, times the root of their number.

    X None is the time index. The log has standard deviation 1: nine draws of ten lie within a factor of 5.
    """
    X = jnp.arange(y.shape[0], dtype=y.dtype) if X is None else X
    span = jnp.max(X, 0) - jnp.min(X, 0)
    columns = 1 if X.ndim == 1 else X.shape[1]
    middle = jnp.where(span > 0, span, 1.0) * (columns**0.5 / 4)
    law = dist.LogNormal(jnp.log(middle), 1.0)
    return law if X.ndim == 1 else law.to_event(1)
