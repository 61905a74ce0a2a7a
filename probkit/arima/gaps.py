"""Exact fits and futures of one series with gaps: the filter in level form, a lane for each candidate or draw."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from probkit.arima import exact
from probkit.arima.lanes import Fitted, Orders, unpack
from probkit.math.least_squares import least_squares
from probkit.ssm.distribution import LinearGaussian


def _order(lane: Any, orders: Orders) -> exact.Order:
    return exact.Order(orders.p, lane.d, orders.q, orders.P, lane.D, orders.Q, orders.s)


def _line(order: exact.Order, times: Array) -> Array:
    """The level whose differences are 1 throughout."""
    return times / (order.s if order.D else 1) if order.d + order.D else jnp.ones_like(times)


@partial(jax.jit, static_argnames=("order", "steps"))
def fit_with_gaps(
    y: Float[Array, " time"],
    rough: Float[Array, ""],
    unit: Float[Array, ""],
    mask: Bool[Array, "params lanes"],
    start: Float[Array, "params lanes"],
    order: exact.Order,
    steps: int = 40,
) -> Fitted:
    """Exact maximum likelihood of several models of one series, as `probkit.arima.lanes.fit_lanes` but in level form.

    Args:
        y: the series, observed at its first time, NaN where missing.
        rough: about the mean of its differences; the free constant counts from there.
        unit: about their spread, its unit.
        mask: which coefficients each lane has.
        start: free numbers to start from.
        order: the largest orders, with the differences.
        steps: the most evaluations of a lane.
    """
    orders, own = Orders(order.p, order.q, order.P, order.Q, order.s), mask.astype(y.dtype)
    seen = ~jnp.isnan(y)
    line = _line(order, jnp.arange(y.shape[0], dtype=y.dtype))
    origin = y[0] if order.diffuse else 0.0
    z = jnp.where(seen, y - origin, 0) / unit
    count = jnp.sum(seen, dtype=y.dtype) - order.diffuse

    def whitened(x: Array, own: Array) -> tuple[Array, Array]:
        c, shift, _ = unpack((x * own)[:, None], orders)
        vector = jnp.concatenate([part[:, 0] for part in c])
        centre = own[-1] * rough / unit + shift[0]
        level = jnp.where(seen, z - centre * (line - (line[0] if order.diffuse else 0)), 0)
        f, free = exact.filtered(order, level, seen, vector)
        v = f.v[:, 0] + f.v[:, 1:] @ free.mean
        later = seen[order.diffuse :]
        return jnp.where(later, v * jnp.sqrt(jnp.where(later, f.F_inverse, 1)), 0), (f.log_F + free.log_det) / count

    def one(x: Array, own: Array) -> Array:
        e, log_det = whitened(x, own)
        return e * jnp.exp(0.5 * log_det)

    def fn(x: Array, own: Array) -> tuple[Array, Array]:
        def both(x: Array, own: Array) -> tuple[Array, Array]:
            return one(x, own), jax.jacfwd(one)(x, own).T

        return jax.vmap(both, in_axes=-1, out_axes=-1)(x, own)

    found = least_squares(fn, start * own, (own,), steps=steps)
    c, shift, edge = unpack(found.x * own, orders)
    log_det = jax.vmap(whitened, in_axes=-1)(found.x, own)[1]
    blown = found.cost / count * unit * unit
    value = -0.5 * count * (jnp.log(2 * jnp.pi * blown) + 1)
    level = jnp.where(mask[-1], rough + shift * unit, 0)
    return Fitted(found, c, level, blown * jnp.exp(-log_det), value, edge, jnp.broadcast_to(unit, value.shape))


def fit_gappy(y: np.ndarray, lane: Any, masks: np.ndarray, starts: np.ndarray, orders: Orders, few: int) -> Fitted:
    """`fit_with_gaps` of any number of candidates, ``few`` a call."""
    held = np.full(y.shape, np.nan)
    held[: lane.end - lane.begin] = y[lane.begin : lane.end]
    rough, unit = np.mean(lane.w), np.std(lane.w)
    parts = []
    for k in range(0, masks.shape[1], few):
        index = np.minimum(np.arange(k, k + few), masks.shape[1] - 1)
        numbers = (jnp.asarray(a, y.dtype) for a in (held, rough, unit))
        start = jnp.asarray(starts[:, index], y.dtype)
        parts.append(jax.device_get(fit_with_gaps(*numbers, masks[:, index], start, _order(lane, orders))))
    return jax.tree.map(lambda *each: np.concatenate(each, axis=-1)[..., : masks.shape[1]], *parts)


def gappy_futures(
    y: np.ndarray, lane: Any, x: np.ndarray, base: np.ndarray, sigma: np.ndarray, key: Any, orders: Orders,
    steps: int, repeats: int,
) -> np.ndarray:  # fmt: skip
    """Paths (steps, repeats, sets) of what follows the last observed value, a set for each draw of the parameters.

    Args:
        y: the series, (time,).
        lane: its differences, begin and end.
        x: free numbers without the constant, (params, sets).
        base: means of the differences, (sets,).
        sigma: standard deviations of the innovations, (sets,).
        key: a key.
        orders: the largest orders.
        steps: how many.
        repeats: paths a set.
    """
    held = y[lane.begin : lane.end]
    held = np.concatenate([np.full(y.size - held.size, np.nan), held])  # leading gaps, so that lengths are one
    numbers = (jnp.asarray(a, y.dtype) for a in (held, x.T, base, sigma))
    keys = jax.random.split(key, len(base))
    return np.asarray(_futures(*numbers, keys, _order(lane, orders), steps, repeats))


@partial(jax.jit, static_argnames=("order", "steps", "repeats"))
def _futures(y: Any, x: Any, base: Any, sigma: Any, keys: Any, order: exact.Order, steps: int, repeats: int) -> Array:
    orders, n = Orders(order.p, order.q, order.P, order.Q, order.s), y.shape[0]
    line = _line(order, jnp.arange(n + steps, dtype=y.dtype))

    def one(x: Array, base: Array, sigma: Array, key: Array) -> Array:
        c = exact.Coefficients(*(part[:, 0] for part in unpack(x[:, None], orders)[0]))
        start = exact.last_state(y - base * line[:n], c, sigma, order)
        model, _ = exact.state_space(c, sigma, order)
        law = LinearGaussian(model._replace(d=base * line[n:, None]), start, steps)
        return law.sample(key, (repeats,)).T

    return jax.vmap(one, out_axes=-1)(x, base, sigma, keys)
