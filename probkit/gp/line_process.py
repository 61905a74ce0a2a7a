"""Gaussian processes on a line as NumPyro distributions, in O(n): for covariances that are Markov processes."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num
from numpyro.distributions import constraints

from probkit.gp import markov, markov_filter
from probkit.gp.covariance import blocks_of
from probkit.gp.distribution import Process


class Markov(eqx.Module):
    """The solver for one-dimensional inputs and Markov covariances: exact, O(n) in time and memory.

    Matérn 1/2, 3/2, 5/2, SHO and their sums, on inputs in any order, with duplicates.
    """

    def distribution(self, kernel: Any, X: Any, noise_scale: Any, loc: Any) -> "MarkovProcess":
        """The law of y."""
        return MarkovProcess(kernel, X, noise_scale, loc)

    def told(self, kernel: Any, X: Any) -> str:
        """What a report says of this solver."""
        states = sum(len(block.stationary) for block in blocks_of(kernel) or ())
        return f"Solved exactly as a Markov process of {states} states, in O(n)."


def is_line(kernel: Any, X: Any) -> bool:
    """Whether the process can be solved as a Markov process: one input column and a Markov covariance."""
    return (X.ndim == 1 or X.shape[1] == 1) and blocks_of(kernel) is not None


class MarkovProcess(Process):
    """Noisy values of a Markov process on a line: the law of :class:`probkit.gp.GaussianProcess`, in O(n).

    Args:
        kernel: a covariance whose ``blocks()`` are not None: Matérn, SHO, sums of them.
        X: inputs, (n,) or (n, 1), in any order; equal ones allowed.
        noise_scale: standard deviation of the noise, a scalar or (n,).
        loc: the mean, a scalar or a callable pytree.

    Raises:
        ValueError: several input columns, or a covariance that is not Markov.

    References:
        Hartikainen and Särkkä (2010). Foreman-Mackey et al. (2017), Fast and scalable Gaussian process modeling.
    """

    def __init__(
        self,
        kernel: Any,
        X: Num[ArrayLike, "n *D"],
        noise_scale: Num[ArrayLike, "*n"],
        loc: Any = 0.0,
        *,
        validate_args: bool | None = None,
    ):
        super().__init__(kernel, X, noise_scale, loc, validate_args=validate_args)
        if not is_line(kernel, self.X):
            raise ValueError(
                f"X has shape {self.X.shape} and kernel is {type(kernel).__name__}; a Markov process takes one column "
                "of inputs and Matérn or SHO covariances or sums of them. Use gp.Exact()."
            )

    def _chain(self, x: Array) -> tuple[tuple[int, ...], markov.Chain]:
        blocks = blocks_of(self.kernel) or ()
        return markov.observed_states(blocks), markov.chain(blocks, x)

    def _sorted(self) -> tuple[Array, Array]:
        """The inputs in increasing order, and the order; sorting is skipped where they are sorted already."""
        x = jnp.reshape(self.X, self.event_shape)
        order = _order(x)
        return x[order], order

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Float[Array, "*sample n"]:
        """Draws of y from the prior, shape ``sample_shape + (n,)``."""
        x, order = self._sorted()
        z, c = self._chain(x)

        def one(key: Array) -> Array:
            k_path, k_noise = jax.random.split(key)
            path = jnp.zeros_like(x).at[order].set(markov_filter.simulate(z, c, k_path, x))
            return self.mean + path + self.noise_scale * jax.random.normal(k_noise, x.shape, x.dtype)

        return _repeat(one, key, sample_shape)

    def log_prob(self, value: Num[ArrayLike, "*sample n"], intermediates: None = None) -> Float[Array, "*sample"]:
        """Log marginal likelihood of the observed entries of y, in O(n); -inf where it fails.

        Args:
            value: y, shape (..., n).
            intermediates: not used; part of NumPyro's signature.
        """
        residual = self._observations(value) - self.mean
        x, order = self._sorted()
        z, c = self._chain(x)
        noise = self.noise[order]
        each = jnp.vectorize(lambda r: markov_filter.log_likelihood(z, c, noise, r[order]), signature="(n)->()")(
            residual
        )
        return jnp.where(jnp.any(jnp.isnan(self.mean)), -jnp.inf, each)

    def leave_one_out(self, y: Num[ArrayLike, " n"]) -> dist.Normal:
        """The law of each y_i given the parameters and all other observed entries, batch shape (n,)."""
        smoothed = self._smooth(self._observations(y) - self.mean)
        return dist.Normal(self.mean + smoothed.loo_mean, jnp.sqrt(smoothed.loo_variance), validate_args=False)

    def _smooth(self, residual: Array) -> markov_filter.Smoothed:
        x, order = self._sorted()
        z, c = self._chain(x)
        smoothed = markov_filter.smooth(z, c, self.noise[order], residual[order])
        return markov_filter.Smoothed(*(jnp.zeros_like(part).at[order].set(part) for part in smoothed))

    def predict(self, y: Num[ArrayLike, " n"], X_new: Num[ArrayLike, "m *D"] | None = None) -> dist.Distribution:
        """The law of a fresh noisy observation at the training inputs (marginals) or at new ones (joint), given y.

        Args:
            y: observations, shape (n,); NaN is missing.
            X_new: new inputs, shape (m,) or (m, 1). None stands for the training inputs.
        """
        y = self._observations(y)
        if X_new is None:
            smoothed = self._smooth(y - self.mean)
            std = jnp.sqrt(smoothed.variance + self.noise)
            return dist.Normal(self.mean + smoothed.mean, std, validate_args=False).to_event(1)
        return MarkovConditional(self, y, self._new_inputs(X_new))


class MarkovConditional(dist.Distribution):
    """Fresh observations at new inputs given y: moments by the smoother, joint draws and density, in O(n + m).

    Args:
        process: the law of y.
        y: observations, (n,); NaN is missing.
        X_new: new inputs, (m,) or (m, 1).
    """

    support = constraints.real_vector
    normal_marginals = True
    pytree_data_fields = ("process", "y", "X_new")

    def __init__(self, process: MarkovProcess, y: Array, X_new: Array, *, validate_args: bool | None = None):
        self.process, self.y, self.X_new = process, y, X_new
        super().__init__((), X_new.shape[:1], validate_args=validate_args)

    def _whole(self, noise_new: Array) -> MarkovProcess:
        """The process at the old and the new inputs together."""
        p = self.process
        noise = jnp.concatenate([p.noise, jnp.broadcast_to(noise_new, self.event_shape)])
        return MarkovProcess(p.kernel, jnp.concatenate([p.X, self.X_new]), jnp.sqrt(noise), p.loc)

    def _conditional(self, y: Array) -> tuple[Array, Array]:
        """Mean and variance of the process at the new inputs."""
        whole = self._whole(jnp.ones(()))
        residual = jnp.concatenate([y - self.process.mean, jnp.full(self.event_shape, jnp.nan, y.dtype)])
        smoothed = whole._smooth(residual)
        n = y.shape[0]
        return self.process.mean_at(self.X_new) + smoothed.mean[n:], smoothed.variance[n:]

    @property
    def mean(self) -> Float[Array, " m"]:
        """Mean of each new observation."""
        return self._conditional(self.y)[0]

    @property
    def variance(self) -> Float[Array, " m"]:
        """Variance of each new observation, fresh noise included."""
        return self._conditional(self.y)[1] + self.process.fresh_noise

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Float[Array, "*sample m"]:
        """Joint draws: a path of the prior, moved by the smoothed difference from y (Matheron's rule)."""
        n, whole = self.y.shape[0], self._whole(self.process.fresh_noise)

        def one(key: Array) -> Array:
            prior = whole.sample(key)
            # The new noise is part of the path, but nothing is seen there: it stays as it was drawn.
            moved = self._conditional(jnp.where(jnp.isnan(self.y), jnp.nan, self.y - prior[:n] + self.process.mean))[0]
            return prior[n:] + moved - self.process.mean_at(self.X_new)

        return _repeat(one, key, sample_shape)

    def log_prob(self, value: Float[Array, "*sample m"], intermediates: None = None) -> Float[Array, "*sample"]:
        """Joint log density, that of old and new less that of the old."""
        whole, old = self._whole(self.process.fresh_noise), self.process.log_prob(self.y)
        one = lambda v: whole.log_prob(jnp.concatenate([self.y, v])) - old
        return jnp.vectorize(one, signature="(m)->()")(value)


def _order(x: Array) -> Array:
    sorted_already = jnp.all(x[1:] >= x[:-1])
    places = jnp.arange(x.shape[0])
    return jax.lax.cond(sorted_already, lambda x: places, lambda x: jnp.argsort(x).astype(places.dtype), x)


def _repeat(one: Any, key: Array, sample_shape: tuple[int, ...]) -> Array:
    if sample_shape == ():
        return one(key)
    count = 1
    for size in sample_shape:
        count *= size
    draws = jax.vmap(one)(jax.random.split(key, count))
    return draws.reshape(*sample_shape, *draws.shape[1:])
