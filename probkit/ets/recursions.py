r"""All thirty exponential smoothing models as innovations state space recursions, one scan each.

With $q$ the trend, $l_{t-1}$ (N), $l_{t-1} + \phi b_{t-1}$ (A) or $l_{t-1} b_{t-1}^\phi$ (M), and s the season of one
period before,

$$\mu_t = q,\; q + s,\; q s, \qquad e_t = y_t - \mu_t, \qquad u_t = e_t \text{ (season N, A)},\; e_t / s \text{ (M)},$$
$$l_t = q + \alpha u_t, \qquad b_t = \phi b_{t-1} + \beta u_t \;(A), \quad b_{t-1}^\phi + \beta u_t / l_{t-1} \;(M),
  \qquad s_t = s + \gamma e_t \;(A), \quad s + \gamma e_t / q \;(M).$$

The error is additive, $e_t \sim N(0, \sigma^2)$, or multiplicative, $\epsilon_t = e_t / \mu_t \sim N(0, \sigma^2)$: the
states move alike, so nine recursions serve for all forms (Hyndman et al. 2008, tables 2.2 and 2.3). The parameters are
those of R's `forecast::ets`: beta and gamma are not divided by alpha or 1 - alpha.

**Conventions.** NaN is missing: the states go on as expected, with no error. A series begins at its first observed
value: before it nothing moves but the place in the season. Arrays are time-major and may have axes of lanes behind:
y (time, *lanes), l and b (*lanes), s (period, *lanes), where s[j] is the season of y[j].

References:
    Hyndman, R. J., Koehler, A. B., Ord, J. K. and Snyder, R. D. (2008). Forecasting with Exponential Smoothing: The
        State Space Approach. Springer.
"""

import math
import re
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.scipy.special import betaln
from jaxtyping import Array, Bool, Float

LOG_2PI = math.log(2 * math.pi)


class Form(NamedTuple):
    """Which of the thirty models: error A or M, trend N, A or M and whether damped, season N, A or M."""

    error: str
    trend: str
    damped: bool
    season: str

    @property
    def name(self) -> str:
        """The usual letters, such as ``AAdM``."""
        return f"{self.error}{self.trend}{'d' * self.damped}{self.season}"

    @property
    def linear(self) -> bool:
        """Whether the states move linearly in the errors: no multiplicative trend, no multiplicative season."""
        return self.trend != "M" and self.season != "M"

    @property
    def gaussian(self) -> bool:
        """Whether the joint law of y is Gaussian: linear, with additive errors."""
        return self.linear and self.error == "A"

    @property
    def positive(self) -> bool:
        """Whether only positive data make sense: something is multiplicative."""
        return "M" in (self.error, self.trend, self.season)

    @classmethod
    def parse(cls, text: str) -> "Form":
        """Read ``"AAdM"``, ``"ANN"`` ...: error, trend with or without d, season.

        Raises:
            ValueError: naming the letters that are known.
        """
        found = re.fullmatch(r"([AM])(N|Ad?|Md?)([NAM])", text)
        if not found:
            raise ValueError(
                f"{text!r} is no exponential smoothing model; three letters are wanted: error A or M, trend N, A, Ad, "
                'M or Md, season N, A or M, as in "ANN" or "MAdM".'
            )
        return cls(found[1], found[2][0], found[2].endswith("d"), found[3])


#: The thirty forms.
FORMS = tuple(Form.parse(e + t + s) for e in "AM" for t in ("N", "A", "Ad", "M", "Md") for s in "NAM")


class Weights(NamedTuple):
    """The smoothing parameters alpha, beta, gamma and the damping phi; those a form lacks are not read."""

    alpha: Any
    beta: Any = 0.0
    gamma: Any = 0.0
    phi: Any = 1.0


class States(NamedTuple):
    """Level l, slope b (a ratio where the trend is multiplicative) and season s; those a form lacks are not read."""

    l: Any
    b: Any = 0.0
    s: Any = 0.0


class Run(NamedTuple):
    """What a pass over a series gives.

    Attributes:
        mean: one-step forecasts mu.
        error: y - mu, 0 where y is missing.
        seen: where y is observed.
        valid: whether every state that is divided by, or raised to a power, stayed positive.
        last: the states after the last value, the season beginning with that of the next time.
    """

    mean: Float[Array, "time *lanes"]
    error: Float[Array, "time *lanes"]
    seen: Bool[Array, "time *lanes"]
    valid: Bool[Array, "*lanes"]
    last: States


def _positive(x: Array, valid: Array) -> tuple[Array, Array]:
    """x where it is positive and 1 elsewhere, so that nothing overflows there; and whether all were so far."""
    fine = x > 0
    return jnp.where(fine, x, 1.0), valid & fine


