"""Gaussian processes, observed with noise at fixed inputs, as NumPyro distributions."""

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Num
from numpyro.distributions import constraints

from probkit.gp.exact import (
    condition,
    condition_marginal,
    leave_one_out,
    log_likelihood,
    representer,
    stationary_log_likelihood,
)
from probkit.gp.kernels import Kernel
from probkit.math.linalg import matmul, safe_cholesky


class Process(dist.Distribution):
    """Abstract: noisy values of a Gaussian process at fixed inputs, whatever computes with it.

    Args:
        kernel: a callable pytree, ``kernel(X1, X2)`` the (n1, n2) covariance, with a method ``kernel.diagonal(X)``, the
            (n,) variances: a :class:`probkit.gp.kernels.Kernel`.
        X: inputs, shape (n,) or (n, D).
        noise_scale: standard deviation of the noise: a scalar, or known ones, (n,). With known ones an observation at
            new inputs is the process itself, free of noise.
        loc: the mean: a scalar, or a callable pytree from inputs to (n,).

    Raises:
        ValueError: an argument has the wrong shape.
    """

    arg_constraints = {"noise_scale": constraints.nonnegative}
    support = constraints.real_vector
    normal_marginals = True
    reparametrized_params = ["noise_scale"]
    pytree_data_fields: tuple[str, ...] = ("kernel", "X", "noise_scale", "loc")

    def __init__(
        self,
        kernel: Kernel,
        X: Num[ArrayLike, "n *D"],
        noise_scale: Num[ArrayLike, "*n"],
        loc: Any = 0.0,
        *,
        validate_args: bool | None = None,
    ):
        self.kernel: Any = kernel
        self.X = _inputs("X", X)
        self.noise_scale = _number("noise_scale", noise_scale, self.X.dtype, self.X.shape[:1])
        self.loc = loc if callable(loc) else _number("loc", loc, self.X.dtype)
        super().__init__(batch_shape=(), event_shape=self.X.shape[:1], validate_args=validate_args)

    @property
    def mean(self) -> Float[Array, " n"]:
        """Prior mean of y."""
        return self.mean_at(self.X)

    @property
    def variance(self) -> Float[Array, " n"]:
        """Prior variance of y, noise included."""
        return self.kernel.diagonal(self.X) + self.noise

    @property
    def noise(self) -> Float[Array, " n"]:
        """Variances of the noise of each observation."""
        variance = jnp.broadcast_to(self.noise_scale**2, self.event_shape)
        return self.kernel.observed_noise(self.X, variance) if hasattr(self.kernel, "observed_noise") else variance

    @property
    def fresh_noise(self) -> Float[Array, ""]:
        """Variance of the noise of a fresh observation; 0 where the noise is known observation by observation."""
        return self.noise_scale**2 if self.noise_scale.ndim == 0 else jnp.zeros((), self.noise_scale.dtype)

    def fresh_noise_at(self, X: Float[Array, "m *D"]) -> Float[Array, " m"]:
        """Variance of the noise of a fresh observation at each of new inputs."""
        variance = jnp.broadcast_to(self.fresh_noise, X.shape[:1])
        return self.kernel.fresh_noise(X, variance) if hasattr(self.kernel, "fresh_noise") else variance

    def mean_at(self, X: Float[Array, "m *D"]) -> Float[Array, " m"]:
        """The mean at any inputs."""
        mean = self.loc if callable(self.loc) else lambda X: jnp.broadcast_to(self.loc, X.shape[:1])
        return self.kernel.observed_mean(mean, X) if hasattr(self.kernel, "observed_mean") else mean(X)

    def predict(self, y: Num[ArrayLike, " n"], X_new: Num[ArrayLike, "m *D"] | None = None) -> dist.Distribution:
        """The law of a fresh noisy observation at new inputs given y."""
        raise NotImplementedError

    def representer(self, y: Num[ArrayLike, " n"]) -> Float[Array, " n"]:
        """``alpha = K^-1 (y - mean)``, 0 where y is missing: given y, f has mean ``mean(x) + k(x, X) alpha``.

        Here from the leave-one-out laws, ``alpha_i = (y_i - mean_i) / variance_i``.
        """
        y = self._observations(y)
        law: Any = self.leave_one_out(y)  # type: ignore[attr-defined]
        return jnp.where(jnp.isnan(y), 0.0, (y - law.mean) / law.variance)

    def forecast(
        self, y: Num[ArrayLike, " n"], horizon: int, X_new: Num[ArrayLike, "m *D"] | None = None
    ) -> dist.Distribution:
        """The joint law of the next ``horizon`` observations given y.

        Args:
            y: observations, shape (n,); NaN is missing.
            horizon: number of steps.
            X_new: their inputs, (horizon,) or (horizon, D). None continues a single column of X at its last step.

        Raises:
            ValueError: X has several columns, so that no next input follows from it.
        """
        if X_new is None:
            if self.X.ndim != 1:
                raise ValueError(f"X has shape {self.X.shape}; with several columns a forecast needs X_new.")
            step = self.X[-1] - self.X[-2] if len(self.X) > 1 else jnp.ones_like(self.X[0])
            X_new = self.X[-1] + step * jnp.arange(1, horizon + 1, dtype=self.X.dtype)
        return self.predict(y, X_new)

    def _observations(self, y: ArrayLike) -> Array:
        y = jnp.asarray(y)
        if y.shape[-1:] != self.event_shape:
            raise ValueError(f"y has shape {y.shape}; its last axis must have length {self.event_shape[0]}, as X.")
        return y

    def _new_inputs(self, X_new: ArrayLike) -> Array:
        X_new = _inputs("X_new", X_new)
        if X_new.shape[1:] != self.X.shape[1:]:
            raise ValueError(f"X_new has shape {X_new.shape}; the process stands on X of shape {self.X.shape}.")
        return X_new


