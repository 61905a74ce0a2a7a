r"""The filter and the smoother of an ARIMA series in level form with missing values, each step of order m².

The state is Harvey's companion form of $\phi(B) \Delta(B) y_t = \theta(B) e_t$, unit roots and all, so it has
$m = \max(p + D, q + 1)$ entries, D the degree of $\Delta$. With $P = \mathrm{Var}(a)$, M its first column, S the upward
shift and $R = (1, \theta)$,

$$v = y - a_1, \quad F = P_{11}, \quad g = S M / F, \quad a' = S a + \phi^* y + g v, \quad
  P' = S (P - M M' / F) S' + R R',$$

and where y is missing $a' = S a + \phi^* a_1$, $P' = T P T' + R R'$. No matrix product is needed, T being a shift and
one column. One pass backwards (de Jong 1988), $L = S + h e_1'$ with $h = -g$, or $\phi^*$ where y is missing,

$$u = v / F - K' r, \quad D = 1 / F + K' N K, \quad r \leftarrow L' r + e_1 v / F, \quad
  N \leftarrow L' N L + e_1 e_1' / F, \qquad K = \phi^* + g,$$

gives minus the derivative of the log-likelihood to y, leave-one-out, and what missing values were.

**The start.** The first D values are free: the filter begins after them, its state a linear function of them plus
the stationary state of the ARMA part. Those that are missing keep a flat prior: the filter carries the response to each
of them as one more column of a, and they are solved for at the end (de Jong's augmented filter). The series must begin
with an observed value: `aligned` moves leading gaps behind the end, which under a flat start changes nothing.

References:
    de Jong, P. (1988). A cross-validation filter for time series models. Biometrika 75, 594-600.
    de Jong, P. (1991). The diffuse Kalman filter. Annals of Statistics 19, 1073-1083.
    Ansley, C. F. and Kohn, R. (1985). Estimation, filtering and smoothing in state space models with incompletely
        specified initial conditions. Annals of Statistics 13, 1286-1316.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from probkit.arima.innovations import first_covariance, padded, shifted, state_size


class Filtered(NamedTuple):
    """What the forward pass knows, at the times after the first D; c = 1 + D columns, the first for the data.

    Attributes:
        v: One-step errors, and minus their response to each missing start value; 0 where missing.
        F_inverse: 1 / F; 0 where missing.
        log_F: Its logarithm, summed over the observed.
        g: The gain's moving-average part.
        row: First row of P.
        level: First row of a.
        a: The state after the last time.
        P: Its variance.
        start: The derivative of the first state to the first D values, (m, D).
        phi: Coefficients of the whole autoregressive polynomial, unit roots and all.
    """

    v: Float[Array, "rest c"]
    F_inverse: Float[Array, " rest"]
    log_F: Float[Array, ""]
    g: Float[Array, "rest m"]
    row: Float[Array, "rest m"]
    level: Float[Array, "rest c"]
    a: Float[Array, "m c"]
    P: Float[Array, "m m"]
    start: Float[Array, "m D"]
    phi: Float[Array, " m"]


class Free(NamedTuple):
    """The missing among the first D values, given all that is observed.

    Attributes:
        mean: Their means, 0 at the others, (D,).
        variance: Their variance for innovations of variance 1, (D, D); 0 at the others.
        log_det: Log determinant of its inverse.
        resolved: How many are determined by the data.
        lost: Which are not.
    """

    mean: Float[Array, " D"]
    variance: Float[Array, "D D"]
    log_det: Float[Array, ""]
    resolved: Float[Array, ""]
    lost: Bool[Array, " D"]


def aligned(y: Float[Array, " time"]) -> tuple[Float[Array, " time"], Bool[Array, " time"], Int[Array, ""]]:
    """y from its first observed value on, 0 where missing, the leading gap put at the end; what is seen; the gap."""
    seen = ~jnp.isnan(y)
    lead = jnp.argmax(seen)
    return jnp.roll(jnp.where(seen, y, 0), -lead), jnp.roll(seen, -lead), lead


def start_variance(phi: Float[Array, " p"], theta: Float[Array, " q"]) -> Float[Array, "r r"]:
    """Variance of the stationary companion state: P = S P S' + C has diagonals that are sums of those of C."""
    M = first_covariance(phi, theta)
    phi, R = padded(phi, M.size), padded(jnp.concatenate([jnp.ones(1, theta.dtype), theta]), M.size)
    cross = jnp.outer(phi, shifted(M))
    C = M[0] * jnp.outer(phi, phi) + cross + cross.T + jnp.outer(R, R)

    def step(below, row):
        row = row + jnp.concatenate([below[1:], jnp.zeros_like(below[:1])])
        return row, row

    return lax.scan(step, jnp.zeros_like(M), C, reverse=True)[1]


