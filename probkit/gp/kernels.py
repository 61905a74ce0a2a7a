"""Distances and correlations of stationary kernels, with derivatives that are finite at distance 0."""

import math
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from probkit.math.linalg import matmul

#: One lengthscale, or one per column.
Lengthscale = Float[Array, "..."] | float


@runtime_checkable
class Kernel(Protocol):
    """What a Gaussian process asks of its covariance: any pytree with these two methods."""

    def __call__(self, X1: Float[Array, "n1 *D"], X2: Float[Array, "n2 *D"]) -> Float[Array, "n1 n2"]:
        """Covariance between two sets of inputs, each (n,) or (n, D)."""
        ...

    def diagonal(self, X: Float[Array, "n *D"]) -> Float[Array, " n"]:
        """Variance at each input."""
        ...


def columns(X: Float[Array, "n *D"]) -> Float[Array, "n columns"]:
    """Inputs as a matrix: a vector is one column."""
    return X[:, None] if X.ndim == 1 else X


def squared_distance(
    X1: Float[Array, "n1 *D"], X2: Float[Array, "n2 *D"], lengthscale: Lengthscale = 1.0
) -> Float[Array, "n1 n2"]:
    """Squared scaled distances ``s_ij = sum_d ((x1_id - x2_jd) / lengthscale_d)^2``.

    Up to two columns the plain differences are taken. Beyond that the product form ``|a|^2 + |b|^2 - 2 a'b``, whose
    gradient needs no array of shape (n1, n2, D), on centred inputs, so that a large offset costs no digits; it is
    clamped at 0, and its diagonal is exactly 0 when ``X1 is X2``.

    Args:
        X1: inputs, shape (n1,) or (n1, D).
        X2: inputs, shape (n2,) or (n2, D).
        lengthscale: one for all columns, or shape (D,); in the units of X.
    """
    A, B = columns(X1), columns(X2)
    D = A.shape[1]
    scale = jnp.broadcast_to(jnp.asarray(lengthscale, A.dtype), (D,))
    if D <= 2:
        # Subtract, then scale: x/l - x/l need not be 0 when XLA contracts it to a fused multiply-add.
        parts = [((A[:, d][:, None] - B[:, d][None, :]) / scale[d]) ** 2 for d in range(D)]
        return sum(parts[1:], parts[0])
    # In two steps: the mean of a large offset may be rounded differently in each loop it is fused into.
    origin = jax.lax.stop_gradient(A[:1])
    centre = jax.lax.stop_gradient(jnp.mean(A - origin, axis=0, keepdims=True))
    A, B = (A - origin - centre) / scale[None, :], (B - origin - centre) / scale[None, :]
    s = jnp.sum(A**2, axis=1)[:, None] + jnp.sum(B**2, axis=1)[None, :] - 2.0 * matmul(A, B.T)
    # Clamped in value only: the derivatives of a rounded 0 are those of 0.
    s = s - jax.lax.stop_gradient(jnp.minimum(s, 0.0))
    return jnp.where(jnp.eye(len(A), dtype=bool), 0.0, s) if X1 is X2 else s


def root(s: Float[Array, "..."]) -> Float[Array, "..."]:
    """Distance ``r = sqrt(s)``; below the rounding error of s it is 0, and so are its derivatives."""
    # Squared, eps leaves room for the derivatives r^-1, r^-3, r^-5 in float32 too. The stand-in under the root is the
    # floor and not 1: XLA may compute s twice, rounded in two ways, and then the two tests of it can disagree.
    floor = float(jnp.finfo(s.dtype).eps) ** 2
    return jnp.where(s <= floor, 0.0, jnp.sqrt(jnp.maximum(s, floor)))


def distance(
    X1: Float[Array, "n1 *D"], X2: Float[Array, "n2 *D"], lengthscale: Lengthscale = 1.0
) -> Float[Array, "n1 n2"]:
    """Scaled distances ``r = sqrt(s)``, see :func:`squared_distance`; derivatives at distance 0 are 0."""
    return root(squared_distance(X1, X2, lengthscale))


@jax.custom_jvp
def matern32(s: Float[Array, "..."]) -> Float[Array, "..."]:
    """Matérn correlation of order 3/2, ``(1 + sqrt(3) r) exp(-sqrt(3) r)`` with ``r = sqrt(s)``.

    A function of the *squared* scaled distance, because there it is differentiable at 0,
    ``dk/ds = -3/2 exp(-sqrt(3) r)``: first and second derivatives are right at coinciding inputs, in the lengthscale
    and in the inputs.

    Args:
        s: squared scaled distances, any shape.

    References:
        Rasmussen and Williams (2006), Gaussian Processes for Machine Learning, eq. 4.17.
    """
    t = math.sqrt(3.0) * root(s)
    return (1.0 + t) * jnp.exp(-t)


@matern32.defjvp
def _matern32_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (s,), (ds,) = primals, tangents
    t = math.sqrt(3.0) * root(s)
    decay = jnp.exp(-t)
    return (1.0 + t) * decay, -1.5 * decay * ds
