"""When stochastic optimisation stops: phases of falling step size, each run until its iterates are stationary."""

import math
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float

#: Updates averaged to one block, and blocks in one call of the compiled program.
UPDATES, BLOCKS = 50, 8
#: Of many components so large a share has to be stationary: the rest may look otherwise by chance.
SHARE = 0.9
#: The fewest blocks of a phase that are judged; the later half of them is its window.
LEAST = 24
#: The most blocks that are held: then neighbours are merged.
MOST = 64
#: The halves of a window may differ by so many standard errors.
SAME = 4.0
#: A window holds at least so many independent blocks.
PIECES = 3.0
#: A phase but for the last ends once its averages are known to so many times the tolerance.
ROUGH = 4.0
#: So many updates without stationarity and without a loss that falls, and the step is cut all the same.
PATIENCE = 20000


class Block(NamedTuple):
    """Means over a block of updates; on the host with an axis (restart,) in front.

    Attributes:
        params: of the guide's parameters, unconstrained.
        centre: the guide's means there, in u.
        log_scale: logs of its sds.
        loss: of minus the ELBO.
    """

    params: Any
    centre: Float[Array, "... D"]
    log_scale: Float[Array, "... D"]
    loss: Float[Array, "..."]


class Average(NamedTuple):
    """What the blocks of a window say.

    Attributes:
        mean: of each column.
        error: Monte Carlo error of that, the blocks taken for an AR(1) process.
        same: whether its halves agree, and it holds enough independent blocks for that to mean something.
    """

    mean: Float[np.ndarray, " k"]
    error: Float[np.ndarray, " k"]
    same: Bool[np.ndarray, " k"]


def average(x: Float[np.ndarray, "block k"]) -> Average:
    """Average the later blocks of a run, and say how well that is known and whether they drift."""
    half = len(x) // 2
    mean, error, pieces = _autoregressive(x)
    first, second = _autoregressive(x[:half]), _autoregressive(x[-half:])
    near = np.abs(first[0] - second[0]) <= SAME * np.hypot(first[1], second[1])
    return Average(mean, error, near & (pieces >= PIECES))