def start_response(phi: Float[Array, " p"], difference: np.ndarray, m: int) -> Float[Array, "m D"]:
    """How the first state depends on the D values before it, in their order: B_il = sum_j f_j c_(l+i-1-j)."""
    D = difference.size - 1
    later = np.arange(m)[:, None] + np.arange(D, 0, -1)[None, :]
    c = np.where(later <= D, -difference[np.minimum(later, D)], 0.0)
    f = padded(jnp.concatenate([jnp.ones(1, phi.dtype), -phi]), max(m, phi.size + 1))
    lag = np.arange(m)[:, None] - np.arange(m)[None, :]
    return jnp.where(lag >= 0, f[np.maximum(lag, 0)], 0) @ jnp.asarray(c, phi.dtype)


def run_filter(
    y: Float[Array, " time"],
    seen: Bool[Array, " time"],
    phi: Float[Array, " p"],
    theta: Float[Array, " q"],
    difference: np.ndarray,
    length: Int[Array, ""] | int | None = None,
) -> Filtered:
    r"""Runs the filter over a series that begins with an observed value, for innovations of variance 1.

    Args:
        y: the series, more than D values, 0 where missing.
        seen: which are observed.
        phi: stationary autoregressive coefficients, the whole polynomial.
        theta: moving-average coefficients, the whole polynomial.
        difference: coefficients of $\Delta$, constant first (`polynomials.difference_polynomial`).
        length: where the series ends and the state stands still; None for the last value.
    """
    D = difference.size - 1
    whole = jnp.convolve(jnp.concatenate([jnp.ones(1, y.dtype), -phi]), jnp.asarray(difference, y.dtype))
    m = state_size(whole.size - 1, theta.size)
    phi_all, R = padded(-whole[1:], m), padded(jnp.concatenate([jnp.ones(1, y.dtype), theta]), m)
    P = start_variance(phi, theta)
    P = jnp.pad(P, (0, m - P.shape[0]))
    B = start_response(phi, difference, m)
    a = jnp.concatenate([(B @ y[:D])[:, None], B * ~seen[:D]], axis=1)
    RR, data = jnp.outer(R, R), jnp.eye(1 + D, dtype=y.dtype)[0]

    def step(carry, now):
        a, P, log_F = carry
        y, seen, going = now
        F, M = P[0, 0], P[0]
        F_inverse = jnp.where(seen, 1 / jnp.where(seen, F, 1), 0)
        x = jnp.where(seen, y * data, a[0])
        v, g = x - a[0], shifted(M) * F_inverse
        new_a = shifted(a) + jnp.outer(phi_all, x) + jnp.outer(g, v)
        left = P - jnp.outer(M, M * F_inverse)
        column = jnp.where(seen, 0, shifted(M) + 0.5 * F * phi_all)
        cross = jnp.outer(phi_all, column)
        new_P = _shifted_both(left) + cross + cross.T + RR
        carry = (
            jnp.where(going, new_a, a),
            jnp.where(going, new_P, P),
            log_F + jnp.where(seen, jnp.log(jnp.where(seen, F, 1)), 0),
        )
        return carry, (v, F_inverse, g, P[0], a[0])

    ends = y.shape[0] if length is None else length
    now = y[D:], seen[D:], jnp.arange(D, y.shape[0]) < ends
    (a, P, log_F), (v, F_inverse, g, row, level) = lax.scan(step, (a, P, jnp.zeros((), y.dtype)), now)
    return Filtered(v, F_inverse, log_F, g, row, level, a, P, B, phi_all)


