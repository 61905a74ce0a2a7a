"""Gaussian-process regression as a pytree with words for names."""

from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions import constraints

from probkit import priors
from probkit.gp.distribution import GaussianProcess
from probkit.gp.kernels import matern32, squared_distance
from probkit.model import Model, Param, param


class Matern32(eqx.Module):
    """Matern-3/2 covariance: ``scale² (1 + r) exp(-r)`` with ``r = √3 |x - x'| / lengthscale``.

    Args:
        lengthscale: in the units of X, scalar or one per column (ARD). Default: log-normal around a quarter of the span
            of X.
        scale: standard deviation of the function, in the units of y. Default: half-normal with twice the spread of y.

    References:
        Rasmussen and Williams (2006), Gaussian Processes for Machine Learning, eq. 4.17.
    """

    lengthscale: Param = param(support=constraints.positive, default=lambda self, y, X: priors.lengthscale(y, X))
    scale: Param = param(support=constraints.nonnegative, default=lambda self, y, X: priors.half_normal(y, 2.0))

    def __call__(self, X1: Float[Array, "n *D"], X2: Float[Array, "m *D"]) -> Float[Array, "n m"]:
        """Covariance between two sets of inputs."""
        return self.scale**2 * matern32(squared_distance(X1, X2, self.lengthscale))

    def diagonal(self, X: Float[Array, "n *D"]) -> Float[Array, " n"]:
        """Variance at each input."""
        return jnp.broadcast_to(self.scale**2, X.shape[:1])


class GP(Model):
    """Gaussian-process regression with normal noise, exact: ``y = mean + f(X) + e``, ``f ~ GP(0, kernel)``.

    Args:
        kernel: a covariance with priors in its fields. Default: ``Matern32()``.
        obs_scale: standard deviation of the noise, in the units of y. Default: half-normal with the spread of y as its
            scale, cut off below at the rounding error of y.
        mean: constant mean. Default: normal around the mean of y with its spread.

    X is (n,) or (n, features); left out, it is the time index 0, 1, 2, ... NaN in y is missing.

    References:
        Rasmussen and Williams (2006), Gaussian Processes for Machine Learning, chapter 2.
    """

    integrates_states: ClassVar[bool] = True

    kernel: Any = eqx.field(default_factory=Matern32)
    obs_scale: Param = param(support=constraints.nonnegative, default=lambda self, y, X: priors.noise(y))
    mean: Param = param(default=lambda self, y, X: dist.Normal(priors.centre(y), priors.spread(y)))

    def distribution(self, X: Any, length: int) -> GaussianProcess:
        """The distribution of y given the kernel's parameters, the noise and the mean."""
        X = jnp.arange(length, dtype=jnp.result_type(self.obs_scale, self.mean)) if X is None else X
        return GaussianProcess(self.kernel, X, self.obs_scale, self.mean)
