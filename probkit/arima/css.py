r"""Conditional least squares of many ARMA models at once, lanes last: the fast look at many orders.

With $u_t = w_t - c$ and zeros before the start, $e = \frac{\phi(B) \Phi(B^s)}{\theta(B) \Theta(B^s)} u$, and every
derivative is a delayed copy of one of five filtered series (Box and Jenkins 1976, ch. 7):

$$\frac{\partial e_t}{\partial \phi_j} = -\Big[\frac{\Phi}{\theta \Theta} u\Big]_{t-j}, \quad
  \frac{\partial e_t}{\partial \Phi_j} = -\Big[\frac{\phi}{\theta \Theta} u\Big]_{t-js}, \quad
  \frac{\partial e_t}{\partial \theta_j} = -\Big[\frac{e}{\theta}\Big]_{t-j}, \quad
  \frac{\partial e_t}{\partial \Theta_j} = -\Big[\frac{e}{\Theta}\Big]_{t-js}, \quad
  \frac{\partial e_t}{\partial c} = -\Big[\frac{\phi \Phi}{\theta \Theta} 1\Big]_t.$$

The first p + s P errors have larger variances; leaving them out, as R does, favours models that leave out more. Here
they are weighed as those of an autoregression, $F_t = \prod_{k > t} (1 - \kappa_k^2)^{-1}$ and likewise by seasons,
exact for AR(1) and seasonal AR(1): $r_t = e_t F_t^{-1/2} (\prod F)^{1/2n}$. The exact likelihood of all is in
`probkit.arima.lanes`.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from probkit.arima.exact import Coefficients
from probkit.arima.lanes import Orders, unpack
from probkit.math.least_squares import least_squares


def delayed(a: Float[Array, "time *rest"], k: int) -> Float[Array, "time *rest"]:
    """``a_(t-k)``, zeros before the start."""
    return jnp.concatenate([jnp.zeros_like(a[:k]), a[: max(a.shape[0] - k, 0)]])[: a.shape[0]]


def divided(a: Float[Array, "time *rest"], c: Float[Array, "q *rest"]) -> Float[Array, "time *rest"]:
    r"""$a / (1 + \sum_j c_j B^j)$, zeros before the start."""
    if c.shape[0] == 0:
        return a

    def step(past, now):
        e = now - sum(c[j] * past[j] for j in range(len(past)))
        return (e, *past[:-1]), e

    zero = jnp.zeros(jnp.broadcast_shapes(a.shape[1:], c.shape[1:]), a.dtype)
    return lax.scan(step, (zero,) * c.shape[0], a)[1]


def divided_by_season(a: Float[Array, "time *rest"], c: Float[Array, "Q *rest"], s: int) -> Float[Array, "time *rest"]:
    r"""$a / (1 + \sum_j c_j B^{js})$: one division a year, all seasons side by side."""
    n = a.shape[0]
    if c.shape[0] == 0:
        return a
    years = -(-n // s)
    table = jnp.concatenate([a, jnp.zeros((years * s - n, *a.shape[1:]), a.dtype)]).reshape(years, s, *a.shape[1:])
    return divided(table, c[:, None]).reshape(years * s, *a.shape[1:])[:n]


def errors(
    x: Float[Array, "params lanes"], z: Float[Array, "time lanes"], counted: Bool[Array, "time lanes"], own: Array,
    orders: Orders,
) -> tuple[Float[Array, "time lanes"], Float[Array, "params time lanes"]]:  # fmt: skip
    """The weighed errors and their derivatives to the free numbers (`probkit.arima.lanes.unpack`)."""
    s = orders.s
    c, shift, _ = unpack(x * own, orders)
    basis = jnp.broadcast_to(jnp.eye(x.shape[0], dtype=x.dtype)[:, :, None], (x.shape[0], *x.shape))
    push = jax.vmap(lambda v: jax.jvp(lambda x: unpack(x * own, orders)[0], (x,), (v,))[1])(basis)

    def times(a, coefficients, gap):  # a minus its weighted past
        return a - sum((coefficients[j] * delayed(a, (j + 1) * gap) for j in range(coefficients.shape[0])), 0.0)

    u, one = z - shift, jnp.ones_like(z)
    inputs = jnp.stack([times(u, c.sar, s), times(u, c.ar, 1), times(times(one, c.ar, 1), c.sar, s)], axis=1)
    filtered = divided(divided_by_season(inputs, c.sma[:, None], s), c.ma[:, None])
    e = times(filtered[:, 0], c.ar, 1)
    by_ma, by_sma = divided(e, c.ma), divided_by_season(e, c.sma, s)

    blocks = (filtered[:, 0], push.ar, 1), (by_ma, push.ma, 1), (filtered[:, 1], push.sar, s), (by_sma, push.sma, s)
    columns: list[Array] = []
    for source, slopes, gap in blocks:  # of each block, its coefficients by its own free numbers
        size, first = slopes.shape[1], len(columns)
        past = [delayed(source, (j + 1) * gap) for j in range(size)]
        columns += [-sum(slopes[first + i, j] * past[j] for j in range(size)) for i in range(size)]
    columns.append(-filtered[:, 2] * own[-1])
    kappa, early = jnp.tanh(x * own)[:, None], jnp.asarray(_early(orders, e.shape[0])[:, :, None], e.dtype)
    share = early - jnp.sum(jnp.where(counted, early, 0), axis=1, keepdims=True) / jnp.sum(counted, axis=0)
    weight = jnp.exp(0.5 * jnp.sum(jnp.log1p(-kappa * kappa) * share, axis=0))
    r, J = e * weight, jnp.stack(columns) * weight
    return jnp.where(counted, r, 0), jnp.where(counted, J - r * kappa * share * own[:, None], 0)


def _early(orders: Orders, length: int) -> Float[np.ndarray, "params time"]:
    """Which partial autocorrelations, if present, have not yet come to bear on the error of a time."""
    times = np.arange(length)
    ends = [
        np.arange(1, orders.p + 1),
        np.zeros(orders.q),
        orders.s * np.arange(1, orders.P + 1),
        np.zeros(orders.Q + 1),
    ]
    return (times < np.concatenate(ends)[:, None]).astype(float)


@partial(jax.jit, static_argnames=("orders", "steps"))
def fit_css(
    z: Float[Array, "time lanes"],
    seen: Bool[Array, "time lanes"],
    mask: Bool[Array, "params lanes"],
    start: Float[Array, "params lanes"],
    orders: Orders,
    steps: int = 12,
) -> tuple[Float[Array, "params lanes"], Float[Array, " lanes"], Coefficients]:
    """Conditional least squares of series that begin at the first time and are complete up to their end.

    Args:
        z: the (differenced) series, of about unit spread; the free constant counts from 0.
        seen: which values are there; once missing, missing to the end.
        mask: which coefficients a lane has, as in `probkit.arima.lanes.fit_lanes`.
        start: free numbers to start from.
        orders: the largest orders.
        steps: the most evaluations of a lane.

    Returns:
        The free numbers, the variance of the innovations times the mean determinant, not finite where a lane could not
        be fitted, and the coefficients.
    """
    own = mask.astype(z.dtype)
    fn = partial(errors, orders=orders)
    found = least_squares(fn, start * own, (z, seen, own), steps=steps, tolerance=1e-3)
    return found.x, found.cost / jnp.sum(seen, axis=0), unpack(found.x * own, orders)[0]
