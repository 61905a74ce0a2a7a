r"""Exact maximum likelihood of many ARMA models at once: any orders in one compiled program, lanes last.

With v and F of `probkit.arima.innovations`, the likelihood concentrated over the variance is least where
$\sum_t r_t^2$ is, $r_t = (v_t / \sqrt{F_t}) (\prod F)^{1/2n}$, so Levenberg-Marquardt applies (Box and Jenkins;
Pearlman 1980), with derivatives carried forwards beside the recursion:

$$\ell = -\tfrac n2 (\log (2 \pi \textstyle\sum r_t^2 / n) + 1).$$

Every lane has polynomials of the largest orders and a mask of which coefficients are its own. Coefficients are
tanh of the free numbers, through Durbin and Levinson's recursion: stationary and invertible, whatever they are.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from probkit.arima.exact import Coefficients, whole
from probkit.arima.innovations import innovations
from probkit.math.least_squares import LeastSquares, least_squares


class Orders(NamedTuple):
    """The largest orders and the period: whole numbers, known before anything is traced."""

    p: int
    q: int
    P: int
    Q: int
    s: int

    @property
    def parameters(self) -> int:
        """Coefficients and the constant."""
        return self.p + self.q + self.P + self.Q + 1


class Fitted(NamedTuple):
    """The answer of every lane.

    Attributes:
        found: the descent, in free numbers.
        coefficients: of the four polynomials, `(order, lanes)`.
        constant: mean of the series.
        sigma2: variance of the innovations, the maximum-likelihood estimate.
        log_likelihood: the maximum.
        edge: largest absolute partial autocorrelation: 1 is a root on the unit circle.
        unit: spread of the series, the unit of the free constant.
    """

    found: LeastSquares
    coefficients: Coefficients
    constant: Float[Array, " lanes"]
    sigma2: Float[Array, " lanes"]
    log_likelihood: Float[Array, " lanes"]
    edge: Float[Array, " lanes"]
    unit: Float[Array, " lanes"]


def unpack(x: Float[Array, "params lanes"], orders: Orders) -> tuple[Coefficients, Array, Array]:
    """Coefficients, the constant in units of the series, and the largest partial autocorrelation."""
    ends = [orders.p, orders.p + orders.q, orders.p + orders.q + orders.P]
    kappa = jnp.tanh(x[:-1])
    ar, ma, sar, sma = (_levinson(part) for part in jnp.split(kappa, ends))
    edge = jnp.max(jnp.abs(kappa), axis=0, initial=0)
    return Coefficients(ar, -ma, sar, -sma), x[-1], edge


def _levinson(kappa: Float[Array, "p lanes"]) -> Float[Array, "p lanes"]:
    """Coefficients from partial autocorrelations, lanes last (`probkit.ssm.stationary` has the reference)."""
    phi = kappa[:0]
    for k in range(kappa.shape[0]):
        phi = jnp.concatenate([phi - kappa[k] * phi[::-1], kappa[k : k + 1]])
    return phi


@partial(jax.jit, static_argnames=("orders", "steps"))
def fit_lanes(
    w: Float[Array, "time lanes"],
    seen: Bool[Array, "time lanes"],
    mask: Bool[Array, "params lanes"],
    orders: Orders,
    start: Float[Array, " params"] | None = None,
    steps: int = 60,
) -> Fitted:
    """Exact maximum likelihood of stationary series that begin at the first time and are complete up to their end.

    Args:
        w: the (differenced) series.
        seen: which values are there; once missing, missing to the end.
        mask: which coefficients a lane has, in the order ar, ma, sar, sma, constant.
        orders: the largest orders.
        start: free numbers to start all lanes from; None for small ones.
        steps: the most evaluations of a lane.
    """
    count = jnp.sum(seen, axis=0).astype(w.dtype)
    w = jnp.where(seen, w, 0)
    mean = jnp.sum(w, axis=0) / count
    rough = jnp.where(mask[-1], mean, 0)
    size = jnp.sqrt(jnp.sum(jnp.where(seen, w - rough, 0) ** 2, axis=0) / count)
    unit = jnp.where(size > 0, size, 1)
    z, own, constant = (w - rough) / unit, mask.astype(w.dtype), mask[-1]

    def whitened(x, z, seen, own, count):
        """Standardised errors and the mean of log F."""
        c, shift, _ = unpack(x * own, orders)
        v, F = innovations(z - shift, *whole(c, orders.s))
        log_F = jnp.where(seen, jnp.log(F), 0)
        return jnp.where(seen, v, 0) * jnp.exp(-0.5 * log_F), jnp.sum(log_F, axis=0) / count

    def residuals(x, *args):
        e, log_det = whitened(x, *args)
        return e * jnp.exp(0.5 * log_det)

    def fn(x, *args):
        value, push = jax.linearize(lambda x: residuals(x, *args), x)
        basis = jnp.broadcast_to(jnp.eye(x.shape[0], dtype=x.dtype)[:, :, None], (x.shape[0], *x.shape))
        return value, jax.vmap(push)(basis)

    if start is None:  # small and unlike: at 0 the derivatives of ar and ma are the same up to sign
        start = jnp.linspace(0.1, -0.1, mask.shape[0]).at[-1].set(0)
    found = least_squares(fn, jnp.asarray(start, w.dtype)[:, None] * own, (z, seen, own, count), steps=steps)
    c, shift, edge = unpack(found.x * own, orders)
    _, log_det = whitened(found.x, z, seen, own, count)
    blown = found.cost / count * unit * unit  # the variance times the mean determinant
    value = -0.5 * count * (jnp.log(2 * jnp.pi * blown) + 1)
    level = jnp.where(constant, rough + shift * unit, 0)
    return Fitted(found, c, level, blown * jnp.exp(-log_det), value, edge, unit)
