"""SWAG: a normal law fitted to the weights that a net passes through at a constant step size."""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from probkit.bnn.methods.checkpoint import Checkpoint
from probkit.bnn.methods.common import draws_at, trainable
from probkit.bnn.methods.dropout import ONE, check_training
from probkit.bnn.methods.ensemble import Ensemble
from probkit.bnn.methods.training import Member, Training, advance
from probkit.infer.batches import bar
from probkit.infer.method import Method, Outcome, check_whole
from probkit.infer.target import Target
from probkit.report import Seconds, timed


class Moments(NamedTuple):
    """What is kept of the points passed: their mean, their mean squared deviation from it, and the last deviations."""

    taken: Int[Array, ""]
    mean: Float[Array, "member D"]
    square: Float[Array, "member D"]
    deviations: Float[Array, "rank member D"]


@jax.jit
def collect(m: Moments, u: Float[Array, "member D"]) -> Moments:
    """The moments with one point more, its deviation from the mean so far in the place of the oldest."""
    count = m.taken + 1
    mean = m.mean + (u - m.mean) / count
    square = m.square + ((u - m.mean) * (u - mean) - m.square) / count
    return Moments(count, mean, square, m.deviations.at[m.taken % m.deviations.shape[0]].set(u - mean))


@eqx.filter_jit
def sample(m: Moments, key: Array, draws: int) -> Float[Array, "member draw D"]:
    """Draws of ``N(mean, (diag + D D' / (rank - 1)) / 2)``, half the spread of each kind.

    References:
        Maddox, Garipov, Izmailov, Vetrov and Wilson (2019), A simple baseline for Bayesian uncertainty in deep
        learning, equation 1.
    """
    k_diagonal, k_rank = jax.random.split(key)
    rank, members, size = m.deviations.shape
    sd = jnp.sqrt(jnp.maximum(m.square, 0.0))
    diagonal = sd[:, None] * jax.random.normal(k_diagonal, (members, draws, size), m.mean.dtype)
    z = jax.random.normal(k_rank, (members, draws, rank), m.mean.dtype)
    low = jnp.einsum("msr,rmd->msd", z, m.deviations) / jnp.sqrt(max(rank - 1, 1))
    return m.mean[:, None] + (diagonal + low) / jnp.sqrt(2.0)


@dataclasses.dataclass(frozen=True)
class SWAG(Method):
    """SWAG: nets trained to a mode, then a normal law (diagonal plus low rank) of the weights they go on to pass.

    With several ``members`` in ``training`` it is multi-SWAG, a mixture. The law is that of Adam at a constant step
    size, whose spread depends on the step size and on the minibatches: draws do not follow the posterior; compare by
    ``pk.kfold``. Data taken whole would hardly move, so minibatches here are at most a tenth of the rows.

    Args:
        rank: deviations kept for the low-rank part, at least 2.
        snapshots: points collected, at least ``rank``; two passes over the data apart.
        learning_rate: Adam's, constant, while they are collected.
        draws: draws of each net.
        training: how nets are trained before; its ``checkpoint`` folder holds the collecting too.

    References:
        Maddox et al. (2019), A simple baseline for Bayesian uncertainty in deep learning. Wilson and Izmailov (2020),
        Bayesian deep learning and a probabilistic perspective of generalization (multi-SWAG).
    """

    rank: int = 20
    snapshots: int = 40
    learning_rate: float = 0.003
    draws: int = 100
    training: Ensemble = ONE

    def __post_init__(self) -> None:
        check_whole("rank", self.rank, 2)
        check_whole("snapshots", self.snapshots, self.rank)
        check_whole("draws", self.draws, 1)
        if not (isinstance(self.learning_rate, int | float) and 0 < self.learning_rate < np.inf):
            raise ValueError(f"learning_rate is {self.learning_rate!r}; a positive number is wanted.")
        check_training(self.training)

    @property
    def targets_posterior(self) -> bool:
        """The spread is that of an optimiser."""
        return False

    def run(self, target: Target, key: Any, init: dict | None = None, progress: bool = False) -> Outcome:
        """Train, collect, draw."""
        args = target.args
        target = trainable(target, type(self).__name__)
        k_train, k_collect, k_draw = jax.random.split(key, 3)
        members, seconds = self.training.train(target, k_train, init, progress)
        moments, more = self._collect(target, members, k_collect, progress)
        points = sample(moments, k_draw, self.draws)
        values, stats = draws_at(target, points.reshape(-1, points.shape[-1]))
        report = self.training.report(members, seconds + more)
        finite = bool(jnp.all(jnp.isfinite(points)))
        passed = f"{points.shape[0]} nets, {self.snapshots} points of each"
        reason = f"{passed}; {report.reason}" if finite else f"{passed}, not all finite."
        report = dataclasses.replace(
            report, method=repr(self), rung="swag", reason=reason, converged=report.converged and finite
        )
        return Outcome(values, stats, report, target=Target(target.model, args))

    def _collect(self, target: Target, members: Member, key: Array, progress: bool) -> tuple[Moments, Seconds]:
        """Go on from the modes at a constant step size."""
        n = target.args[0].shape[0]
        batch = max(1, min(self.training.batch_size, n // 10))
        options = Training(0, batch, float(self.learning_rate), 0, -(-2 * n // batch), 1, constant=True)
        kept = Checkpoint(self, target, key, members.best)
        u, zero = members.best, jnp.array(0)
        fresh = members._replace(
            u=u,
            memory=jax.vmap(options.optimiser().init)(u),
            key=jax.random.split(key, len(u)),
            step=jnp.zeros_like(members.step),
            best_step=jnp.zeros_like(members.step),
            stopped=jnp.zeros_like(members.stopped),
        )
        moments = Moments(zero, jnp.zeros_like(u), jnp.zeros_like(u), jnp.zeros((self.rank, *u.shape), u.dtype))
        fresh, moments = kept.resume((fresh, moments))
        seconds = Seconds()
        with bar(self.snapshots, progress, type(self).__name__) as shown:
            while (count := int(moments.taken)) < self.snapshots:
                shown.update(count - shown.n)
                fresh, more = timed(advance, target, fresh, options)
                moments, seconds = collect(moments, fresh.u), seconds + more
                kept.save((fresh, moments))
        return moments, seconds
