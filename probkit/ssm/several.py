r"""Several series that move together: the matrices of seemingly unrelated structural models and of dynamic factors.

**Seemingly unrelated series** have the same parts, and disturbances that are correlated across series. With the states
of one series in a block after those of the series before it, $\otimes$ Kronecker's product, and for each scale f of a
part its covariance across series $S_f$ and the disturbances $W_f$ that it would have in one series at scale 1,

$$T = I \otimes T_1, \quad Z = I \otimes z', \quad V = \textstyle\sum_f S_f \otimes W_f, \quad
  P = I \otimes P_1 + \sum_f S_f \otimes P_f.$$

**Dynamic factors** are a few autoregressions that all series see by their loadings,

$$y_t = c + \Lambda f_t + u_t, \quad f_{jt} = \textstyle\sum_k \phi_{jk} f_{j,t-k} + \eta_{jt}, \ \eta \sim N(0, 1).$$

A correlation matrix is held by its partial correlations, $z_{ij}$ that of i and j given those before j, each any number
in (-1, 1); its Cholesky factor is $L_{ij} = z_{ij} \prod_{l<j} (1 - z_{il}^2)^{1/2}$.

References:
    Harvey, A. C. (1989). Forecasting, Structural Time Series Models and the Kalman Filter, ch. 8.
    Lewandowski, D., Kurowicka, D. and Joe, H. (2009). Generating random correlation matrices based on vines and
        extended onion method. Journal of Multivariate Analysis 100, 1989-2001.
    Durbin, J. and Koopman, S. J. (2012). Time Series Analysis by State Space Methods, 2nd ed., ch. 3.3 and 3.7.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from probkit.ssm.components import Structure
from probkit.ssm.statespace import Start, StateSpace, eliminate
from probkit.ssm.stationary import autocorrelations


def correlation_factor(partial: Float[Array, "*batch pairs"], size: int) -> Float[Array, "*batch p p"]:
    """The Cholesky factor of a correlation matrix from its partial correlations, row by row below the diagonal.

    Args:
        partial: p (p - 1) / 2 numbers in (-1, 1): (2, 1), (3, 1), (3, 2), ...
        size: p.
    """
    rows, at = [], 0
    one = jnp.ones(partial.shape[:-1], partial.dtype)
    for i in range(size):
        left, row = one, []
        for j in range(i):
            z = partial[..., at + j]
            row.append(z * jnp.sqrt(left))
            left = left * (1 - z) * (1 + z)
        at += i
        rows.append(jnp.stack([*row, jnp.sqrt(left), *[0 * one] * (size - i - 1)], axis=-1))
    return jnp.stack(rows, axis=-2)


def partial_correlations(matrix: np.ndarray) -> np.ndarray:
    """The partial correlations of a concrete correlation matrix, the inverse of `correlation_factor`."""
    L, found = np.linalg.cholesky(matrix), []
    for i in range(len(L)):
        left = 1.0
        for j in range(i):
            found.append(L[i, j] / np.sqrt(left))
            left -= L[i, j] ** 2
    return np.array(found)


def series_of(partial: Float[Array, "*batch partial"]) -> int:
    """How many series partial correlations, p (p - 1) / 2 of them, are of."""
    return round((1 + (1 + 8 * jnp.shape(partial)[-1]) ** 0.5) / 2)


def loading_matrix(free: Float[Array, "*batch free"], series: int, factors: int) -> Float[Array, "*batch p k"]:
    """Loadings from their free entries, column by column: column j begins in row j, and is 0 above."""
    columns, at = [], 0
    for j in range(factors):
        column = free[..., at : at + series - j]
        columns.append(jnp.concatenate([jnp.zeros((*free.shape[:-1], j), free.dtype), column], axis=-1))
        at += series - j
    return jnp.stack(columns, axis=-1)


def seemingly_unrelated(
    base: Structure, units: Sequence[Structure], S: Sequence[Float[Array, "p p"]], H: Float[Array, "p p"]
) -> tuple[StateSpace, Start]:
    """The model of several series with the same parts.

    Args:
        base: one series with all scales at 0.
        units: the same with one scale at 1.
        S: for each of these scales its covariance across series.
        H: covariance of the observation noise.
    """
    p, m, dtype = H.shape[0], base.q.shape[0], H.dtype
    each = jnp.eye(p, dtype=dtype)
    unit = jnp.eye(m, dtype=dtype)

    def stacked(S: Array, W: Array) -> Array:
        return jnp.einsum("ik,...ab->...iakb", S, W).reshape(*W.shape[:-2], p * m, p * m)

    def disturbance(s: Structure) -> Array:
        W = jnp.diag(s.q)
        return W if s.g is None else W + jnp.einsum("b,tbi,tbj->tij", s.v, s.g, s.g)

    V = stacked(each, disturbance(base))
    P = stacked(each, base.P)
    for s, covariance in zip(units, S, strict=True):
        V = V + stacked(covariance, disturbance(s))
        P = P + stacked(covariance, s.P - base.P)
    Z = jnp.einsum("ik,...a->...ika", each, base.z).reshape(*base.z.shape[:-1], p, p * m)
    A = jnp.kron(each, unit[:, np.array(base.flat, int)])
    model = StateSpace(Z, H, jnp.kron(each, base.T.apply(unit)), None, V)
    return model, Start(jnp.zeros(p * m, dtype), P, A)


def dynamic_factors(
    loadings: Float[Array, "p k"],
    phi: Float[Array, "k q"],
    variance: Float[Array, " p"],
    rho: Float[Array, " p"] | None,
    intercept: Float[Array, " p"] | None,
) -> tuple[StateSpace, Start]:
    r"""The model of several series and their factors, all from their stationary laws.

    States are each factor and its q - 1 values before, then the intercepts where they are flat, then the
    autoregressive noise.

    Args:
        loadings: Lambda.
        phi: coefficients of each factor.
        variance: of the innovations of the noise.
        rho: coefficient of each noise; None for white noise.
        intercept: c; None for flat states.
    """
    (p, k), q, dtype = loadings.shape, phi.shape[1], loadings.dtype
    each, none = jnp.eye(p, dtype=dtype), jnp.zeros((0, 0), dtype)
    lags, shift = np.abs(np.arange(q)[:, None] - np.arange(q)), jnp.eye(q, k=-1, dtype=dtype)
    T, V, P = [], [], []
    for one in phi:
        scale, correlations = autocorrelations(one, q)
        T.append(shift.at[0].set(one))
        V.append(jnp.zeros((q, q), dtype).at[0, 0].set(1))
        P.append(scale * correlations[lags])
    flat = each if intercept is None else none
    T, V, P = [*T, flat], [*V, 0 * flat], [*P, 0 * flat]
    Z = [jnp.kron(loadings, jnp.eye(1, q, dtype=dtype)), each[:, : flat.shape[0]]]
    if rho is not None:
        T, V = [*T, jnp.diag(rho)], [*V, jnp.diag(variance)]
        P, Z = [*P, jnp.diag(variance / ((1 - rho) * (1 + rho)))], [*Z, each]
    H = jnp.diag(variance) if rho is None else 0 * each
    m = sum(len(block) for block in T)
    d = jnp.zeros(p, dtype) if intercept is None else intercept
    model = StateSpace(jnp.concatenate(Z, axis=1), H, _block_diagonal(T), None, _block_diagonal(V), d)
    A = jnp.eye(m, dtype=dtype)[:, k * q : k * q + flat.shape[0]]
    return model, Start(jnp.zeros(m, dtype), _block_diagonal(P), A)


def _block_diagonal(blocks: Sequence[Array]) -> Array:
    return jax.scipy.linalg.block_diag(*blocks)


def fill_noise(error: Float[Array, "time p"], drawn: Float[Array, "time p"], H: Float[Array, "p p"]) -> Array:
    """Noise of the entries that are missing (NaN in `error`) given that of the others, from a draw of all of it.

    Args:
        error: noise where it is known.
        drawn: a draw of all noise, with covariance H.
        H: covariance of the noise.
    """
    seen = ~jnp.isnan(error)
    both = seen[:, :, None] & seen[:, None, :]
    E, h = eliminate(jnp.where(both, H, 0))
    rotated = jnp.einsum("tij,tj->ti", E, jnp.where(seen, error - drawn, 0))
    share = jnp.where(h > 0, rotated / jnp.where(h > 0, h, 1), 0)
    moved = jnp.einsum("ij,tkj,tk->ti", H, jnp.where(seen[:, None, :], E, 0), share)
    return jnp.where(seen, lax.stop_gradient(jnp.where(seen, error, 0)), drawn + moved)
