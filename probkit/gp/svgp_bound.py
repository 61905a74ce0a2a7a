"""The variational bound of a Gaussian process seen through whitened inducing values, and natural gradients for it.

One column of latent values: ``f = loc + A' v + rest`` with ``A = L^-1 K_zx``, ``L L' = K_zz``, ``v ~ N(0, I)``, and a
rest of variance ``k(x, x) - |a|²``, independent of v. The law ``q(v) = N(mu, S)`` is held by its natural parameters,
the precision ``S^-1`` and the shift ``S^-1 mu``. The bound is

``sum_i E_q log p(y_i | f_i) - KL(q | N(0, I))``,

and with the slopes ``g_i = E dlog p / df`` and curvatures ``w_i = -E d²log p / df²`` a natural gradient step of size
rho goes from (precision, shift) the share rho of the way to ``(I + A diag(w) A', A (g + w A'mu))``: for a normal
likelihood and all of the data that is the optimum. Several columns are independent under q.

References:
    Hensman, Fusi and Lawrence (2013), Gaussian processes for big data. Khan and Lin (2017), Conjugate-computation
    variational inference. Salimbeni, Eleftheriadis and Hensman (2018), Natural gradients in practice.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from probkit.math.cubature import normal_nodes
from probkit.math.linalg import matmul, safe_cholesky, triangular_inverse


class InducingLaw(eqx.Module):
    """The law of whitened inducing values, ``N(S shift, S)`` with ``S = precision^-1``, column by column.

    Attributes:
        precision: (columns, m, m).
        shift: (columns, m).
    """

    precision: Float[Array, "columns m m"]
    shift: Float[Array, "columns m"]


class Factors(NamedTuple):
    """An :class:`InducingLaw` factorised: ``S = root' root``.

    Attributes:
        root: inverse of the lower Cholesky factor of the precision, (columns, m, m).
        mean: (columns, m).
        divergence: KL divergence from the prior, in nats, summed over columns.
    """

    root: Float[Array, "columns m m"]
    mean: Float[Array, "columns m"]
    divergence: Float[Array, ""]


class Expected(NamedTuple):
    """Expectations of a log-likelihood over normal latent values.

    Attributes:
        value: of the log density of each entry, (n,).
        slope: of its derivative in f, (columns, n).
        curvature: of minus its second derivative in each column, (columns, n).
    """

    value: Float[Array, " n"]
    slope: Float[Array, "columns n"]
    curvature: Float[Array, "columns n"]


def prior(columns: int, m: int, dtype: Any) -> InducingLaw:
    """The law of the inducing values before any data."""
    eye = jnp.broadcast_to(jnp.eye(m, dtype=dtype), (columns, m, m))
    return InducingLaw(eye, jnp.zeros((columns, m), dtype))


def factors(law: InducingLaw) -> Factors:
    """Mean, root of the covariance and divergence of a law; NaN where a precision cannot be factorised."""

    def one(column: tuple) -> tuple:
        precision, shift = column
        root = triangular_inverse(safe_cholesky(precision)[0])
        mean = matmul(root.T, matmul(root, shift))
        log_det = 2.0 * jnp.sum(jnp.log(jnp.diagonal(root)))
        return root, mean, 0.5 * (jnp.sum(root**2) + jnp.sum(mean**2) - len(mean) - log_det)

    root, mean, divergence = _each(one, (law.precision, law.shift))
    return Factors(root, mean, jnp.sum(divergence))


def _each(fn: Callable, columns: Any) -> Any:
    """``fn`` over columns, one after the other: batched factorisations are slow on a CPU."""
    if jax.tree_util.tree_leaves(columns)[0].shape[0] == 1:
        alone = fn(jax.tree_util.tree_map(lambda a: a[0], columns))
        return jax.tree_util.tree_map(lambda a: a[None], alone)
    return jax.lax.map(fn, columns)


@jax.custom_jvp
def features(K_zz: Float[Array, "m m"], K_zx: Float[Array, "m n"]) -> Float[Array, "m n"]:
    """``A = L^-1 K_zx`` with ``L L' = K_zz``.

    The derivative, ``dA = T dK_zx - Phi(T dK_zz T') A`` with ``T = L^-1`` and Phi the lower triangle with half the
    diagonal, is products of matrices alone: nothing passes back through the factor.
    """
    return matmul(triangular_inverse(safe_cholesky(K_zz)[0]), K_zx)


@features.defjvp
def _features_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (K_zz, K_zx), (dK_zz, dK_zx) = primals, tangents
    T = triangular_inverse(safe_cholesky(K_zz)[0])
    A = matmul(T, K_zx)
    M = matmul(T, matmul(dK_zz, T.T))
    half = jnp.tril(M) - 0.5 * jnp.diag(jnp.diagonal(M))
    return A, matmul(T, dK_zx) - matmul(half, A)


def marginals(
    q: Factors, A: Float[Array, "#columns m n"], variance: Float[Array, "#columns n"]
) -> tuple[Float[Array, "columns n"], Float[Array, "columns n"]]:
    """Mean, less the prior mean, and variance of each latent value under q.

    Args:
        q: the law of the inducing values.
        A: features, of every column or shared by all.
        variance: prior variances, likewise.
    """
    mean = jnp.sum(q.mean[:, :, None] * A, axis=1) if A.shape[0] > 1 else matmul(q.mean, A[0])
    P = matmul(q.root, A)
    rest = jnp.maximum(variance - jnp.sum(A**2, axis=1), 0.0)
    floor = float(jnp.finfo(A.dtype).eps) * variance
    return mean, jnp.maximum(rest + jnp.sum(P**2, axis=1), floor)


def expected(
    terms: Callable, curvature: Callable, exact: bool, phi: Any, f: Array, variance: Array, y: Float[Array, " n"]
) -> Expected:
    """Expectations of ``terms`` over independent normal latent values, by quadrature.

    Args:
        terms: ``terms(phi, f, y)``, the log density of each entry, f being (columns, n).
        curvature: ``curvature(phi, f, y)``, minus its second derivative in each column, (columns, n).
        exact: whether the terms are quadratic in f.
        phi: parameters of the likelihood.
        f: means of the latent values, (columns, n).
        variance: their variances, (columns, n).
        y: observations without gaps, (n,).
    """
    x, w = normal_nodes(f.shape[0], f.dtype, exact)
    sd = jnp.sqrt(variance)

    def at(total: Expected, node: tuple) -> tuple[Expected, None]:
        x, w = node
        place = f + sd * x[:, None]
        value, back = jax.vjp(lambda place: terms(phi, place, y), place)
        here = Expected(value, back(jnp.ones_like(value))[0], curvature(phi, place, y))
        return jax.tree_util.tree_map(lambda t, h: t + w * h, total, here), None

    zero = jnp.zeros_like(f)
    return jax.lax.scan(at, Expected(zero[0], zero, zero), (x, w))[0]


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def expected_value(
    terms: Callable, curvature: Callable, exact: bool, phi: Any, f: Array, variance: Array, y: Array
) -> Float[Array, " n"]:
    """The value of :func:`expected`, whose derivatives are ``slope`` in f and ``-curvature / 2`` in the variance.

    References:
        Opper and Archambeau (2009), The variational Gaussian approximation revisited, eq. 3.9.
    """
    return expected(terms, curvature, exact, phi, f, variance, y).value


@expected_value.defjvp
def _expected_value_jvp(
    terms: Callable, curvature: Callable, exact: bool, primals: tuple, tangents: tuple
) -> tuple[Array, Array]:
    (phi, f, variance, y), (dphi, df, dvariance, _) = primals, tangents
    found = expected(terms, curvature, exact, phi, f, variance, y)
    x, w = normal_nodes(f.shape[0], f.dtype, exact)
    sd = jnp.sqrt(variance)

    def at(phi: Any) -> Array:
        return jnp.sum(jax.vmap(lambda x, w: w * terms(phi, f + sd * x[:, None], y))(x, w), axis=0)

    _, by_phi = jax.jvp(at, (phi,), (dphi,))
    return found.value, by_phi + jnp.sum(found.slope * df - 0.5 * found.curvature * dvariance, axis=0)


def optimum(
    A: Float[Array, "#columns m n"], mean: Float[Array, "columns n"], found: Expected, weight: Float[Array, "*n"]
) -> InducingLaw:
    """Where natural gradient steps lead, less the prior: sums over rows, so that batches add up.

    Args:
        A: features.
        mean: of the latent values, less the prior mean, (columns, n).
        found: expectations at these rows.
        weight: how often each row counts.
    """
    slope, curvature = found.slope * weight, found.curvature * weight
    precision = matmul(A * curvature[:, None, :], jnp.swapaxes(A, 1, 2))
    return InducingLaw(precision, jnp.sum(A * (slope + curvature * mean)[:, None, :], axis=2))


def towards(law: InducingLaw, sums: InducingLaw, share: Array) -> InducingLaw:
    """The law a share of the way to where ``sums``, with the prior's precision, would have it."""
    goal = eqx.tree_at(lambda s: s.precision, sums, sums.precision + jnp.eye(law.shift.shape[1], dtype=law.shift.dtype))
    return jax.tree_util.tree_map(lambda a, b: (1.0 - share) * a + share * b, law, goal)


def within(law: InducingLaw, q: Factors, sums: InducingLaw, share: Array) -> InducingLaw:
    """:func:`towards` with a term of second order that keeps the precision positive whatever the curvatures.

    ``P + G + G S G / 2 = (P + (P + G) S (P + G)) / 2`` with G the step of the precision.

    References:
        Lin, Schmidt and Khan (2020), Handling the positive-definite constraint in the Bayesian learning rule, ICML.
    """
    first = towards(law, sums, share)
    half = matmul(q.root, first.precision)
    precision = 0.5 * (law.precision + matmul(jnp.swapaxes(half, 1, 2), half))
    # The mean of the plain step, to first order: mu + S (new shift - new precision mu).
    mean = jnp.squeeze(matmul(first.precision, q.mean[:, :, None]), 2)
    change = matmul(q.root, (first.shift - mean)[:, :, None])
    moved = q.mean + jnp.squeeze(matmul(jnp.swapaxes(q.root, 1, 2), change), 2)
    return InducingLaw(precision, jnp.squeeze(matmul(precision, moved[:, :, None]), 2))
