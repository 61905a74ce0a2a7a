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


def centred(X: Float[Array, "n D"], by: Float[Array, "m D"] | None = None) -> Float[Array, "n D"]:
    """Inputs less the column means of ``by`` (their own by default), which count as constants."""
    by = X if by is None else by
    # In two steps: the mean of a large offset may be rounded differently in each loop it is fused into.
    origin = jax.lax.stop_gradient(by[:1])
    centre = jax.lax.stop_gradient(jnp.mean(by - origin, axis=0, keepdims=True))
    return X - origin - centre


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
    A, B = centred(A, A) / scale[None, :], centred(B, A) / scale[None, :]
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


def rbf(s: Float[Array, "..."]) -> Float[Array, "..."]:
    """Squared exponential correlation ``exp(-s / 2)`` of squared scaled distances."""
    return jnp.exp(-0.5 * s)


@jax.custom_jvp
def matern12(s: Float[Array, "..."]) -> Float[Array, "..."]:
    """Matérn correlation of order 1/2, ``exp(-r)`` with ``r = sqrt(s)``.

    Its derivative in s, ``-exp(-r) / (2 r)``, has no limit at 0, where 0 is taken: right for every parameter, since
    ``ds = 0`` there, and the middle of the kink for the inputs.

    Args:
        s: squared scaled distances, any shape.
    """
    return jnp.exp(-root(s))


@matern12.defjvp
def _matern12_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (s,), (ds,) = primals, tangents
    r = root(s)
    k = jnp.exp(-r)
    return k, jnp.where(r > 0, -0.5 * k / jnp.where(r > 0, r, 1.0), 0.0) * ds


@jax.custom_jvp
def matern52(s: Float[Array, "..."]) -> Float[Array, "..."]:
    """Matérn correlation of order 5/2, ``(1 + t + t²/3) exp(-t)`` with ``t = sqrt(5 s)``.

    Its slope is ``-5/6 (1 + t) exp(-t)``.

    Args:
        s: squared scaled distances, any shape.

    References:
        Rasmussen and Williams (2006), Gaussian Processes for Machine Learning, eq. 4.17.
    """
    t = math.sqrt(5.0) * root(s)
    return (1.0 + t + t * t / 3.0) * jnp.exp(-t)


@matern52.defjvp
def _matern52_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (s,), (ds,) = primals, tangents
    t = math.sqrt(5.0) * root(s)
    decay = jnp.exp(-t)
    # The slope is a Matérn 3/2 in 5/3 s: through that function its own derivative is safe at 0 as well.
    return (1.0 + t + t * t / 3.0) * decay, -5.0 / 6.0 * matern32((5.0 / 3.0) * s) * ds


def rational_quadratic(s: Float[Array, "..."], alpha: Float[Array, ""]) -> Float[Array, "..."]:
    """Rational quadratic correlation ``(1 + s / (2 alpha))^-alpha``: RBFs of gamma-distributed inverse squared lengths.

    Args:
        s: squared scaled distances, any shape.
        alpha: the shape of the mixture; large is RBF.

    References:
        Rasmussen and Williams (2006), Gaussian Processes for Machine Learning, eq. 4.19.
    """
    return jnp.exp(-alpha * jnp.log1p(s / (2.0 * alpha)))


