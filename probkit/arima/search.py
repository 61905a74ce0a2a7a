"""Many orders at a fast look: conditional least squares of candidates, all or from neighbour to neighbour."""

import itertools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from probkit.arima.css import fit_css
from probkit.arima.lanes import Orders
from probkit.arima.many import in_chunks, largest_root
from probkit.selection import information_criterion

#: Lanes of one program call.
BATCH = 128
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
    w: np.ndarray, seen: np.ndarray, candidates: list[Candidate], allowed: np.ndarray, orders: Orders, stepwise: bool,
    dtype: Any,
) -> Looked:  # fmt: skip
    """Fit candidates to every lane; stepwise from a few, then the neighbours of each lane's best till none is better.

    Args:
        w: the differenced series, (time, lane).
        seen: which values are there.
        candidates: all that may be tried.
        allowed: which of them each lane may have, (candidate, lane).
        orders: the largest orders.
        stepwise: whether to go from neighbour to neighbour.
        dtype: of the arithmetic.
    """
    lanes, masks = w.shape[1], np.stack([c.mask(orders) for c in candidates], axis=1)
    place = {c: i for i, c in enumerate(candidates)}
    near = [[place[n] for n in neighbours(c) if n in place] for c in candidates]
    count, k = seen.sum(axis=0), np.array([c.parameters for c in candidates])
    found = Looked(np.full((len(candidates), lanes), np.inf), np.zeros((orders.parameters, len(candidates), lanes)))
    tried, every = ~allowed, np.arange(lanes)
    small = np.append(np.linspace(0.1, -0.1, orders.parameters - 1), 0.0)[:, None]
    wanted = np.full(tried.shape, not stepwise)
    first = {c for c in candidates if c[:4] in ((0, 0, 0, 0), *_first(orders))}
    wanted[[place[c] for c in first]] = True
    best = np.full(lanes, place[Candidate(0, 0, 0, 0, False)])
    size = min(BATCH, 32 * lanes)
    while True:
        index = np.argwhere(wanted & ~tried)
        if not len(index):
            return found
        begin, old_mask = found.x[:, best, every], masks[:, best]

        def run(part: np.ndarray, begin: np.ndarray = begin, old_mask: np.ndarray = old_mask) -> Any:
            c, i = part.T
            old = old_mask[:, i]
            start = np.where(old, begin[:, i], small) * masks[:, c]
            data = jnp.asarray(w[:, i], dtype), seen[:, i], masks[:, c], jnp.asarray(start, dtype)
            return fit_css(*data, orders)

        x, sigma2, coefficients = in_chunks(size, index, run)
        c, i = index.T
        tried[c, i] = True
        found.x[:, c, i] = x
        with np.errstate(divide="ignore", invalid="ignore"):
            value = information_criterion("aicc", -0.5 * count[i] * np.log(sigma2), k[c], count[i])
        sound = np.isfinite(value) & (largest_root(coefficients, orders.s) < LARGEST_ROOT)
        found.aicc[c, i] = np.where(sound, value, np.inf)
        best = np.argmin(found.aicc, axis=0)
        wanted = np.zeros(tried.shape, bool)
        for lane in range(lanes):
            wanted[near[best[lane]], lane] = True


def _first(orders: Orders) -> list[tuple[int, int, int, int]]:
    """Where the search begins, no order past the largest."""
    starts = [(1, 0, 1, 0), (0, 1, 0, 1), (1, 1, 0, 1), (2, 2, 0, 1)]
    return [tuple(min(a, b) for a, b in zip(one, orders[:4], strict=True)) for one in starts]  # type: ignore[misc]
