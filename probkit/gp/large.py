"""Approximations for many observations, asked for by name: inducing points and Hilbert-space bases."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.linalg import solve_triangular
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num
from numpyro.distributions import constraints

from probkit.gp import kernels, lowrank
from probkit.gp.distribution import Process
from probkit.math.linalg import matmul, safe_cholesky
from probkit.model import Param, param


def inputs(y: Any, X: Any) -> Array:
    """Inputs as columns, (n, D); the time index where there are none."""
    return kernels.columns(jnp.arange(y.shape[0], dtype=y.dtype) if X is None else X)


def inducing_points(X: Float[Array, "n D"], count: int) -> Float[Array, "count D"]:
    """Inducing points in the units of X, chosen greedily: lengthscales of the default priors' middle."""
    span = jnp.max(X, 0) - jnp.min(X, 0)
    scale = jnp.where(span > 0, span, 1.0) * (X.shape[1] ** 0.5 / 4)
    return X[lowrank.greedy_points(kernels.centred(X) / scale, min(count, X.shape[0]))]


def _greedy(self: "Sparse", y: Any, X: Any) -> Array:
    return inducing_points(inputs(y, X), self.count)


class Sparse(eqx.Module):
    """The solver by inducing points: Titsias' collapsed bound, O(n count²) in time and O(n count) in memory.

    The log-likelihood becomes a lower bound on it, tight where the inducing points tell all of the function; the report
    says how much of the prior variance they leave out. Any covariance.

    Args:
        count: how many inducing points; static.
        inducing: where they are, (count, D). Default: chosen greedily among the inputs, each where the conditional
            variance is largest, and then fixed.

    References:
        Titsias (2009), Variational learning of inducing variables in sparse Gaussian processes. Burt, Rasmussen and van
        der Wilk (2020), Convergence of sparse variational inference in Gaussian processes regression.
    """

    count: int = eqx.field(static=True, default=200)
    inducing: Param = param(support=constraints.real, default=_greedy)

    def __check_init__(self) -> None:
        _check_count("count", self.count)

    def distribution(self, kernel: Any, X: Any, noise_scale: Any, loc: Any) -> "SparseProcess":
        """The law of y."""
        points = jnp.asarray(self.inducing, X.dtype)
        return SparseProcess(kernel, X, noise_scale, loc, points[:, 0] if X.ndim == 1 and points.ndim == 2 else points)

    def told(self, kernel: Any, X: Any) -> str:
        """What a report says of this solver."""
        return f"Approximate: a lower bound by {min(self.count, X.shape[0])} inducing points, gp.Sparse."


def _middle(self: "HSGP", y: Any, X: Any) -> Array:
    X = inputs(y, X)
    return 0.5 * (jnp.max(X, 0) + jnp.min(X, 0))


def _half(self: "HSGP", y: Any, X: Any) -> Array:
    X = inputs(y, X)
    span = jnp.max(X, 0) - jnp.min(X, 0)
    return 0.5 * self.boundary * jnp.where(span > 0, span, 1.0)


class HSGP(eqx.Module):
    """The solver by a Hilbert-space basis: sines on a box, weighted by the spectral density; O(n m²), m bases in all.

    For stationary covariances with a spectral density (RBF, Matérn, sums of them) on up to three columns. Lengthscales
    much below the width of the box over ``bases``, and inputs outside the box, are beyond it.

    Args:
        bases: functions along each column, a number or one per column; static.
        boundary: width of the box over the span of X, above 1; forecasts need more. Static.
        centre: of the box, (D,). Default: the middle of X, fixed.
        half: half its width, (D,). Default: from the span of X and ``boundary``, fixed.

    References:
        Solin and Särkkä (2020), Hilbert space methods for reduced-rank Gaussian process regression. Riutort-Mayol et
        al. (2023), Practical Hilbert space approximate Bayesian Gaussian processes for probabilistic programming.
    """

    bases: int | tuple[int, ...] = eqx.field(static=True, default=40)
    boundary: float = eqx.field(static=True, default=1.5)
    centre: Param = param(support=constraints.real, default=_middle)
    half: Param = param(support=constraints.positive, default=_half)

    def __check_init__(self) -> None:
        for one in self.bases if isinstance(self.bases, tuple) else (self.bases,):
            _check_count("bases", one)
        if not self.boundary > 1:
            raise ValueError(f"boundary is {self.boundary}; a number above 1 is wanted.")

    def distribution(self, kernel: Any, X: Any, noise_scale: Any, loc: Any) -> "BasisProcess":
        """The law of y."""
        columns = 1 if X.ndim == 1 else X.shape[1]
        bases = self.bases if isinstance(self.bases, tuple) else (self.bases,) * columns
        if len(bases) != columns:
            raise ValueError(f"bases is {self.bases}; X has {columns} columns, one number for each is wanted.")
        return BasisProcess(kernel, X, noise_scale, loc, self.centre, self.half, bases)

    def told(self, kernel: Any, X: Any) -> str:
        """What a report says of this solver."""
        return f"Approximate: a Hilbert-space basis of {self.bases} functions a column, gp.HSGP."


