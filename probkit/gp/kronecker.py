"""Gaussian processes on a full grid: ``C = K_1 x ... x K_D + s I``, by the eigenvectors of each factor.

Arrays over the grid have one axis a factor. With ``K_d = Q_d diag(l_d) Q_d'`` everything that costs O(N³) is diagonal
in the basis ``Q_1 x ... x Q_D``. Derivatives never pass through an eigenvector, whose own do not exist where
eigenvalues are equal: those of ``C^-1 r`` and of ``log det C`` are written down, to second order.

References:
    Saatci (2011), Scalable inference for structured Gaussian process models, chapter 5. Flaxman et al. (2015), Fast
    Kronecker inference in Gaussian processes with non-Gaussian likelihoods.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from probkit.math.linalg import matmul, safe_cholesky

Factors = tuple[Float[Array, "n n"], ...]


class Spectrum(NamedTuple):
    """Eigenvectors and eigenvalues, not negative, of each factor; constants under differentiation."""

    vectors: tuple[Float[Array, "n n"], ...]
    values: tuple[Float[Array, " n"], ...]


class Solution(NamedTuple):
    """The law given the observed entries of the grid.

    Attributes:
        alpha: ``C_oo^-1 r_o`` at observed points, 0 at missing ones.
        gaps: rows V with ``C^-1 - V'V`` the inverse over observed points, (missing, *grid).
        spectrum: of the factors.
        log_density: of the observed residuals; -inf where more are missing than was allowed for.
    """

    alpha: Float[Array, "*grid"]
    gaps: Float[Array, "missing *grid"]
    spectrum: Spectrum
    log_density: Float[Array, ""]


@jax.custom_batching.sequential_vmap  # a batch of eigendecompositions can hang on a CPU
def _eigen(K: Array) -> tuple[Array, Array]:
    values, vectors = jnp.linalg.eigh(K)
    return vectors, jnp.maximum(values, 0.0)


def spectrum_of(factors: Factors) -> Spectrum:
    """Eigenvectors and eigenvalues of each factor."""
    found = [_eigen(jax.lax.stop_gradient(K)) for K in factors]
    return Spectrum(*(tuple(jax.lax.stop_gradient(part[i]) for part in found) for i in range(2)))


def apply(factors: tuple[Array, ...], v: Float[Array, "*grid"]) -> Float[Array, "*grid"]:
    """``(A_1 x ... x A_D) v``, one axis after the other."""
    for d, A in enumerate(factors):
        v = jnp.moveaxis(jnp.tensordot(A, v, (1, d), precision=jax.lax.Precision.HIGHEST), 0, d)
    return v


def transposed(factors: tuple[Array, ...]) -> tuple[Array, ...]:
    """The transpose of each factor."""
    return tuple(A.T for A in factors)


def outer(vectors: tuple[Array, ...], **at: Array) -> Float[Array, "*grid"]:
    """The product of vectors along the axes; ``axis_2=v`` stands in for the third."""
    product = jnp.ones((), vectors[0].dtype)
    for d, v in enumerate(vectors):
        product = product[..., None] * at.get(f"axis_{d}", v)
    return product


def solve(
    factors: Factors, noise: Float[Array, ""], spectrum: Spectrum, r: Float[Array, "*grid"]
) -> Float[Array, "*grid"]:
    """``C^-1 r``; derivatives of every order by ``C^-1 (dr - dC C^-1 r)``."""

    def product(v: Array) -> Array:
        return apply(factors, v) + noise * v

    def invert(_: object, b: Array) -> Array:
        rotated = apply(transposed(spectrum.vectors), b) / (outer(spectrum.values) + jax.lax.stop_gradient(noise))
        return apply(spectrum.vectors, rotated)

    return jax.lax.custom_linear_solve(product, r, invert, symmetric=True)


@jax.custom_jvp
def log_det(factors: Factors, noise: Float[Array, ""], spectrum: Spectrum) -> Float[Array, ""]:
    """``log det C``."""
    return jnp.sum(jnp.log(outer(spectrum.values) + noise))


@log_det.defjvp
def _log_det_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    d_factors, d_noise, _ = tangents
    slopes, slope = _slopes(*primals)
    tangent = slope * d_noise
    for G, dK in zip(slopes, d_factors, strict=True):
        tangent = tangent + jnp.sum(G * dK)
    return log_det(*primals), tangent


@jax.custom_jvp
def _slopes(factors: Factors, noise: Array, spectrum: Spectrum) -> tuple[tuple[Array, ...], Array]:
    """Derivatives of ``log det C`` to each factor, ``Q_d diag(g_d) Q_d'``, and to the noise, ``tr C^-1``."""
    Q, values = spectrum
    W = 1.0 / (outer(values) + noise)
    g = [_others(W * outer(values, **{f"axis_{d}": jnp.ones_like(v)}), d) for d, v in enumerate(values)]
    return tuple(matmul(A * one, A.T) for A, one in zip(Q, g, strict=True)), jnp.sum(W)


