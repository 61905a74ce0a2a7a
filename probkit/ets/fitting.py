r"""Maximum likelihood of many series and many forms at once, by Levenberg-Marquardt on the one-step errors.

With additive errors the concentrated likelihood falls with $\sum e_t^2$, with multiplicative ones with
$\sum \epsilon_t^2 \cdot \exp(\frac2n \sum \log \mu_t)$, which is a sum of squares too. Forms that differ in error, in
whether there is a trend and whether it is damped are one program with masks; those that differ in the kind of trend or
season are another. Lanes are series times forms, on the last axis.

The smoothing parameters stand in R's usual region, $10^{-4} \le \alpha \le 0.9999$, $\beta \le \alpha$,
$\gamma \le 1 - \alpha$, $0.8 \le \phi \le 0.98$; starting states are free, the seasons with one sum taken out.

The likelihood alone likes trends that turn with every error, and forecasts pay for it. Under a prior
$(1 - \beta/\alpha)^a (1 - \gamma/(1 - \alpha))^c$ the sum of squares is multiplied by $\exp(2P/n)$, P being minus its
logarithm: still a sum of squares.

References:
    Hyndman, R. J. and Khandakar, Y. (2008). Automatic time series forecasting: the forecast package for R.
        Journal of Statistical Software 27(3).
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from probkit.ets.recursions import LOG_2PI, Form, Run, States, Weights, run
from probkit.ets.tangents import delayed, tangents
from probkit.math.least_squares import LeastSquares, inverse, least_squares

#: R's bounds of the smoothing parameters and of the damping.
EDGE = 1e-4
PHI = (0.8, 0.98)
#: The prior's powers (a, c): beta / alpha ~ Beta(1, 11), gamma / (1 - alpha) ~ Beta(1, 3). Chosen on 480 yearly,
#: quarterly and monthly series of M1 and of the tourism competition; (0, 0) is maximum likelihood.
PRIOR = (10.0, 2.0)
#: Starts of the four: the errors have several minima. With a season two starts miss none that R finds on twelve series;
#: without, two more cost little.
STARTS = ((0.7, 0.3, 0.02, 0.85), (0.1, 0.1, 0.1, 0.95))
MORE_STARTS = ((0.9, 0.8, 0.1, 0.85), (0.1, 0.9, 0.1, 0.95))
CALM = (0.05, 0.01, 0.01, 0.9)
#: The most evaluations of a descent.
STEPS = 40


class Masks(NamedTuple):
    """Which form a lane has, within one program, and at which place of the season its first observed value stands."""

    multiplicative: Bool[Array, " lanes"]
    trend: Bool[Array, " lanes"]
    damped: Bool[Array, " lanes"]
    phase: Int[Array, " lanes"]


class Fits(NamedTuple):
    """Fits of every lane.

    Attributes:
        x: parameters: alpha, beta / alpha, gamma / (1 - alpha), phi, then level, slope and all seasons but the last, in
            units of ``unit``; the first season is that of the first observed value.
        normal: J'J of the residuals, the prior's factor included.
        unit: what y was divided by.
        cost: the sum of squares reached, in those units.
        penalty: minus the logarithm of the prior there, 0 where it is highest.
        sigma: standard deviation of the errors, in units of y, or relative where they are multiplicative.
        observed: how many values were.
        log_likelihood: the concentrated log-likelihood of y, with all constants.
        converged: whether the descent ended.
    """

    x: Float[Array, "params lanes"]
    normal: Float[Array, "params params lanes"]
    unit: Float[Array, " lanes"]
    cost: Float[Array, " lanes"]
    penalty: Float[Array, " lanes"]
    sigma: Float[Array, " lanes"]
    observed: Float[Array, " lanes"]
    log_likelihood: Float[Array, " lanes"]
    converged: Bool[Array, " lanes"]


def program(trend: str, season: str) -> Form:
    """The form of which a batch is made: all with this kind of trend (A or M) and season are it, masked."""
    return Form("A", trend, True, season)


def bounds(params: int, dtype: Any) -> tuple[Float[Array, " params"], Float[Array, " params"]]:
    """The region of the parameters; starting states are free."""
    far = [jnp.inf] * (params - 4)
    lower, upper = [EDGE, EDGE, EDGE, PHI[0], *(-x for x in far)], [1 - EDGE, 1.0, 1.0, PHI[1], *far]
    return jnp.asarray(lower, dtype), jnp.asarray(upper, dtype)


def phases(y: Float[Array, "time lanes"], period: int) -> Int[Array, " lanes"]:
    """The place in the season of the first observed value."""
    return jnp.argmax(~jnp.isnan(y), axis=0) % period


def masks(forms: list[Form], phase: Int[Array, " series"]) -> Masks:
    """Masks of lanes that run over series first, then over forms; ``phase`` of the series as in :func:`phases`."""
    column = lambda flags: jnp.repeat(jnp.asarray(flags, bool), len(phase))
    return Masks(
        column([form.error == "M" for form in forms]),
        column([form.trend != "N" for form in forms]),
        column([form.damped for form in forms]),
        jnp.tile(jnp.asarray(phase), len(forms)),
    )


def unpack(form: Form, x: Float[Array, "params *lanes"], m: Masks) -> tuple[Weights, States]:
    """Smoothing parameters and starting states (in units of the series) of every lane."""
    alpha = x[0]
    beta = jnp.where(m.trend, alpha * x[1], 0.0)
    phi = jnp.where(m.damped, x[3], 1.0)
    none = 1.0 if form.trend == "M" else 0.0
    slope = jnp.where(m.trend, x[5], none)
    if form.season == "N":
        return Weights(alpha, beta, jnp.zeros_like(alpha), phi), States(x[4], slope)
    total = x.shape[0] - 5 if form.season == "M" else 0.0
    seasons = jnp.concatenate([x[6:], total - jnp.sum(x[6:], 0, keepdims=True)])
    place = (jnp.arange(seasons.shape[0])[:, None] - m.phase) % seasons.shape[0]
    return Weights(alpha, beta, (1 - alpha) * x[2], phi), States(x[4], slope, jnp.take_along_axis(seasons, place, 0))


def residuals(form: Form, x: Array, y: Array, m: Masks) -> Float[Array, "time lanes"]:
    """What is squared and summed; NaN throughout a lane whose states or means are not positive where they must be."""
    found = run(form, y, *unpack(form, x, m))
    return scaled(found.mean, found.error, found.seen, found.valid, m)[0]


def scaled(mean: Array, error: Array, seen: Array, valid: Array, m: Masks) -> tuple[Array, Array, Array]:
    """Residuals, and the means (1 where errors are additive) and the size that they are over and times."""
    mean = jnp.where(seen & m.multiplicative, mean, 1.0)
    valid = valid & jnp.all(mean > 0, 0)
    mean = jnp.where(mean > 0, mean, 1.0)
    size = jnp.exp(jnp.sum(jnp.log(mean), 0) / jnp.maximum(jnp.sum(seen, 0), 1))
    return jnp.where(valid, error / mean * size, jnp.nan), mean, size


def starting_point(
    form: Form, y: Float[Array, "time lanes"], period: int, relative: Any = False
) -> Float[Array, "params lanes"]:
    """A line through the first seasons, and the mean deviation (or ratio) of each place in the season from it.

    The line does not leave the positive where the form needs that, or the lane (``relative``), its errors being so.
    """
    seen = ~jnp.isnan(y)
    age = jnp.cumsum(lax.cummax(seen.astype(jnp.int8)), 0, dtype=jnp.int32).astype(y.dtype)  # 1 at the first value
    used = seen & (age <= max(10, 3 * period))
    weight, value = used.astype(y.dtype), jnp.where(used, y, 0.0)
    n = jnp.maximum(jnp.sum(weight, 0), 1.0)
    middle, centre = jnp.sum(weight * age, 0) / n, jnp.sum(value, 0) / n
    spread = jnp.sum(weight * (age - middle) ** 2, 0)
    slope = jnp.sum(weight * (age - middle) * (value - centre), 0) / jnp.where(spread > 0, spread, 1.0)
    level = centre - slope * middle
    first, last = level + slope, level + slope * jnp.max(age * used, 0)
    outside = (jnp.asarray(relative) | form.positive) & ((level <= 0) | (first <= 0) | (last <= 0.1 * centre))
    slope, level = jnp.where(outside, 0.0, slope), jnp.where(outside, centre, level)
    shares = jnp.broadcast_to(jnp.asarray(STARTS[0], y.dtype)[:, None], (4, y.shape[1]))
    first = slope if form.trend != "M" else jnp.clip(1 + slope / jnp.where(level > 0, level, 1.0), 0.8, 1.2)
    parts = [shares, level[None], first[None]]
    if form.season != "N":
        line = level + slope * age
        apart = jnp.where(used, y - line if form.season == "A" else y / jnp.where(line > 0, line, 1.0), 0.0)
        short = -y.shape[0] % period
        fold = lambda a: jnp.sum(jnp.pad(a, ((0, short), (0, 0))).reshape(-1, period, y.shape[1]), 0)
        none = 1.0 if form.season == "M" else 0.0
        counts = fold(weight)
        seasons = jnp.where(counts > 0, fold(apart) / jnp.maximum(counts, 1.0), none)
        seasons = jnp.maximum(seasons, 0.05) if form.season == "M" else seasons
        seasons = seasons - jnp.mean(seasons, 0) + none if form.season == "A" else seasons / jnp.mean(seasons, 0)
        place = (jnp.arange(period)[:, None] + phases(y, period)) % period  # beginning with that of the first value
        parts.append(jnp.take_along_axis(seasons, place, 0)[:-1])
    return jnp.concatenate(parts)


def fit(
    form: Form,
    y: Float[Array, "time lanes"],
    m: Masks,
    period: int,
    steps: int = STEPS,
    prior: tuple[float, float] = (0.0, 0.0),
) -> Fits:
    """Fit every lane, from every start.

    Args:
        form: of :func:`program`.
        y: the series, NaN where missing; a lane begins at its first observed value.
        m: which form each lane has.
        period: length of the season.
        steps: the most evaluations of a lane.
        prior: powers of the prior; by default none, which is maximum likelihood.
    """
    shares, lanes, whole = starts(form), y.shape[1], complete(y)
    powers = jnp.asarray(prior, jnp.asarray(y).dtype)
    tile = lambda a: jnp.tile(a, len(shares))
    columns = jnp.repeat(jnp.asarray(shares, powers.dtype).T, lanes, axis=1)
    many, several = tile(y), jax.tree_util.tree_map(tile, m)
    found = descend(form, many, several, begin(form, many, several, columns, period), powers, steps, whole)
    return finish(form, y, m, lowest(found, len(shares)), powers)


def starts(form: Form) -> tuple[tuple[float, ...], ...]:
    """The smoothing parameters that a program begins with."""
    return STARTS if form.season != "N" else STARTS + MORE_STARTS


def complete(y: Any) -> bool:
    """Whether no value of any lane is missing between its first and its last."""
    seen = ~np.isnan(np.asarray(y))
    begun, ended = np.maximum.accumulate(seen), np.maximum.accumulate(seen[::-1])[::-1]
    return bool(np.all(seen | ~begun | ~ended))


def unit_of(y: Float[Array, "time lanes"]) -> Float[Array, " lanes"]:
    """What a lane is divided by: its mean size."""
    seen = ~jnp.isnan(y)
    size = jnp.sum(jnp.where(seen, jnp.abs(y), 0.0), 0) / jnp.maximum(jnp.sum(seen, 0), 1)
    return jnp.where((size > 0) & jnp.isfinite(size), size, 1.0).astype(y.dtype)


@partial(jax.jit, static_argnames=("form", "period"))
def begin(form: Form, y: Array, m: Masks, shares: Float[Array, "4 lanes"], period: int) -> Float[Array, "params lanes"]:
    """Where descents begin, given the four smoothing parameters: a calm start where those lead out of the region."""
    y = y / unit_of(y)
    x = starting_point(form, y, period, m.multiplicative).at[:4].set(shares)
    return jnp.where(jnp.all(jnp.isfinite(residuals(form, x, y, m)), 0), x, _calm(form, x))


@partial(jax.jit, static_argnames=("form", "whole"))
def descend(form: Form, y: Array, m: Masks, x: Array, prior: Array, steps: Any, whole: bool) -> LeastSquares:
    """Descents of every lane from x, in its own units, of so many evaluations at most.

    ``whole`` where no value is missing between the first and the last of any lane.
    """
    lower, upper = bounds(x.shape[0], y.dtype)
    return least_squares(
        lambda x, y, m: _penalised(form, x, y, m, prior, whole),
        x,
        (y / unit_of(y), m),
        steps=steps,
        tolerance=1e-6 if jnp.finfo(y.dtype).eps < 1e-12 else 1e-5,
        lower=lower,
        upper=upper,
    )


@partial(jax.jit, static_argnames=("many",))
def lowest(found: LeastSquares, many: int) -> LeastSquares:
    """Of so many descents of every series, one behind the other, the lowest."""
    split = jax.tree_util.tree_map(lambda a: jnp.moveaxis(a.reshape(*a.shape[:-1], many, -1), -2, 0), found)
    best = jnp.argmin(split.cost, axis=0)
    return jax.tree_util.tree_map(
        lambda a: jnp.take_along_axis(a, best.reshape(1, *[1] * (a.ndim - 2), -1), 0)[0], split
    )


@partial(jax.jit, static_argnames=("form",))
def finish(form: Form, y: Array, m: Masks, found: LeastSquares, prior: Array) -> Fits:
    """What descents have found, in units of the series."""
    count, unit = jnp.sum(~jnp.isnan(y), 0).astype(y.dtype), unit_of(y)
    penalty = _penalty(form, found.x, m, prior)
    cost = found.cost * jnp.exp(-2 * penalty / jnp.maximum(count, 1.0))
    log_likelihood = -0.5 * count * (LOG_2PI + jnp.log(cost / count) + 1 + 2 * jnp.log(unit))
    finite = jnp.isfinite(cost) & (count > 0)
    errors = squares(run(form, y / unit, *unpack(form, found.x, m)), m)
    return Fits(
        found.x,
        found.normal,
        unit,
        cost,
        penalty,
        jnp.sqrt(errors / count) * jnp.where(m.multiplicative, 1.0, unit),
        count,
        jnp.where(finite, log_likelihood, -jnp.inf),
        found.converged & finite,
    )


def _calm(form: Form, x: Float[Array, "params lanes"]) -> Float[Array, "params lanes"]:
    """A start whose states hardly move, for lanes whose own leads out of where the form is defined."""
    x = x.at[:4].set(jnp.asarray(CALM, x.dtype)[:, None]).at[5].set(1.0 if form.trend == "M" else 0.0)
    if form.season != "A":
        return x
    seasons = jnp.concatenate([x[6:], -jnp.sum(x[6:], 0, keepdims=True)])
    depth = -jnp.min(seasons, 0)
    return x.at[6:].multiply(jnp.minimum(1.0, 0.5 * jnp.abs(x[4]) / jnp.where(depth > 0, depth, 1.0)))


def squares(found: Run, m: Masks) -> Float[Array, " lanes"]:
    """Sum of squared errors, relative ones where they are multiplicative."""
    mean = jnp.where(m.multiplicative & (found.mean > 0), found.mean, 1.0)
    return jnp.sum(jnp.where(found.seen, found.error / mean, 0.0) ** 2, 0)


def size(form: Form, period: int) -> int:
    """Parameters of a program: four for smoothing, level, slope and all seasons but the last."""
    return 6 + (period - 1 if form.season != "N" else 0)


def used_parameters(form: Form, m: Masks, params: int) -> Array:
    """Parameters that a lane estimates, the error variance counted."""
    season = params - 5 if form.season != "N" else 0
    return 3 + 2 * m.trend.astype(int) + m.damped + season


def with_jacobian(
    form: Form, x: Float[Array, "params lanes"], y: Float[Array, "time lanes"], m: Masks, whole: bool
) -> tuple[Float[Array, "time lanes"], Float[Array, "params time lanes"]]:
    """Residuals as in :func:`residuals` and their derivatives; ``whole`` where no value inside a series is missing."""
    w, start = unpack(form, x, m)
    late = form.season == "A" and form.trend != "M" and whole  # one season's tangent, delayed, serves for all
    basis = jnp.eye(x.shape[0], dtype=x.dtype)[: 6 if late else None]
    push = lambda e: jax.jvp(lambda x: unpack(form, x, m), (x,), (jnp.broadcast_to(e[:, None], x.shape),))[1]
    dw, dstart = jax.vmap(push)(basis)
    if form.season != "N":
        period = start.s.shape[0]
        dstart = dstart._replace(s=jnp.moveaxis(dstart.s, 1, 0))
    if late:
        more = lambda a: jnp.concatenate([a, jnp.zeros_like(a[:1])])
        first = jnp.arange(period)[:, None] == m.phase
        seasons = jnp.concatenate([dstart.s, first[:, None].astype(x.dtype)], 1)
        dw, dstart = Weights(*map(more, dw)), States(more(dstart.l), more(dstart.b), seasons)
    mean, e, valid, de = tangents(form, y, w, start, dw, dstart)
    if late:
        seasons = jnp.where(jnp.isnan(y)[:, None], 0.0, delayed(de[:, 6], period))  # not beyond the last value
        de = jnp.concatenate([de[:, :6], seasons[:, :-1] - seasons[:, -1:]], 1)
    seen = ~jnp.isnan(y)
    r, mean, size = scaled(mean, e, seen, valid, m)
    relative = seen & m.multiplicative
    dcentre = -jnp.sum(jnp.where(relative[:, None], de / mean[:, None], 0.0), 0) / jnp.maximum(jnp.sum(seen, 0), 1)
    slope = jnp.where(relative, jnp.where(seen, y, 1.0) / mean**2, 1.0) * size
    return r, jnp.moveaxis(de * slope[:, None] + r[:, None] * dcentre, 1, 0)


def _penalty(form: Form, x: Array, m: Masks, prior: Float[Array, " 2"]) -> Float[Array, " lanes"]:
    """Minus the logarithm of the prior, 0 at its mode; of the parameters that a lane has."""
    left = jnp.maximum(1 - x[1:3], EDGE)
    return -jnp.where(m.trend, prior[0] * jnp.log(left[0]), 0.0) - (form.season != "N") * prior[1] * jnp.log(left[1])


def _penalised(form: Form, x: Array, y: Array, m: Masks, prior: Array, whole: bool) -> tuple[Array, Array]:
    """Residuals and derivatives, times exp(P / n)."""
    r, J = with_jacobian(form, x, y, m, whole)
    count = jnp.maximum(jnp.sum(~jnp.isnan(y), 0), 1)
    penalty, slope = jax.vjp(lambda x: _penalty(form, x, m, prior), x)
    factor = jnp.exp(penalty / count)
    (slope,) = slope(1 / count.astype(x.dtype))
    return r * factor, (J + slope[:, None] * r) * factor


def covariance(form: Form, m: Masks, found: Fits, prior: Array) -> Float[Array, "params params lanes"]:
    """Of the parameters, after the prior: uniform but for its powers, and weak on the states, so that all is finite."""
    params = found.x.shape[0]
    free = jnp.maximum(found.observed - used_parameters(form, m, params) + 1, 1.0)
    variance = found.cost * jnp.exp(2 * found.penalty / jnp.maximum(found.observed, 1.0)) / free
    variance = jnp.where((variance > 0) & jnp.isfinite(variance), variance, 1.0)
    power = jnp.concatenate([jnp.zeros(1, prior.dtype), prior])
    shares = (power + 1) / ((power + 2) ** 2 * (power + 3))  # the variance of Beta(1, 1 + power)
    damping = (PHI[1] - PHI[0]) ** 2 / 12
    before = jnp.concatenate([shares, jnp.full(1, damping, prior.dtype), jnp.ones(params - 4, prior.dtype)])
    normal = jnp.where(jnp.isfinite(found.normal), found.normal, 0.0)
    return inverse(normal / variance + jnp.diag(1 / before)[:, :, None])
