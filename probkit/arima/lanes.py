r"""Exact maximum likelihood of many ARMA models at once: any orders in one compiled program, lanes last.

With v and F of `probkit.arima.innovations`, the likelihood concentrated over the variance is least where
$\sum_t r_t^2$ is, $r_t = (v_t / \sqrt{F_t}) (\prod F)^{1/2n}$, so Levenberg-Marquardt applies (Box and Jenkins;
Pearlman 1980), with derivatives carried forwards beside the recursion:

$$\ell = -\tfrac n2 (\log (2 \pi \textstyle\sum r_t^2 / n) + 1).$$

Every lane has polynomials of the largest orders and a mask of which coefficients are its own. Coefficients are
tanh of the free numbers, through Durbin and Levinson's recursion: stationary and invertible, whatever they are.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

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


def in_units(
    w: Float[Array, "time lanes"], seen: Bool[Array, "time lanes"], constant: Bool[Array, " lanes"]
) -> tuple[Float[Array, "time lanes"], Float[Array, " lanes"], Float[Array, " lanes"]]:
    """The series, from its mean where a lane has a constant, in units of its spread; that mean and that unit."""
    count = jnp.sum(seen, axis=0).astype(w.dtype)
    w = jnp.where(seen, w, 0)
    mean = jnp.where(constant, jnp.sum(w, axis=0) / count, 0)
    size = jnp.sqrt(jnp.sum(jnp.where(seen, w - mean, 0) ** 2, axis=0) / count)
    unit = jnp.where(size > 0, size, 1)
    return (w - mean) / unit, mean, unit


@partial(jax.jit, static_argnames=("orders", "most"))
def fit_lanes(
    w: Float[Array, "time lanes"],
    seen: Bool[Array, "time lanes"],
    mask: Bool[Array, "params lanes"],
    start: Float[Array, "params lanes"] | None,
    orders: Orders,
    most: int | None = None,
    steps: Int[Array, ""] | int = 60,
    tolerance: Float[Array, ""] | float | None = None,
) -> Fitted:
    """Exact maximum likelihood of stationary series that begin at the first time and are complete up to their end.

    Args:
        w: the (differenced) series.
        seen: which values are there; once missing, missing to the end.
        mask: which coefficients a lane has, in the order ar, ma, sar, sma, constant.
        start: free numbers to start from; None for small ones.
        orders: the largest orders.
        most: no lane has more parameters: derivatives are taken along so many directions; None for all there are.
        steps: the most evaluations of a lane.
        tolerance: as `probkit.math.least_squares` takes it.
    """
    z, rough, unit = in_units(w, seen, mask[-1])
    count, own, constant = jnp.sum(seen, axis=0).astype(w.dtype), mask.astype(w.dtype), mask[-1]
    # The parameters that a lane has stand together: direction k moves the k-th of them.
    place = jnp.cumsum(mask, axis=0) - 1
    most = orders.parameters if most is None else most
    onto = jnp.where(mask[None] & (place[None] == jnp.arange(most)[:, None, None]), own[None], 0)

    def whitened(x: Array, z: Array, seen: Array, count: Array) -> tuple[Array, Array]:
        """Standardised errors and the mean of log F."""
        c, shift, _ = unpack(x, orders)
        v, F = innovations(z - shift, *whole(c, orders.s))
        log_F = jnp.where(seen, jnp.log(F), 0)
        return jnp.where(seen, v, 0) * jnp.exp(-0.5 * log_F), jnp.sum(log_F, axis=0) / count

    def fn(x: Array, z: Array, seen: Array, count: Array, onto: Array) -> tuple[Array, Array]:
        def residuals(x: Array) -> Array:
            e, log_det = whitened(x, z, seen, count)
            return e * jnp.exp(0.5 * log_det)

        at = jnp.sum(onto * x[:, None], axis=0)
        return jax.vmap(lambda along: jax.jvp(residuals, (at,), (along,)), out_axes=(None, 0))(onto)

    if start is None:  # small and unlike: at 0 the derivatives of ar and ma are the same up to sign
        start = jnp.linspace(0.1, -0.1, mask.shape[0]).at[-1].set(0)[:, None]
    begin = jnp.sum(onto * jnp.asarray(start, w.dtype)[None], axis=1)
    stops: Any = {"steps": steps, "tolerance": tolerance}
    found = least_squares(fn, begin, (z, seen, count, onto), **stops)
    wide = lambda a: jnp.sum(onto * a[:, None], axis=0)
    normal = jnp.einsum("jpl,jkl,kql->pql", onto, found.normal, onto)
    found = found._replace(x=wide(found.x), gradient=wide(found.gradient), normal=normal)
    c, shift, edge = unpack(found.x, orders)
    _, log_det = whitened(found.x, z, seen, count)
    blown = found.cost / count * unit * unit  # the variance times the mean determinant
    value = -0.5 * count * (jnp.log(2 * jnp.pi * blown) + 1)
    level = jnp.where(constant, rough + shift * unit, 0)
    return Fitted(found, c, level, blown * jnp.exp(-log_det), value, edge, unit)
