r"""Vector autoregression with missing values: Gibbs sampling between two laws in closed form.

Given complete series the coefficients, their covariance and the tightness have the conjugate law of
`probkit.var.conjugate`; given those, the missing values are states of a linear Gaussian model,

$$\alpha_t = (y_t', \dots, y_{t-p+1}')', \quad \alpha_{t+1} = (A_1 \dots A_p;\ I\ 0) \alpha_t + (c + e_t;\ 0), \quad
  y_t = (I\ 0) \alpha_t,$$

drawn all together by the simulation smoother. The first p times are conditioned on; what is missing of them is normal
with mean 0 and variance 1, so y is to be standardised.

References:
    Tanner and Wong (1987), The calculation of posterior distributions by data augmentation, Journal of the American
    Statistical Association 82. Durbin and Koopman (2002), A simple and efficient simulation smoother for state space
    time series analysis, Biometrika 89.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from probkit.ssm import smoother
from probkit.ssm.statespace import StateSpace, known_start
from probkit.var import conjugate


class Draws(NamedTuple):
    """What the sampler leaves, each with the axes (chain, draw) in front.

    Attributes:
        B: coefficients, (k, n).
        L: lower Cholesky factor of the covariance, (n, n).
        place: which of the laws they came from.
        y: the series with their gaps filled, (time, n).
    """

    B: Float[Array, "chain draw k n"]
    L: Float[Array, "chain draw n n"]
    place: Int[Array, "chain draw"]
    y: Float[Array, "chain draw time n"]


def interpolate(y: np.ndarray) -> np.ndarray:
    """Every series with its gaps closed by straight lines, its ends by the nearest value: where a chain begins."""
    times, out = np.arange(len(y)), y.copy()
    for column in out.T:
        seen = ~np.isnan(column)
        column[~seen] = np.interp(times[~seen], times[seen], column[seen])
    return out


def residual_variances(y: np.ndarray, lags: int) -> np.ndarray:
    """Variance of the errors of an autoregression of each series by itself, by the times whose lags are all seen.

    Where these are too few: of a random walk's steps, by the differences between one seen value and the next.
    """
    out = []
    for column in np.asarray(y, float).T:
        x = column - np.nanmean(column)
        rows = np.lib.stride_tricks.sliding_window_view(x, lags + 1)
        rows = rows[~np.isnan(rows).any(axis=1)]
        place = np.flatnonzero(~np.isnan(x))
        variance = np.nanvar(x)
        found = np.mean(np.diff(x[place]) ** 2 / np.diff(place)) if place.size > 1 else 0.0
        if len(rows) >= 3 * (lags + 1):
            Z = np.column_stack([rows[:, :-1], np.ones(len(rows))])
            error = rows[:, -1] - Z @ np.linalg.lstsq(Z, rows[:, -1])[0]
            found = error @ error / (len(rows) - lags - 1)
        out.append(max(found, 1e-6 * variance) if variance > 0 else 1.0)
    return np.array(out)


def fill(key: Array, y: Float[Array, "time n"], B: Float[Array, "k n"], L: Float[Array, "n n"]) -> Array:
    """y with a joint draw of what is missing (NaN), given the parameters.

    Args:
        key: a JAX key.
        y: standardised series.
        B: coefficients: rows are lag 1 of every series, lag 2 ..., the intercept.
        L: lower Cholesky factor of the errors' covariance.
    """
    n = y.shape[1]
    lags = (B.shape[0] - 1) // n
    m, dtype = n * lags, y.dtype
    T = jnp.concatenate([B[:-1].T, jnp.eye(m - n, m, dtype=dtype)])
    V = jnp.zeros((m, m), dtype).at[:n, :n].set(L @ L.T)
    c = jnp.zeros(m, dtype).at[:n].set(B[-1])
    model = StateSpace(jnp.eye(n, m, dtype=dtype), jnp.zeros((n, n), dtype), T, None, V, 0.0, c)
    first = y[:lags][::-1].reshape(-1)
    start = known_start(jnp.where(jnp.isnan(first), 0, first), jnp.diag(jnp.isnan(first).astype(dtype)))
    states = smoother.simulate_states(key, y[lags - 1 :], model, start)
    before = states[0].reshape(lags, n)[1:][::-1]
    return jnp.where(jnp.isnan(y), jnp.concatenate([before, states[:, :n]]), y)


def sample(
    key: Array,
    y: Float[Array, "time n"],
    begin: Float[Array, "time n"],
    laws: Callable[[Array], conjugate.NormalInverseWishart],
    log_prior: Float[Array, " grid"],
    counts: tuple[int, int, int],
) -> Draws:
    """Draws of parameters and missing values.

    Args:
        key: a JAX key.
        y: standardised series, NaN where missing.
        begin: the same without gaps.
        laws: from complete series to the posterior at every point of the grid of tightness.
        log_prior: of the points; all that counts where there is one.
        counts: chains, draws left out of each at its beginning, draws kept.
    """
    chains, burn, kept = counts

    def step(x: Array, key: Array) -> tuple[Array, tuple]:
        k_place, k_draw, k_fill = jax.random.split(key, 3)
        found = laws(x)
        log_w = found.log_evidence + log_prior if log_prior.shape[0] > 1 else log_prior
        place = jax.random.categorical(k_place, log_w)
        B, L = conjugate.sample(k_draw, jax.tree.map(lambda a: a[place], found))
        x = fill(k_fill, y, B, L)
        return x, (B, L, place, x)

    def chain(key: Array) -> tuple:
        before, after = jax.random.split(key)
        x, _ = lax.scan(lambda x, key: (step(x, key)[0], None), begin, jax.random.split(before, burn))
        return lax.scan(step, x, jax.random.split(after, kept))[1]

    return Draws(*lax.map(chain, jax.random.split(key, chains)))