class LowRankProcess(Process):
    """Abstract: a process of low rank, ``features(X)' features(X)``, plus what the features leave out."""

    @abc.abstractmethod
    def features(self, X: Float[Array, "k *D"]) -> Float[Array, "m k"]:
        """Features at inputs, whose weights are standard normal."""

    @abc.abstractmethod
    def rest(self, X: Float[Array, "k *D"], F: Float[Array, "m k"]) -> Float[Array, " k"]:
        """Prior variance that the features leave out at inputs."""

    def _weights(self, y: Array) -> tuple[lowrank.Weights, Array, Array]:
        r = self._observations(y) - self.mean
        F = self.features(self.X)
        return lowrank.infer(F, self.noise, r), F, r

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Float[Array, "*sample n"]:
        """Draws of y from the prior of low rank with what it leaves out as independent noise."""
        F = self.features(self.X)
        e = matmul(_normal(key, (*sample_shape, F.shape[0]), F.dtype, 0), F)
        scale = jnp.sqrt(self.rest(self.X, F) + self.noise)
        return self.mean + e + scale * _normal(key, (*sample_shape, *self.event_shape), F.dtype, 1)

    def log_prob(self, value: Num[ArrayLike, "*sample n"], intermediates: None = None) -> Float[Array, "*sample"]:
        """Log marginal likelihood of the process of low rank, less what inducing points leave out (a lower bound).

        Args:
            value: y, shape (..., n); NaN is missing.
            intermediates: not used; part of NumPyro's signature.
        """
        residual = self._observations(value) - self.mean
        F = self.features(self.X)
        rest = self.rest(self.X, F) / self.noise

        def one(r: Array) -> Array:
            return lowrank.infer(F, self.noise, r).log_density - 0.5 * jnp.sum(jnp.where(jnp.isnan(r), 0.0, rest))

        each = jnp.vectorize(one, signature="(n)->()")(residual)
        return jnp.where(jnp.any(jnp.isnan(self.mean)) | jnp.isnan(each), -jnp.inf, each)

    def leave_one_out(self, y: Num[ArrayLike, " n"]) -> dist.Normal:
        """The law of each y_i given the parameters and all other observed entries, batch shape (n,)."""
        w, F, r = self._weights(jnp.asarray(y))
        mean, variance = lowrank.leave_one_out(w, F, self.rest(self.X, F), self.noise, r)
        return dist.Normal(self.mean + mean, jnp.sqrt(variance), validate_args=False)

    def predict(self, y: Num[ArrayLike, " n"], X_new: Num[ArrayLike, "m *D"] | None = None) -> dist.Distribution:
        """The law of a fresh noisy observation given y: marginals at the training inputs, joint at new ones.

        Args:
            y: observations, shape (n,); NaN is missing.
            X_new: new inputs, (m,) or (m, D). None stands for the training inputs.
        """
        w, F, _ = self._weights(jnp.asarray(y))
        if X_new is None:
            mean, S = lowrank.project(w, F)
            variance = jnp.sum(S**2, axis=0) + self.rest(self.X, F) + self.noise
            return dist.Normal(self.mean + mean, jnp.sqrt(variance), validate_args=False).to_event(1)
        X_new = self._new_inputs(X_new)
        F = self.features(X_new)
        mean, S = lowrank.project(w, F)
        diagonal = self.rest(X_new, F) + self.fresh_noise_at(X_new)
        # A factor of S'S + diag: of low rank, never formed where there are more places than features.
        return LowRankNormal(self.mean_at(X_new) + mean, S.T, diagonal + _floor(S), validate_args=False)


