"""Any number of exact fits in a few compiled programs: pairs of a series and a candidate as lanes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from probkit.arima.exact import Coefficients
from probkit.arima.lanes import Fitted, Orders, fit_lanes

#: Lanes of one program call.
CHUNK = 32
#: Evaluations of a lane at first; then of those not done, gathered anew: where some may be given up, or in all.
SOME, MORE, ALL = 8, 16, 60
#: The relative decrease of the cost that ends a descent in float64.
TOLERANCE = 1e-8


def in_chunks(size: int, count: int, run: Any) -> Any:
    """``run(part)`` on parts of ``arange(count)`` of one size, joined on their last axis; -1 fills up the last part."""
    index = np.concatenate([np.arange(count), np.full(-count % size, -1)])
    parts = [run(index[k : k + size]) for k in range(0, len(index), size)]
    return jax.tree.map(lambda *each: np.concatenate(each, axis=-1)[..., :count], *map(jax.device_get, parts))


def largest_root(c: Coefficients, s: int) -> np.ndarray:
    """The largest inverse root of the four polynomials, lane by lane; 1 is the unit circle."""
    parts = ((c.ar, 1, 1), (c.ma, -1, 1), (c.sar, 1, s), (c.sma, -1, s))
    out = np.zeros(np.shape(c.ar)[-1])
    for held, sign, gap in parts:
        first = sign * np.nan_to_num(np.asarray(held, float)).T
        if not first.shape[1]:
            continue
        companion = np.zeros((*first.shape, first.shape[1])) + np.eye(first.shape[1], k=-1)
        companion[:, 0] = first
        out = np.maximum(out, np.max(np.abs(np.linalg.eigvals(companion)), axis=1) ** (1 / gap))
    return out


def exact_fits(
    w: np.ndarray, seen: np.ndarray, lane: np.ndarray, masks: np.ndarray, starts: np.ndarray, orders: Orders,
    most: int, dtype: Any, within: float | None = None,
) -> Fitted:  # fmt: skip
    """Exact maximum likelihood of pairs of a series and a candidate (`probkit.arima.lanes.fit_lanes`).

    Candidates with at most one seasonal coefficient a side go through a program with half the state.

    Args:
        w: the (differenced) series, (time, series).
        seen: which values are there; once missing, missing to the end.
        lane: the series of each pair.
        masks: which coefficients each pair has, (params, pairs).
        starts: free numbers to start from, (params, pairs).
        orders: the largest orders.
        most: no pair has more parameters.
        dtype: of the arithmetic.
        within: where given, pairs whose largest inverse root passes it after a few evaluations are left there.
    """
    small = orders._replace(P=min(orders.P, 1), Q=min(orders.Q, 1))
    kept = np.concatenate([np.arange(a) < b for a, b in zip(orders[:4], small[:4], strict=True)] + [[True]])
    few = ~masks[~kept].any(axis=0)
    parts, places = [], []
    for some, own, rows in ((few, small, kept), (~few, orders, np.ones_like(kept))):
        index = np.flatnonzero(some)
        if not len(index):
            continue

        data = w, seen, lane[index], masks[rows][:, index], own, min(most, own.parameters), dtype
        part = _run(*data, starts[rows][:, index], SOME)
        going: Any = ~part.found.converged & np.isfinite(part.found.cost)
        if within:
            going = going & (largest_root(part.coefficients, own.s) < within)
        going = np.flatnonzero(going)
        if len(going):
            data = w, seen, lane[index[going]], masks[rows][:, index[going]], *data[4:]
            more = _run(*data, np.asarray(part.found.x[:, going]), MORE if within else ALL)
            part = jax.tree.map(np.array, part)
            jax.tree.map(lambda whole, new, at=going: whole.__setitem__((..., at), new), part, more)
        parts.append(_embedded(part, rows, own, orders))
        places.append(index)
    order = np.argsort(np.concatenate(places), kind="stable")
    return jax.tree.map(lambda *each: np.concatenate(each, axis=-1)[..., order], *parts)


def _run(
    w: np.ndarray, seen: np.ndarray, lane: np.ndarray, masks: np.ndarray, orders: Orders, most: int, dtype: Any,
    x: np.ndarray, steps: int,
) -> Fitted:  # fmt: skip
    """All pairs from x."""
    tolerance = None if np.dtype(dtype) == np.float32 else np.float32(TOLERANCE)

    def run(part: np.ndarray) -> Any:
        at, mask = lane[part], masks[:, part] & (part >= 0)  # nothing to do in what fills up
        data = jnp.asarray(w[:, at], dtype), seen[:, at], mask, jnp.asarray(x[:, part], dtype)
        return fit_lanes(*data, orders, most, np.int32(steps), tolerance)

    return in_chunks(CHUNK, len(lane), run)


def _embedded(part: Fitted, rows: np.ndarray, own: Orders, orders: Orders) -> Fitted:
    """A fit of smaller orders among those of larger ones: what is not there is 0."""
    if own == orders:
        return part

    def wide(a: Any, axes: int) -> Any:
        out = np.zeros((rows.size,) * axes + a.shape[-1:], a.dtype)
        out[np.ix_(*(np.flatnonzero(rows),) * axes, np.arange(a.shape[-1]))] = a
        return out

    def longer(a: Any, size: int) -> Any:
        return np.concatenate([a, np.zeros((size - a.shape[0], a.shape[1]), a.dtype)])

    f, c = part.found, part.coefficients
    found = f._replace(x=wide(f.x, 1), gradient=wide(f.gradient, 1), normal=wide(f.normal, 2))
    return part._replace(found=found, coefficients=c._replace(sar=longer(c.sar, orders.P), sma=longer(c.sma, orders.Q)))
