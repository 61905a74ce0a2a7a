r"""What has a closed form where the states move linearly in the errors: psi weights, leave-one-out, gaps, variances.

With additive errors the law of y is Gaussian and does not change in time, so two impulse responses say everything:
$y = \text{path} + \Psi e$ and $e = A (y - \text{path})$ with lower triangular Toeplitz matrices of first columns
$\psi$ (the response of y to an error) and a (the response of the errors to a value). The precision of y is
$A'A / \sigma^2$, hence leave-one-out:

$$u = A'e / \sigma^2, \qquad D_t = \frac{1}{\sigma^2} \sum_{k=0}^{n-t} a_k^2, \qquad
  y_t \mid y_{-t} \sim N(y_t - u_t / D_t, 1 / D_t).$$

Where values are missing the states after them are uncertain, and :func:`filtered` carries their covariance: the state
is $(l, b, s_1, ..., s_m)$ with the seasons at fixed places, so a transition moves l and b alone.

References:
    de Jong, P. (1988). A cross-validation filter for time series models. Biometrika 75, 594-600.
    Hyndman, R. J., Koehler, A. B., Ord, J. K. and Snyder, R. D. (2008). Forecasting with Exponential Smoothing, ch. 6.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from probkit.ets.recursions import LOG_2PI, Form, States, Weights, run, simulate
from probkit.ssm import smoother
from probkit.ssm.statespace import StateSpace, known_start


class Filtered(NamedTuple):
    """One-step means and variances, the log-likelihood, and mean and covariance of the states after the last time."""

    mean: Float[Array, " time"]
    variance: Float[Array, " time"]
    log_likelihood: Float[Array, ""]
    last: Float[Array, " state"]
    covariance: Float[Array, "state state"]


def psi_weights(form: Form, w: Weights, period: int, length: int) -> Float[Array, " length"]:
    r"""Response of y to an error: 1, then $c_j = \alpha + \beta (\phi + ... + \phi^j) + \gamma [j \bmod m = 0]$."""
    errors = jnp.zeros(length, jnp.result_type(float, *w)).at[0].set(1.0)
    return simulate(_additive(form), w, States(0.0, 0.0, jnp.zeros(period)), errors)[0]


def inverse_weights(form: Form, w: Weights, period: int, length: int) -> Float[Array, " length"]:
    """Response of the errors to a value of y: it dies out where the parameters are admissible."""
    y = jnp.zeros(length, jnp.result_type(float, *w)).at[0].set(1.0)
    return run(_additive(form), y, w, States(0.0, 0.0, jnp.zeros(period))).error


def _additive(form: Form) -> Form:
    return form._replace(error="A")


def forecast_variance(
    form: Form, w: Weights, period: int, mean: Float[Array, " horizon"], sigma: Any
) -> Float[Array, " horizon"]:
    r"""Variance of each step ahead from known states: $\sigma^2 \sum_{j<h} c_j^2$, or with multiplicative errors

    $$v_h = (1 + \sigma^2) \theta_h - \mu_h^2, \qquad
      \theta_h = \mu_h^2 + \sigma^2 \sum_{j=1}^{h-1} c_j^2 \theta_{h-j}.$$

    Args:
        form: a linear form; static.
        w: smoothing parameters.
        period: length of the season.
        mean: the mean of each step.
        sigma: standard deviation of the errors.

    References:
        Hyndman et al. (2008), tables 6.1 and 6.2.
    """  # noqa: D415
    horizon = mean.shape[0]
    c2 = psi_weights(form, w, period, horizon) ** 2
    if form.error == "A":
        return sigma**2 * jnp.cumsum(c2)
    lag = np.subtract.outer(np.arange(horizon), np.arange(horizon))
    shares = jnp.where(lag > 0, c2[np.maximum(lag, 0)], 0.0) * sigma**2

    def step(theta: Array, now: tuple[Array, Array, Array]) -> tuple[Array, None]:
        h, square, share = now
        return theta.at[h].set(square + share @ theta), None

    theta = lax.scan(step, jnp.zeros_like(mean), (jnp.arange(horizon), mean**2, shares))[0]
    return (1 + sigma**2) * theta - mean**2


def has_gaps(y: Float[Array, " time"]) -> Bool[Array, ""]:
    """Whether a value is missing after the first that is observed."""
    return jnp.any(jnp.isnan(y) & _begun(y))


def _begun(y: Array) -> Array:
    return lax.cummax((~jnp.isnan(y)).astype(jnp.int8)) > 0


def leave_one_out(
    form: Form, y: Float[Array, " time"], w: Weights, start: States, sigma: Any
) -> tuple[Float[Array, " time"], Float[Array, " time"]]:
    """Mean and variance of each entry of y given all others, of a Gaussian form.

    Args:
        form: a form with additive errors, trend and season; static.
        y: observations, NaN where missing: there, the law of what was not seen (NaN before the first observed value).
        w: smoothing parameters.
        start: the states before the first observed value.
        sigma: standard deviation of the errors.
    """
    period = jnp.shape(start.s)[0] if form.season == "A" else 1

    def complete(y: Array) -> tuple[Array, Array]:
        error, back = jax.vjp(lambda y: run(form, y, w, start).error, y)
        a = inverse_weights(form, w, period, y.shape[0])
        u, D = back(error)[0], jnp.cumsum(a**2)[::-1]
        return jnp.where(_begun(y), y - u / D, jnp.nan), jnp.where(_begun(y), sigma**2 / D, jnp.nan)

    def gappy(y: Array) -> tuple[Array, Array]:
        found = smoother.leave_one_out(y, *_state_space(form, y, w, start, sigma))
        return tuple(jnp.where(_begun(y), x, jnp.nan).astype(y.dtype) for x in found)  # type: ignore[return-value]

    return lax.cond(has_gaps(y), gappy, complete, y)


def replicate(
    form: Form, y: Float[Array, " time"], w: Weights, start: States, sigma: Any
) -> tuple[Float[Array, " time"], Float[Array, " time"]]:
    """Mean and variance of a fresh observation at each time: the states as y tells them, the error drawn anew.

    Without gaps the states are known, and it is the one-step law. Arguments as in :func:`leave_one_out`.
    """

    def complete(y: Array) -> tuple[Array, Array]:
        return run(form, y, w, start).mean, jnp.broadcast_to(sigma**2, y.shape).astype(y.dtype)

    def gappy(y: Array) -> tuple[Array, Array]:
        found = smoother.smooth(y, *_state_space(form, y, w, start, sigma))
        mean, variance = smoother.predict(y, *_state_space(form, y, w, start, sigma))
        error, spread = found.mean[:, -1], found.variance[:, -1, -1]
        seen = ~jnp.isnan(y)
        mean, variance = jnp.where(seen, y - error, mean), jnp.where(seen, spread + sigma**2, variance)
        return mean.astype(y.dtype), variance.astype(y.dtype)

    return lax.cond(has_gaps(y), gappy, complete, y)


def _movement(form: Form, w: Weights, state: int, dtype: Any) -> tuple[Array, int, Any]:
    """Transition of (l, b, s), and functions of the place in the season: what y sees, what an error moves."""
    period = state - 1 - (form.trend == "A")
    phi = jnp.asarray(w.phi if form.damped else 1.0, dtype)
    F = jnp.eye(state, dtype=dtype)
    ahead, gain = jnp.ones(1, dtype), jnp.asarray(w.alpha, dtype)[None]
    if form.trend == "A":
        F = F.at[:2, 1].set(phi)
        ahead, gain = jnp.append(ahead, phi), jnp.append(gain, w.beta)

    def at(place: Array) -> tuple[Array, Array]:
        season = (jnp.arange(period) == place).astype(dtype)
        return jnp.concatenate([ahead, season]), jnp.concatenate([gain, w.gamma * season]).astype(dtype)

    return F, period, at


def as_vector(form: Form, start: States, dtype: Any) -> Float[Array, " state"]:
    """The states that a linear form has, in one vector: l, b, s."""
    parts = [start.l, *([start.b] if form.trend == "A" else []), *([start.s] if form.season == "A" else [])]
    return jnp.concatenate([jnp.atleast_1d(jnp.asarray(part, dtype)) for part in parts])


def as_states(form: Form, x: Float[Array, "state *lanes"]) -> States:
    """The inverse of :func:`as_vector`."""
    trend = form.trend == "A"
    return States(x[0], x[1] if trend else 0.0, x[1 + trend :] if form.season == "A" else 0.0)


def filtered(
    form: Form,
    y: Float[Array, " time"],
    w: Weights,
    start: States,
    sigma: Any,
    covariance: Float[Array, "state state"] | None = None,
) -> Filtered:
    r"""The Kalman filter of a Gaussian form: exact where values are missing, or where the start is uncertain.

    $$F = z'Pz + \sigma^2, \qquad K = (T P z + g \sigma^2) / F, \qquad x \leftarrow T x + K v, \qquad
      P \leftarrow T P T' + g g' \sigma^2 - K F K'.$$

    Args:
        form: a form with additive errors, trend and season; static.
        y: observations, NaN where missing.
        w: smoothing parameters.
        start: the (mean of the) states before the first observed value.
        sigma: standard deviation of the errors.
        covariance: of those states; 0 by default.
    """
    dtype = jnp.result_type(y, w.alpha, start.l)
    x = as_vector(form, start, dtype)
    P = jnp.zeros((x.size, x.size), dtype) if covariance is None else jnp.asarray(covariance, dtype)
    T, period, at = _movement(form, w, x.size, dtype)
    sigma2 = jnp.asarray(sigma, dtype) ** 2
    seen = ~jnp.isnan(y)

    def step(carry: tuple, now: tuple[Array, ...]) -> tuple[tuple, tuple[Array, ...]]:
        x, P, place, total = carry
        value, seen, begun = now
        z, g = at(place)
        mean, Pz = z @ x, P @ z
        F = z @ Pz + sigma2
        K = jnp.where(seen, (T @ Pz + g * sigma2) / F, 0.0)
        v = jnp.where(seen, value - mean, 0.0)
        moved = T @ P @ T.T + jnp.outer(g, g) * sigma2 - jnp.outer(K, K) * F
        total = total - jnp.where(seen, 0.5 * (LOG_2PI + jnp.log(F) + v * v / F), 0.0)
        x, P = jnp.where(begun, T @ x + K * v, x), jnp.where(begun, 0.5 * (moved + moved.T), P)
        place = jnp.where(place + 1 >= period, 0, place + 1)
        return (x, P, place, total), (mean, F)

    carry = (x, P, jnp.zeros((), jnp.int32), jnp.zeros((), dtype))
    (x, P, _, total), (mean, variance) = lax.scan(step, carry, (jnp.where(seen, y, 0.0), seen, _begun(y)))
    shift = y.shape[0] % max(1, x.size - 1 - (form.trend == "A"))
    order = np.concatenate(
        [np.arange(1 + (form.trend == "A")), np.roll(np.arange(1 + (form.trend == "A"), x.size), -shift)]
    )
    return Filtered(mean, variance, total, x[order], P[order][:, order])


def _state_space(form: Form, y: Array, w: Weights, start: States, sigma: Any) -> tuple[StateSpace, Any]:
    """The form with its error as one more state, for the recursions of `probkit.ssm`; nothing moves before y begins."""
    x = as_vector(form, start, y.dtype)
    T, period, at = _movement(form, w, x.size, y.dtype)
    z, g = jax.vmap(at)(jnp.arange(y.shape[0]) % max(period, 1))
    begun = _begun(y)[:, None, None]
    moved = jnp.where(
        begun, jnp.concatenate([jnp.broadcast_to(T, (*g.shape, x.size)), g[:, :, None]], 2), jnp.eye(x.size, x.size + 1)
    )
    T = jnp.concatenate([moved, jnp.zeros((y.shape[0], 1, x.size + 1))], 1)
    Z = jnp.concatenate([z, jnp.ones((y.shape[0], 1))], 1)[:, None, :]
    one = (np.arange(x.size + 1) == x.size).astype(float)
    sigma2 = jnp.asarray(sigma, y.dtype) ** 2
    model = StateSpace(Z, jnp.zeros((1, 1)), T, one[:, None], sigma2 * jnp.ones((1, 1)))
    return model, known_start(jnp.append(x, 0.0), sigma2 * np.outer(one, one))
