"""Any number of exact fits in compiled programs of one size: series by candidates, the unfinished gathered anew."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from probkit.arima.exact import Coefficients
from probkit.arima.lanes import Fitted, Orders, fit_lanes

#: Lanes of one program call: more cost more than their share once they leave the cache.
CHUNK = 64
#: The same for a few lanes: two sizes, so few programs.
LEAST = 8
#: Evaluations before the lanes that are not done are gathered into fewer calls, again and again.
ROUNDS = (8, 8, 16, 32)


def in_chunks(size: int, index: np.ndarray, run: Any) -> Any:
    """``run`` on parts of ``index`` of one size, answers joined on their last axis."""
    full = np.concatenate([index, np.repeat(index[-1:], -len(index) % size, axis=0)])
    parts = [run(full[k : k + size]) for k in range(0, len(full), size)]
    return jax.tree.map(lambda *each: np.concatenate(each, axis=-1)[..., : len(index)], *map(jax.device_get, parts))


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
        within: where given, pairs whose largest inverse root passes this are left where they are.
    """
    small = orders._replace(P=min(orders.P, 1), Q=min(orders.Q, 1))
    kept = np.concatenate(
        [np.arange(most) < least for most, least in zip(orders[:4], small[:4], strict=True)] + [[True]]
    )
    few = ~masks[~kept].any(axis=0)
    parts, places = [], []
    for some, own, rows in ((few, small, kept), (~few, orders, np.ones_like(kept))):
        if some.any():
            index = np.flatnonzero(some)
            part = _rounds(
                w, seen, lane[index], masks[rows][:, index], starts[rows][:, index], own, most, dtype, within
            )
            parts.append(_embedded(part, rows, own, orders))
            places.append(index)
    order = np.argsort(np.concatenate(places), kind="stable")
    return jax.tree.map(lambda *each: np.concatenate(each, axis=-1)[..., order], *parts)


def _rounds(
    w: np.ndarray, seen: np.ndarray, lane: np.ndarray, masks: np.ndarray, starts: np.ndarray, orders: Orders,
    most: int, dtype: Any, within: float | None,
) -> Fitted:  # fmt: skip
    most = min(most, orders.parameters)
    x, todo = starts.copy(), np.arange(len(lane))
    found: Any = None
    for steps in ROUNDS:

        def run(part: np.ndarray, x: np.ndarray = x, steps: int = steps) -> Any:
            at = lane[part]
            data = jnp.asarray(w[:, at], dtype), seen[:, at], masks[:, part], jnp.asarray(x[:, part], dtype)
            return fit_lanes(*data, orders=orders, most=most, steps=np.int32(steps))

        new = in_chunks(CHUNK if len(todo) > 4 * LEAST else LEAST, todo, run)
        if found is None:
            found = jax.tree.map(np.array, new)
        else:
            jax.tree.map(lambda whole, part, todo=todo: whole.__setitem__((..., todo), part), found, new)
        x[:, todo] = new.found.x
        going = ~new.found.converged & np.isfinite(new.found.cost)
        if within is not None:
            going &= largest_root(new.coefficients, orders.s) < within
        todo = todo[going]
        if not len(todo):
            break
    return found


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
