"""Conditionals of normal values on a few others each: many small Cholesky factors at once, lanes last.

XLA's batched LAPACK calls are slow on a CPU and have been seen to hang, so the factors are loops over columns in which
every operation runs along contiguous lanes. Derivatives do not pass through a factor.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Moments(NamedTuple):
    """Each value given its neighbours.

    Attributes:
        variance: conditional variance, ``F = kappa - k' K^-1 k``.
        error: residual less its conditional mean, ``e = r - k' K^-1 r_c``.
        weights: ``b = K^-1 k``.
        alpha: ``K^-1 r_c``.
        factor: Cholesky factor of K; a neighbour that the others determine has a column of 0.
        pivots: the inverse of its diagonal, 0 for such a neighbour.
    """

    variance: Float[Array, " lanes"]
    error: Float[Array, " lanes"]
    weights: Float[Array, "m lanes"]
    alpha: Float[Array, "m lanes"]
    factor: Float[Array, "m m lanes"]
    pivots: Float[Array, "m lanes"]


def _factor(K: Array) -> tuple[Array, Array]:
    m = K.shape[0]
    rows = jnp.arange(m)[:, None]
    least = 10.0 * float(jnp.finfo(K.dtype).eps) * jnp.diagonal(K).T

    def column(j: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        L, pivots = state
        c = jax.lax.dynamic_index_in_dim(K, j, 1, False) - jnp.sum(L * L[j][None], axis=1)
        # A neighbour that those before it determine, to rounding, tells nothing: it is left out, as a duplicate is.
        told = c[j] > least[j]
        pivot = jnp.where(told, jax.lax.rsqrt(jnp.where(told, c[j], 1.0)), 0.0)
        return L.at[:, j].set(jnp.where(rows >= j, c * pivot, 0.0)), pivots.at[j].set(pivot)

    return jax.lax.fori_loop(0, m, column, (jnp.zeros_like(K), jnp.zeros_like(K[0])))


def _forward(L: Array, pivots: Array, g: Array) -> Array:
    """``L^-1 g`` of every lane."""
    row = lambda j, w: w.at[j].set((g[j] - jnp.sum(L[j] * w, axis=0)) * pivots[j])
    return jax.lax.fori_loop(0, g.shape[0], row, jnp.zeros_like(g))


def _backward(L: Array, pivots: Array, w: Array) -> Array:
    """``L'^-1 w`` of every lane."""
    m = w.shape[0]

    def row(i: Array, b: Array) -> Array:
        j = m - 1 - i
        below = jax.lax.dynamic_index_in_dim(L, j, 1, False)
        return b.at[j].set((w[j] - jnp.sum(below * b, axis=0)) * pivots[j])

    return jax.lax.fori_loop(0, m, row, jnp.zeros_like(w))


@jax.custom_jvp
def moments(
    K: Float[Array, "m m lanes"],
    k: Float[Array, "m lanes"],
    kappa: Float[Array, " lanes"],
    neighbours: Float[Array, "m lanes"],
    r: Float[Array, " lanes"],
) -> Moments:
    """Each value given its neighbours, with derivatives ``dF = dkappa - 2 b'dk + b' dK b`` and so on.

    Args:
        K: covariances among the neighbours, noise included.
        k: covariances of the neighbours with the value.
        kappa: variances of the values, noise included.
        neighbours: residuals of the neighbours.
        r: residuals of the values.

    References:
        Vecchia (1988), Estimation and model identification for continuous spatial processes.
    """
    L, pivots = _factor(K)
    w, v = _forward(L, pivots, k), _forward(L, pivots, neighbours)
    least = 10.0 * float(jnp.finfo(K.dtype).eps) * kappa
    variance = jnp.maximum(kappa - jnp.sum(w * w, axis=0), least)
    return Moments(variance, r - jnp.sum(w * v, axis=0), _backward(L, pivots, w), _backward(L, pivots, v), L, pivots)


@moments.defjvp
def _moments_jvp(primals: tuple, tangents: tuple) -> tuple[Moments, Moments]:
    out = moments(*primals)
    dK, dk, d_kappa, d_neighbours, dr = tangents
    b, alpha, L, pivots = out.weights, out.alpha, out.factor, out.pivots
    moved = dk - jnp.sum(dK * b[None], axis=1)
    turned = d_neighbours - jnp.sum(dK * alpha[None], axis=1)
    inverse = lambda g: _backward(L, pivots, _forward(L, pivots, g))
    tangent = Moments(
        variance=d_kappa - jnp.sum(b * (dk + moved), axis=0),
        error=dr - jnp.sum(b * d_neighbours + alpha * moved, axis=0),
        weights=inverse(moved),
        alpha=inverse(turned),
        factor=jnp.zeros_like(L),
        pivots=jnp.zeros_like(pivots),
    )
    return out, tangent
