"""Symmetric positive definite matrices: a Cholesky that reports its jitter, and solves whose derivatives are known."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

#: Below this size a triangular matrix is inverted in one solve; the recursion above it makes at most eight blocks.
BLOCK = 256


class SPDSolution(NamedTuple):
    """What one factorisation of a symmetric positive definite ``K`` gives.

    Attributes:
        solution: ``K^-1 b``.
        inverse: ``K^-1``.
        log_det: ``log det K``.
        jitter: what was added to the diagonal of K; 0 for a regular matrix.
    """

    solution: Float[Array, " n"]
    inverse: Float[Array, "n n"]
    log_det: Float[Array, ""]
    jitter: Float[Array, ""]


def matmul(A: Float[Array, "..."], B: Float[Array, "..."]) -> Float[Array, "..."]:
    """``A @ B`` in the full precision of the dtype (accelerators round float32 products to fewer bits)."""
    return jnp.matmul(A, B, precision=jax.lax.Precision.HIGHEST)


@jax.jit  # for callers outside jit: a loop over local functions would compile at every call
def _climb_ladder(K: Array) -> tuple[Array, Array]:
    eps = float(jnp.finfo(K.dtype).eps)
    diagonal = jnp.diagonal(K)
    unit = 10.0 * eps * jnp.mean(diagonal)
    last = unit * 10.0 ** math.floor(-0.5 * math.log10(eps))
    none = jnp.zeros_like(unit)

    def factor(jitter: Array) -> tuple[Array, Array]:
        raised = K + jitter * jnp.eye(K.shape[0], dtype=K.dtype)
        L = jax.lax.linalg.cholesky(raised, symmetrize_input=False)
        return L, jnp.all(jnp.diagonal(L) ** 2 > eps * diagonal)

    def climbs(state: tuple[Array, Array]) -> Array:
        jitter, sound = state
        return ~sound & (jitter < 0.5 * last)

    def climb(state: tuple[Array, Array]) -> tuple[Array, Array]:
        jitter = jnp.where(state[0] > 0, 10.0 * state[0], unit)
        return jitter, factor(jitter)[1]

    def ladder(L: Array, sound: Array) -> tuple[Array, Array]:
        # The loop carries the level alone, and the factor is made once more: memory is dearer than a rare factor.
        jitter, _ = jax.lax.while_loop(climbs, climb, (none, sound))
        L, sound = factor(jitter)
        return jnp.where(sound, L, jnp.nan), jitter

    # A branch, so that a regular matrix passes no loop: a third of the time at n = 2,000.
    L = jax.lax.linalg.cholesky(K, symmetrize_input=False)
    sound = jnp.all(jnp.diagonal(L) ** 2 > eps * diagonal)
    return jax.lax.cond(sound, lambda L, _: (L, none), ladder, L, sound)


@jax.custom_jvp
def safe_cholesky(K: Float[Array, "n n"]) -> tuple[Float[Array, "n n"], Float[Array, ""]]:
    """Lower Cholesky factor of ``K + jitter I`` with the smallest jitter of a relative ladder that works.

    The ladder is 0, then ``10 eps mean(diag K)`` times 1, 10, 100, ...: eight steps in float64 (up to 2e-8 of the mean
    diagonal), four in float32 (up to 1e-3). A factor counts as failed when a pivot is lost to rounding,
    ``L_jj^2 <= eps K_jj``. The derivative is ``dL = L Phi(L^-1 dK L^-T)`` with Phi the lower triangle with half the
    diagonal, the jitter held fixed.

    Args:
        K: symmetric matrix, shape (n, n); only the lower triangle is read.

    Returns:
        The factor, NaN throughout if every step failed, and the jitter, in the units of K.

    References:
        Smith (1995), Differentiation of the Cholesky algorithm. Murray (2016), arXiv:1602.07527.
    """
    return _climb_ladder(K)


@safe_cholesky.defjvp
def _safe_cholesky_jvp(primals: tuple, tangents: tuple) -> tuple:
    (K,), (dK,) = primals, tangents
    L, jitter = safe_cholesky(K)
    M = solve_triangular(L, solve_triangular(L, dK, lower=True).T, lower=True)
    half = jnp.tril(M) - 0.5 * jnp.diag(jnp.diagonal(M))
    return (L, jitter), (matmul(L, half), jnp.zeros_like(jitter))


def triangular_inverse(L: Float[Array, "n n"], block: int = BLOCK) -> Float[Array, "n n"]:
    """Inverse of a lower triangular matrix by halves: ``[[A, 0], [B, C]]^-1 = [[A^-1, 0], [-C^-1 B A^-1, C^-1]]``.

    Args:
        L: lower triangular matrix, shape (n, n).
        block: size below which one triangular solve is made; raised to n/8, so that the program stays small.
    """
    n = L.shape[0]
    block = max(block, n // 8)
    if n <= block:
        return solve_triangular(L, jnp.eye(n, dtype=L.dtype), lower=True)
    h = n // 2
    A, C = triangular_inverse(L[:h, :h], block), triangular_inverse(L[h:, h:], block)
    B = -matmul(C, matmul(L[h:, :h], A))
    return jnp.block([[A, jnp.zeros((h, n - h), L.dtype)], [B, C]])


def triangular_gram(T: Float[Array, "n n"], block: int = BLOCK) -> Float[Array, "n n"]:
    """``T' T`` of a lower triangular matrix by halves, skipping the products with zeros: half the work.

    Args:
        T: lower triangular matrix, shape (n, n).
        block: size below which one product is made; raised to n/8.
    """
    n = T.shape[0]
    block = max(block, n // 8)
    if n <= block:
        return matmul(T.T, T)
    h = n // 2
    A, B, C = T[:h, :h], T[h:, :h], T[h:, h:]
    corner = matmul(C.T, B)
    return jnp.block([[triangular_gram(A, block) + matmul(B.T, B), corner.T], [corner, triangular_gram(C, block)]])


def solve_lower(L: Float[Array, "n n"], b: Float[Array, " n"], block: int = BLOCK) -> Float[Array, " n"]:
    """``L^-1 b`` for one right-hand side, block row by block row: LAPACK's solve would copy all of L first.

    Args:
        L: lower triangular matrix, shape (n, n).
        b: right-hand side, shape (n,).
        block: rows solved at once; raised to n/8.
    """
    n = L.shape[0]
    block = max(block, -(-n // 8))
    w = b[:0]
    for i in range(0, n, block):
        rows = L[i : i + block]
        rest = b[i : i + block] - matmul(rows[:, :i], w) if i else b[:block]
        w = jnp.concatenate([w, solve_triangular(rows[:, i : i + block], rest, lower=True)])
    return w


def solve_lower_transposed(L: Float[Array, "n n"], b: Float[Array, " n"], block: int = BLOCK) -> Float[Array, " n"]:
    """``L'^-1 b`` for one right-hand side; arguments as in :func:`solve_lower`."""
    n = L.shape[0]
    block = max(block, -(-n // 8))
    w = b[:0]
    for i in reversed(range(0, n, block)):
        end = min(i + block, n)
        rest = b[i:end] - matmul(w, L[end:, i:end]) if end < n else b[i:end]
        w = jnp.concatenate([solve_triangular(L[i:end, i:end], rest, lower=True, trans=1), w])
    return w


def spd_inverse(L: Float[Array, "n n"], block: int = BLOCK) -> Float[Array, "n n"]:
    """``(L L')^-1`` by halves, three products of half size and no inverse of L itself.

    With ``L = [[A, 0], [B, C]]``, ``M = B A^-1`` and ``S = (C C')^-1``:
    ``[[(A A')^-1 + M' S M, -M' S], [-S M, S]]``.

    Args:
        L: lower triangular matrix, shape (n, n).
        block: size below which one triangular solve is made; raised to n/8, so that the program stays small.
    """
    n = L.shape[0]
    block = max(block, n // 8)
    if n <= block:
        return triangular_gram(triangular_inverse(L, block), block)
    h, q = n // 2, n // 4
    T = triangular_inverse(L[:h, :h], block)
    B = L[h:, :h]
    # T is lower triangular: the product with its corner of zeros is left out.
    M = jnp.concatenate([matmul(B, T[:, :q]), matmul(B[:, q:], T[q:, q:])], axis=1)
    S = spd_inverse(L[h:, h:], block)
    corner = -matmul(S, M)
    return jnp.block([[triangular_gram(T, block) - matmul(M.T, corner), corner.T], [corner, S]])


@jax.custom_jvp
def spd_solve(K: Float[Array, "n n"], b: Float[Array, " n"]) -> SPDSolution:
    """Solution, inverse and log determinant of a symmetric positive definite matrix from one factor.

    Derivatives of every order use the inverse and never pass through the factor:
    ``dK^-1 = -K^-1 dK K^-1``, ``d(K^-1 b) = K^-1 (db - dK K^-1 b)``, ``d log det K = tr(K^-1 dK)``.

    Args:
        K: symmetric matrix, shape (n, n).
        b: right-hand side, shape (n,).

    Returns:
        An :class:`SPDSolution`; NaN, with derivatives 0, where K cannot be factorised.

    References:
        Rasmussen and Williams (2006), Gaussian Processes for Machine Learning, appendix A.3.1.
    """
    L, jitter = safe_cholesky(K)
    inverse = spd_inverse(L)
    log_det = 2.0 * jnp.sum(jnp.log(jnp.diagonal(L)))
    return SPDSolution(solve_lower_transposed(L, solve_lower(L, b)), inverse, log_det, jitter)


@spd_solve.defjvp
def _spd_solve_jvp(primals: tuple, tangents: tuple) -> tuple[SPDSolution, SPDSolution]:
    dK, db = tangents
    out = spd_solve(*primals)
    sound = jnp.isfinite(out.log_det)
    inverse, x = jnp.where(sound, out.inverse, 0.0), jnp.where(sound, out.solution, 0.0)
    tangent = SPDSolution(
        solution=matmul(inverse, db - matmul(dK, x)),
        inverse=-matmul(inverse, matmul(dK, inverse)),
        log_det=jnp.sum(inverse * dK),
        jitter=jnp.zeros_like(out.jitter),
    )
    return out, tangent