def _autoregressive(x: Float[np.ndarray, "block k"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, its error and the number of independent blocks, by lag-one correlation (its bias is about -1/n)."""
    count, mean = len(x), x.mean(axis=0)
    deviation = x - mean
    variance = np.mean(deviation**2, axis=0)
    lag = np.mean(deviation[1:] * deviation[:-1], axis=0) / np.where(variance > 0, variance, 1.0)
    lag = np.clip(lag + 1 / count, 0.0, 0.95)
    pieces = count * (1 - lag) / (1 + lag)
    return mean, np.sqrt(variance / (count - 1) * count / pieces), pieces


class Phase:
    """The blocks made at one step size; a long phase holds longer blocks, so that their number stays small."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.updates = 0
        self._waiting: list[Block] = []
        self._merged = 1

    def add(self, block: Block) -> None:
        """Take one more block."""
        self.updates += UPDATES
        self._waiting.append(block)
        if len(self._waiting) == self._merged:
            self.blocks.append(_mean(self._waiting))
            self._waiting = []
        if len(self.blocks) == MOST:
            self.blocks = [_mean(self.blocks[i : i + 2]) for i in range(0, MOST, 2)]
            self._merged *= 2

    @property
    def window(self) -> list[Block]:
        """The later half of the blocks."""
        return self.blocks[len(self.blocks) // 2 :]


def _mean(blocks: list) -> Any:
    return jax.tree_util.tree_map(lambda *a: np.mean(a, axis=0, dtype=a[0].dtype), *blocks)


class Phases:
    """The schedule of step sizes, and the rule that stops it.

    A phase has one step size and goes on until its blocks are stationary (halves of its later half agree, in the
    guide's means, log sds and loss). Its average is then compared with that of the phase before: with a bias that is
    proportional to the step size, what is left of it is the move times ``decay / (1 - decay)``. Where that is below
    ``tolerance`` the phase goes on until the Monte Carlo error of its average is too; otherwise the step is cut. So it
    is where a phase only bounces: long, not stationary, and with a loss that has ceased to fall.
    Where no update is finite the way is ``lost``: the caller starts again, with a smaller step.
    All figures are in sds of the guide, the worst component counting; of restarts the one of least loss is judged.

    Args:
        step_size: of the first phase.
        decay: factor from one phase to the next.
        tolerance: what error and bias have to fall below.

    References:
        Dhaka et al. (2020), Robust, accurate stochastic optimization for variational inference, NeurIPS (iterate
        averages, judged as Markov chains). Welandawe et al. (2024), A framework for improving the reliability of
        black-box variational inference, JMLR 25 (phases of falling step size, compared with each other).
    """

    def __init__(self, step_size: float, decay: float, tolerance: float) -> None:
        self.step_size, self.decay, self.tolerance = step_size, decay, tolerance
        self.phase, self.done = Phase(), False
        self.stationary, self.error, self.bias = False, math.inf, math.inf
        self.lost = False
        self._latest: Any = None
        self._old: Any = None
        self._before: tuple[Average, np.ndarray] | None = None

    def add(self, chunk: Block) -> None:
        """Take the blocks of one call, axes (restart, block) in front, and decide."""
        self.lost = not np.any(np.isfinite(chunk.loss))
        for i in range(chunk.loss.shape[1]):
            self._latest = jax.tree_util.tree_map(lambda a, i=i: np.asarray(a[:, i]), chunk)
            self.phase.add(self._latest)
        if self.lost:
            self._cut(None)
            self._old, self.stationary, self.error, self.bias = None, False, math.inf, math.inf
        elif len(self.phase.blocks) >= LEAST:
            self._decide()

    def averaged(self) -> Any:
        """The iterate averages of every restart, of the last phase that was judged."""
        young = len(self.phase.blocks) < LEAST and self._old is not None
        window = (self._old if young else self.phase).window or [self._latest]
        return _mean([block.params for block in window])

    def _decide(self) -> None:
        found, unit = self._figures()
        # Adam moves by its step size at most: in fewer updates than these nothing could have been told.
        reach = self.step_size * self.phase.updates / 2 / np.max(unit)
        still = found.same[-1] and np.mean(found.same) >= SHARE
        self.stationary = bool(still and np.all(np.isfinite(found.mean)) and reach >= 1)
        dim = 2 * len(unit)
        self.error, self.bias = float(np.max(found.error[:dim])), math.inf
        if not self.stationary:
            if found.same[-1] and self.phase.updates >= PATIENCE:
                self._cut(None)
            return
        if self._before is not None:
            self.bias = self._bias(found, unit)
        close = self.bias <= self.tolerance
        self.done = close and self.error <= self.tolerance
        if not close and self.error <= ROUGH * self.tolerance:
            self._cut((found, unit))

    def _cut(self, before: tuple[Average, np.ndarray] | None) -> None:
        """Begin the next phase."""
        self._before, self._old, self.phase = before, self.phase, Phase()
        self.step_size *= self.decay

    def _figures(self) -> tuple[Average, np.ndarray]:
        """Means and log sds of the guide of the best restart, in units of its sds, and the loss; and those sds."""
        window = self.phase.window
        losses = np.array([b.loss for b in window], float)
        total = losses.mean(axis=0)
        best = int(np.argmin(np.where(np.isfinite(total), total, np.inf)))
        log_scale = np.array([b.log_scale[best] for b in window], float)
        unit = np.exp(log_scale.mean(axis=0))
        centre = np.array([b.centre[best] for b in window], float) / unit
        return average(np.concatenate([centre, log_scale, losses[:, best : best + 1]], axis=1)), unit

    def _bias(self, found: Average, unit: np.ndarray) -> float:
        """What the step size still biases the average by, beyond what the noise of both averages explains."""
        if self._before is None:
            return math.inf
        before, old = self._before
        dim = len(unit)
        scale = np.concatenate([old / unit, np.ones(dim)])
        move = np.abs(found.mean[: 2 * dim] - before.mean[: 2 * dim] * scale)
        noise = np.hypot(found.error[: 2 * dim], before.error[: 2 * dim] * scale)
        return float(np.max(np.maximum(move - 2 * noise, 0.0))) * self.decay / (1 - self.decay)
