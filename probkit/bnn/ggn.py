"""Generalised Gauss-Newton maths of a net: its matrix, the evidence of scales and noise, and a damped Newton step.

Notation: w weights (d,), f latent values (n, k), J = df/dw (n, k, d), L the information of each observation on f
(n, k, k), P the precisions of the prior (d,), m its centre. The matrix is ``A = sum_i J_i' L_i J_i + diag(P)``.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float, Int

from probkit.math.linalg import matmul


def gauss_newton(J: Float[Array, "n k d"], information: Float[Array, "n k k"]) -> Float[Array, "d d"]:
    """``sum_i J_i' L_i J_i``.

    References:
        Schraudolph (2002), Fast curvature matrix-vector products for second-order gradient descent.
    """
    n, k, d = J.shape
    if k == 1:
        scaled = J[:, 0] * jnp.sqrt(information[:, 0, 0])[:, None]
        return matmul(scaled.T, scaled)
    return matmul(J.reshape(n * k, d).T, (information @ J).reshape(n * k, d))


class Inverse(NamedTuple):
    """What one factorisation of ``A`` gives.

    Attributes:
        root: R with ``R R' = A^-1``, upper triangular.
        diagonal: of ``A^-1``.
        log_det: of A.
    """

    root: Float[Array, "d d"]
    diagonal: Float[Array, " d"]
    log_det: Float[Array, ""]


#: Rows of the smallest blocks of a factor: XLA:CPU shares larger ones among threads, at up to a hundred times the cost.
BLOCK = 16


def inverse_factor(A: Float[Array, "d d"], block: int = BLOCK) -> tuple[Float[Array, "d d"], Float[Array, ""]]:
    """Inverse X of the lower Cholesky factor of A, so that ``X'X = A^-1``, and the log determinant of A; by halves.

    All but the smallest blocks is matrix products: 20 ms at d = 800, where the factor alone takes XLA:CPU 170 to 1,800.
    NaN where A is not positive definite.

    Args:
        A: symmetric positive definite, (d, d).
        block: rows of the smallest blocks; raised to d/64, so that the program stays small.
    """
    d = A.shape[0]
    block = max(block, d // 64)
    if d <= block:
        L = jax.lax.linalg.cholesky(A, symmetrize_input=False)
        eye = jnp.eye(d, dtype=A.dtype)
        return solve_triangular(L, eye, lower=True), 2 * jnp.sum(jnp.log(jnp.diagonal(L)))
    h = -(-d // 2 // block) * block if d > 2 * block else d // 2
    X, first = inverse_factor(A[:h, :h], block)
    L = matmul(A[h:, :h], X.T)
    Y, second = inverse_factor(A[h:, h:] - matmul(L, L.T), block)
    corner = -matmul(Y, matmul(L, X))
    return jnp.block([[X, jnp.zeros((h, d - h), A.dtype)], [corner, Y]]), first + second


def inverse(A: Float[Array, "d d"]) -> Inverse:
    """Root, diagonal and log determinant by one factorisation; A is scaled to unit diagonal, so units do not matter."""
    scale = jnp.sqrt(jnp.maximum(jnp.diagonal(A), jnp.finfo(A.dtype).tiny))
    jitter = 10 * jnp.finfo(A.dtype).eps * jnp.eye(A.shape[0], dtype=A.dtype)
    X, log_det = inverse_factor(A / scale[:, None] / scale + jitter)
    return Inverse(X.T / scale[:, None], jnp.sum(X**2, axis=0) / scale**2, log_det + 2 * jnp.sum(jnp.log(scale)))


def diagonal_inverse(
    J: Float[Array, "n k d"], information: Float[Array, "n k k"], precision: Float[Array, " d"]
) -> Inverse:
    """The same of the diagonal of A alone; ``root`` is then (d,), the standard deviations."""
    diagonal = jnp.einsum("nkd,nkd->d", J, information @ J) + precision
    return Inverse(diagonal**-0.5, 1 / diagonal, jnp.sum(jnp.log(diagonal)))


class Evidence(NamedTuple):
    """Precisions of the groups of weights, and how many weights each group's data determine."""

    alpha: Float[Array, " groups"]
    determined: Float[Array, " groups"]


def update_precisions(
    deviation: Float[Array, " d"],
    precision: Float[Array, " d"],
    variance: Float[Array, " d"],
    base: Float[Array, " d"],
    group: Int[Array, " d"],
    groups: int,
    shape: float = 0.5,
    rate: float = 0.5,
) -> Evidence:
    """MacKay's fixed point for the precision ``alpha_g`` of each group, the prior precision being ``base * alpha_g``.

    ``gamma_g = d_g - sum_g P diag(A^-1)`` weights are determined by the data, and
    ``alpha_g = (gamma_g + 2 shape) / (sum_g base (w - m)² + 2 rate)``, under a Gamma(shape, rate) prior of half an
    observation, which keeps a group of one or two weights from running away.

    Args:
        deviation: w - m.
        precision: P as it was.
        variance: diagonal of ``A^-1``.
        base: precision of each weight for alpha 1.
        group: which group a weight is in.
        groups: how many there are.
        shape: of the Gamma prior.
        rate: of the Gamma prior.

    References:
        MacKay (1992), A practical Bayesian framework for backpropagation networks, Neural Computation 4, section 4.
    """
    total = lambda x: jax.ops.segment_sum(x, group, groups)
    determined = jnp.maximum(total(1 - precision * variance), 0.0)
    alpha = (determined + 2 * shape) / (total(base * deviation**2) + 2 * rate)
    return Evidence(jnp.clip(alpha, 1e-6, 1e8), determined)


def log_evidence(
    log_likelihood: Float[Array, ""],
    deviation: Float[Array, " d"],
    precision: Float[Array, " d"],
    log_det: Float[Array, ""],
) -> Float[Array, ""]:
    """Laplace's log marginal likelihood: ``log p(y|w) - (w-m)'P(w-m)/2 + log det P / 2 - log det A / 2``."""
    return log_likelihood - 0.5 * (jnp.sum(precision * deviation**2) - jnp.sum(jnp.log(precision)) + log_det)