def damped_waves(t: Float[Array, "..."], b: Float[Array, ""]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """``exp(-b t) cos(w t)`` and ``exp(-b t) sin(w t) / w`` with ``w² = 1 - b²``, hyperbolic where ``b > 1``.

    Critical damping, ``b = 1``, is a smooth point of both, in value and derivatives.

    Args:
        t: times ``>= 0``, any shape.
        b: damping, positive.
    """
    z = (1.0 - b * b) * t * t
    under, over = z > 1e-2, z < -1e-2
    w, h = jnp.sqrt(jnp.where(under, z, 1.0)), jnp.sqrt(jnp.where(over, -z, 1.0))
    near = jnp.where(under | over, 0.0, z)
    # cos(sqrt(z)) and sin(sqrt(z)) / sqrt(z) are entire: by their series between the two branches.
    cosine = 1.0 - near / 2.0 * (1.0 - near / 12.0 * (1.0 - near / 30.0 * (1.0 - near / 56.0 * (1.0 - near / 90.0))))
    sinc = 1.0 - near / 6.0 * (1.0 - near / 20.0 * (1.0 - near / 42.0 * (1.0 - near / 72.0 * (1.0 - near / 110.0))))
    # One exponent each, which cannot overflow: h < b t.
    decay, back = jnp.exp(-b * t), jnp.exp(-h - b * t)
    slow = jnp.exp(jnp.where(over, h - b * t, 0.0))
    C = jnp.where(under, decay * jnp.cos(w), jnp.where(over, 0.5 * (slow + back), decay * cosine))
    S = jnp.where(under, decay * jnp.sin(w) / w, jnp.where(over, 0.5 * (slow - back) / h, decay * sinc))
    return C, t * S


def oscillator(tau: Float[Array, "..."], omega: Float[Array, ""], quality: Float[Array, ""]) -> Float[Array, "..."]:
    """Correlation of a damped oscillator driven by white noise, ``exp(-b t) (cos(w t) + b sin(w t) / w)``.

    ``t = omega tau``, ``b = 1 / (2 Q)`` and ``w² = 1 - b²``: hyperbolic where ``Q < 1/2``.

    Args:
        tau: lags, not negative.
        omega: undamped angular frequency, in radians per unit of tau.
        quality: Q.

    References:
        Foreman-Mackey, Agol, Ambikasaran and Angus (2017), Fast and scalable Gaussian process modeling, eq. 20.
    """
    b = 0.5 / quality
    C, S = damped_waves(omega * tau, b)
    return C + b * S


@jax.custom_jvp
def arc_cosine_0(c: Float[Array, "..."]) -> Float[Array, "..."]:
    """``J_0 = pi - theta`` of Cho and Saul (2009) at ``c = cos theta``; its derivative at ``c = ±1`` is taken as 0."""
    return math.pi - jnp.arctan2(jnp.sqrt(jnp.maximum(1.0 - c * c, 0.0)), c)


@arc_cosine_0.defjvp
def _arc_cosine_0_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (c,), (dc,) = primals, tangents
    square = 1.0 - c * c
    inside = square > 4.0 * float(jnp.finfo(c.dtype).eps)
    return arc_cosine_0(c), jnp.where(inside, dc / jnp.sqrt(jnp.where(inside, square, 1.0)), 0.0)


@jax.custom_jvp
def arc_cosine_1(c: Float[Array, "..."]) -> Float[Array, "..."]:
    """``J_1 = sin theta + (pi - theta) cos theta`` at ``c = cos theta``; its derivative is ``J_0``."""
    return jnp.sqrt(jnp.maximum(1.0 - c * c, 0.0)) + arc_cosine_0(c) * c


@arc_cosine_1.defjvp
def _arc_cosine_1_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (c,), (dc,) = primals, tangents
    return arc_cosine_1(c), arc_cosine_0(c) * dc


@jax.custom_jvp
def arc_cosine_2(c: Float[Array, "..."]) -> Float[Array, "..."]:
    """``J_2 = 3 sin theta cos theta + (pi - theta)(1 + 2 cos² theta)``; its derivative in the cosine is ``4 J_1``."""
    return 3.0 * jnp.sqrt(jnp.maximum(1.0 - c * c, 0.0)) * c + arc_cosine_0(c) * (1.0 + 2.0 * c * c)


@arc_cosine_2.defjvp
def _arc_cosine_2_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (c,), (dc,) = primals, tangents
    return arc_cosine_2(c), 4.0 * arc_cosine_1(c) * dc