def ahead(form: Form, w: Weights, l: Array, b: Array, s: Array, valid: Array, strict: bool = True) -> tuple[Array, ...]:
    """(q, what becomes of b, mu, l, s, valid): the forecast of one step, and the states made safe to divide by.

    Not strict, a trend through 0 under a multiplicative season goes on, as in R's forecasts.
    """
    if form.trend == "M":
        l, valid = _positive(l, valid)
        b, valid = _positive(b, valid)
        b = b**w.phi if form.damped else b
        q = l * b
    elif form.trend == "A":
        b = w.phi * b if form.damped else b
        q = l + b
    else:
        q = l
    if form.season == "M":
        if strict:
            q, valid = _positive(q, valid)
            s, valid = _positive(s, valid)
        else:
            q, s = (jnp.where(x == 0, 1e-30, x) for x in (q, s))
        return q, b, q * s, l, s, valid
    return q, b, (q + s if form.season == "A" else q), l, s, valid


def moved(form: Form, w: Weights, q: Array, b: Array, l: Array, s: Array, e: Array) -> tuple[Array, Array, Array]:
    """The states after an error."""
    u = e / s if form.season == "M" else e
    if form.trend != "N":
        b = b + w.beta * (u / l if form.trend == "M" else u)
    if form.season != "N":
        s = s + w.gamma * (e / q if form.season == "M" else e)
    return q + w.alpha * u, b, s


def run(form: Form, y: Float[Array, "time *lanes"], w: Weights, start: States) -> Run:
    """One pass over a series: the one-step forecasts, their errors and the states after it.

    Args:
        form: which model; static.
        y: observations, NaN where missing.
        w: smoothing parameters, each () or (*lanes).
        start: the states before the first observed value; s is (period, *lanes).
    """
    seen = ~jnp.isnan(y)
    carry = beginning(form, start, y.shape[1:], jnp.result_type(y, w.alpha, start.l))
    w = Weights(*(jnp.asarray(x, carry.l.dtype) for x in w))
    end, (mean, error) = lax.scan(lambda state, now: advance(form, w, state, *now), carry, times(y))
    last = States(end.l, end.b)
    if form.season != "N":
        last = last._replace(s=jnp.roll(end.ring, -(y.shape[0] % end.ring.shape[0]), 0))
    return Run(mean, error, seen, end.valid, last)


class Moving(NamedTuple):
    """A pass under way: the states, the seasons by place, whether all was valid, and the place of the next time."""

    l: Array
    b: Array
    ring: Array
    valid: Array
    place: Array


def beginning(form: Form, start: States, lanes: tuple[int, ...], dtype: Any) -> Moving:
    """A pass before its first value."""
    l, b = (jnp.broadcast_to(jnp.asarray(x, dtype), lanes) for x in start[:2])
    ring = season_ring(start.s, lanes, dtype) if form.season != "N" else l[None]
    return Moving(l, b, ring, jnp.ones(lanes, bool), jnp.zeros((), jnp.int32))


def times(y: Array) -> tuple[Array, Array, Array]:
    """What a pass takes at each time: the value, whether it is there, and whether the series has begun."""
    seen = ~jnp.isnan(y)
    return jnp.where(seen, y, 0.0), seen, lax.cummax(seen.astype(jnp.int8)) > 0


def advance(
    form: Form, w: Weights, now: Moving, value: Array, seen: Array, begun: Array
) -> tuple[Moving, tuple[Array, Array]]:
    """One time further: the mean of its value, and the error, 0 where missing."""
    l, b, ring, valid, place = now
    seasonal = form.season != "N"
    s = lax.dynamic_index_in_dim(ring, place, 0, keepdims=False) if seasonal else l
    q, b_next, mean, l_safe, s_safe, fine = ahead(form, w, l, b, s, valid)
    e = jnp.where(seen, value - mean, 0.0)
    after = moved(form, w, q, b_next, l_safe, s_safe, e)
    l, b = (jnp.where(begun, new, old) for new, old in zip(after[:2], (l, b), strict=True))
    valid = jnp.where(begun, fine, valid)
    if seasonal:
        ring = lax.dynamic_update_index_in_dim(ring, after[2], place, 0)
        place = jnp.where(place + 1 == ring.shape[0], 0, place + 1)
    return Moving(l, b, ring, valid, place), (mean, e)


def season_ring(s: Any, lanes: tuple[int, ...], dtype: Any) -> Float[Array, "period *lanes"]:
    """The seasons of every lane; one set of them, (period,), serves all."""
    s = jnp.asarray(s, dtype)
    return jnp.broadcast_to(s.reshape(s.shape + (1,) * (1 + len(lanes) - s.ndim)), (s.shape[0], *lanes))