@_slopes.defjvp
def _slopes_jvp(primals: tuple, tangents: tuple) -> tuple:
    _, noise, (Q, values) = primals
    d_factors, d_noise, _ = tangents
    W = 1.0 / (outer(values) + noise)
    E = [matmul(A.T, matmul(dK, A)) for A, dK in zip(Q, d_factors, strict=True)]
    diagonals = {f"axis_{d}": jnp.diagonal(one) for d, one in enumerate(E)}
    ones = {f"axis_{d}": jnp.ones_like(v) for d, v in enumerate(values)}
    changes, change = [], -d_noise * jnp.sum(W * W)
    for d in range(len(values)):
        here = f"axis_{d}"
        A = jnp.moveaxis(W * outer(values, **{here: ones[here]}), d, 0).reshape(len(values[d]), -1)
        # Through the same factor divided differences of g_d, which are finite at equal eigenvalues.
        inner = -E[d] * matmul(A, A.T)
        # Through the noise and the other factors the eigenvalues of the slope alone.
        along = -d_noise * outer(values, **{here: ones[here]})
        for e in range(len(values)):
            if e != d:
                along = along + noise * outer(values, **{here: ones[here], f"axis_{e}": diagonals[f"axis_{e}"]})
        inner = inner + jnp.diag(_others(W * W * along, d))
        changes.append(matmul(Q[d], matmul(inner, Q[d].T)))
        change = change - jnp.sum(W * W * outer(values, **{here: diagonals[here]}))
    return _slopes(*primals), (tuple(changes), change)


def _others(v: Array, d: int) -> Array:
    """The sum over all axes but one."""
    return jnp.sum(v, axis=tuple(e for e in range(v.ndim) if e != d))


def infer(factors: Factors, noise: Float[Array, ""], r: Float[Array, "*grid"], missing: int) -> Solution:
    """The log marginal likelihood of the observed residuals on a grid, exactly, and what conditioning needs.

    The entries that miss are integrated out: with ``P = [C^-1]_mm`` over them, ``log det C_oo = log det C + log det P``
    and ``C_oo^-1 = [C^-1]_oo - [C^-1]_om P^-1 [C^-1]_mo``. O(N sum n_d + missing² N) in time.

    Args:
        factors: K_1, ..., K_D.
        noise: variance s of the noise, a scalar.
        r: residuals y - mean on the grid; NaN is missing.
        missing: the most entries that may be missing; static.
    """
    spectrum = spectrum_of(factors)
    seen = ~jnp.isnan(r)
    zeroed = jnp.where(seen, r, 0.0)
    alpha = solve(factors, noise, spectrum, zeroed)
    quadratic, determinant = jnp.sum(zeroed * alpha), log_det(factors, noise, spectrum)
    gaps = jnp.zeros((0, *r.shape), r.dtype)
    if missing:
        index = jnp.nonzero(~seen.ravel(), size=missing, fill_value=r.size)[0]
        held = index < r.size
        units = jnp.zeros((missing, r.size), r.dtype).at[jnp.arange(missing), index].set(1.0, mode="drop")
        U = jax.vmap(lambda e: solve(factors, noise, spectrum, e.reshape(r.shape)).ravel())(units)
        P = jnp.where(held[:, None] & held[None, :], U.at[:, index].get(mode="clip"), 0.0)
        # Places that are not needed are independent ones of the average size, observed at their mean.
        fill = jax.lax.stop_gradient(jnp.sum(jnp.diagonal(P)) / jnp.maximum(jnp.sum(held), 1))
        fill = jnp.where(fill > 0, fill, 1.0)
        L, _ = safe_cholesky(P + jnp.diag(jnp.where(held, 0.0, fill)))
        w = solve_triangular(L, jnp.where(held, alpha.ravel().at[index].get(mode="clip"), 0.0), lower=True)
        V = solve_triangular(L, U, lower=True)
        quadratic = quadratic - jnp.sum(w**2)
        spare = jnp.sum(jnp.where(held, 0.0, jnp.log(fill)))
        determinant = determinant + 2.0 * jnp.sum(jnp.log(jnp.diagonal(L))) - spare
        alpha = jnp.where(seen, alpha - matmul(w, V).reshape(r.shape), 0.0)
        gaps = V.reshape(missing, *r.shape)
    value = -0.5 * (quadratic + determinant + jnp.sum(seen) * math.log(2.0 * math.pi))
    sound = jnp.isfinite(value) & (jnp.sum(~seen) <= missing)
    return Solution(alpha, gaps, spectrum, jnp.where(sound, value, -jnp.inf))


def inverse_diagonal(s: Solution, noise: Float[Array, ""]) -> Float[Array, "*grid"]:
    """The diagonal of the inverse over observed points; 0, to rounding, at missing ones."""
    squares = tuple(Q * Q for Q in s.spectrum.vectors)
    return apply(squares, 1.0 / (outer(s.spectrum.values) + noise)) - jnp.sum(s.gaps**2, axis=0)


def variance(s: Solution, factors: Factors, noise: Float[Array, ""]) -> Float[Array, "*grid"]:
    """Variance of the function at each point of the grid given the observed ones."""
    values = outer(s.spectrum.values)
    squares = tuple(Q * Q for Q in s.spectrum.vectors)
    known = apply(squares, values * noise / (values + noise))
    return known + jnp.sum(jax.vmap(lambda v: apply(factors, v))(s.gaps) ** 2, axis=0)


def explained(s: Solution, noise: Float[Array, ""], cross: Float[Array, "m *grid"]) -> Float[Array, "m m"]:
    """``cross C_oo^-1 cross'``: what the observed points explain of the covariance of m further ones."""
    scale = jax.lax.rsqrt(outer(s.spectrum.values) + noise)
    A = jax.vmap(lambda row: (apply(transposed(s.spectrum.vectors), row) * scale).ravel())(cross)
    B = matmul(cross.reshape(A.shape), s.gaps.reshape(len(s.gaps), A.shape[1]).T)
    return matmul(A, A.T) - matmul(B, B.T)
