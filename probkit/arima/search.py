"""Many orders at a fast look: conditional least squares of candidates, all or from neighbour to neighbour."""

import itertools
from typing import Any, NamedTuple

import numpy as np

from probkit.arima.css import fit_css
from probkit.arima.lanes import Orders
from probkit.arima.many import in_chunks, largest_root
from probkit.selection import information_criterion

#: Lanes of one program call, for many series and for a few.
BATCH, FEW = 128, 64
#: What a root next to the circle adds to AICc.
PENALTY = 2.0
#: How many of the best of a stepwise search are looked at again from other starts; else all are.
AGAIN = 6
#: An inverse root larger than this is too near the unit circle, as in R's `auto.arima`.
LARGEST_ROOT = 1 / 1.01
_SHIFTS = [(1, 0), (0, 1), (1, 1), (1, -1)]


class Candidate(NamedTuple):
    """Orders, and whether there is a constant."""

    p: int
    q: int
    P: int
    Q: int
    constant: bool

    def mask(self, orders: Orders) -> np.ndarray:
        """Which of the parameters it has."""
        sizes = zip(self[:4], (orders.p, orders.q, orders.P, orders.Q), strict=True)
        return np.concatenate([np.arange(most) < size for size, most in sizes] + [np.array([self.constant])])

    @property
    def parameters(self) -> int:
        """Coefficients, the constant and the variance."""
        return sum(self[:4]) + self.constant + 1


def candidates_up_to(orders: Orders, max_order: int) -> list[Candidate]:
    """All with p + q + P + Q at most ``max_order``, with and without a constant."""
    sizes = itertools.product(*(range(n + 1) for n in orders[:4]))
    kept = [four for four in sizes if sum(four) <= max_order]
    return [Candidate(p, q, P, Q, constant) for p, q, P, Q in kept for constant in (False, True)]


def neighbours(c: Candidate) -> list[Candidate]:
    """One order of a pair more or less, or both of it, and the constant put in or left out."""
    moves = [(sign * a, sign * b) for a, b in _SHIFTS for sign in (1, -1)]
    out = [c._replace(p=c.p + a, q=c.q + b) for a, b in moves]
    return [*out, *(c._replace(P=c.P + a, Q=c.Q + b) for a, b in moves), c._replace(constant=not c.constant)]


class Looked(NamedTuple):
    """What the fast look found: AICc (inf where not tried or not sound) and free numbers to start from."""

    aicc: np.ndarray  # (candidate, lane)
    x: np.ndarray  # (params, candidate, lane)


def look(
    w: np.ndarray, seen: np.ndarray, candidates: list[Candidate], allowed: np.ndarray, orders: Orders, stepwise: bool
) -> Looked:
    """Fit candidates to every lane; stepwise from a few, then the neighbours of each lane's best till none is better.

    In float32, whatever the data: this only ranks, and the exact fits start from what it finds.

    Args:
        w: the differenced series, (time, lane).
        seen: which values are there.
        candidates: all that may be tried.
        allowed: which of them each lane may have, (candidate, lane).
        orders: the largest orders.
        stepwise: whether to go from neighbour to neighbour.
    """
    lanes, masks = w.shape[1], np.stack([c.mask(orders) for c in candidates], axis=1)
    place = {c: i for i, c in enumerate(candidates)}
    near = [[place[n] for n in neighbours(c) if n in place] for c in candidates]
    count, k = seen.sum(axis=0), np.array([c.parameters for c in candidates])
    found = Looked(np.full((len(candidates), lanes), np.inf), np.zeros((orders.parameters, len(candidates), lanes)))
    tried, fit = ~allowed, _fitter(w, seen, masks, orders)
    wanted = np.full(tried.shape, not stepwise)
    wanted[[i for i, c in enumerate(candidates) if c[:4] in _first(orders)]] = True
    best = np.full(lanes, place[Candidate(0, 0, 0, 0, False)])
    small, *others = starts(orders)

    def improve(c: np.ndarray, i: np.ndarray, begin: np.ndarray) -> None:
        x, variance = fit(c, i, begin)
        with np.errstate(divide="ignore", invalid="ignore"):
            value = information_criterion("aicc", -0.5 * count[i] * np.log(variance), k[c], count[i])
        better = np.isfinite(value) & (value < found.aicc[c, i])
        found.aicc[c[better], i[better]], found.x[:, c[better], i[better]] = value[better], x[:, better]

    while (wanted & ~tried).any():
        c, i = np.nonzero(wanted & ~tried)
        # What the best so far has is kept; what is new begins small.
        improve(c, i, np.where(masks[:, best[i]], found.x[:, best[i], i], small[:, None]))
        tried[c, i] = True
        best = np.argmin(found.aicc, axis=0)
        wanted = np.zeros(tried.shape, bool)
        for lane in range(lanes):
            wanted[near[best[lane]], lane] = True
    rank = np.argsort(np.argsort(found.aicc, axis=0, kind="stable"), axis=0)
    c, i = np.nonzero((rank < (AGAIN if stepwise else len(candidates))) & np.isfinite(found.aicc))
    for one in others if len(c) else []:
        improve(c, i, np.broadcast_to(one[:, None], (orders.parameters, len(c))))
    return found


