"""Gaussian-process regression as a pytree with words for names."""

from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions import constraints

from probkit import priors
from probkit.gp.distribution import GaussianProcess, Process
from probkit.gp.line_process import Markov, is_line
from probkit.gp.stationary_covariances import Matern32
from probkit.model import Model, Param, param

#: From this many observations on, a Markov covariance on a line is solved as one: both are exact.
LONG = 256


class Exact(eqx.Module):
    """The solver by one Cholesky factor: exact for every covariance, O(n³) in time and O(n²) in memory."""

    def distribution(self, kernel: Any, X: Any, noise_scale: Any, loc: Any) -> GaussianProcess:
        """The law of y."""
        return GaussianProcess(kernel, X, noise_scale, loc)

    def told(self, kernel: Any, X: Any) -> str:
        """What a report says of this solver."""
        return "Solved exactly by a Cholesky factor."


class GP(Model):
    """Gaussian-process regression with normal noise: ``y = mean + f(X) + e``, ``f ~ GP(0, kernel)``.

    Args:
        kernel: a covariance with priors in its fields. Default: ``Matern32()``.
        obs_scale: standard deviation of the noise, in the units of y; a scalar, or known ones, (n,): then predictions
            at new inputs are of the function itself. Default: half-normal with the spread of y as its scale, cut off
            below at the rounding error of y.
        mean: constant mean, or a callable pytree from inputs to the mean of y, such as ``gp.LinearMean()``. Default:
            normal around the mean of y with its spread.
        solver: what computes. None (the default) is exact: ``gp.Markov()``, in O(n), for one column of inputs, a Markov
            covariance and more than 256 observations, else ``gp.Exact()``. Approximations are asked for by name:
            ``gp.Sparse(200)``, ``gp.HSGP(30)``. The report says which one answered.

    X is (n,) or (n, features); left out, it is the time index 0, 1, 2, ... NaN in y is missing.

    References:
        Rasmussen and Williams (2006), Gaussian Processes for Machine Learning, chapter 2.
    """

    integrates_states: ClassVar[bool] = True

    kernel: Any = eqx.field(default_factory=Matern32)
    obs_scale: Param = param(support=constraints.nonnegative, default=lambda self, y, X: priors.noise(y))
    mean: Param = param(default=lambda self, y, X: dist.Normal(priors.centre(y), priors.spread(y)))
    solver: Any = None

    def distribution(self, X: Any, length: int) -> Process:
        """The distribution of y given the kernel's parameters, the noise and the mean."""
        X = self._inputs(X, length)
        return self._solver(X).distribution(self.kernel, X, self.obs_scale, self.mean)

    def notes(self, y: Any, X: Any = None) -> tuple[str, ...]:
        """What a report should say of one concrete model: which solver answered."""
        X = self._inputs(X, y.shape[0])
        return (self._solver(X).told(self.kernel, X),)

    def _inputs(self, X: Any, length: int) -> Any:
        dtype = jnp.result_type(self.obs_scale, *([] if callable(self.mean) else [self.mean]))
        return jnp.arange(length, dtype=dtype) if X is None else X

    def _solver(self, X: Any) -> Any:
        if self.solver is not None:
            return self.solver
        return Markov() if X.shape[0] > LONG and is_line(self.kernel, X) else Exact()
