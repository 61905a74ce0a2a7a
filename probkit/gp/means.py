"""Mean functions: callable pytrees from inputs to the mean of y. A number is a constant mean; any module will do."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions import constraints

from probkit import priors
from probkit.gp.kernels import columns
from probkit.model import Param, param


def _inputs(y: Any, X: Any) -> Array:
    return jnp.arange(y.shape[0], dtype=y.dtype) if X is None else X


def _default_slope(self: Any, y: Any, X: Any) -> dist.Distribution:
    X = _inputs(y, X)
    spread = jnp.std(X, axis=0)
    law = dist.Normal(0.0, 2.0 * priors.spread(y) / jnp.where(spread > 0, spread, 1.0))
    return law if X.ndim == 1 else law.to_event(1)


class LinearMean(eqx.Module):
    """A line: ``intercept + sum_d slope_d (x_d - centre_d)``.

    Args:
        intercept: the mean at the centre. Default: normal around the mean of y with twice its spread.
        slope: per unit of X, a scalar or one per column. Default: normal around 0 with twice the spread of y over the
            standard deviation of the column.
        centre: Default: the mean of X, fixed.
    """

    intercept: Param = param(default=lambda self, y, X: dist.Normal(priors.centre(y), 2.0 * priors.spread(y)))
    slope: Param = param(default=_default_slope)
    centre: Param = param(support=constraints.real, default=lambda self, y, X: jnp.mean(_inputs(y, X), 0))

    def __call__(self, X: Float[Array, "n *D"]) -> Float[Array, " n"]:
        """The mean of y at inputs."""
        Z = columns(X)
        return self.intercept + jnp.sum((Z - jnp.asarray(self.centre, Z.dtype)) * jnp.asarray(self.slope, Z.dtype), 1)