def starts(orders: Orders) -> list[np.ndarray]:
    """Free numbers of three unlike starts: an ARMA likelihood has several tops, some where the two sides cancel."""
    signs = np.repeat([1, -1, 1, -1, 0], [orders.p, orders.q, orders.P, orders.Q, 1])
    first = np.concatenate([np.arange(n) == 0 for n in (orders.p, orders.q, orders.P, orders.Q)] + [np.zeros(1)])
    small = np.append(np.linspace(0.1, -0.1, orders.parameters - 1), 0.0)
    return [small, np.where(signs < 0, 0.8, 0.3) * first, np.where(signs < 0, -0.3, -0.6) * first]


def _fitter(w: np.ndarray, seen: np.ndarray, masks: np.ndarray, orders: Orders) -> Any:
    """``fit(c, i, begin)``: free numbers and variance of candidates c of lanes i.

    Least squares with zeros before the start like roots on the circle more than the exact likelihood does: those cost
    something here, and the exact fit decides.
    """
    count = np.maximum(seen.sum(axis=0), 1)
    mean = np.stack([np.zeros(w.shape[1]), np.sum(np.where(seen, w, 0), axis=0) / count])  # without, with a constant
    centred = np.where(seen, w - mean[:, None], 0)
    unit = np.sqrt(np.sum(centred**2, axis=1) / count)
    unit = np.where(unit > 0, unit, 1)
    z = (centred / unit[:, None]).astype(np.float32)

    def fit(c: np.ndarray, i: np.ndarray, begin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        def run(part: np.ndarray) -> Any:
            lane, mask = i[part], masks[:, c[part]] & (part >= 0)
            start = np.asarray(begin[:, part] * mask, np.float32)
            return fit_css(z[mask[-1].astype(int), :, lane].T, seen[:, lane], mask, start, orders)

        x, variance, coefficients = in_chunks(BATCH if w.shape[1] > 4 else FEW, len(c), run)
        sound = largest_root(coefficients, orders.s) < LARGEST_ROOT
        penalty = np.where(sound, 1.0, np.exp(PENALTY / count[i]))
        variance = np.where(np.isfinite(variance), variance * penalty, np.inf)
        return np.clip(x, -2, 2), variance * unit[masks[-1, c].astype(int), i] ** 2

    return fit


def _first(orders: Orders) -> set[tuple[int, ...]]:
    """Where the search begins, no order past the largest."""
    first = [(0, 0, 0, 0), (1, 0, 1, 0), (0, 1, 0, 1), (1, 1, 0, 1), (2, 2, 0, 1)]
    return {tuple(min(a, b) for a, b in zip(one, orders[:4], strict=True)) for one in first}
