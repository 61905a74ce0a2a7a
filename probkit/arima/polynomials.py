r"""The algebra of ARMA polynomials: products, weights, roots, autocovariances.

$$\phi(B) x_t = \theta(B) e_t, \qquad \phi(B) = 1 - \phi_1 B - \dots, \qquad \theta(B) = 1 + \theta_1 B + \dots,$$

signs as in R and statsmodels. Coefficients stand on the leading axis, any lanes behind it: `(p, *lanes)`. Every loop
runs a fixed number of short vector steps, so nothing here factorises a matrix and all of it batches and differentiates.

References:
    Barndorff-Nielsen, O. and Schou, G. (1973). On the parametrization of autoregressive models by partial
        autocorrelations. J. Multivariate Analysis 3, 408-419.
    Monahan, J. F. (1984). A note on enforcing stationarity in autoregressive-moving average models. Biometrika 71.
    Box, G. E. P. and Jenkins, G. M. (1976). Time Series Analysis: Forecasting and Control, ch. 3 and 4.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float


def multiply(a: Float[Array, "m *lanes"], b: Float[Array, "n *lanes"]) -> Float[Array, "mn *lanes"]:
    """The product of two polynomials given by all their coefficients, constant first."""
    rows = [jnp.pad(a * b[j], [(j, b.shape[0] - 1 - j)] + [(0, 0)] * (a.ndim - 1)) for j in range(b.shape[0])]
    return sum(rows[1:], rows[0])


def seasonal_polynomial(
    short: Float[Array, "p *lanes"], seasonal: Float[Array, "P *lanes"], period: int, sign: int
) -> Float[Array, "n *lanes"]:
    r"""Coefficients of $(1 + s \sum_j a_j B^j) (1 + s \sum_j A_j B^{js})$, constant first, s the sign (-1 for AR).

    Args:
        short: a, `(p, *lanes)`.
        seasonal: A, `(P, *lanes)`.
        period: s of the exponent.
        sign: -1 for autoregressive coefficients, 1 for moving averages.

    Returns:
        All `p + P period + 1` coefficients.
    """
    one = jnp.ones((1, *short.shape[1:]), short.dtype)
    first = jnp.concatenate([one, sign * short])
    if seasonal.shape[0] == 0:
        return first
    gap = jnp.zeros((seasonal.shape[0], period - 1, *seasonal.shape[1:]), short.dtype)
    spread = jnp.concatenate([gap, sign * seasonal[:, None]], axis=1).reshape(-1, *seasonal.shape[1:])
    return multiply(jnp.concatenate([one, spread]), first)


def difference_polynomial(d: int, D: int = 0, period: int = 1) -> np.ndarray:
    """Coefficients of ``(1 - B)^d (1 - B^s)^D``, constant first: whole numbers, known before anything is traced."""
    out = np.ones(1)
    for _ in range(d):
        out = np.convolve(out, [1.0, -1.0])
    for _ in range(D):
        out = np.convolve(out, np.concatenate([[1.0], np.zeros(period - 1), [-1.0]]))
    return out


def _mirrors(p: int) -> tuple[np.ndarray, np.ndarray]:
    """Row k: the index k - 1 - j that mirrors j among the first k, and which j those are."""
    k, j = np.arange(p)[:, None], np.arange(p)[None, :]
    return np.where(j < k, k - 1 - j, 0), j < k


def _masked(mask: Array, like: Array) -> Array:
    return mask.reshape(mask.shape + (1,) * (like.ndim - 1))


def step_down(phi: Float[Array, "p *lanes"]) -> tuple[Float[Array, "p *lanes"], Float[Array, "p p *lanes"]]:
    r"""Partial autocorrelations of an autoregression, and the coefficients of the best predictor of every order.

    $\phi^{(k-1)}_j = (\phi^{(k)}_j + \kappa_k \phi^{(k)}_{k-j}) / (1 - \kappa_k^2)$.

    Args:
        phi: autoregressive coefficients.

    Returns:
        kappa, and a row of coefficients for each order k = 1 .. p, zeros behind.
    """
    p = phi.shape[0]
    if p == 0:
        return phi, jnp.zeros((0, *phi.shape), phi.dtype)
    mirrors, below = _mirrors(p)

    def step(phi, now):
        k, mirror, mask = now
        kappa = phi[k]
        less = (phi + kappa * phi[mirror]) / ((1 - kappa) * (1 + kappa))
        return jnp.where(_masked(mask, phi), less, 0), (kappa, phi)

    _, (kappa, rows) = lax.scan(step, phi, (np.arange(p), mirrors, below), reverse=True)
    return kappa, rows


def ar_to_pacf(phi: Float[Array, "p *lanes"]) -> Float[Array, "p *lanes"]:
    """Partial autocorrelations of an autoregression: stationary exactly where all lie in (-1, 1)."""
    return step_down(phi)[0]


def ar_autocovariance(phi: Float[Array, "p *lanes"], lags: int) -> Float[Array, "lags *lanes"]:
    """Autocovariances 0 .. lags - 1 of a stationary autoregression whose innovations have variance 1.

    No equations are solved: the variance is ``1 / prod(1 - kappa²)`` and each autocovariance is its best prediction
    from those before it. Not finite, or negative, where the process is not stationary.
    """
    p = phi.shape[0]
    kappa, rows = step_down(phi)
    gamma0 = 1 / jnp.prod((1 - kappa) * (1 + kappa), axis=0)
    if p == 0:
        return jnp.concatenate([gamma0[None], jnp.zeros((lags - 1, *gamma0.shape), phi.dtype)])

    def step(past, row):  # past holds gamma_(k-1), ..., gamma_(k-p)
        gamma = jnp.sum(row * past, axis=0)
        return jnp.concatenate([gamma[None], past[:-1]]), gamma

    past = jnp.concatenate([gamma0[None], jnp.zeros_like(phi[1:])])
    past, low = lax.scan(step, past, rows[: max(min(p, lags - 1), 0)])
    out = [gamma0[None], low]
    if lags - 1 > p:
        out.append(lax.scan(lambda past, _: step(past, phi), past, None, length=lags - 1 - p)[1])
    return jnp.concatenate(out)


def autocovariance(
    phi: Float[Array, "p *lanes"], theta: Float[Array, "q *lanes"], lags: int
) -> Float[Array, "lags *lanes"]:
    r"""Autocovariances 0 .. lags - 1 of a stationary ARMA process whose innovations have variance 1.

    $\gamma_k = \sum_{i,j} \theta_i \theta_j \gamma^{AR}_{k+i-j}$ with $\theta_0 = 1$.

    Args:
        phi: autoregressive coefficients (of the whole polynomial, seasonal factors multiplied in).
        theta: moving-average coefficients, likewise.
        lags: how many.
    """
    q = theta.shape[0]
    ar = ar_autocovariance(phi, lags + q)
    one = jnp.ones((1, *theta.shape[1:]), theta.dtype)
    full = jnp.concatenate([one, theta])
    both = multiply(full, full[::-1])  # the autocovariances of the moving average, lags -q .. q
    index = np.abs(np.arange(lags)[:, None] - np.arange(-q, q + 1)[None, :])
    return jnp.sum(ar[index] * both[None], axis=1)


@partial(jax.jit, static_argnames="count")
def psi_weights(ar: ArrayLike, ma: ArrayLike, count: int) -> Float[Array, " count"]:
    r"""The weights $\psi_0 = 1, \psi_1, \dots$ of $x_t = \sum_j \psi_j e_{t-j}$, $\psi(B) = \theta(B) / \phi(B)$.

    For an integrated process, pass the coefficients of $\phi(B) (1 - B)^d (1 - B^s)^D$.

    Args:
        ar: autoregressive coefficients, (p,).
        ma: moving-average coefficients, (q,).
        count: how many weights.
    """
    ar, ma = _vectors(ar, ma)
    drive = jnp.concatenate([jnp.ones(1, ma.dtype), ma, jnp.zeros(max(count - 1 - ma.size, 0), ma.dtype)])[:count]

    def step(past, now):
        psi = now + ar @ past
        return jnp.concatenate([psi[None], past])[: ar.size], psi

    return lax.scan(step, jnp.zeros_like(ar), drive)[1]


def ar_weights(ar: ArrayLike, ma: ArrayLike, count: int) -> Float[Array, " count"]:
    r"""The weights $\pi_1, \pi_2, \dots$ of the AR($\infty$) form $x_t = \sum_{j \ge 1} \pi_j x_{t-j} + e_t$.

    They come from $\phi(B) / \theta(B)$; they die out where the process is invertible. Arguments as in `psi_weights`.
    """
    ar, ma = _vectors(ar, ma)
    return -psi_weights(-ma, -ar, count + 1)[1:]


def roots(coefficients: ArrayLike, sign: int = -1) -> np.ndarray:
    r"""Roots of $1 + s \sum_j c_j z^j$, smallest modulus first: all outside the unit circle if stationary, invertible.

    Args:
        coefficients: c, (n,); concrete numbers.
        sign: s, -1 for autoregressive coefficients, 1 for moving averages.

    Returns:
        Complex roots; fewer than n where the last coefficients are 0.
    """
    c = np.concatenate([[1.0], sign * np.atleast_1d(np.asarray(coefficients, float))])
    found = np.roots(np.trim_zeros(c, "b")[::-1])
    return found[np.argsort(np.abs(found), kind="stable")].astype(complex)


def least_spectrum(ar: Float[Array, "p"], ma: Float[Array, "q"], points: int = 512) -> Float[Array, ""]:
    r"""Least value over the frequencies of $|\theta(e^{-i\omega}) / \phi(e^{-i\omega})|^2$: the variance of the largest
    white-noise part of the process, in units of that of its innovations (Hillmer and Tiao 1982).
    """  # noqa: D205
    omega = np.linspace(0, np.pi, points)

    def power(c, sign):
        angles = np.arange(1, c.size + 1)[:, None] * omega
        re, im = 1 + sign * (c @ np.cos(angles).astype(c.dtype)), c @ np.sin(angles).astype(c.dtype)
        return re * re + im * im

    below = power(ar, -1)
    return jnp.min(jnp.where(below > 0, power(ma, 1) / jnp.where(below > 0, below, 1), jnp.inf))


def _vectors(*values: ArrayLike) -> list[Array]:
    arrays = [jnp.ravel(jnp.asarray(v)) for v in values]
    dtype = jnp.result_type(float, *arrays) if any(a.size for a in arrays) else jnp.result_type(float)
    return [a.astype(dtype) for a in arrays]
