"""Exact Gaussian process regression on arrays: likelihood, leave-one-out terms and conditioning.

``K`` is the (n, n) covariance of the observations, noise on its diagonal included; ``r = y - mean`` is the residual,
where NaN is a missing observation.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from probkit.gp.kernels import squared_distance
from probkit.math.linalg import matmul, safe_cholesky, solve_lower, spd_solve


def _drop_missing(K: Array, r: Array) -> tuple[Array, Array, Array]:
    """Replace missing entries by independent ones of the average variance, observed at their mean.

    Returns:
        K, r and the log density to add: the constant of the observed entries less what the stand-ins contribute.
    """
    observed = ~jnp.isnan(r)
    # The average variance, not 1, so that stand-ins leave the scale of the jitter alone.
    fill = jax.lax.stop_gradient(jnp.mean(jnp.diagonal(K)))
    fill = jnp.where(fill > 0, fill, 1.0)
    count = jnp.sum(jnp.where(observed, 1.0, 0.0), dtype=r.dtype)
    constant = 0.5 * ((r.size - count) * jnp.log(fill) - count * math.log(2.0 * math.pi))
    K = jnp.where(observed[:, None] & observed[None, :], K, fill * jnp.eye(r.size, dtype=K.dtype))
    return K, jnp.where(observed, r, 0.0), constant


@jax.custom_jvp
def _log_density(K: Array, r: Array) -> Array:
    """``-(r' K^-1 r + log det K) / 2`` from the factor alone; -inf where there is none."""
    L, _ = safe_cholesky(K)
    w = solve_lower(L, r)
    value = -0.5 * jnp.sum(w**2) - jnp.sum(jnp.log(jnp.diagonal(L)))
    return jnp.where(jnp.isnan(value), -jnp.inf, value)


@_log_density.defjvp
def _log_density_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (K, r), (dK, dr) = primals, tangents
    alpha, inverse, log_det, _ = spd_solve(K, r)
    value = -0.5 * (jnp.sum(r * alpha) + log_det)
    sound = jnp.isfinite(value)
    G = jnp.where(sound, 0.5 * (alpha[:, None] * alpha[None, :] - inverse), 0.0)
    alpha = jnp.where(sound, alpha, 0.0)
    tangent = jnp.sum(G * dK) - jnp.sum(alpha * dr)
    return jnp.where(jnp.isnan(value), -jnp.inf, value), jnp.where(sound, tangent, 0.0)


@jax.jit
def log_likelihood(K: Float[Array, "n n"], r: Float[Array, " n"]) -> Float[Array, ""]:
    """Log marginal likelihood of the observed entries.

    ``log p(y) = -(alpha' r + log det K + n log 2 pi) / 2`` with ``alpha = K^-1 r``; its derivative is
    ``tr((alpha alpha' - K^-1) dK) / 2 - alpha' dr``. The value alone takes one factor and no inverse; second
    derivatives pass through :func:`probkit.math.linalg.spd_solve`, never through the factor.

    Args:
        K: covariance of the observations, noise included, shape (n, n).
        r: residuals y - mean, shape (n,); NaN is missing.

    Returns:
        A scalar; -inf with gradient 0 where K cannot be factorised.

    References:
        Rasmussen and Williams (2006), Gaussian Processes for Machine Learning, eqs. 2.30 and 5.9.
    """
    K, r, constant = _drop_missing(K, r)
    return _log_density(K, r) + constant


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _stationary_density(
    correlation: Callable, Z: Array, variance: Array, noise: Array, shape: tuple, r: Array
) -> Array:
    K, r, constant = _drop_missing(_stationary_covariance(correlation, Z, variance, noise, shape), r)
    return _log_density(K, r) + constant


def _stationary_covariance(correlation: Callable, Z: Array, variance: Array, noise: Array, shape: tuple) -> Array:
    return variance * correlation(_gaps(Z), *shape) + jnp.diag(noise)


def _gaps(Z: Array) -> Array:
    """Squared distances, 0 below the rounding of Z.

    Two fusions may scale the same input to different last bits, and the slope of a Matérn-1/2 makes a number of that.
    """
    s = squared_distance(Z, Z)
    floor = (16.0 * float(jnp.finfo(Z.dtype).eps)) ** 2 * jax.lax.stop_gradient(jnp.max(jnp.sum(Z * Z, axis=1)))
    return jnp.where(s <= floor, 0.0, s)


@_stationary_density.defjvp
def _stationary_density_jvp(correlation: Callable, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    Z, variance, noise, shape, r = primals
    seen = ~jnp.isnan(r)
    K, zeroed, constant = _drop_missing(_stationary_covariance(correlation, Z, variance, noise, shape), r)
    alpha, inverse, log_det, _ = spd_solve(K, zeroed)
    value = -0.5 * (jnp.sum(zeroed * alpha) + log_det) + constant
    sound = jnp.isfinite(value)
    alpha = jnp.where(sound, alpha, 0.0)
    held = sound & seen[:, None] & seen[None, :]
    G = jnp.where(held, 0.5 * (alpha[:, None] * alpha[None, :] - inverse), 0.0)
    # Behind a barrier the distances are made again: to keep them beside the factor and the inverse costs more.
    Z = jax.lax.optimization_barrier(Z)
    C, pull = jax.vjp(lambda s, shape: correlation(s, *shape), _gaps(Z), shape)
    W, d_shape = pull(variance * G)
    gradients = (_embedding_gradient(W, Z), jnp.sum(G * C), jnp.diagonal(G), d_shape, -alpha)
    slopes = jax.tree_util.tree_map(lambda g, d: jnp.sum(jnp.where(sound, g, 0.0) * d), gradients, tangents)
    return jnp.where(jnp.isnan(value), -jnp.inf, value), sum(jax.tree_util.tree_leaves(slopes), jnp.zeros_like(value))


def _embedding_gradient(W: Array, Z: Array) -> Array:
    """Derivative to Z of ``sum_ij W_ij |z_i - z_j|²`` with W symmetric, ``4 (w_i z_i - sum_j W_ij z_j)``."""
    if Z.shape[1] <= 2:
        parts = [jnp.sum(W * (Z[:, d][:, None] - Z[:, d][None, :]), axis=1) for d in range(Z.shape[1])]
        return 4.0 * jnp.stack(parts, axis=1)
    both = matmul(W, jnp.concatenate([Z, jnp.ones_like(Z[:, :1])], axis=1))  # W Z and W 1 in one pass over W
    return 4.0 * (both[:, -1:] * Z - both[:, :-1])


@partial(jax.jit, static_argnums=0)
def stationary_log_likelihood(
    correlation: Callable,
    Z: Float[Array, "n D"],
    variance: Float[Array, ""],
    noise: Float[Array, " n"],
    shape: tuple,
    r: Float[Array, " n"],
) -> Float[Array, ""]:
    """Log marginal likelihood under ``K = variance k(|z_i - z_j|²) + diag(noise)``, its gradient in closed form.

    With ``G = (alpha alpha' - K^-1) / 2`` and ``W = variance G * k'`` entrywise, the gradient to the inputs is
    ``4 (W 1 * Z - W Z)``: one product of (n, n) and (n, D), no array of shape (n, n, D) and no tape. That to the
    lengthscales, or to a network before the kernel, follows from it by ``Z = X / lengthscale``.

    Args:
        correlation: ``k(s, *shape)``, an elementwise function of squared distances; static.
        Z: scaled inputs, centred, (n, D).
        variance: of the process.
        noise: variances of the noise, (n,).
        shape: further parameters of the correlation.
        r: residuals y - mean, (n,); NaN is missing.

    Returns:
        A scalar; -inf with gradient 0 where K cannot be factorised.

    References:
        Rasmussen and Williams (2006), Gaussian Processes for Machine Learning, eq. 5.9.
    """
    return _stationary_density(correlation, Z, variance, noise, shape, r)


@jax.jit
def leave_one_out(K: Float[Array, "n n"], r: Float[Array, " n"]) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """Mean and variance of each residual given all other observed ones.

    At an observed entry ``mean_i = r_i - alpha_i / [K^-1]_ii`` and ``variance_i = 1 / [K^-1]_ii``; at a missing one the
    plain conditional given everything observed.

    Args:
        K: covariance of the observations, noise included, shape (n, n).
        r: residuals y - mean, shape (n,); NaN is missing.

    Returns:
        Means of the residuals (add the mean of y for the mean of y_i) and variances, both (n,); NaN where K cannot be
        factorised.

    References:
        Rasmussen and Williams (2006), Gaussian Processes for Machine Learning, eqs. 5.10 to 5.12. Sundararajan and
        Keerthi (2001), Predictive approaches for choosing hyperparameters in Gaussian processes.
    """
    missing = jnp.isnan(r)
    masked, zeroed, _ = _drop_missing(K, r)
    alpha, inverse, _, _ = spd_solve(masked, zeroed)
    variance = 1.0 / jnp.diagonal(inverse)
    # Rarely needed and as dear as all the rest: skipped where nothing is missing (except under vmap).
    mean_missing, variance_missing = jax.lax.cond(
        jnp.any(missing),
        lambda: condition_marginal(K, r, K, jnp.diagonal(K)),
        lambda: (jnp.zeros_like(r), jnp.ones_like(r)),
    )
    return (
        jnp.where(missing, mean_missing, zeroed - alpha * variance),
        jnp.where(missing, variance_missing, variance),
    )


def _whiten(K: Array, r: Array, K_cross: Array) -> tuple[Array, Array]:
    """``L^-1 K_cross`` and ``K_cross' K^-1 r`` over the observed entries."""
    K_cross = jnp.where(jnp.isnan(r)[:, None], 0.0, K_cross)
    K, r, _ = _drop_missing(K, r)
    L, _ = safe_cholesky(K)
    A = solve_triangular(L, K_cross, lower=True)
    return A, matmul(A.T, solve_triangular(L, r, lower=True))


@jax.jit
def representer(K: Float[Array, "n n"], r: Float[Array, " n"]) -> Float[Array, " n"]:
    """``alpha = K^-1 r`` over the observed entries, 0 at missing ones; NaN where K cannot be factorised.

    Args:
        K: covariance of the observations, noise included, shape (n, n).
        r: residuals y - mean, shape (n,); NaN is missing.
    """
    missing = jnp.isnan(r)
    K, r, _ = _drop_missing(K, r)
    L, _ = safe_cholesky(K)
    alpha = solve_triangular(L, solve_triangular(L, r, lower=True), lower=True, trans=1)
    return jnp.where(missing, 0.0, alpha)


@jax.jit
def condition(
    K: Float[Array, "n n"], r: Float[Array, " n"], K_cross: Float[Array, "n m"], K_new: Float[Array, "m m"]
) -> tuple[Float[Array, " m"], Float[Array, "m m"]]:
    """Joint distribution of m further values given the observed entries.

    ``mean = K_cross' K^-1 r`` and ``covariance = K_new - K_cross' K^-1 K_cross``.

    Args:
        K: covariance of the observations, noise included, shape (n, n).
        r: residuals y - mean, shape (n,); NaN is missing.
        K_cross: covariance of observations (rows) with the further values (columns), shape (n, m).
        K_new: covariance of the further values, shape (m, m); with noise on its diagonal they are fresh observations.

    Returns:
        Mean, shape (m,), of the further values less their own mean, and covariance, shape (m, m).

    References:
        Rasmussen and Williams (2006), Gaussian Processes for Machine Learning, eqs. 2.22 to 2.24.
    """
    A, mean = _whiten(K, r, K_cross)
    return mean, K_new - matmul(A.T, A)


@jax.jit
def condition_marginal(
    K: Float[Array, "n n"], r: Float[Array, " n"], K_cross: Float[Array, "n m"], diag_new: Float[Array, " m"]
) -> tuple[Float[Array, " m"], Float[Array, " m"]]:
    """Means and variances of :func:`condition`, without the (m, m) covariance.

    Args:
        K: covariance of the observations, noise included, shape (n, n).
        r: residuals y - mean, shape (n,); NaN is missing.
        K_cross: covariance of observations (rows) with the further values (columns), shape (n, m).
        diag_new: variances of the further values, shape (m,).

    Returns:
        Means and variances, both (m,). Variances stop at the rounding of the prior one, ``eps diag_new``.
    """
    A, mean = _whiten(K, r, K_cross)
    floor = float(jnp.finfo(diag_new.dtype).eps) * diag_new
    return mean, jnp.maximum(diag_new - jnp.sum(A**2, axis=0), floor)
