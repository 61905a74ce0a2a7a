r"""The exact likelihood of any ARIMA series, with its derivatives, leave-one-out and the law of the future.

$$\phi(B) \Phi(B^s) (1 - B)^d (1 - B^s)^D y_t = \theta(B) \Theta(B^s) e_t, \qquad e_t \sim N(0, \sigma^2).$$

**Two ways to one number.** Where nothing is missing between the first and the last observed value, the differences are
whitened (`probkit.arima.innovations`); else the filter in level form runs (`probkit.arima.filter`). Both give
$\log |\Sigma|$ and $S = w' \Sigma^{-1} w$ for $\sigma = 1$. Their derivatives to the few coefficients are carried
forwards, the one to y comes from the adjoint filter, and both may be differentiated once more.

**The constant.** The density is that of the series in levels, the d + s D starting values under a flat prior;
$-\frac12 \log 2\pi$ counts for every observed value, so

* the likelihood of the differences (R's `arima` up to its kappa, statsmodels' `simple_differencing=True` and its
  burned likelihood) = ours $+ \frac{d + sD}{2} \log 2\pi$: `probkit.ssm.statespace.differenced_log_likelihood`;
* R's `arima` starts those states with variance $10^6 \sigma^2$ and leaves their terms out, so it lies up to a few
  thousandths from the limit; statsmodels' `SARIMAX(use_exact_diffuse=True)` is ours.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from probkit.arima.filter import Filtered, Free, Smoothed, aligned, run_filter, smooth, solve_free, start_variance
from probkit.arima.innovations import innovations, padded
from probkit.arima.polynomials import ar_to_pacf, difference_polynomial, seasonal_polynomial
from probkit.ssm.statespace import Start, StateSpace


class Order(NamedTuple):
    """The orders (p, d, q)(P, D, Q)_s: whole numbers, known before anything is traced."""

    p: int = 0
    d: int = 0
    q: int = 0
    P: int = 0
    D: int = 0
    Q: int = 0
    s: int = 1

    @property
    def diffuse(self) -> int:
        """How many starting values have a flat prior: d + s D."""
        return self.d + self.s * self.D

    def difference(self) -> np.ndarray:
        """Coefficients of the differencing polynomial, constant first."""
        return difference_polynomial(self.d, self.D, self.s)


class Coefficients(NamedTuple):
    """The coefficients of the four polynomials, with R's and statsmodels' signs."""

    ar: Float[Array, " p"]
    ma: Float[Array, " q"]
    sar: Float[Array, " P"]
    sma: Float[Array, " Q"]


def whole(c: Coefficients, s: int) -> tuple[Array, Array]:
    """Coefficients of the products of the regular and the seasonal polynomials, (p + s P,) and (q + s Q,)."""
    return -seasonal_polynomial(c.ar, c.sar, s, -1)[1:], seasonal_polynomial(c.ma, c.sma, s, 1)[1:]


@partial(jax.jit, static_argnames="order")
def log_likelihood(
    y: ArrayLike, c: Coefficients, sigma: ArrayLike, order: Order, seen: ArrayLike | None = None
) -> Float[Array, ""]:
    """Joint log density of the observed values in level form; NaN is missing.

    Args:
        y: the series, (time,), regression taken out.
        c: the coefficients.
        sigma: standard deviation of the innovations.
        order: the orders.
        seen: which values are observed; None for those that are not NaN. Give it where y is a batch and this is not.

    Returns:
        The log-likelihood; -inf with a zero gradient where the process is not stationary, or so near to it that the
        starting variance has lost its digits, or a number overflows.
    """
    y, c, sigma = as_arrays(y, c, sigma)
    seen = ~jnp.isnan(y) if seen is None else jnp.asarray(seen)
    filled, seen, unit = _in_units(y, seen, order)
    count = jnp.sum(seen, dtype=y.dtype)
    log_two_pi = math.log(2 * math.pi)
    if y.shape[0] <= order.diffuse:
        return -0.5 * count * log_two_pi
    log_det, S, resolved = _quadratic(order, filled, seen.astype(y.dtype), jnp.concatenate(c))
    scored = jnp.sum(seen[order.diffuse :], dtype=y.dtype) - resolved
    ratio = unit / sigma
    value = -0.5 * (count * log_two_pi + 2 * scored * jnp.log(sigma) + log_det + S * ratio * ratio)
    usable = jnp.isfinite(value) & stationary(c)
    return jnp.where(usable, value, -jnp.inf)


def stationary(c: Coefficients) -> Array:
    """Whether both autoregressive polynomials are stationary."""
    inside = [jnp.all(jnp.abs(ar_to_pacf(part)) < 1) for part in (c.ar, c.sar)]
    return inside[0] & inside[1]


def as_arrays(y: ArrayLike, c: Coefficients, sigma: ArrayLike) -> tuple[Array, Coefficients, Array]:
    """Everything as strong arrays of the dtype of the data."""
    y = jnp.asarray(y)
    y = y if jnp.issubdtype(y.dtype, jnp.floating) else y.astype(float)
    return y, Coefficients(*(jnp.reshape(jnp.asarray(x, y.dtype), (-1,)) for x in c)), jnp.asarray(sigma, y.dtype)


def _in_units(y: Array, seen: Array, order: Order) -> tuple[Array, Array, Array]:
    """y in units of its range and from its first value where a flat start takes no notice of that, aligned."""
    lead = jnp.argmax(seen)
    y, seen = jnp.roll(jnp.where(seen, y, 0), -lead), jnp.roll(seen, -lead)
    y = jnp.where(seen, y - y[0], 0) if order.diffuse else y
    span = lax.stop_gradient(jnp.max(jnp.abs(y)))
    unit = jnp.where(span > 0, span, 1)
    return y / unit, seen, unit


def _split(vector: Array, order: Order) -> Coefficients:
    ends = [order.p, order.p + order.q, order.p + order.q + order.P]
    return Coefficients(*jnp.split(vector, ends))


def _complete(order: Order, y: Array, seen: Array, vector: Array) -> tuple[Array, Array, Array]:
    v, F = _whitened(order, y, seen, vector)
    return _or_nan(jnp.sum(jnp.log(F)), 1 / F), jnp.sum(v * v / F), jnp.zeros((), y.dtype)


def _or_nan(log_det: Array, F_inverse: Array) -> Array:
    """The value, if digits are left: no error has less variance than the innovation in it, which is 1.

    A start whose roots are too near the circle for this precision shows there.
    """
    return jnp.where(jnp.all(F_inverse <= 1 + jnp.finfo(F_inverse.dtype).eps ** 0.5), log_det, jnp.nan)


def _whitened(order: Order, y: Array, seen: Array, vector: Array) -> tuple[Array, Array]:
    difference = order.difference()
    w = jnp.convolve(y, jnp.asarray(difference, y.dtype), mode="valid") if order.diffuse else y
    v, F = innovations(w, *whole(_split(vector, order), order.s))
    later = seen[order.diffuse :] > 0
    return jnp.where(later, v, 0), jnp.where(later, F, 1)


def _gappy(order: Order, y: Array, seen: Array, vector: Array) -> tuple[Array, Array, Array]:
    f, free = filtered(order, y, seen > 0, vector)
    v = f.v[:, 0] + f.v[:, 1:] @ free.mean
    return _or_nan(f.log_F, f.F_inverse) + free.log_det, jnp.sum(v * v * f.F_inverse), free.resolved


def filtered(order: Order, y: Array, seen: Array, vector: Array, length: Array | None = None) -> tuple[Filtered, Free]:
    """The filter over an aligned series, the coefficients in one vector; and what is missing of its start."""
    f = run_filter(y, seen, *whole(_split(vector, order), order.s), order.difference(), length)
    return f, solve_free(f, ~seen[: order.diffuse])


def _no_gap(seen: Array) -> Array:
    """Whether the missing values of an aligned series all stand behind the observed ones."""
    return jnp.all(seen[1:] <= seen[:-1])


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _quadratic(order: Order, y: Array, seen: Array, vector: Array) -> tuple[Array, Array, Array]:
    """(log det, S, resolved flat values) of an aligned series, for innovations of variance 1."""
    return lax.cond(_no_gap(seen), partial(_complete, order), partial(_gappy, order), y, seen, vector)


def _quadratic_jvp(order: Order, primals: tuple, tangents: tuple) -> tuple:
    y, seen, vector = primals
    dy, _, dvector = tangents

    def slopes(way, vector):  # value and derivative in one trace
        def run(x):
            log_det, S, resolved = way(order, y, seen, x)
            return jnp.stack([log_det, S]), (jnp.stack([log_det, S]), resolved)

        if not vector.size:
            return *run(vector)[1], jnp.zeros((2, 0), y.dtype)
        jacobian, (value, resolved) = jax.jacfwd(run, has_aux=True)(vector)
        return value, resolved, jnp.where(jnp.isfinite(jacobian) & jnp.all(jnp.isfinite(value)), jacobian, 0)

    def along_y(way, vector):  # dS/dy = 2 u
        if way is _complete:
            v, pull, F = jax.vjp(lambda y: _whitened(order, y, seen, vector), y, has_aux=True)
            return 2 * pull(v / F)[0]
        f, free = filtered(order, y, seen > 0, vector)
        return 2 * smooth(y, seen > 0, f, free).u

    def both(way):
        return lambda vector: (
            *slopes(way, vector),
            None if isinstance(dy, SymbolicZero) else along_y(way, vector),
        )

    value, resolved, jacobian, slope = lax.cond(_no_gap(seen), both(_complete), both(_gappy), vector)
    d_det = d_S = jnp.zeros((), y.dtype)
    if not isinstance(dvector, SymbolicZero):
        d_det, d_S = jacobian[0] @ dvector, jacobian[1] @ dvector
    if slope is not None:
        d_S = d_S + jnp.where(jnp.isfinite(slope), slope, 0) @ dy
    return (value[0], value[1], resolved), (d_det, d_S, jnp.zeros((), y.dtype))


_quadratic.defjvp(_quadratic_jvp, symbolic_zeros=True)


@partial(jax.jit, static_argnames="order")
def leave_one_out(y: ArrayLike, c: Coefficients, sigma: ArrayLike, order: Order) -> tuple[Array, Array]:
    """Mean and variance of each value given all other observations; arguments as in `log_likelihood`.

    Returns:
        Both (time,). Where y is missing, those of what was not seen. NaN at a value that a flat start needs, which
        nothing else predicts; infinite variance at a missing one that nothing determines.
    """
    y, c, sigma = as_arrays(y, c, sigma)
    if y.shape[0] <= order.diffuse:
        nothing = jnp.where(jnp.isnan(y), jnp.inf, jnp.nan)
        return jnp.full(y.shape, jnp.nan, y.dtype), nothing.astype(y.dtype)
    mean, variance = _one_way(y, c, order)
    # The series backwards has the same law, and a gap at its head is one at the tail there.
    before = jnp.arange(y.shape[0]) < jnp.argmax(~jnp.isnan(y))
    other = lax.cond(jnp.isnan(y[0]), lambda y: _one_way(y[::-1], c, order), lambda y: (y, y), y)
    mean, variance = (jnp.where(before, b[::-1], a) for a, b in zip((mean, variance), other, strict=True))
    return mean, sigma * sigma * variance


def _one_way(y: Array, c: Coefficients, order: Order) -> tuple[Array, Array]:
    origin = y[jnp.argmax(~jnp.isnan(y))] if order.diffuse else jnp.zeros((), y.dtype)
    filled, seen, lead = aligned(y - origin)
    f, free = filtered(order, filled, seen, jnp.concatenate(c))
    s: Smoothed = smooth(filled, seen, f, free)
    return jnp.roll(s.mean, lead) + origin, jnp.roll(s.variance, lead)


@partial(jax.jit, static_argnames="order")
def last_state(y: ArrayLike, c: Coefficients, sigma: ArrayLike, order: Order) -> Start:
    """The law of the companion state after the last time given the series: a known start for the future."""
    y, c, sigma = as_arrays(y, c, sigma)
    short = max(order.diffuse + 1 - y.shape[0], 0)
    y = jnp.pad(y, (0, short), constant_values=jnp.nan)
    origin = y[jnp.argmax(~jnp.isnan(y))] if order.diffuse else jnp.zeros((), y.dtype)
    filled, seen, lead = aligned(y - origin)
    f: Filtered
    free: Free
    f, free = filtered(order, filled, seen, jnp.concatenate(c), y.shape[0] - lead)
    columns = f.a[:, 1:]
    mean = f.a[:, 0] + columns @ free.mean
    # A level moves the state by what the unit roots make of a constant past.
    lift = origin * _constant_state(f.phi)
    variance = f.P + columns @ free.variance @ columns.T
    return Start(mean + lift, sigma * sigma * variance, jnp.where(free.lost, columns, 0))


def _constant_state(phi: Array) -> Array:
    """The state after a past that was 1 throughout: a_i = sum of phi_j over j >= i."""
    return jnp.tril(jnp.ones((phi.size, phi.size), phi.dtype)).T @ phi


def state_space(c: Coefficients, sigma: ArrayLike, order: Order) -> tuple[StateSpace, Array]:
    """The companion form with its unit roots as matrices, and the variance of the first state given zeros before it."""
    phi, theta = whole(c, order.s)
    full = jnp.convolve(jnp.concatenate([jnp.ones(1, phi.dtype), -phi]), jnp.asarray(order.difference(), phi.dtype))
    m = max(full.size - 1, theta.size + 1)
    T = jnp.eye(m, k=1, dtype=phi.dtype).at[:, 0].set(padded(-full[1:], m))
    R = padded(jnp.concatenate([jnp.ones(1, phi.dtype), theta]), m)[:, None]
    P = start_variance(phi, theta)
    Z, sigma2 = jnp.eye(1, m, dtype=phi.dtype), jnp.square(jnp.asarray(sigma, phi.dtype))
    model = StateSpace(Z, jnp.zeros((1, 1), phi.dtype), T, R, sigma2 * jnp.ones((1, 1), phi.dtype))
    return model, sigma2 * jnp.pad(P, (0, m - P.shape[0]))
