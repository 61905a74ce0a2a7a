"""Stochastic-gradient Hamiltonian Monte Carlo in cycles, started from trained nets; SGLD without inertia."""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from probkit.bnn.langevin import Walk, cycle, scales, step, walker
from probkit.bnn.methods.checkpoint import Checkpoint
from probkit.bnn.methods.common import draws_at, trainable
from probkit.bnn.methods.dropout import check_training
from probkit.bnn.methods.ensemble import Ensemble
from probkit.bnn.methods.training import Member, Training, gradient
from probkit.infer.batches import bar
from probkit.infer.method import Method, Outcome, check_whole
from probkit.infer.target import Target
from probkit.report import Report, Seconds, timed

#: Share by which the noise of minibatches may raise the temperature in the stiffest direction.
HEAT = 0.1
#: Products with the Hessian by which its largest eigenvalue is found.
POWER = 30
#: How the chains start.
FOUR = Ensemble(members=4)


class Gear(NamedTuple):
    """What a chain moves with: the scale of each coordinate, and its step sizes to explore and to sample."""

    s: Float[Array, " D"]
    explore: Float[Array, ""]
    sample: Float[Array, ""]


class Sampled(NamedTuple):
    """Chains under way, axis (member,) first but in ``draws``, (cycle, member, draw, D)."""

    walk: Walk
    draws: Float[Array, "cycle member draw D"]
    done: Int[Array, ""]


class Course(NamedTuple):
    """Static options of a cycle."""

    steps: int
    draws: int
    explore: float
    momentum: float
    step_size: float
    training: Training


@eqx.filter_jit
def prepare(target: Target, members: Member, course: Course) -> Gear:
    """Scales from the rows of the Hessian at the mode, and step sizes from the stiffest direction there."""
    n = target.args[0].shape[0]

    def one(member: Member) -> Gear:
        slope = jax.grad(lambda u: -target.log_density(u))
        product = lambda v: jax.jvp(slope, (member.best,), (v,))[1]
        k_rows, k_power = jax.random.split(member.key)
        s = scales(product, k_rows, member.best)

        def power(v: Array, _: None) -> tuple[Array, Array]:
            Hv = s * product(s * v)
            size = jnp.linalg.norm(Hv)
            return Hv / size, size

        v = jax.random.normal(k_power, member.best.shape, member.best.dtype)
        stiffness = jax.lax.scan(power, v / jnp.linalg.norm(v), None, length=POWER)[1][-1]
        largest = 4 * course.step_size**2
        batch = min(course.training.batch, n)
        heat = HEAT * (1 - course.momentum**2) * batch / n if batch < n else jnp.inf
        root = lambda value: jnp.sqrt(value / stiffness)
        return Gear(s, root(largest), root(jnp.minimum(largest, heat)))

    return jax.vmap(one)(members)


@eqx.filter_jit
def one_cycle(target: Target, members: Member, walks: Walk, gears: Gear, keys: Array, course: Course) -> tuple:
    """One cycle of every chain: explore without noise, then sample; the draws are evenly spaced over the latter."""
    n = target.args[0].shape[0]
    explored = round(course.explore * course.steps)
    thin = (course.steps - explored) // course.draws

    def lane(member: Member, walk: Walk, gear: Gear, key: Array) -> tuple[Walk, Array]:
        member = member._replace(key=key)

        def move(walk: Walk, i: Array) -> tuple[Walk, None]:
            rate, sampling = cycle(i / course.steps, course.explore)
            first, last = gear.explore**2, gear.sample**2
            least = 0.5 * (1 + jnp.cos(jnp.pi * course.explore))
            h = jnp.sqrt(last + (first - last) * jnp.maximum(rate - least, 0.0) / (1 - least + 1e-12))
            noise = jax.random.normal(jax.random.fold_in(key, course.steps + i), walk.x.shape, walk.x.dtype)
            g = n * gradient(target, member, walk.x, i, course.training)
            return step(walk, g, gear.s, h, course.momentum, jnp.where(sampling, noise, 0.0)), None

        walk, _ = jax.lax.scan(move, walk, jnp.arange(explored))

        def kept(walk: Walk, k: Array) -> tuple[Walk, Array]:
            walk, _ = jax.lax.scan(move, walk, explored + k * thin + jnp.arange(thin))
            return walk, walk.x

        return jax.lax.scan(kept, walk, jnp.arange(course.draws))

    return jax.vmap(lane)(members, walks, gears, keys)


