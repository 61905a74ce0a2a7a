"""Laplace's approximation for a Gaussian process seen through any likelihood, its mode differentiated implicitly.

``f ~ N(m, K)``, ``y_i ~ p(y_i | f_i)``. At the mode ``f = m + K g(f)`` with g the gradient of the log-likelihood and W
its negative curvature (the expected one where the likelihood is not log-concave),

``log Z = sum log p(y_i | f_i) - g'(f - m) / 2 - log det(I + W^1/2 K W^1/2) / 2``.

The mode is a function of K, m and the likelihood whose derivative solves one linear system,
``(I + K W_observed) df = dK g + dm + K dg``, to any order; the Newton steps are not differentiated.

References:
    Rasmussen and Williams (2006), Gaussian Processes for Machine Learning, sections 3.4 and 5.5. Hartmann and Vanhatalo
    (2019), Laplace approximation and natural gradient for Gaussian process regression with heteroscedastic Student-t
    model.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from probkit.math.latent import Terms, gradient, masked, observed_curvature, positive_curvature
from probkit.math.linalg import matmul, safe_cholesky, spd_solve

#: Newton steps at most; eight or so are usual.
STEPS = 60


class Approximation(NamedTuple):
    """The normal approximation of the latent values.

    Attributes:
        f: the mode, (n,).
        g: gradient of the log-likelihood there, 0 where y is missing.
        W: curvature there, 0 where y is missing.
        log_evidence: the approximate log marginal likelihood; -inf where it failed.
    """

    f: Float[Array, " n"]
    g: Float[Array, " n"]
    W: Float[Array, " n"]
    log_evidence: Float[Array, ""]


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def mode(terms: Terms, curvature: Terms, phi: Any, K: Array, m: Array, y: Array) -> Array:
    """The mode of f given y by Newton's method with a line search, NaN where it fails; see :func:`approximate`."""
    shares = 0.5 ** jnp.arange(12, dtype=K.dtype)
    tolerance = 100.0 * float(jnp.finfo(K.dtype).eps)

    def objective(f: Array, a: Array) -> Array:
        return jnp.sum(masked(terms, phi, f, y)) - 0.5 * jnp.sum(a * (f - m))

    def newton(state: tuple) -> tuple:
        f, a, value, _, count = state
        W = positive_curvature(curvature, phi, f, y)
        root = jnp.sqrt(W)
        b = W * (f - m) + gradient(terms, phi, f, y)
        L, _ = safe_cholesky(jnp.eye(len(f), dtype=f.dtype) + root[:, None] * K * root[None, :])
        Kb = matmul(K, b)
        step = b - root * jax.scipy.linalg.cho_solve((L, True), root * Kb) - a
        move = m + matmul(K, a + step) - f
        values = jax.vmap(lambda t: objective(f + t * move, a + t * step))(shares)
        best = jnp.argmax(jnp.where(jnp.isnan(values), -jnp.inf, values))
        gain = values[best] - value
        better = gain > 0
        t = jnp.where(better, shares[best], 0.0)
        return f + t * move, a + t * step, jnp.where(better, values[best], value), gain, count + 1

    def goes_on(state: tuple) -> Array:
        _, _, value, gain, count = state
        return (count < STEPS) & (gain > tolerance * (1.0 + jnp.abs(value)))

    zero = jnp.zeros_like(m)
    start = (m, zero, objective(m, zero), jnp.full((), jnp.inf, K.dtype), jnp.zeros((), int))
    f, _, value, _, _ = jax.lax.while_loop(goes_on, newton, start)

    # The loop stops at a gain that is rounding, which leaves f half its digits: Newton's method on f = m + K g(f), with
    # the observed curvature, gives the other half where it comes nearer.
    def miss(f: Array) -> Array:
        return f - m - matmul(K, gradient(terms, phi, f, y))

    for _ in range(3):
        system = jnp.eye(len(f), dtype=f.dtype) + K * observed_curvature(terms, phi, f, y)[None, :]
        nearer = f - jnp.linalg.solve(system, miss(f))
        f = jnp.where(jnp.sum(miss(nearer) ** 2) < jnp.sum(miss(f) ** 2), nearer, f)
    return jnp.where(jnp.isfinite(value), f, jnp.nan)


