"""A Gaussian process, observed with noise at fixed inputs, as a NumPyro distribution."""

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Num
from numpyro.distributions import constraints

from probkit.gp.exact import condition, condition_marginal, leave_one_out, log_likelihood
from probkit.gp.kernels import Kernel
from probkit.math.linalg import matmul, safe_cholesky


class GaussianProcess(dist.Distribution):
    """Noisy values of a Gaussian process: ``y = loc + f(X) + noise_scale e``, ``f ~ GP(0, kernel)``, ``e ~ N(0, I)``.

    NaN in y is a missing value everywhere. Parameters are scalars: batch them with ``jax.vmap``.

    Args:
        kernel: a callable pytree, ``kernel(X1, X2)`` the (n1, n2) covariance, with a method ``kernel.diagonal(X)``, the
            (n,) variances: a :class:`probkit.gp.kernels.Kernel`.
        X: inputs, shape (n,) or (n, D).
        noise_scale: standard deviation of the noise, a scalar.
        loc: constant mean, a scalar.

    Raises:
        ValueError: an argument has the wrong shape.

    References:
        Rasmussen and Williams (2006), Gaussian Processes for Machine Learning, chapter 2.
    """

    arg_constraints = {"noise_scale": constraints.nonnegative, "loc": constraints.real}
    support = constraints.real_vector
    normal_marginals = True
    reparametrized_params = ["noise_scale", "loc"]
    pytree_data_fields = ("kernel", "X", "noise_scale", "loc")

    def __init__(
        self,
        kernel: Kernel,
        X: Num[ArrayLike, "n *D"],
        noise_scale: Num[ArrayLike, ""],
        loc: Num[ArrayLike, ""] = 0.0,
        *,
        validate_args: bool | None = None,
    ):
        self.kernel = kernel
        self.X = _inputs("X", X)
        self.noise_scale = _scalar("noise_scale", noise_scale, self.X.dtype)
        self.loc = _scalar("loc", loc, self.X.dtype)
        super().__init__(batch_shape=(), event_shape=self.X.shape[:1], validate_args=validate_args)

    def covariance(self) -> Float[Array, "n n"]:
        """Prior covariance of y, noise included."""
        return self._with_noise(self.kernel(self.X, self.X))

    @property
    def mean(self) -> Float[Array, " n"]:
        """Prior mean of y."""
        return jnp.broadcast_to(self.loc, self.event_shape)

    @property
    def variance(self) -> Float[Array, " n"]:
        """Prior variance of y, noise included."""
        return self.kernel.diagonal(self.X) + self.noise_scale**2

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Float[Array, "*sample n"]:
        """Draws of y from the prior, shape ``sample_shape + (n,)``; differentiable in the parameters."""
        L, _ = safe_cholesky(self.covariance())
        e = jax.random.normal(key, (*sample_shape, *self.event_shape), L.dtype)
        return self.loc + matmul(e, L.T)

    def log_prob(self, value: Num[ArrayLike, "*sample n"], intermediates: None = None) -> Float[Array, "*sample"]:
        """Log marginal likelihood of the observed entries of y; -inf where the covariance cannot be factorised.

        Args:
            value: y, shape (..., n). Leading axes each take their own factor, since each may miss other entries.
            intermediates: not used; part of NumPyro's signature.
        """
        K = self.covariance()
        value = self._observations(value)
        each = jnp.vectorize(lambda y: log_likelihood(K, y - self.loc), signature="(n)->()")
        # A mean that is not a number must not pass for missing data.
        return jnp.where(jnp.isnan(self.loc), -jnp.inf, each(value))

    def leave_one_out(self, y: Num[ArrayLike, " n"]) -> dist.Normal:
        """The law of each y_i given the parameters and all other observed entries, batch shape (n,).

        Its ``log_prob(y)`` holds the leave-one-out terms, NaN where y is missing.
        """
        mean, variance = leave_one_out(self.covariance(), self._observations(y) - self.loc)
        return dist.Normal(self.loc + mean, jnp.sqrt(variance), validate_args=False)

    def predict(self, y: Num[ArrayLike, " n"], X_new: Num[ArrayLike, "m *D"] | None = None) -> dist.Distribution:
        """The law of a fresh noisy observation at new inputs given y.

        Args:
            y: observations, shape (n,); NaN is missing.
            X_new: new inputs, shape (m,) or (m, D). None stands for the training inputs.

        Returns:
            At the training inputs, independent marginals ``Normal(...).to_event(1)``; at new ones, a joint
            ``MultivariateNormal``. NaN where a covariance cannot be factorised.
        """
        r = self._observations(y) - self.loc
        if X_new is None:
            K = self.kernel(self.X, self.X)
            mean, variance = condition_marginal(self._with_noise(K), r, K, self.variance)
            return dist.Normal(self.loc + mean, jnp.sqrt(variance), validate_args=False).to_event(1)
        X_new = _inputs("X_new", X_new)
        if X_new.shape[1:] != self.X.shape[1:]:
            raise ValueError(f"X_new has shape {X_new.shape}; the process stands on X of shape {self.X.shape}.")
        K_new = self._with_noise(self.kernel(X_new, X_new))
        mean, covariance = condition(self.covariance(), r, self.kernel(self.X, X_new), K_new)
        L, _ = safe_cholesky(covariance)
        return dist.MultivariateNormal(self.loc + mean, scale_tril=L, validate_args=False)

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

    def _with_noise(self, K: Array) -> Array:
        return K + self.noise_scale**2 * jnp.eye(len(K), dtype=K.dtype)

    def _observations(self, y: ArrayLike) -> Array:
        y = jnp.asarray(y)
        if y.shape[-1:] != self.event_shape:
            raise ValueError(f"y has shape {y.shape}; its last axis must have length {self.event_shape[0]}, as X.")
        return y


def _inputs(name: str, X: ArrayLike) -> Array:
    """Inputs as a float array, shape (n,) or (n, D)."""
    X = jnp.asarray(X)
    if X.ndim not in (1, 2) or X.size == 0:
        raise ValueError(f"{name} has shape {X.shape}; GaussianProcess takes (n,) or (n, D).")
    return X if jnp.issubdtype(X.dtype, jnp.floating) else X.astype(float)


def _scalar(name: str, value: ArrayLike, dtype: DTypeLike) -> Array:
    """A parameter as a strong float scalar."""
    value = jnp.asarray(value)
    if value.shape != ():
        raise ValueError(f"{name} has shape {value.shape}; GaussianProcess takes a scalar. Batch it with jax.vmap.")
    return value if jnp.issubdtype(value.dtype, jnp.floating) and not value.weak_type else value.astype(dtype)