class GaussianProcess(Process):
    """Noisy values of a Gaussian process: ``y = loc + f(X) + noise_scale e``, ``f ~ GP(0, kernel)``, ``e ~ N(0, I)``.

    Exact, by one Cholesky factor. NaN in y is a missing value everywhere. Arguments as in :class:`Process`; batch them
    with ``jax.vmap``.

    References:
        Rasmussen and Williams (2006), Gaussian Processes for Machine Learning, chapter 2.
    """

    def covariance(self) -> Float[Array, "n n"]:
        """Prior covariance of y, noise included."""
        return self._signal() + jnp.diag(self.noise)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Float[Array, "*sample n"]:
        """Draws of y from the prior, shape ``sample_shape + (n,)``; differentiable in the parameters."""
        L, _ = safe_cholesky(self.covariance())
        e = jax.random.normal(key, (*sample_shape, *self.event_shape), L.dtype)
        return self.mean + matmul(e, L.T)

    def log_prob(self, value: Num[ArrayLike, "*sample n"], intermediates: None = None) -> Float[Array, "*sample"]:
        """Log marginal likelihood of the observed entries of y; -inf where the covariance cannot be factorised.

        Args:
            value: y, shape (..., n). Leading axes each take their own factor, since each may miss other entries.
            intermediates: not used; part of NumPyro's signature.
        """
        residual = self._observations(value) - self.mean
        kernel: Any = self.kernel
        if hasattr(kernel, "embed"):
            Z, variance = kernel.embed(self.X), jnp.asarray(kernel.scale, self.X.dtype) ** 2
            correlation, shape, noise = type(kernel).correlation, kernel.shape(), self.noise
            one = lambda r: stationary_log_likelihood(correlation, Z, variance, noise, shape, r)
        else:
            K = self.covariance()
            one = lambda r: log_likelihood(K, r)
        each = jnp.vectorize(one, signature="(n)->()")(residual)
        # A mean that is not a number must not pass for missing data.
        return jnp.where(jnp.any(jnp.isnan(self.mean)), -jnp.inf, each)

    def leave_one_out(self, y: Num[ArrayLike, " n"]) -> dist.Normal:
        """The law of each y_i given the parameters and all other observed entries, batch shape (n,).

        Its ``log_prob(y)`` holds the leave-one-out terms, NaN where y is missing.
        """
        mean, variance = leave_one_out(self.covariance(), self._observations(y) - self.mean)
        return dist.Normal(self.mean + mean, jnp.sqrt(variance), validate_args=False)

    def predict(self, y: Num[ArrayLike, " n"], X_new: Num[ArrayLike, "m *D"] | None = None) -> dist.Distribution:
        """The law of a fresh noisy observation at new inputs given y.

        Args:
            y: observations, shape (n,); NaN is missing.
            X_new: new inputs, shape (m,) or (m, D). None stands for the training inputs.

        Returns:
            At the training inputs, independent marginals ``Normal(...).to_event(1)``; at new ones, a joint
            ``MultivariateNormal``. NaN where a covariance cannot be factorised.
        """
        r = self._observations(y) - self.mean
        if X_new is None:
            K = self._signal()
            mean, variance = condition_marginal(K + jnp.diag(self.noise), r, K, self.variance)
            return dist.Normal(self.mean + mean, jnp.sqrt(variance), validate_args=False).to_event(1)
        X_new = self._new_inputs(X_new)
        K_new = self.kernel(X_new, X_new) + jnp.diag(self.fresh_noise_at(X_new))
        mean, covariance = condition(self.covariance(), r, self.kernel(self.X, X_new), K_new)
        L, _ = safe_cholesky(covariance)
        return dist.MultivariateNormal(self.mean_at(X_new) + mean, scale_tril=L, validate_args=False)

    def representer(self, y: Num[ArrayLike, " n"]) -> Float[Array, " n"]:
        """``alpha = K^-1 (y - mean)``, 0 where y is missing: given y, f has mean ``mean(x) + k(x, X) alpha``."""
        return representer(self.covariance(), self._observations(y) - self.mean)

    def jitter(self) -> Float[Array, ""]:
        """What the factor needs on its diagonal, as a share of the mean variance: 0 for a regular covariance."""
        K = self.covariance()
        return safe_cholesky(K)[1] / jnp.mean(jnp.diagonal(K))

    def _signal(self) -> Float[Array, "n n"]:
        return self.kernel(self.X, self.X)


def _inputs(name: str, X: ArrayLike) -> Array:
    """Inputs as a float array, shape (n,) or (n, D)."""
    X = jnp.asarray(X)
    if X.ndim not in (1, 2) or X.size == 0:
        raise ValueError(f"{name} has shape {X.shape}; GaussianProcess takes (n,) or (n, D).")
    return X if jnp.issubdtype(X.dtype, jnp.floating) else X.astype(float)


def _number(name: str, value: ArrayLike, dtype: DTypeLike, shape: tuple[int, ...] = ()) -> Array:
    """A parameter as a strong float array: a scalar, or of the given shape."""
    value = jnp.asarray(value)
    if value.shape not in ((), shape):
        wanted = f"a scalar or shape {shape}" if shape else "a scalar"
        raise ValueError(f"{name} has shape {value.shape}; a Gaussian process takes {wanted}. Batch it with jax.vmap.")
    return value if jnp.issubdtype(value.dtype, jnp.floating) and not value.weak_type else value.astype(dtype)