def solve_free(f: Filtered, missing: Bool[Array, " D"]) -> Free:
    """The missing among the first D values: sweeps of their information matrix, over those the data determine."""
    if missing.size == 0:
        zero = jnp.zeros((), f.v.dtype)
        return Free(jnp.zeros(0, zero.dtype), jnp.zeros((0, 0), zero.dtype), zero, zero, missing)
    Q = (f.v * f.F_inverse[:, None]).T @ f.v
    A, here = Q[1:, 1:], jnp.arange(missing.size)
    least = jnp.finfo(A.dtype).eps ** (2 / 3) * jnp.diagonal(A)

    def sweep(carry, k):
        S, log_det = carry
        usable = missing[k] & (S[k, k] > least[k])
        pivot = jnp.where(usable, S[k, k], 1)
        column = S[:, k] / pivot
        swept = (S - jnp.outer(column, S[k])).at[k].set(column).at[:, k].set(column).at[k, k].set(-1 / pivot)
        return (jnp.where(usable, swept, S), log_det + jnp.log(pivot)), usable

    (S, log_det), resolved = lax.scan(sweep, (A, jnp.zeros((), A.dtype)), here)
    variance = jnp.where(resolved[:, None] & resolved[None, :], -S, 0)
    return Free(-variance @ Q[1:, 0], variance, log_det, jnp.sum(resolved, dtype=A.dtype), missing & ~resolved)


class Smoothed(NamedTuple):
    """What the backward pass adds, at every time; for innovations of variance 1.

    Attributes:
        u: Minus the derivative of the log-likelihood to y; 0 where missing.
        D: Precision of y given all other observations; 0 where missing.
        mean: Mean of y given all other observations, or given all where it is missing.
        variance: Its variance; infinite where nothing determines it.
    """

    u: Float[Array, " time"]
    D: Float[Array, " time"]
    mean: Float[Array, " time"]
    variance: Float[Array, " time"]


def smooth(y: Float[Array, " time"], seen: Bool[Array, " time"], f: Filtered, free: Free) -> Smoothed:
    """Runs the filter's adjoint, and takes the missing start values out of what it gives.

    Args:
        y: the series as the filter had it.
        seen: which are observed.
        f: the filter's output.
        free: the missing start values.
    """
    m, c = f.a.shape
    D, later = c - 1, seen[c - 1 :]
    down = lambda x: jnp.concatenate([jnp.zeros_like(x[:1]), x[:-1]])
    first = jnp.eye(m, dtype=y.dtype)[0]

    def step(carry, now):
        r, N = carry
        v, F_inverse, g, row, seen = now
        K, h = jnp.where(seen, f.phi + g, 0), jnp.where(seen, -g, f.phi)
        NK, Nh = N @ K, N @ h
        u, precision = v * F_inverse - K @ r, F_inverse + K @ NK
        r = down(r) + jnp.outer(first, h @ r + v * F_inverse)
        hN = jnp.outer(first, down(Nh))
        N = down(down(N).T).T + hN + hN.T + (h @ Nh + F_inverse) * jnp.outer(first, first)
        return (r, N), (jnp.where(seen, u, 0), jnp.where(seen, precision, 0), row @ r, row @ (N @ row))

    start = jnp.zeros((m, c), y.dtype), jnp.zeros((m, m), y.dtype)
    (r, N), (u, precision, lift, drop) = lax.scan(step, start, (f.v, f.F_inverse, f.g, f.row, later), reverse=True)
    # Rows for the first D values, from the state they lead to; then the missing of them taken out.
    u = jnp.concatenate([jnp.where(seen[:D, None], -(f.start.T @ r), 0), u])
    precision = jnp.concatenate([jnp.where(seen[:D], jnp.sum(f.start * (N @ f.start), axis=0), 0), precision])
    size, cross = precision, u[:, 1:]
    u, precision = u[:, 0] + cross @ free.mean, precision - jnp.sum((cross @ free.variance) * cross, axis=1)
    known = precision > 100 * jnp.finfo(y.dtype).eps * size
    guess = f.level + lift
    spread = f.row[:, 0] - drop + jnp.sum((guess[:, 1:] @ free.variance) * guess[:, 1:], axis=1)
    lost = jnp.any(jnp.where(free.lost, jnp.abs(guess[:, 1:]) > 1e-6, False), axis=1)
    spread = jnp.where(lost, jnp.inf, jnp.maximum(spread, 0))
    guess = guess[:, 0] + guess[:, 1:] @ free.mean
    hidden_mean = jnp.concatenate([free.mean, guess])
    hidden_variance = jnp.concatenate([jnp.where(free.lost, jnp.inf, jnp.diagonal(free.variance)), spread])
    safe = jnp.where(known, precision, 1)
    mean = jnp.where(seen, jnp.where(known, y - u / safe, jnp.nan), hidden_mean)
    variance = jnp.where(seen, jnp.where(known, 1 / safe, jnp.nan), hidden_variance)
    return Smoothed(u, jnp.where(known, precision, 0), mean, variance)


def _shifted_both(P: Float[Array, "m m"]) -> Float[Array, "m m"]:
    return jnp.pad(P[1:, 1:], (0, 1))
