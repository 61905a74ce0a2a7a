r"""The 2-Wasserstein (Bures) distance between Gaussians, whatever the form of their covariances.

References:
    Bhatia, R., Jain, T. and Lim, Y. (2019). On the Bures-Wasserstein distance between positive definite matrices.
        Expositiones Mathematicae 37, 165-191.
    Dowson, D. C. and Landau, B. V. (1982). The Frechet distance between multivariate normal distributions.
        Journal of Multivariate Analysis 12, 450-455.
"""

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import lax
from jaxtyping import Array, Float
from numpyro.distributions import Distribution

from probkit.math.linalg import matmul
from probkit.vi.gaussians import as_gaussian, sum_of_squares, transpose


def wasserstein2(p: Distribution, q: Distribution) -> Float[Array, "*batch"]:
    r"""2-Wasserstein distance between two Gaussians, in the units of the variable.

    $$W_2^2 = \lVert\mu_p-\mu_q\rVert^2 + \mathrm{tr}\bigl(S_p + S_q - 2 (S_p^{1/2} S_q S_p^{1/2})^{1/2}\bigr)$$

    The trace is computed as $\min_Q \lVert A_p - A_q Q\rVert^2$ over rotations Q, with $S = A A'$, which is never
    negative, loses no digits when the covariances are close, and is exactly 0 for equal ones.

    Args:
        p: normal (scalar, or diagonal by `.to_event`), multivariate normal, low-rank normal or Gaussian random walk.
        q: the same, with the event shape of p.

    Returns:
        The distance, of the joint batch shape. Its derivative is taken as 0 where the distance is 0.

    Raises:
        TypeError: if p or q is no Gaussian.
        ValueError: if the event shapes differ.

    References:
        Dowson and Landau (1982), the formula. Bhatia, Jain and Lim (2019), theorem 1 (the rotations).
    """
    if p.event_shape != q.event_shape:
        raise ValueError(f"p has event shape {p.event_shape} and q {q.event_shape}; a distance needs one space.")
    try:
        squared = _squared_distance(p, q)
    except NotImplementedError as error:
        raise TypeError(f"wasserstein2 is between Gaussians: {error}.") from error
    squared = jnp.broadcast_to(squared, lax.broadcast_shapes(p.batch_shape, q.batch_shape))
    apart = squared > 0
    return jnp.where(apart, jnp.sqrt(jnp.where(apart, squared, 1)), 0)


def _squared_distance(p: Distribution, q: Distribution) -> Array:
    while isinstance(p, dist.ExpandedDistribution):  # the batch shape is restored by the caller
        p = p.base_dist
    while isinstance(q, dist.ExpandedDistribution):
        q = q.base_dist
    if isinstance(p, dist.Normal) and isinstance(q, dist.Normal):
        return jnp.square(p.loc - q.loc) + jnp.square(p.scale - q.scale)
    if isinstance(p, dist.Independent) and isinstance(q, dist.Independent):
        shared = min(p.reinterpreted_batch_ndims, q.reinterpreted_batch_ndims)
        inner = [d.base_dist.to_event(d.reinterpreted_batch_ndims - shared) for d in (p, q)]
        shape = lax.broadcast_shapes(inner[0].batch_shape, inner[1].batch_shape)
        return jnp.sum(jnp.broadcast_to(_squared_distance(*inner), shape), range(-shared, 0))
    f, g = as_gaussian(p), as_gaussian(q)
    roots = f.root(), g.root()
    shape = lax.broadcast_shapes(roots[0].shape, roots[1].shape)
    A, B = (jnp.broadcast_to(root, shape) for root in roots)
    return jnp.sum(jnp.square(f.loc - g.loc), -1) + _procrustes(A, B)


@jax.custom_jvp
def _procrustes(A: Float[Array, "*batch n n"], B: Float[Array, "*batch n n"]) -> Float[Array, "*batch"]:
    """Least squared distance of A from B Q over orthogonal Q; at the optimum, Q counts as constant (envelope)."""
    return sum_of_squares(A - matmul(B, _rotation(A, B)))


@_procrustes.defjvp
def _procrustes_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (A, B), (dA, dB) = primals, tangents
    Q = _rotation(A, B)
    R, dR = A - matmul(B, Q), dA - matmul(dB, Q)
    return sum_of_squares(R), 2 * jnp.sum(R * dR, (-2, -1))


def _rotation(A: Array, B: Array) -> Array:
    equal = jnp.all(A == B, (-2, -1), keepdims=True)
    return jnp.where(equal, jnp.eye(A.shape[-1], dtype=A.dtype), _polar(matmul(transpose(B), A)))


@jax.custom_jvp
def _polar(M: Float[Array, "*batch n n"]) -> Float[Array, "*batch n n"]:
    """The orthogonal factor U V' of M = U diag(s) V'; equal singular values do not disturb its derivative."""
    U, _, Vt = jnp.linalg.svd(M)
    return matmul(U, Vt)


@_polar.defjvp
def _polar_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (M,), (dM,) = primals, tangents
    U, s, Vt = jnp.linalg.svd(M)
    X = matmul(transpose(U), matmul(dM, transpose(Vt)))
    turn = (X - transpose(X)) / (s[..., :, None] + s[..., None, :])
    return matmul(U, Vt), matmul(U, matmul(turn, Vt))
