r"""A pass over the series together with its tangents: the derivatives of every one-step error, in one scan.

Reverse mode would run once for each error, and linearising the pass keeps all it saw in memory; here the tangents move
with the states. Where no multiplicative season makes the recursion vary in time, a change of the j-th starting season
shows j steps after the same change of the first: one tangent, delayed, serves for all of them.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from probkit.ets.recursions import Form, States, Weights, ahead, moved, season_ring


def tangents(
    form: Form, y: Float[Array, "time lanes"], w: Weights, start: States, dw: Weights, dstart: States
) -> tuple[Float[Array, "time lanes"], Float[Array, "time lanes"], Bool[Array, " lanes"], Float[Array, "time k lanes"]]:
    """One pass, and its derivatives along k directions.

    Args:
        form: which model; static.
        y: observations, NaN where missing.
        w: smoothing parameters, each (lanes,).
        start: the states before the first observed value; s is (period, lanes).
        dw: the directions: what w changes by, each (k, lanes).
        dstart: what the starting states change by: (k, lanes), s (period, k, lanes).

    Returns:
        The one-step means, the errors (0 where missing), whether every lane stayed where its form is defined, and the
        derivatives of the errors.
    """
    seen, seasonal = ~jnp.isnan(y), form.season != "N"
    begun = lax.cummax(seen.astype(jnp.int8)) > 0
    period = start.s.shape[0] if seasonal else 1

    def cell(w: Weights, l: Array, b: Array, s: Array, value: Array, seen: Array) -> tuple[tuple[Array, ...], Any]:
        valid = jnp.ones(l.shape, bool)
        q, b, mean, l, s, valid = ahead(form, w, l, b, s, valid)
        e = jnp.where(seen, value - mean, 0.0)
        return (e, *moved(form, w, q, b, l, s, e)), (mean, valid)

    def step(carry: tuple, now: tuple[Array, ...]) -> tuple[tuple, tuple[Array, ...]]:
        (l, b, ring, valid, place), (dl, db, dring) = carry
        value, seen, begun = now
        at = lambda ring: lax.dynamic_index_in_dim(ring, place, 0, keepdims=False)
        s, ds = (at(ring), at(dring)) if seasonal else (l, dl)
        one = lambda w, l, b, s: cell(w, l, b, s, value, seen)
        (e, *new), (mean, fine) = one(w, l, b, s)
        push = lambda dw, dl, db, ds: jax.jvp(one, (w, l, b, s), (dw, dl, db, ds), has_aux=True)[1]
        de, *dnew = jax.vmap(push)(dw, dl, db, ds)
        l, b, dl, db = (jnp.where(begun, a, z) for a, z in zip((*new[:2], *dnew[:2]), (l, b, dl, db), strict=True))
        valid = jnp.where(begun, valid & fine, valid)
        if seasonal:
            ring, dring = (
                lax.dynamic_update_index_in_dim(old, a, place, 0) for old, a in ((ring, new[2]), (dring, dnew[2]))
            )
            place = jnp.where(place + 1 == period, 0, place + 1)
        return ((l, b, ring, valid, place), (dl, db, dring)), (mean, e, de)

    lanes, dtype = y.shape[1:], y.dtype
    wide = lambda a: jnp.broadcast_to(jnp.asarray(a, dtype), lanes)
    ring, dring = (season_ring(start.s, lanes, dtype), dstart.s) if seasonal else (wide(start.l)[None], dstart.l[None])
    carry = (wide(start.l), wide(start.b), ring, jnp.ones(lanes, bool), jnp.zeros((), jnp.int32))
    (last, _), (mean, e, de) = lax.scan(
        step, (carry, (dstart.l, dstart.b, dring)), (jnp.where(seen, y, 0.0), seen, begun)
    )
    return mean, e, last[3], de


def delayed(response: Float[Array, "time lanes"], period: int) -> Float[Array, "time period lanes"]:
    """The response to a change of the first starting season, for each of the seasons."""
    size = response.shape[0]
    late = lambda j: jnp.pad(response, ((j, 0), (0, 0)))[:size]
    return jnp.stack([late(j) for j in range(period)], 1)