def log_likelihood(
    form: Form, y: Float[Array, "time *lanes"], w: Weights, start: States, sigma: Any, df: Any = None
) -> Float[Array, "*lanes"]:
    r"""Log density of the observed values, the product of the one-step densities.

    $$-\tfrac12 \sum_t \left(\log 2\pi\sigma^2 + e_t^2/\sigma^2\right), \qquad
      -\tfrac12 \sum_t \left(\log 2\pi\sigma^2 + 2 \log \mu_t + \epsilon_t^2/\sigma^2\right)$$

    for additive and multiplicative errors. R's `ets` reports a concentrated value: ours at
    $\sigma^2 = \frac1n \sum e_t^2$ (or $\epsilon_t^2$) is R's $-\frac n2 (\log(2\pi/n) + 1)$.

    Args:
        form: which model; static.
        y: observations, NaN where missing.
        w: smoothing parameters.
        start: the states before the first observed value.
        sigma: standard deviation of the errors, relative ones where they are multiplicative.
        df: degrees of freedom where errors are Student-t, with sigma their scale; None where they are normal.

    Returns:
        The log-likelihood; -inf, with derivatives 0, where a state that must be positive is not.
    """
    found = run(form, y, w, start)
    sigma = jnp.asarray(sigma, found.mean.dtype)
    valid, scaled = found.valid & (sigma > 0), found.error
    log_mean = jnp.zeros((), sigma.dtype)
    if form.error == "M":
        mean, fine = _positive(jnp.where(found.seen, found.mean, 1.0), found.seen | True)
        valid, scaled = valid & jnp.all(fine, 0), found.error / mean
        log_mean = jnp.log(mean)
    sigma = jnp.where(valid, sigma, 1.0)
    scaled = jnp.where(valid, scaled, 0.0) / sigma
    density = -0.5 * (LOG_2PI + scaled**2) if df is None else _student_t(scaled, df)
    terms = density - jnp.log(sigma) - jnp.where(valid, log_mean, 0.0)
    return jnp.where(valid, jnp.sum(jnp.where(found.seen, terms, 0.0), 0), -jnp.inf)


def _student_t(z: Array, df: Any) -> Array:
    """Log density of Student's t; its constant by the beta function, which keeps its digits where df is large."""
    df = jnp.asarray(df, z.dtype)
    return -0.5 * jnp.log(df) - betaln(0.5, 0.5 * df) - 0.5 * (df + 1) * jnp.log1p(z**2 / df)


def concentrated(found: Run, form: Form) -> tuple[Float[Array, "*lanes"], Float[Array, "*lanes"]]:
    """The log-likelihood at its best sigma, and that sigma, of a run."""
    mean = jnp.where(found.seen & (found.mean > 0), found.mean, 1.0)
    scaled = found.error / mean if form.error == "M" else found.error
    n = jnp.sum(found.seen, 0)
    sigma2 = jnp.sum(scaled**2, 0) / n
    jacobian = jnp.sum(jnp.log(mean), 0) if form.error == "M" else 0.0
    valid = found.valid & (jnp.all(~found.seen | (found.mean > 0), 0) if form.error == "M" else True)
    return jnp.where(valid, -0.5 * n * (LOG_2PI + jnp.log(sigma2) + 1) - jacobian, -jnp.inf), jnp.sqrt(sigma2)


def simulate(
    form: Form,
    w: Weights,
    start: States,
    errors: Float[Array, "time *lanes"],
    relative: Bool[Array, "*lanes"] | None = None,
) -> tuple[Float[Array, "time *lanes"], States]:
    """The series that given errors make, and the states after it.

    Where something is multiplicative, an error that would take y below a thousandth of its one-step mean is cut there:
    below 0 the recursions mean nothing, and with y > 0 all states that must be positive stay so.

    Args:
        form: which model; static.
        w: smoothing parameters.
        start: the states before the first value.
        errors: e, or the relative errors epsilon where they are multiplicative.
        relative: lanes whose errors are multiplicative, where that differs from lane to lane.

    Returns:
        y and the last states.
    """
    lanes, seasonal = errors.shape[1:], form.season != "N"
    w = Weights(*(jnp.asarray(x, errors.dtype) for x in w))
    l, b = (jnp.broadcast_to(jnp.asarray(x, errors.dtype), lanes) for x in start[:2])
    ring = season_ring(start.s, lanes, errors.dtype) if seasonal else l[None]
    period = ring.shape[0]
    cut = jnp.asarray(True) if relative is None or form.positive else relative

    def step(carry: tuple, error: Array) -> tuple[tuple, Array]:
        l, b, ring, valid, place = carry
        s = lax.dynamic_index_in_dim(ring, place, 0, keepdims=False) if seasonal else l
        q, b, mean, l, s, valid = ahead(form, w, l, b, s, valid, strict=False)
        e = error * mean if form.error == "M" else error
        e = e if relative is None else jnp.where(relative, error * mean, error)
        if form.positive or relative is not None:
            e = jnp.where((mean > 0) & cut, jnp.maximum(e, -0.999 * mean), e)
        l, b, s = moved(form, w, q, b, l, s, e)
        if seasonal:
            ring = lax.dynamic_update_index_in_dim(ring, s, place, 0)
            place = jnp.where(place + 1 == period, 0, place + 1)
        return (l, b, ring, valid, place), mean + e

    carry = (l, b, ring, jnp.ones(lanes, bool), jnp.zeros((), jnp.int32))
    (l, b, ring, _, _), y = lax.scan(step, carry, errors)
    return y, States(l, b, jnp.roll(ring, -(errors.shape[0] % period), 0) if seasonal else 0.0)
