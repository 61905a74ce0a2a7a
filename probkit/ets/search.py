"""Every candidate at a first look, then those still in the running to the end: as good, with a third of the work.

A few evaluations from two starts tell most candidates of a series apart by far more than the descents still to come can
make good; the others go on to their optimum, and the best of those descend from the other starts as well.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from probkit.ets import fitting
from probkit.ets.fitting import Fits, Masks
from probkit.ets.recursions import LOG_2PI, Form
from probkit.math.least_squares import LeastSquares

#: Evaluations of the first look, of those that go on, and from another start; few need more, and many wait for them.
LOOK, ON, AGAIN = 6, 16, 20
#: Where the look begins, beside the first start of all: descents from here come closest in few evaluations on most
#: months, but not where slopes move, as those of smooth series do: from here alone they ended up to 66 higher.
FIRST = (0.3, 0.02, 0.02, 0.9)
#: Candidates whose criterion is further from the best go no further: after the look, and before the other starts.
MARGIN, CLOSE = 8.0, 3.0
#: Lanes of one program call; so few descents as the second are made at once, without a look.
BATCH, FEW = 1024, 64


class Fitted(NamedTuple):
    """All candidates of one program: fits with axes (..., candidate, lane), and where in the season lanes begin."""

    program: Form
    forms: tuple[Form, ...]
    fits: Fits
    phase: np.ndarray


def fit_all(
    y: Any,
    groups: dict[Form, list[Form]],
    period: int,
    prior: tuple[float, float],
    criterion: Callable[[np.ndarray], np.ndarray],
    average: bool = False,
) -> list[Fitted]:
    """Fit all series by all forms; those that the first look rules out keep what it found, not converged.

    Args:
        y: the series, (time, lane), NaN where missing.
        groups: the forms by program.
        period: length of the season.
        prior: powers of the prior.
        criterion: of penalised log-likelihoods (candidate, lane), in the order of the groups; smaller is better, inf
            for what cannot be.
        average: whether all are wanted that come close, not the best alone.
    """
    parts = [_Part(y, program, tuple(forms), period, prior) for program, forms in groups.items()]
    if all(part.pairs * len(fitting.starts(part.program)) <= FEW for part in parts):
        return [part.whole() for part in parts]
    ends = np.cumsum([len(part.forms) for part in parts])[:-1]

    def within(margin: float) -> list[np.ndarray]:
        value = criterion(np.concatenate([part.penalised for part in parts]))
        with np.errstate(invalid="ignore"):
            near = value - value.min(axis=0) <= margin
        return [np.flatnonzero(some) for some in np.split(near, ends)]

    for part, first in itertools.product(parts, (FIRST, fitting.STARTS[0])):
        part.descend(np.arange(part.pairs), part.begin(np.arange(part.pairs), first), LOOK)
    for part, kept in zip(parts, within(MARGIN + 2 * average), strict=True):
        part.descend(kept, part.found.x[:, kept], ON)
    for part, kept in zip(parts, within(CLOSE), strict=True):
        for start in fitting.starts(part.program)[1:]:
            part.descend(kept, part.begin(kept, start), AGAIN)
    for part, kept in zip(parts, within(MARGIN * average), strict=True):
        kept = kept[~part.found.converged[kept]]
        part.descend(kept, part.found.x[:, kept], fitting.STEPS)
    return [part.finished() for part in parts]


class _Part:
    """The pairs of a form and a series, forms first, that one program fits, and the best found of each so far."""

    def __init__(self, y: Any, program: Form, forms: tuple[Form, ...], period: int, prior: tuple[float, float]):
        self.y, self.program, self.forms, self.period, self.prior = y, program, forms, period, prior
        self.lanes, self.pairs = y.shape[1], y.shape[1] * len(forms)
        self.phase = np.asarray(fitting.phases(y, period))
        self.masks = jax.tree.map(np.asarray, fitting.masks(list(forms), jnp.asarray(self.phase)))
        self.powers = jnp.asarray(prior, jnp.asarray(y).dtype)
        self.complete = fitting.complete(y)
        self.size = min(BATCH, 1 << (self.pairs - 1).bit_length())
        self.found: Any = None

    def _some(self, pairs: np.ndarray) -> tuple[Any, Masks]:
        """The series and the masks of some pairs."""
        return self.y[:, pairs % self.lanes], jax.tree.map(lambda a: a[pairs], self.masks)

    def _chunks(self, pairs: np.ndarray) -> Any:
        """Parts of one size, the last filled up with its first pair; and how many of each count."""
        for first in range(0, len(pairs), self.size):
            part = pairs[first : first + self.size]
            yield np.append(part, np.full(self.size - len(part), part[0])), len(part)

    def begin(self, pairs: np.ndarray, start: tuple[float, ...]) -> np.ndarray:
        """Where the descents of some pairs begin."""
        shares = jnp.asarray(start, self.powers.dtype)[:, None]
        xs = [np.zeros((fitting.size(self.program, self.period), 0))]
        for part, count in self._chunks(pairs):
            x = fitting.begin(self.program, *self._some(part), jnp.tile(shares, (1, self.size)), self.period)
            xs.append(np.asarray(x)[:, :count])
        return np.concatenate(xs, axis=1)

    def descend(self, pairs: np.ndarray, x: np.ndarray, steps: int) -> None:
        """Descents of some pairs from x; what they find is kept where it is lower."""
        done = 0
        for part, count in self._chunks(pairs):
            start = np.full((len(x), self.size), np.nan, self.powers.dtype)  # no start, no descent: what fills up
            start[:, :count] = x[:, done : done + count]
            data = *self._some(part), jnp.asarray(start), self.powers, np.int32(steps), self.complete
            new = jax.tree.map(lambda a, n=count: np.asarray(a)[..., :n], fitting.descend(self.program, *data))
            self._keep(part[:count], new)
            done += count

    def _keep(self, pairs: np.ndarray, new: LeastSquares) -> None:
        if self.found is None:
            empty = lambda a: np.zeros((*a.shape[:-1], self.pairs), a.dtype)
            self.found = jax.tree.map(empty, new)._replace(cost=np.full(self.pairs, np.inf, new.cost.dtype))
        better = ~(new.cost > self.found.cost[pairs])
        jax.tree.map(lambda a, b: a.__setitem__((..., pairs[better]), b[..., better]), self.found, new)

    @property
    def penalised(self) -> np.ndarray:
        """Log-likelihoods less the penalty so far, (candidate, lane)."""
        count, unit = np.sum(~np.isnan(np.asarray(self.y)), axis=0), np.asarray(fitting.unit_of(self.y), float)
        cost = self.found.cost.reshape(len(self.forms), self.lanes).astype(float)
        with np.errstate(divide="ignore", invalid="ignore"):
            return -0.5 * count * (LOG_2PI + np.log(cost / count) + 1 + 2 * np.log(unit))

    def finished(self) -> Fitted:
        """The fits."""
        found = jax.tree.map(jnp.asarray, self.found)
        m = jax.tree.map(jnp.asarray, self.masks)
        return self._fitted(fitting.finish(self.program, jnp.tile(self.y, (1, len(self.forms))), m, found, self.powers))

    def whole(self) -> Fitted:
        """All pairs from all starts at once."""
        y, m = jnp.tile(self.y, (1, len(self.forms))), jax.tree.map(jnp.asarray, self.masks)
        return self._fitted(fitting.fit(self.program, y, m, self.period, prior=self.prior))

    def _fitted(self, fits: Fits) -> Fitted:
        split = lambda a: np.asarray(a).reshape(*a.shape[:-1], len(self.forms), self.lanes)
        return Fitted(self.program, self.forms, jax.tree.map(split, fits), self.phase)
