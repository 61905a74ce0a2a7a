r"""Stationary autoregressions by their partial autocorrelations, which may be any numbers in (-1, 1).

$$x_t = \phi_1 x_{t-1} + \dots + \phi_p x_{t-p} + e_t$$

is stationary if and only if all $|r_k| < 1$, where the Durbin-Levinson recursion takes $r$ to $\phi$:

$$\phi^{(k)}_k = r_k, \qquad \phi^{(k)}_j = \phi^{(k-1)}_j - r_k \phi^{(k-1)}_{k-j}.$$

The coefficients $\theta$ of an invertible moving average, $x_t = e_t + \theta_1 e_{t-1} + \dots$, are $-\phi$ of a
stationary one.

References:
    Barndorff-Nielsen, O. and Schou, G. (1973). On the parametrization of autoregressive models by partial
        autocorrelations. Journal of Multivariate Analysis 3, 408-419.
    Monahan, J. F. (1984). A note on enforcing stationarity in autoregressive-moving average models. Biometrika 71, 403.
    Jones, M. C. (1987). Randomly choosing parameters from the stationarity and invertibility region of
        autoregressive-moving average models. Applied Statistics 36, 134-138.
"""

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float


def pacf_to_ar(r: Float[ArrayLike, "*batch p"]) -> Float[Array, "*batch p"]:
    """The coefficients phi of the autoregression with partial autocorrelations r, each in (-1, 1); p may be 0."""
    r = jnp.asarray(r)
    phi = r[..., :0]
    for k in range(r.shape[-1]):
        last = r[..., k : k + 1]
        phi = jnp.concatenate([phi - last * phi[..., ::-1], last], axis=-1)
    return phi


def ar_to_pacf(phi: Float[ArrayLike, "*batch p"]) -> Float[Array, "*batch p"]:
    """The partial autocorrelations of an autoregression; all lie inside (-1, 1) if and only if it is stationary.

    Where one reaches 1 in absolute value those of lower order are infinite or NaN.
    """
    phi = jnp.asarray(phi)
    found = []
    for _ in range(phi.shape[-1]):
        last, rest = phi[..., -1:], phi[..., :-1]
        found.append(last)
        phi = (rest + last * rest[..., ::-1]) / ((1 - last) * (1 + last))
    return jnp.concatenate(found[::-1], axis=-1) if found else phi


def log_jacobian(r: Float[ArrayLike, "*batch p"]) -> Float[Array, "*batch"]:
    r"""$\log |\det \partial \phi / \partial r| = \sum_k (\lfloor \frac{k+1}{2} \rfloor - 1) \log(1 + r_k)
    + \lfloor \frac k2 \rfloor \log(1 - r_k)$."""  # noqa: D205, D209
    r = jnp.asarray(r)
    up, down = jacobian_powers(r.shape[-1])
    return jnp.sum(up.astype(r.dtype) * jnp.log1p(r) + down.astype(r.dtype) * jnp.log1p(-r), axis=-1)


def jacobian_powers(p: int) -> tuple[np.ndarray, np.ndarray]:
    """The powers of 1 + r_k and of 1 - r_k in the determinant of d phi / d r, k = 1 .. p."""
    k = np.arange(1, p + 1)
    return (k + 1) // 2 - 1.0, k // 2 * 1.0


def autocorrelations(phi: Float[ArrayLike, " p"], lags: int) -> tuple[Array, Float[Array, " lags"]]:
    r"""The variance of a stationary autoregression with unit innovations, and its autocorrelations.

    $$\gamma_0 = \prod_k (1 - r_k^2)^{-1}, \qquad
      \rho_k = r_k \prod_{j<k} (1 - r_j^2) + \sum_{j<k} \phi^{(k-1)}_j \rho_{k-j}.$$

    Args:
        phi: coefficients, stationary.
        lags: how many autocorrelations, from lag 0 on.

    Returns:
        $\gamma_0$ and $\rho_0 = 1, \rho_1, \dots$; multiply the variance by that of the innovations.
    """
    phi = jnp.asarray(phi)
    r, p = ar_to_pacf(phi), phi.shape[0]
    rho, partial, left = [jnp.ones((), phi.dtype)], phi[:0], jnp.ones((), phi.dtype)
    for k in range(1, lags):
        back = jnp.stack(rho[::-1])
        if k <= p:
            rho.append(r[k - 1] * left + partial @ back[: k - 1])
            partial = jnp.concatenate([partial - r[k - 1] * partial[::-1], r[k - 1 : k]])
            left = left * (1 - r[k - 1]) * (1 + r[k - 1])
        else:
            rho.append(phi @ back[:p])
    return 1 / jnp.prod((1 - r) * (1 + r)), jnp.stack(rho)