@dataclasses.dataclass(frozen=True)
class SGHMC(Method):
    """Langevin dynamics with friction on minibatches, in cycles that explore and then sample.

    Every chain starts from a net of ``training``. Coordinates are scaled by the curvature there, and the step size is
    set by the stiffest direction, so that nothing has to be tuned to the units or the noise. ``momentum=0`` is SGLD.

    Steps are not corrected: the law is right up to the step size, the noise of minibatches (kept below a tenth of the
    temperature in the stiffest direction, which makes small batches slow), and chains hardly change modes. So the draws
    are not taken for the posterior: compare by ``pk.kfold``, and see :func:`probkit.bnn.convergence`.

    Args:
        cycles: how many.
        draws: draws of a cycle, of each chain.
        steps: steps of a cycle, at least ``draws`` of them for sampling.
        explore: share of a cycle that descends without noise, its step size falling.
        momentum: share of the velocity kept in a step, in [0, 1).
        step_size: of the largest stable step, in (0, 1).
        batch_size: rows in a step; all, where None.
        training: how nets are trained before; ``members`` are the chains. Its ``checkpoint`` folder holds the cycles
            too.

    References:
        Chen, Fox and Guestrin (2014), Stochastic gradient Hamiltonian Monte Carlo. Welling and Teh (2011), Bayesian
        learning via stochastic gradient Langevin dynamics. Zhang et al. (2020), Cyclical stochastic gradient MCMC.
    """

    cycles: int = 4
    draws: int = 25
    steps: int = 1000
    explore: float = 0.5
    momentum: float = 0.9
    step_size: float = 0.3
    batch_size: int | None = None
    training: Ensemble = FOUR

    def __post_init__(self) -> None:
        check_whole("cycles", self.cycles, 1)
        check_whole("draws", self.draws, 1)
        if self.batch_size is not None:
            check_whole("batch_size", self.batch_size, 1)
        for name, value in (("explore", self.explore), ("momentum", self.momentum)):
            if not 0 <= value < 1:
                raise ValueError(f"{name} is {value!r}; a share in [0, 1) is wanted.")
        if not 0 < self.step_size < 1:
            raise ValueError(f"step_size is {self.step_size!r}; a share in (0, 1) is wanted.")
        check_whole("steps", self.steps, 1)
        sampled = self.steps - round(self.explore * self.steps)
        if sampled < self.draws:
            raise ValueError(f"steps leaves {sampled} to sample in a cycle; draws={self.draws} or more are wanted.")
        check_training(self.training)

    @property
    def targets_posterior(self) -> bool:
        """Steps are not corrected, and modes not weighed."""
        return False

    def run(self, target: Target, key: Any, init: dict | None = None, progress: bool = False) -> Outcome:
        """Train, then cycle."""
        args = target.args
        target = trainable(target, type(self).__name__)
        k_train, k_cycles = jax.random.split(key)
        members, seconds = self.training.train(target, k_train, init, progress)
        sampled, more = self._cycles(target, members, k_cycles, progress)
        points = jnp.swapaxes(sampled.draws, 0, 1)
        chains, size = points.shape[0], points.shape[-1]
        groups = draws_at(target, points.reshape(-1, size))
        values, stats = ({n: v.reshape(chains, -1, *v.shape[2:]) for n, v in group.items()} for group in groups)
        start = draws_at(target, members.best)[1]["lp"]
        report = self._report(stats["lp"], start, size, seconds + more)
        return Outcome(values, stats, report, target=Target(target.model, args))

    def _cycles(self, target: Target, members: Member, key: Array, progress: bool) -> tuple[Sampled, Seconds]:
        n = target.args[0].shape[0]
        batch = n if self.batch_size is None else min(self.batch_size, n)
        options = Training(0, batch, 0.0, 0, 1, 1, jacobian=True)
        course = Course(
            self.steps, self.draws, float(self.explore), float(self.momentum), float(self.step_size), options
        )
        kept = Checkpoint(self, target, key, members.best)
        gears, seconds = timed(prepare, target, members, course)
        u = members.best
        draws = jnp.zeros((self.cycles, len(u), self.draws, u.shape[1]), u.dtype)
        state = kept.resume(Sampled(jax.vmap(walker)(u), draws, jnp.array(0)))
        with bar(self.cycles, progress, type(self).__name__) as shown:
            while (done := int(state.done)) < self.cycles:
                shown.update(done - shown.n)
                keys = jax.random.split(jax.random.fold_in(key, done), len(u))
                (walk, found), more = timed(one_cycle, target, members, state.walk, gears, keys, course)
                seconds = seconds + more
                state = Sampled(walk, state.draws.at[done].set(found), jnp.array(done + 1))
                kept.save(state)
        return state, seconds

    def _report(self, lp: np.ndarray, start: np.ndarray, size: int, seconds: Seconds) -> Report:
        """Draws lie about D/2 nats below a mode; far below that the steps were too long."""
        fall = start.max() - lp
        good = bool(np.all(np.isfinite(lp)) and np.median(fall) < 2 * size + 20)
        reason = f"{lp.shape[0]} chains of {lp.shape[1]} draws, by median {np.median(fall):.0f} nats below the best net"
        return Report(
            method=repr(self),
            rung="sghmc",
            converged=good,
            reason=f"{reason}; {size} unknowns.",
            advice="" if good else "Lower step_size, or raise batch_size.",
            seconds=seconds,
            steps=self.cycles * self.steps,
        )
