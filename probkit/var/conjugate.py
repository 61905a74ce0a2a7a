r"""Vector autoregression with the conjugate Minnesota prior, in closed form.

$y_t = c + A_1 y_{t-1} + \dots + A_p y_{t-p} + e_t$, $e_t \sim N(0, \Sigma)$, or $Y = Z B + E$ with a row
$z_t = (y_{t-1}', \dots, y_{t-p}', 1)$ a time. Under $B | \Sigma \sim MN(B_0, \Omega_0, \Sigma)$,
$\Sigma \sim IW(S_0, \nu_0)$ the posterior is of the same form:

$$\Omega^{-1} = \Omega_0^{-1} + Z'Z, \quad \bar B = \Omega (\Omega_0^{-1} B_0 + Z'Y), \quad \nu = \nu_0 + T, \quad
  S = S_0 + (Y - Z \bar B)'(Y - Z \bar B) + (\bar B - B_0)' \Omega_0^{-1} (\bar B - B_0),$$
$$\log p(Y) = -\tfrac{nT}{2} \log \pi + \tfrac n2 \log \tfrac{|\Omega|}{|\Omega_0|} + \tfrac{\nu_0}{2} \log |S_0|
  - \tfrac{\nu}{2} \log |S| + \log \frac{\Gamma_n(\nu / 2)}{\Gamma_n(\nu_0 / 2)}.$$

References:
    Kadiyala and Karlsson (1997), Numerical methods for estimation and inference in Bayesian VAR-models.
    Bańbura, Giannone and Reichlin (2010), Large Bayesian vector auto regressions.
    Giannone, Lenza and Primiceri (2015), Prior selection for vector autoregressions.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve, solve_triangular
from jax.scipy.special import multigammaln
from jaxtyping import Array, Float


class NormalInverseWishart(NamedTuple):
    """A law of coefficients and covariance.

    Attributes:
        B: mean of the coefficients, (k, n).
        root: Cholesky factor of the precision of their rows, Omega^-1, (k, k).
        S: scale of the covariance, (n, n).
        df: degrees of freedom.
        log_evidence: log density of the data; NaN under a flat prior.
    """

    B: Float[Array, "k n"]
    root: Float[Array, "k k"]
    S: Float[Array, "n n"]
    df: Float[Array, ""]
    log_evidence: Float[Array, ""]


def lagged(y: Float[Array, "time n"], lags: int) -> tuple[Float[Array, "T n"], Float[Array, "T k"]]:
    """Y and Z of the module docstring; the first `lags` times are conditioned on."""
    T = y.shape[0] - lags
    past = [y[lags - i : lags - i + T] for i in range(1, lags + 1)]
    return y[lags:], jnp.concatenate([*past, jnp.ones((T, 1), y.dtype)], axis=1)


def residual_variances(y: Float[Array, "time n"], lags: int) -> Float[Array, " n"]:
    """Variance of the errors of an autoregression of each series by itself, the units of the Minnesota prior.

    Of fewer lags where the series is short, so that a degree of freedom is left; of three values their own variance.
    """
    rows = y.shape[0]
    lags = max(1, min(lags, (rows - 2) // 3))
    least = 1e-6 if rows > 2 * lags + 1 else 1.0

    def one(x: Array) -> Array:
        Y, Z = lagged(x[:, None], lags)
        error = Y - Z @ jnp.linalg.lstsq(Z, Y)[0]
        variance = jnp.var(x)
        floor = least * jnp.where(variance > 0, variance, 1.0)
        return jnp.maximum(jnp.sum(error**2) / max(Y.shape[0] - Z.shape[1], 1), floor)

    return jax.lax.map(one, y.T)


def minnesota(
    scale: Float[Array, " n"], lags: int, tightness: Float[Array, ""], decay: float, own: float, intercept: float
) -> tuple[Float[Array, "k n"], Float[Array, " k"]]:
    r"""B_0 and the diagonal of Omega_0^-1: ``Var(A_l[i, j]) = tightness² / l^(2 decay) * Sigma_ii / scale_j``.

    Args:
        scale: error variances of each series by itself.
        lags: p.
        tightness: how far coefficients may move from B_0; infinity is flat.
        decay: how fast that falls with the lag.
        own: what each series is expected to keep of its last value: 1 for random walks, 0 for noise.
        intercept: standard deviation of the intercept, in those of the error.
    """
    n = scale.shape[0]
    lag = jnp.repeat(jnp.arange(1, lags + 1, dtype=scale.dtype), n)
    precision = lag ** (2 * decay) * jnp.tile(scale, lags) / tightness**2
    B = jnp.zeros((n * lags + 1, n), scale.dtype).at[jnp.arange(n), jnp.arange(n)].set(own)
    return B, jnp.append(precision, jnp.asarray(intercept, scale.dtype) ** -2)


def posterior(
    Y: Float[Array, "T n"], Z: Float[Array, "T k"], B0: Float[Array, "k n"], precision: Float[Array, " k"],
    S0: Float[Array, "n n"], df0: Float[Array, ""],
) -> NormalInverseWishart:  # fmt: skip
    """The posterior, and the evidence, of the module docstring.

    Args:
        Y: observations.
        Z: what they are regressed on.
        B0: prior mean.
        precision: the diagonal of Omega_0^-1; 0 is flat.
        S0: prior scale of the covariance.
        df0: prior degrees of freedom, above n - 1.
    """
    T, n = Y.shape
    # Columns of Z by their size: series in other units cost no digits.
    size = jnp.sqrt(jnp.sum(Z * Z, axis=0) + precision)
    size = jnp.where(size > 0, size, 1.0)
    scaled = Z / size
    L = jnp.linalg.cholesky(scaled.T @ scaled + jnp.diag(precision / size**2))
    # A correction to the prior mean: exact where the data agree with it.
    move = cho_solve((L, True), scaled.T @ (Y - Z @ B0)) / size[:, None]
    B = B0 + move
    error = Y - Z @ B
    S = S0 + error.T @ error + (move * precision[:, None]).T @ move
    df = df0 + T - jnp.sum(precision == 0)  # a flat coefficient takes one, as in least squares
    log_det = lambda M: jnp.linalg.slogdet(M)[1]
    log_ratio = -2 * jnp.sum(jnp.log(jnp.diagonal(L)) + jnp.log(size)) + jnp.sum(jnp.log(precision))
    value = (
        -0.5 * n * T * math.log(math.pi) + 0.5 * n * log_ratio + 0.5 * df0 * log_det(S0) - 0.5 * df * log_det(S)
        + multigammaln(0.5 * df, n) - multigammaln(0.5 * df0, n)
    )  # fmt: skip
    value = jnp.where(jnp.all(precision > 0), value, jnp.nan)
    return NormalInverseWishart(B, size[:, None] * L, S, df, value)


def sample(key: Array, law: NormalInverseWishart) -> tuple[Float[Array, "k n"], Float[Array, "n n"]]:
    """One draw of the coefficients and of the lower Cholesky factor of the covariance (Bartlett 1933)."""
    k_chi, k_lower, k_B = jax.random.split(key, 3)
    k, n = law.B.shape
    dtype = law.B.dtype
    chi = jnp.sqrt(2 * jax.random.gamma(k_chi, 0.5 * (law.df - jnp.arange(n, dtype=dtype))))
    A = jnp.diag(chi) + jnp.tril(jax.random.normal(k_lower, (n, n), dtype), -1)
    # Sigma^-1 = R'^-1 A A' R^-1 with S = R R'; so Sigma = C C' with C = R A'^-1, which is not lower.
    C = solve_triangular(A, jnp.linalg.cholesky(law.S).T, lower=True).T
    Sigma = jnp.linalg.cholesky(C @ C.T)
    E = jax.random.normal(k_B, (k, n), dtype)
    return law.B + solve_triangular(law.root.T, E, lower=False) @ Sigma.T, Sigma


def moving_average(B: Float[Array, "k n"], horizon: int) -> Float[Array, "horizon n n"]:
    """Phi_0 = I, Phi_h = sum_l A_l Phi_(h-l): what an error moves h times later, rows responses."""
    n = B.shape[1]
    lags = (B.shape[0] - 1) // n
    A = jnp.swapaxes(B[:-1].reshape(lags, n, n), 1, 2)

    def step(past: Array, _: None) -> tuple[Array, Array]:
        return jnp.concatenate([jnp.einsum("lij,ljk->ik", A, past)[None], past[:-1]]), past[0]

    start = jnp.zeros((lags, n, n), B.dtype).at[0].set(jnp.eye(n, dtype=B.dtype))
    return jax.lax.scan(step, start, None, length=horizon)[1]


def path(
    B: Float[Array, "k n"], past: Float[Array, "lags n"], errors: Float[Array, "horizon n"]
) -> Float[Array, "horizon n"]:
    """What follows the last `lags` times, the newest last, under given errors."""

    def step(recent: Array, e: Array) -> tuple[Array, Array]:
        y = jnp.append(recent.reshape(-1), 1.0) @ B + e
        return jnp.concatenate([y[None], recent[:-1]]), y

    return jax.lax.scan(step, past[::-1], errors)[1]
