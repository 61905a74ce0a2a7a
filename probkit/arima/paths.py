"""Drawn futures of chosen models: parameters by the curvature, the variance by its chi-square law."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from probkit.arima.futures import futures
from probkit.arima.gaps import gappy_futures
from probkit.arima.many import in_chunks
from probkit.arima.polynomials import difference_polynomial

#: Draws of the parameters a series; the rest of a path's randomness is drawn for every path (the variance of a series
#: with gaps for every set).
SETS = 64
#: Lanes of one program call.
BATCH = 512


def draw_paths(
    y: np.ndarray, lanes: Any, choice: Any, weights: np.ndarray, status: tuple[str, ...], orders: Any, key: Any,
    horizon: int, draws: int,
) -> np.ndarray:  # fmt: skip
    """Paths (draws, horizon, lane), NaN where a lane has no model; arguments as `probkit.arima.auto` holds them."""
    usable = np.array([one == "ok" for one in status])
    out = np.full((draws, horizon, len(lanes)), np.nan)
    if not usable.any() or draws < 1:
        return out
    k_which, k_free, k_sigma, k_path = jax.random.split(key, 4)
    sets = min(SETS, 2 * (-(-draws // 2)))
    repeats = -(-draws // sets)
    offset = np.asarray(jax.random.uniform(k_which, (len(lanes),)), float)
    normal = np.asarray(jax.random.normal(k_free, (sets // 2, orders.parameters, len(lanes))), float)
    normal = np.concatenate([normal, -normal])
    x, base = np.zeros((orders.parameters, sets, len(lanes))), np.zeros((sets, len(lanes)))
    variance, degrees = np.ones((sets, len(lanes))), np.ones((sets, len(lanes)))
    for i in np.flatnonzero(usable):
        ends = np.cumsum(weights[:, i])
        which = np.minimum(np.searchsorted(ends, (np.arange(sets) + offset[i]) / sets), len(ends) - 1)
        # In no order of candidates: where draws are no multiple of the sets, the last sets give fewer.
        which = which[np.asarray(jax.random.permutation(jax.random.fold_in(k_which, i), sets))]
        for c in np.unique(which):
            rows = np.flatnonzero(which == c)
            at, own, n = choice.column[c, i], choice.candidates[c].mask(orders), choice.scored[i]
            center, spread = _curvature(choice.fits, at, own, n)
            x[:, rows, i] = center[:, None]
            x[np.ix_(own, rows, [i])] += (spread @ normal[rows][:, own, i].T)[:, :, None]
            degrees[rows, i] = max(n - own.sum(), 1)
            variance[rows, i] = n * float(choice.fits.sigma2[at])
            # The free constant counts from the mean of the differences, in units of their spread.
            step = (x[-1, rows, i] - center[-1]) * float(choice.fits.unit[at])
            base[rows, i] = (float(choice.fits.constant[at]) + step) * own[-1]
    chi2 = 2 * np.asarray(jax.random.gamma(k_sigma, jnp.asarray(degrees / 2), (repeats, sets, len(lanes))), float)
    sigma = np.sqrt(variance / np.maximum(chi2, 1e-300))
    x[-1] = 0
    late = np.array([y.shape[0] - lane.end for lane in lanes])
    steps = horizon + int(late[usable].max())
    each = (jax.random.normal(jax.random.fold_in(k_path, t), sigma.shape) for t in range(steps))
    errors = np.stack([np.asarray(one, float) for one in each]) * sigma
    gappy = np.array([lane.gaps for lane in lanes])
    for i in np.flatnonzero(usable & gappy):
        own = x[:, :, i], base[:, i], sigma[0, :, i], jax.random.fold_in(k_path, i)
        drawn = gappy_futures(y[:, i], lanes[i], *own, orders, steps, repeats)
        out[:, :, i] = drawn[late[i] : late[i] + horizon].reshape(horizon, -1)[:, :draws].T
    index = np.flatnonzero(usable & ~gappy)
    if len(index):
        w = _differenced(lanes, index, x, base, errors, orders, y.dtype, y.shape[0])
        for k, i in enumerate(index):
            drawn = _undone(w[..., k], y[: lanes[i].end, i], lanes[i], orders.s)
            out[:, :, i] = drawn[late[i] : late[i] + horizon].reshape(horizon, -1)[:, :draws].T
    return out


def _curvature(fits: Any, at: int, own: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The free numbers of a fit and a root of their covariance, the inverse of J'J times the residual variance."""
    J = np.asarray(fits.found.normal[:, :, at], float)[np.ix_(own, own)]
    each = float(fits.found.cost[at]) / n
    e, V = np.linalg.eigh(J)
    # A direction that the data leave open is drawn no wider than the whole line of partial autocorrelations.
    return np.asarray(fits.found.x[:, at], float) * own, V * np.sqrt(each / np.maximum(e, each))


def _differenced(
    lanes: Any,
    index: np.ndarray,
    x: np.ndarray,
    base: np.ndarray,
    errors: np.ndarray,
    orders: Any,
    dtype: Any,
    length: int,
) -> np.ndarray:
    """Paths of the differences, (steps, repeats, sets, lane)."""
    w = np.zeros((length, len(lanes)))
    seen = np.zeros(w.shape, bool)
    for i in index:
        w[: lanes[i].w.size, i], seen[: lanes[i].w.size, i] = lanes[i].w, True
    sets = x.shape[1]

    def run(part: np.ndarray) -> Any:
        i, j = index[part // sets], part % sets
        data = (jnp.asarray(a, dtype) for a in (x[:, j, i], base[j, i], errors[:, :, j, i]))
        return futures(jnp.asarray(w[:, i], dtype), seen[:, i], *data, orders)

    drawn = in_chunks(min(BATCH, len(lanes) * sets), len(index) * sets, run)
    return np.moveaxis(drawn.reshape(*drawn.shape[:2], len(index), sets), 2, 3)


def _undone(w: np.ndarray, y: np.ndarray, lane: Any, s: int) -> np.ndarray:
    """The level paths of differences, (steps, ...), after a series y."""
    c = difference_polynomial(lane.d, lane.D, s)
    n = c.size - 1
    level = np.concatenate([np.broadcast_to(y[y.size - n :].reshape(-1, *[1] * (w.ndim - 1)), (n, *w.shape[1:])), w])
    for t in range(n, level.shape[0]):
        for k in np.flatnonzero(c[1:]) + 1:
            level[t] -= c[k] * level[t - k]
    return level[n:]
