"""Gaussian-process regression as a pytree with words for names."""

import dataclasses
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


# Named, not lambdas, so that estimators and models can be pickled by those who must.
def _default_noise(self: Any, y: Any, X: Any) -> dist.Distribution:
    return priors.noise(_values(self, y, X))


def _default_mean(self: Any, y: Any, X: Any) -> dist.Distribution:
    y = _values(self, y, X)
    return dist.Normal(priors.centre(y), priors.spread(y))


def _values(self: Any, y: Any, X: Any) -> Any:
    """y as values of the function, where a covariance says that some rows are slopes or integrals of it."""
    return self.kernel.shown_inside("", y, X)[0] if getattr(self.kernel, "outermost", False) else y


class Exact(eqx.Module):
    """The solver by one Cholesky factor: exact for every covariance, O(n³) in time and O(n²) in memory."""

    def distribution(self, kernel: Any, X: Any, noise_scale: Any, loc: Any) -> GaussianProcess:
        """The law of y."""
        return GaussianProcess(kernel, X, noise_scale, loc)

    def told(self, kernel: Any, X: Any) -> str:
        """What a report says of this solver."""
        return "Solved exactly by a Cholesky factor."


@eqx.filter_jit
def _jitter(model: "GP", X: Any) -> Any:
    return GaussianProcess(model.kernel, X, model.obs_scale, model.mean).jitter()


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
            ``gp.Sparse(200)``, ``gp.HSGP(30)`` and ``gp.Vecchia(30)``; so is ``gp.Grid()``, exact on grids. The report
            says which one answered.

    X is (n,) or (n, features); left out, it is the time index 0, 1, 2, ... NaN in y is missing.

    References:
        Rasmussen and Williams (2006), Gaussian Processes for Machine Learning, chapter 2.
    """

    integrates_states: ClassVar[bool] = True

    kernel: Any = eqx.field(default_factory=Matern32)
    obs_scale: Param = param(support=constraints.nonnegative, default=_default_noise)
    mean: Param = param(default=_default_mean)
    solver: Any = None

    def distribution(self, X: Any, length: int) -> Process:
        """The distribution of y given the kernel's parameters, the noise and the mean."""
        X = self._inputs(X, length)
        return self._solver(X).distribution(self.kernel, X, self.obs_scale, self.mean)

    def prepared(self, y: Any, X: Any) -> "GP":
        """The same with what the solver has to know of the data: a grid's axes, neighbours."""
        if not hasattr(self.solver, "prepared"):
            return self
        X = jnp.arange(y.shape[0], dtype=y.dtype) if X is None else X
        return dataclasses.replace(self, solver=self.solver.prepared(y, X))

    def shown_inside(self, field: str, y: Any, X: Any) -> tuple[Any, Any]:
        """A mean function with slopes or integrals among y is scaled to the values."""
        other = field == "mean" and getattr(self.kernel, "outermost", False)
        return self.kernel.shown_inside(field, y, X) if other else (y, X)

    def check_data(self, y: Any, X: Any) -> None:
        """Refuse inputs that the covariance cannot take."""
        if hasattr(self.kernel, "check_inputs"):
            self.kernel.check_inputs(X)

    def notes(self, y: Any, X: Any = None) -> tuple[str, ...]:
        """What a report should say of one concrete model: which solver answered, and the jitter it took."""
        X = self._inputs(X, y.shape[0])
        solver = self._solver(X)
        told = [solver.told(self.kernel, X)]
        if isinstance(solver, Exact):
            jitter = float(_jitter(self, X))
            if jitter != 0:
                told.append(
                    f"Near the mode the covariance is singular to working precision: {jitter:.1g} of its mean variance "
                    "was added to the diagonal. Float64, or a larger obs_scale, does without."
                )
        return tuple(told)

    def _inputs(self, X: Any, length: int) -> Any:
        dtype = jnp.result_type(self.obs_scale, *([] if callable(self.mean) else [self.mean]))
        return jnp.arange(length, dtype=dtype) if X is None else X

    def _solver(self, X: Any) -> Any:
        if self.solver is not None:
            return self.solver
        return Markov() if X.shape[0] > LONG and is_line(self.kernel, X) else Exact()
