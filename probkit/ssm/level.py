r"""The scalar level model with correlated disturbances: one recursion for the local level and for ARIMA(0,1,1).

$$y_t = a_t + \varepsilon_t, \qquad a_{t+1} = a_t + \eta_t, \qquad
  \mathrm{Var}\,\varepsilon = H, \quad \mathrm{Var}\,\eta = Q, \quad \mathrm{Cov}(\eta_t, \varepsilon_t) = C.$$

The local level has $C = 0$; simple exponential smoothing, which is ARIMA(0,1,1), has $H = \sigma^2$,
$Q = \alpha^2 \sigma^2$, $C = \alpha \sigma^2$ (`probkit.arima.likelihood`). One filter runs forwards and one recursion
backwards; the likelihood, its gradient, the smoother and leave-one-out are all read off these two.

**Conventions.** NaN is missing. The start is either `None`, exact diffuse (a flat prior on the level), or a pair
$(a_1, P_1)$. With $t_0$ the first observed time a diffuse start is spent on $y_{t_0}$: $a_{t_0+1} = y_{t_0}$,
$P_{t_0+1} = H + Q - 2C$, which the recursions see as $K = 1$, $1/F = 0$, $v = 0$; before $t_0$ nothing moves.
Everything takes one series of shape `(time,)`; many series are `jax.vmap`, over either axis of y.

**Constants.** $-\frac12 \log 2\pi$ is counted for every observed value, the diffuse one included (Durbin and Koopman's
exact diffuse likelihood), as in statsmodels with `use_exact_diffuse=True`. statsmodels with `loglikelihood_burn=1`, R's
`arima` and the likelihood of the differences leave that one out: ours = theirs $- \frac12 \log 2\pi$ (and R puts
a variance of $10^6 \sigma^2$ for the flat prior, worth up to 0.004). With a proper start $N(a_1, \kappa)$ the value
tends to ours $- \frac12 \log \kappa$.

References:
    Durbin, J. and Koopman, S. J. (2012). Time Series Analysis by State Space Methods, 2nd ed., ch. 2, 4.5, 5, 7.2.
    de Jong, P. (1988). A cross-validation filter for time series models. Biometrika 75, 594-600.
    Koopman, S. J. and Shephard, N. (1992). Exact score for time series models in state space form. Biometrika 79, 823.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num

Scalar = Num[ArrayLike, ""]
Series = Num[ArrayLike, " time"]
Moments = tuple[Float[Array, " time"], Float[Array, " time"]]
Start = tuple[Scalar, Scalar] | None


class Filtered(NamedTuple):
    """What the forward pass knows.

    Attributes:
        a: Mean of the level given the observations before t; 0 where P is infinite.
        P: Its variance; infinite up to and including the first observation of a diffuse start.
        v: One-step error y - a; 0 where it is not scored (missing, or spent on a diffuse start).
        F_inverse: Its precision 1 / (P + H); 0 where it is not scored.
        K: Gain after the transition: 0 where y is missing, 1 where it is spent on a diffuse start.
        next: (a, P) of the time after the last one: a known start for the future.
    """

    a: Float[Array, " time"]
    P: Float[Array, " time"]
    v: Float[Array, " time"]
    F_inverse: Float[Array, " time"]
    K: Float[Array, " time"]
    next: tuple[Float[Array, ""], Float[Array, ""]]


class Cumulants(NamedTuple):
    """What the backward pass adds; N is the variance of r, D that of u.

    Attributes:
        r: Weighted sum of the errors after t: the derivative of the log-likelihood to the level at t + 1.
        N: Its variance.
        r_before: The same sum with the error at t in it: the derivative to the level at t.
        N_before: Its variance.
        u: Smoothing error: minus the derivative of the log-likelihood to y_t.
        D: Its variance, the precision of y_t given all other observations.
    """

    r: Float[Array, " time"]
    N: Float[Array, " time"]
    r_before: Float[Array, " time"]
    N_before: Float[Array, " time"]
    u: Float[Array, " time"]
    D: Float[Array, " time"]


@jax.jit
def run_filter(y: Series, H: Scalar, Q: Scalar, C: Scalar = 0.0, start: Start = None) -> Filtered:
    r"""Runs the Kalman filter.

    $$v = y - a, \quad F = P + H, \quad K = (P + C) / F, \quad a' = a + K v, \quad P' = P + Q - K (P + C)$$

    and at a missing value $K = 0$, $a' = a$, $P' = P + Q$. The variance is computed as $P (1 - K) + Q - C K$ with
    $1 - K = (H - C) / F$, which keeps its digits where $P$ is far larger than $H$.

    Args:
        y: observations, NaN where missing.
        H: variance of the observation disturbance.
        Q: variance of the level disturbance.
        C: covariance of the two at the same t.
        start: (a_1, P_1), or None for exact diffuse.

    Returns:
        The predicted levels, errors and gains, and the state after the last time.
    """
    return _filter(*_as_arrays(y, H, Q, C, start))


@jax.jit
def run_backward(filtered: Filtered) -> Cumulants:
    r"""Runs the backward recursion of the smoother (de Jong 1988), from $r_n = N_n = 0$.

    $$u_t = v_t / F_t - K_t r_t, \quad D_t = 1 / F_t + K_t^2 N_t, \quad
      r_{t-1} = v_t / F_t + (1 - K_t) r_t, \quad N_{t-1} = 1 / F_t + (1 - K_t)^2 N_t.$$

    Args:
        filtered: output of `run_filter`.

    Returns:
        r, N, u and D at each t, and r, N one time earlier.
    """
    e, G, K = filtered.F_inverse * filtered.v, filtered.F_inverse, filtered.K
    L = 1 - K

    def step(later, now):
        r, N = later
        e, G, L = now
        return (e + L * r, G + L * L * N), later

    zero = jnp.zeros_like(e, shape=())
    _, (r, N) = lax.scan(step, (zero, zero), (e, G, L), reverse=True)
    return Cumulants(r, N, e + L * r, G + L * L * N, u=e - K * r, D=G + K * (K * N))


@jax.jit
def log_likelihood(y: Series, H: Scalar, Q: Scalar, C: Scalar = 0.0, start: Start = None) -> Float[Array, ""]:
    r"""Joint log density of the observed values, the starting level integrated out.

    $$\ell = -\tfrac12 \sum_{t\ \mathrm{scored}} (\log F_t + v_t^2 / F_t) - \tfrac12 n_{\mathrm{obs}} \log 2\pi.$$

    Its derivatives are known, cost one backward pass (about half the value again) and may be differentiated once more:

    $$\ell_H = \tfrac12 \sum (u_t^2 - D_t), \quad \ell_Q = \tfrac12 \sum (r_t^2 - N_t), \quad
      \ell_C = \sum (u_t r_t + K_t N_t), \quad \ell_{y_t} = -u_t, \quad
      \ell_{a_1} = r_0, \quad \ell_{P_1} = \tfrac12 (r_0^2 - N_0).$$

    Args:
        y: observations, NaN where missing.
        H: variance of the observation disturbance.
        Q: variance of the level disturbance.
        C: covariance of the two at the same t.
        start: (a_1, P_1), or None for exact diffuse.

    Returns:
        The log-likelihood; -inf with a zero gradient where some F_t is not positive or a number overflows.
    """
    return _log_likelihood(*_as_arrays(y, H, Q, C, start))


@jax.jit
def leave_one_out(y: Series, H: Scalar, Q: Scalar, C: Scalar = 0.0, start: Start = None) -> Moments:
    r"""Mean and variance of each y_t given all other observations.

    At an observed t they are $y_t - u_t / D_t$ and $1 / D_t$ (de Jong 1988). At a missing t they are those of the value
    that was not seen, whose disturbance also moved the next level: $a_t + (P_t + C) r_t$ and
    $P_t + H - (P_t + C)^2 N_t$. Arguments as in `log_likelihood`.

    Returns:
        Mean and variance, each (time,); both NaN at the only observation of a diffuse start, which nothing predicts.
    """
    y, H, Q, C, start = _as_arrays(y, H, Q, C, start)
    f, b, lead, level_mean, level_variance = _smoothed(y, H, Q, C, start)
    P = jnp.where(lead < 0, f.P, 0)
    mean = jnp.where(lead > 0, level_mean, f.a + (P + C) * b.r)
    variance = jnp.where(lead > 0, level_variance + H - 2 * C, P + H - (P + C) * ((P + C) * b.N))
    D = jnp.where(b.D > 0, b.D, jnp.nan)
    return jnp.where(jnp.isnan(y), mean, y - b.u / D), jnp.where(jnp.isnan(y), variance, 1 / D)


@jax.jit
def smooth(y: Series, H: Scalar, Q: Scalar, C: Scalar = 0.0, start: Start = None) -> Moments:
    r"""Mean and variance of the level a_t given all observations, before and after t.

    $a_t + P_t r_{t-1}$ and $P_t - P_t^2 N_{t-1}$; or, at an observed t, y_t less its disturbance,
    $y_t - H u_t - C r_t$ and $H - H^2 D_t + 2 H C K_t N_t - C^2 N_t$, which is used where $P_t > H$, so at the first
    observation of a diffuse start too. Before that one: a random walk backwards. Arguments as in `log_likelihood`.

    Returns:
        Mean and variance, each (time,); NaN and infinite where a diffuse start meets no observation at all.
    """
    return _smoothed(*_as_arrays(y, H, Q, C, start))[-2:]


def _as_arrays(y, H, Q, C, start):
    """Everything as strong arrays of the dtype of the data, so that nothing below promotes or compiles twice."""
    y = jnp.asarray(y)
    y = y if jnp.issubdtype(y.dtype, jnp.floating) else y.astype(float)
    H, Q, C, start = jax.tree.map(lambda x: jnp.asarray(x, y.dtype), (H, Q, C, start))
    return y, H, Q, C, None if start is None else tuple(start)


def _scored(y, start):
    """Index t_0 that a diffuse start is spent on (-1 if known, n if none is observed), and where y_t is scored."""
    observed = ~jnp.isnan(y)
    first = -1 if start is not None else jnp.where(jnp.any(observed), jnp.argmax(observed), y.shape[0])
    return first, observed & (jnp.arange(y.shape[0]) > first)


def _filter(y, H, Q, C, start):
    first, scored = _scored(y, start)
    time, filled = jnp.arange(y.shape[0]), jnp.where(jnp.isnan(y), 0, y)

    def step(state, now):
        a, P = state
        y, scored, Q = now
        G = scored / (P + H)
        K = (P + C) * G
        L = (H - C) * G + (1 - scored)
        return (a + K * (y - a), P * L + (Q - C * K)), state

    # Masks are worked out before the scan and all else after it: XLA:CPU compiles a body this small to a native loop.
    initial = (filled[first], H + Q - 2 * C) if start is None else start
    (a_next, P_next), (a, P) = lax.scan(step, initial, (filled, scored.astype(y.dtype), jnp.where(time > first, Q, 0)))
    F_inverse = jnp.where(scored, 1 / (P + H), 0)
    return Filtered(
        a=jnp.where(time > first, a, 0),
        P=jnp.where(time > first, P, jnp.inf),
        v=jnp.where(scored, filled - a, 0),
        F_inverse=F_inverse,
        K=jnp.where(time == first, 1, (P + C) * F_inverse),
        next=(a_next, jnp.where(first < y.shape[0], P_next, jnp.inf)),
    )


def _value(y, H, start, f):
    F = jnp.where(_scored(y, start)[1], f.P + H, 1)
    constant = math.log(2 * math.pi) * jnp.sum(~jnp.isnan(y), dtype=y.dtype)
    value = -0.5 * (jnp.sum(jnp.log(F) + f.v * (f.v / F)) + constant)
    return jnp.where(jnp.isfinite(value), value, -jnp.inf)


@jax.custom_jvp
def _log_likelihood(y, H, Q, C, start):
    return _value(y, H, start, _filter(y, H, Q, C, start))


@_log_likelihood.defjvp
def _log_likelihood_jvp(primals, tangents):
    y, H, Q, C, start = primals
    f = _filter(y, H, Q, C, start)
    value, b = _value(y, H, start, f), run_backward(f)
    d_H = 0.5 * jnp.sum(b.u * b.u - b.D)
    d_Q = 0.5 * jnp.sum(b.r * b.r - b.N)
    d_C = jnp.sum(b.u * b.r + f.K * b.N)
    d_start = None if start is None else (b.r_before[0], 0.5 * (b.r_before[0] ** 2 - b.N_before[0]))

    def slope(g, direction):  # none where the value is -inf, and none rather than NaN where a square overflows first
        return jnp.vdot(jnp.where(jnp.isfinite(value) & jnp.isfinite(g), g, 0), direction)

    slopes = jax.tree.map(slope, (-b.u, d_H, d_Q, d_C, d_start), tuple(tangents))
    return value, sum(jax.tree.leaves(slopes))


def _smoothed(y, H, Q, C, start):
    """Both passes, the steps from t to t_0 (negative after it), and the mean and variance of the level."""
    f, (first, _) = _filter(y, H, Q, C, start), _scored(y, start)
    b = run_backward(f)
    lead = (first - jnp.arange(y.shape[0])).astype(y.dtype)
    by_error, P = ~jnp.isnan(y) & (f.P > H), jnp.where(lead < 0, f.P, 0)
    mean = jnp.where(by_error, y - H * b.u - C * b.r, f.a + P * b.r_before)
    variance = jnp.where(by_error, H * (1 - H * b.D + 2 * C * f.K * b.N) - C * (C * b.N), P * (1 - P * b.N_before))
    found = first < y.shape[0]
    mean = jnp.where(lead > 0, jnp.where(found, mean[first], jnp.nan), mean)
    variance = jnp.where(lead > 0, jnp.where(found, variance[first], jnp.inf) + lead * Q, variance)
    return f, b, lead, mean, variance
