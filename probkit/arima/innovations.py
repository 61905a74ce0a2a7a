r"""The exact innovations of a complete stationary ARMA series, in a handful of vector operations a step.

With the companion state of Harvey, $a_{t+1} = S a_t + \phi w_t + g_t v_t$, S the upward shift: the gain acts like a
moving average that settles at $\theta$. Its start needs the autocovariances alone, and the Chandrasekhar recursion
for it collapses, since the increment of the state's variance is $-F_t Y_t Y_t'$ at every t, to

$$y = Y_{t,1}, \quad g_{t+1} = \frac{g_t - y S Y_t}{1 - y^2}, \quad Y_{t+1} = S Y_t - y g_{t+1}, \quad
  F_{t+1} = F_t (1 - y^2),$$

a lattice: y is the partial autocorrelation of the series at lag t. Coefficients and series have any lanes behind their
leading axis.

References:
    Morf, M., Sidhu, G. and Kailath, T. (1974). Some new algorithms for recursive estimation in constant linear
        discrete-time systems. IEEE Trans. Automatic Control 19, 315-323.
    Pearlman, J. G. (1980). An algorithm for the exact likelihood of a high-order autoregressive-moving average
        process. Biometrika 67, 232-233.
    Harvey, A. C. (1989). Forecasting, Structural Time Series Models and the Kalman Filter, ch. 3.3.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from probkit.arima.polynomials import autocovariance


def state_size(p: int, q: int) -> int:
    """Length of the companion state, max(p, q + 1)."""
    return max(p, q + 1)


def padded(x: Array, m: int) -> Array:
    """x with zeros behind, m on the leading axis."""
    return jnp.concatenate([x, jnp.zeros((m - x.shape[0], *x.shape[1:]), x.dtype)])


def shifted(x: Array) -> Array:
    """S x: every entry moved up by one, 0 in the last."""
    return jnp.concatenate([x[1:], jnp.zeros_like(x[:1])])


def first_covariance(phi: Float[Array, "p *lanes"], theta: Float[Array, "q *lanes"]) -> Float[Array, "m *lanes"]:
    r"""Covariance of the companion state with the series, $M_i = \gamma_{i-1} - \sum_{j<i} \phi_j \gamma_{i-1-j}$,
    for innovations of variance 1; M_1 is the variance of the series.
    """  # noqa: D205
    m = state_size(phi.shape[0], theta.shape[0])
    gamma = autocovariance(phi, theta, m)
    i, j = np.arange(m)[:, None], np.arange(min(phi.shape[0] + 1, m))[None, :]
    whole = jnp.concatenate([jnp.ones_like(gamma[:1]), -phi])[: j.size]
    mask = (i >= j).reshape(m, j.size, *[1] * (gamma.ndim - 1))
    return jnp.sum(jnp.where(mask, gamma[np.maximum(i - j, 0)], 0) * whole[None], axis=1)


def innovations(
    w: Float[Array, "time *lanes"], phi: Float[Array, "p *lanes"], theta: Float[Array, "q *lanes"]
) -> tuple[Float[Array, "time *lanes"], Float[Array, "time *lanes"]]:
    r"""One-step errors v of a complete stationary series and their variances F, where innovations have variance 1.

    The log-likelihood with variance $\sigma^2$ is
    $-\frac12 \sum (\log 2 \pi \sigma^2 F_t + v_t^2 / (\sigma^2 F_t))$.

    Args:
        w: the series, mean 0.
        phi: autoregressive coefficients of the whole polynomial.
        theta: moving-average coefficients of the whole polynomial.

    Returns:
        v and F; F is not positive, or not finite, where the process is not stationary.
    """
    state, phi = begin(phi, theta)
    return lax.scan(lambda state, w: advance(state, w - state.a[0], w, phi), state, w)[1]


class Lattice(NamedTuple):
    """Before each time: the mean of the companion state, the gain, the increment Y and the variance of the error."""

    a: Float[Array, "m *lanes"]
    g: Float[Array, "m *lanes"]
    Y: Float[Array, "m *lanes"]
    F: Float[Array, "*lanes"]


def begin(phi: Float[Array, "p *lanes"], theta: Float[Array, "q *lanes"]) -> tuple[Lattice, Float[Array, "m *lanes"]]:
    """The state before the first value, and phi at its length."""
    M = first_covariance(phi, theta)
    phi, g = padded(phi, M.shape[0]), shifted(M) / M[0]
    return Lattice(jnp.zeros_like(M), g, phi + g, M[0]), phi


def advance(now: Lattice, v: Array, w: Array, phi: Float[Array, "m *lanes"]) -> tuple[Lattice, tuple[Array, Array]]:
    """One step with the error v of the value w; gives back v and its variance."""
    a, g, Y, F = now
    y, SY = Y[0], shifted(Y)
    less = (1 - y) * (1 + y)
    later = (g - y * SY) / less
    return Lattice(shifted(a) + phi * w + g * v, later, SY - y * later, F * less), (v, F)
