"""The future of many ARMA series at once: the lattice of the innovations runs on, fed with drawn errors."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from probkit.arima.exact import whole
from probkit.arima.innovations import advance, begin, shifted
from probkit.arima.lanes import Orders, unpack


@partial(jax.jit, static_argnames="orders")
def futures(
    w: Float[Array, "time lanes"],
    seen: Bool[Array, "time lanes"],
    x: Float[Array, "params lanes"],
    constant: Float[Array, " lanes"],
    errors: Float[Array, "horizon repeats lanes"],
    orders: Orders,
) -> Float[Array, "horizon repeats lanes"]:
    """Paths of what follows series that begin at the first time and are complete up to their end; exact.

    Args:
        w: the (differenced) series.
        seen: which values are there; once missing, missing to the end.
        x: free numbers, those of absent coefficients 0 (`probkit.arima.lanes.unpack`).
        constant: the mean of each series.
        errors: innovations to come: draws with their standard deviation.
        orders: the largest orders.
    """
    now, phi = begin(*whole(unpack(x, orders)[0], orders.s))

    def past(now, data):
        w, seen = data
        later, _ = advance(now, w - constant - now.a[0], w - constant, phi)
        return jax.tree_util.tree_map(lambda a, b: jnp.where(seen, a, b), later, now), None

    now = lax.scan(past, now, (jnp.where(seen, w, 0), seen))[0]

    def ahead(carry, e):
        now, a = carry
        v = e * jnp.sqrt(now.F)
        w = a[0] + v
        a = shifted(a) + phi[:, None] * w + now.g[:, None] * v
        return (advance(now, now.F, now.F, phi)[0], a), w

    a = jnp.broadcast_to(now.a[:, None], (now.a.shape[0], *errors.shape[1:]))
    return constant + lax.scan(ahead, (now, a), errors)[1]
