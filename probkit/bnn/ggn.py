"""Generalised Gauss-Newton maths of a net: its matrix, the evidence of scales and noise, and a damped Newton step.

Notation: w weights (d,), f latent values (n, k), J = df/dw (n, k, d), L the information of each observation on f
(n, k, k), P the precisions of the prior (d,), m its centre. The matrix is ``A = sum_i J_i' L_i J_i + diag(P)``.
"""

from typing import Any, NamedTuple

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
        root: R with ``R R' = A^-1``, upper triangular; where A is structured, in the form of what made it.
        diagonal: of ``A^-1``.
        log_det: of A.
    """

    root: Any
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


def diagonal(J: Float[Array, "n k d"], information: Float[Array, "n k k"]) -> Float[Array, " d"]:
    """The diagonal of :func:`gauss_newton`."""
    return jnp.einsum("nkd,nkd->d", J, information @ J)


def diagonal_inverse(diagonal: Float[Array, " d"]) -> Inverse:
    """What :func:`inverse` gives, of a diagonal matrix; ``root`` is then (d,), the standard deviations."""
    return Inverse(diagonal**-0.5, 1 / diagonal, jnp.sum(jnp.log(diagonal)))


def kronecker(
    a: Float[Array, "n inputs"], g: Float[Array, "n k outputs"], information: Float[Array, "n k k"]
) -> tuple[Float[Array, "inputs inputs"], Float[Array, "outputs outputs"]]:
    """Factors A and G of a dense layer, whose part of the Gauss-Newton matrix is taken for ``G ⊗ A`` (KFAC).

    ``A = sum_i a_i a_i'`` and ``G = mean_i g_i' L_i g_i``; exact where ``g_i' L_i g_i`` is the same for all i, as in a
    linear model with one noise.

    Args:
        a: inputs of the layer, a 1 for the bias among them.
        g: derivatives of f by the outputs of the layer.
        information: L.

    References:
        Martens and Grosse (2015), Optimizing neural networks with Kronecker-factored approximate curvature. Ritter,
        Botev and Barber (2018), A scalable Laplace approximation for neural networks.
    """
    return matmul(a.T, a), jnp.einsum("nko,nkp->op", g, information @ g) / a.shape[0]


def kronecker_inverse(
    A: Float[Array, "inputs inputs"], G: Float[Array, "outputs outputs"], precision: Float[Array, " inputs"]
) -> Inverse:
    """What :func:`inverse` gives, of ``G ⊗ A + I ⊗ diag(precision)``, exactly.

    Returns:
        ``root`` is (U, V, s) with ``(V ⊗ U) diag(s) (V ⊗ U)'`` the inverse: (inputs, inputs), (outputs, outputs),
        (outputs, inputs) holding the square roots; ``diagonal`` is (outputs, inputs).
    """
    scale = precision**-0.5
    a, U = jnp.linalg.eigh(A * scale[:, None] * scale)
    b, V = jnp.linalg.eigh(G)
    values = jnp.maximum(b, 0.0)[:, None] * jnp.maximum(a, 0.0) + 1
    U = scale[:, None] * U
    log_det = jnp.sum(jnp.log(values)) + G.shape[0] * jnp.sum(jnp.log(precision))
    return Inverse((U, V, values**-0.5), (V**2) @ (1 / values) @ (U**2).T, log_det)


def kronecker_spread(J: Float[Array, "n k outputs inputs"], root: tuple) -> Float[Array, "n k d"]:
    """``J R`` for the root R of a layer: what :func:`kronecker_inverse` gave."""
    U, V, s = root
    spread = jnp.einsum("nkoi,op,ij->nkpj", J, V, U) * s
    return spread.reshape(*J.shape[:2], -1)


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
