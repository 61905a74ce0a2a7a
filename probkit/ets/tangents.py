r"""A pass over the series together with its tangents: the derivatives of every one-step error, in one scan.

Reverse mode would run once for each error, and linearising the pass keeps all it saw in memory; here the tangents move
with the states. Where no multiplicative season makes the recursion vary in time, a change of the j-th starting season
shows j steps after the same change of the first: one tangent, delayed, serves for all of them.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from probkit.ets.recursions import Form, States, Weights, advance, beginning, times


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
    carry = beginning(form, start, y.shape[1:], y.dtype)
    dring = dstart.s if form.season != "N" else dstart.l[None]

    def step(carry: tuple, now: tuple[Array, ...]) -> tuple[tuple, tuple[Array, ...]]:
        state, *slopes = carry

        def one(w: Weights, l: Array, b: Array, ring: Array) -> tuple[tuple[Array, ...], tuple]:
            after, (mean, e) = advance(form, w, state._replace(l=l, b=b, ring=ring), *now)
            return (after.l, after.b, after.ring, e), (after, mean)

        push = lambda *d: jax.jvp(one, (w, state.l, state.b, state.ring), d, has_aux=True)[1]
        along = jax.vmap(push, in_axes=(0, 0, 0, 1), out_axes=(0, 0, 1, 0))
        *slopes, de = along(dw, *slopes)
        (*_, e), (state, mean) = one(w, state.l, state.b, state.ring)
        return (state, *slopes), (mean, e, de)

    (end, *_), (mean, e, de) = lax.scan(step, (carry, dstart.l, dstart.b, dring), times(y))
    return mean, e, end.valid, de


def delayed(response: Float[Array, "time lanes"], period: int) -> Float[Array, "time period lanes"]:
    """The response to a change of the first starting season, for each of the seasons."""
    size = response.shape[0]
    late = lambda j: jnp.pad(response, ((j, 0), (0, 0)))[:size]
    return jnp.stack([late(j) for j in range(period)], 1)
