"""Gaussian processes of low rank: ``K = F'F`` with m features at n points, in O(n m²) time and O(n m) memory.

The features are those of inducing points, ``F = L^-1 K_uf`` with ``L L' = K_uu``, or any basis whose weights are
standard normal. Everything follows from ``A = F / sqrt(noise)`` and ``B = I + A A'``.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from probkit.gp.kernels import matern52, squared_distance
from probkit.math.linalg import matmul, safe_cholesky


class Weights(NamedTuple):
    """The law of the feature weights given the data.

    Attributes:
        factor: Cholesky factor of B, (m, m); the weights have variance ``B^-1``.
        whitened: ``factor^-1 A r / sqrt(noise)``, (m,).
        log_density: log density of the observed residuals under the process of low rank.
    """

    factor: Float[Array, "m m"]
    whitened: Float[Array, " m"]
    log_density: Float[Array, ""]


def infer(F: Float[Array, "m n"], noise: Float[Array, " n"], r: Float[Array, " n"]) -> Weights:
    """The weights given residuals observed with noise, and the log marginal likelihood.

    ``-2 log p = log det B + sum log noise + r' r / noise - |whitened|² + n log 2 pi`` over the observed entries.

    Args:
        F: features, (m, n).
        noise: variances of the noise, (n,).
        r: residuals y - mean, (n,); NaN is missing.

    References:
        Rasmussen and Williams (2006), Gaussian Processes for Machine Learning, section 8.3.
    """
    seen = ~jnp.isnan(r)
    r, scale = jnp.where(seen, r, 0.0), jnp.where(seen, jax.lax.rsqrt(noise), 0.0)
    A = F * scale[None, :]
    L, _ = safe_cholesky(matmul(A, A.T) + jnp.eye(len(F), dtype=F.dtype))
    scaled = r * scale
    c = solve_triangular(L, matmul(A, scaled), lower=True)
    log_noise = jnp.sum(jnp.where(seen, jnp.log(2.0 * math.pi * noise), 0.0))
    value = -0.5 * (jnp.sum(scaled**2) - jnp.sum(c**2) + log_noise) - jnp.sum(jnp.log(jnp.diagonal(L)))
    return Weights(L, c, jnp.where(jnp.isfinite(value), value, -jnp.inf))


def project(w: Weights, F: Float[Array, "m k"]) -> tuple[Float[Array, " k"], Float[Array, "m k"]]:
    """Mean of the process at points with features F, and the whitened features, whose Gram matrix is its covariance."""
    S = solve_triangular(w.factor, F, lower=True)
    return matmul(S.T, w.whitened), S


def leave_one_out(
    w: Weights, F: Float[Array, "m n"], rest: Float[Array, " n"], noise: Float[Array, " n"], r: Float[Array, " n"]
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """Mean and variance of each residual given all others: its own term is divided out of the law of the weights.

    With inducing points this is what inference without that entry would give: there too, each observation is one
    normal factor on the weights.

    Args:
        w: the weights given all observations.
        F: features, (m, n).
        rest: variance of the process that the features leave out, (n,).
        noise: variances of the noise, (n,).
        r: residuals y - mean, (n,); NaN is missing, and gets the law given everything.
    """
    mean, S = project(w, F)
    variance = jnp.sum(S**2, axis=0)
    seen = ~jnp.isnan(r)
    # 1/s - 1/noise, without dividing by an s that is 0: shrink = 1 - s / noise is in (0, 1].
    shrink = jnp.where(seen, jnp.maximum(1.0 - variance / noise, jnp.finfo(F.dtype).eps), 1.0)
    alone = jnp.where(seen, (mean - variance / noise * jnp.where(seen, r, 0.0)) / shrink, mean)
    return alone, variance / shrink + rest + noise


def greedy_points(Z: Float[Array, "n D"], count: int) -> Array:
    """Indices of ``count`` inputs chosen one by one, each where the conditional variance is largest.

    The partial pivoted Cholesky factor of a Matérn-5/2 correlation of scaled inputs, O(n count²).

    Args:
        Z: inputs in units of a lengthscale, (n, D).
        count: how many; at most n.

    References:
        Burt, Rasmussen and van der Wilk (2020), Convergence of sparse variational inference in Gaussian processes
        regression.
    """
    n = Z.shape[0]

    def step(i: Array, state: tuple) -> tuple:
        left, V, chosen = state
        j = jnp.argmax(left)
        k = matern52(squared_distance(Z[j][None, :], Z)[0])
        pivot = jnp.sqrt(jnp.maximum(left[j], jnp.finfo(Z.dtype).eps))
        v = (k - matmul(V[:, j], V)) / pivot
        left = jnp.maximum(left - v * v, 0.0).at[j].set(-1.0)  # never the same one twice
        return left, V.at[i].set(v), chosen.at[i].set(j)

    start = (jnp.ones((n,), Z.dtype), jnp.zeros((count, n), Z.dtype), jnp.zeros((count,), int))
    return jax.lax.fori_loop(0, count, step, start)[2]


def sines(X: Float[Array, "n D"], centre: Array, half: Array, bases: tuple[int, ...]) -> tuple[Array, Array]:
    """Eigenfunctions of the Laplacian on a box that vanish on its faces, and their frequencies.

    ``phi_j(x) = prod_d sin(w_jd (x_d - centre_d + half_d)) / sqrt(half_d)`` with ``w_jd = pi j_d / (2 half_d)``.

    Args:
        X: inputs, (n, D).
        centre: of the box, (D,).
        half: half its width, (D,).
        bases: how many functions along each column.

    Returns:
        The functions, (m, n), and their frequencies, (m, D), with m the product of ``bases``.

    References:
        Solin and Särkkä (2020), Hilbert space methods for reduced-rank Gaussian process regression, eq. 56.
    """
    grid = jnp.meshgrid(*(jnp.arange(1, m + 1, dtype=X.dtype) for m in bases), indexing="ij")
    index = jnp.stack([g.ravel() for g in grid], axis=1)
    omega = 0.5 * math.pi * index / half[None, :]
    value = jnp.ones((index.shape[0], X.shape[0]), X.dtype)
    for d in range(X.shape[1]):
        value = value * jnp.sin(omega[:, d][:, None] * (X[:, d] - centre[d] + half[d])[None, :]) * half[d] ** -0.5
    return value, omega