class LowRankNormal(dist.LowRankMultivariateNormal):
    """NumPyro's normal law of low rank, known to have normal marginals."""

    normal_marginals = True


class SparseProcess(LowRankProcess):
    """A process seen through inducing points; arguments as in :class:`probkit.gp.GaussianProcess`.

    Args:
        kernel: any covariance.
        X: inputs, (n,) or (n, D).
        noise_scale: standard deviation of the noise, a scalar or (n,).
        loc: the mean, a scalar or a callable pytree.
        inducing: inducing points, (m,) or (m, D).

    References:
        Titsias (2009), Variational learning of inducing variables in sparse Gaussian processes.
    """

    pytree_data_fields: tuple[str, ...] = ("inducing",)

    def __init__(self, kernel: Any, X: Any, noise_scale: Any, loc: Any, inducing: Any, *, validate_args: Any = None):
        self.inducing = inducing
        super().__init__(kernel, X, noise_scale, loc, validate_args=validate_args)

    def features(self, X: Float[Array, "k *D"]) -> Float[Array, "m k"]:
        """``L^-1 K_uf`` with ``L L' = K_uu``."""
        L, _ = safe_cholesky(self.kernel(self.inducing, self.inducing))
        return solve_triangular(L, self.kernel(self.inducing, X), lower=True)

    def rest(self, X: Float[Array, "k *D"], F: Float[Array, "m k"]) -> Float[Array, " k"]:
        """``k(x, x)`` less what the inducing points explain."""
        return jnp.maximum(self.kernel.diagonal(X) - jnp.sum(F**2, axis=0), 0.0)


class BasisProcess(LowRankProcess):
    """A process on a box by its sines; arguments as in :class:`probkit.gp.GaussianProcess`.

    Args:
        kernel: a covariance with ``spectral_density(omega)``.
        X: inputs, (n,) or (n, D).
        noise_scale: standard deviation of the noise, a scalar or (n,).
        loc: the mean, a scalar or a callable pytree.
        centre: of the box, (D,).
        half: half its width, (D,).
        bases: functions along each column.

    Raises:
        TypeError: the covariance has no spectral density.

    References:
        Solin and Särkkä (2020), Hilbert space methods for reduced-rank Gaussian process regression.
    """

    pytree_data_fields: tuple[str, ...] = ("centre", "half")
    pytree_aux_fields = ("bases",)

    def __init__(
        self,
        kernel: Any,
        X: Any,
        noise_scale: Any,
        loc: Any,
        centre: Any,
        half: Any,
        bases: tuple[int, ...],
        *,
        validate_args: Any = None,
    ):
        if not hasattr(kernel, "spectral_density"):
            raise TypeError(f"kernel is {type(kernel).__name__}, which has no spectral density; HSGP needs one.")
        if getattr(kernel, "columns", None) is not None:
            raise TypeError("kernel has active columns; HSGP takes covariances of all columns of X.")
        self.centre, self.half, self.bases = jnp.atleast_1d(centre), jnp.atleast_1d(half), bases
        super().__init__(kernel, X, noise_scale, loc, validate_args=validate_args)

    def features(self, X: Float[Array, "k *D"]) -> Float[Array, "m k"]:
        """Sines times the root of the spectral density at their frequencies."""
        value, omega = lowrank.sines(kernels.columns(X), self.centre, self.half, self.bases)
        return value * jnp.sqrt(self.kernel.spectral_density(omega))[:, None]

    def rest(self, X: Float[Array, "k *D"], F: Float[Array, "m k"]) -> Float[Array, " k"]:
        """Nothing: the basis is the process."""
        return jnp.zeros(X.shape[:1], F.dtype)


def _normal(key: Array, shape: tuple[int, ...], dtype: Any, which: int) -> Array:
    return jax.random.normal(jax.random.split(key)[which], shape, dtype)


def _floor(S: Array) -> Array:
    """The rounding of a variance: a law without any noise would have no density."""
    return jnp.finfo(S.dtype).eps * jnp.maximum(jnp.mean(jnp.sum(S**2, axis=0)), jnp.finfo(S.dtype).tiny)


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}; a whole number of at least 1 is wanted.")