@mode.defjvp
def _mode_jvp(terms: Terms, curvature: Terms, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (phi, K, m, y), (dphi, dK, dm, _) = primals, tangents
    f = mode(terms, curvature, phi, K, m, y)
    g, dg = jax.jvp(lambda phi: gradient(terms, phi, f, y), (phi,), (dphi,))
    W = observed_curvature(terms, phi, f, y)
    system = jnp.eye(len(f), dtype=f.dtype) + K * W[None, :]
    right = matmul(dK, g) + dm + matmul(K, dg)
    sound = jnp.all(jnp.isfinite(f))
    df = jnp.linalg.solve(jnp.where(sound, system, jnp.eye(len(f), dtype=f.dtype)), jnp.where(sound, right, 0.0))
    return f, df


def approximate(
    terms: Terms, curvature: Terms, phi: Any, K: Float[Array, "n n"], m: Float[Array, " n"], y: Float[Array, " n"]
) -> Approximation:
    """Mode, curvature and evidence.

    Args:
        terms: ``terms(phi, f, y)``, the log density of each entry; static.
        curvature: ``curvature(phi, f, y)``, what stands for minus its second derivative in f, not negative; static.
        phi: parameters of the likelihood, a pytree of floats.
        K: prior covariance of f, (n, n).
        m: prior mean of f, (n,).
        y: observations, (n,); NaN is missing.
    """
    f = mode(terms, curvature, phi, K, m, y)
    g, W = gradient(terms, phi, f, y), positive_curvature(curvature, phi, f, y)
    root = jnp.sqrt(jnp.where(W > 0, W, 1.0)) * (W > 0)
    B = jnp.eye(len(f), dtype=f.dtype) + root[:, None] * K * root[None, :]
    value = jnp.sum(masked(terms, phi, f, y)) - 0.5 * (jnp.sum(g * (f - m)) + spd_solve(B, f).log_det)
    return Approximation(f, g, W, jnp.where(jnp.isfinite(value), value, -jnp.inf))


def project(
    found: Approximation, K: Float[Array, "n n"], K_cross: Float[Array, "n k"], diag_new: Float[Array, " k"]
) -> tuple[Float[Array, " k"], Float[Array, " k"]]:
    """Mean, less the prior mean, and variance of further latent values under the approximation.

    Args:
        found: the approximation.
        K: prior covariance of f, (n, n).
        K_cross: prior covariance of f with the further values, (n, k).
        diag_new: prior variances of the further values, (k,).
    """
    root = jnp.sqrt(found.W)
    L, _ = safe_cholesky(jnp.eye(len(K), dtype=K.dtype) + root[:, None] * K * root[None, :])
    A = jax.scipy.linalg.solve_triangular(L, root[:, None] * K_cross, lower=True)
    floor = float(jnp.finfo(K.dtype).eps) * diag_new
    return matmul(K_cross.T, found.g), jnp.maximum(diag_new - jnp.sum(A**2, axis=0), floor)


def cavity(
    found: Approximation, variance: Float[Array, " n"], prior: Float[Array, " n"]
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """Mean and variance of each latent value with its own observation taken out (linear response).

    ``1 / v_-i = 1 / v_i - W_i``, ``f_-i = f_i - v_-i g_i``.

    Args:
        found: the approximation.
        variance: of each latent value under the approximation, (n,).
        prior: variances of the latent values before any data, the most that a cavity can have.

    References:
        Vehtari, Mononen, Tolvanen, Sivula and Winther (2016), Bayesian leave-one-out cross-validation approximations
        for Gaussian latent variable models.
    """
    shrink = jnp.maximum(1.0 - variance * found.W, jnp.finfo(variance.dtype).eps)
    alone = jnp.minimum(variance / shrink, prior)
    return found.f - alone * found.g, alone
