"""Stochastic variational inference: NumPyro's guides and ELBO on minibatches, in phases of falling step size."""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray
from numpyro.infer.autoguide import AutoDelta, AutoGuide, AutoLaplaceApproximation, AutoNormal

from probkit.infer.batches import bar
from probkit.infer.importance import Drawn, drawn, evaluated, judged, moved
from probkit.infer.method import Method, Outcome, check_whole, nothing_unknown, one_chain
from probkit.infer.phases import BLOCKS, UPDATES, Block, Phases
from probkit.infer.point import start_points
from probkit.infer.stochastic import Engine, State
from probkit.infer.subsample import Plates, plates_of
from probkit.infer.target import Target
from probkit.infer.vi import how_far_off, worst_ratio
from probkit.math.psis import khat_threshold
from probkit.model import Model
from probkit.report import Report, Seconds, timed

#: Restarts whose ELBO is this close to the best, in nats, agree with it.
AGREE = 0.1
#: Minibatches by which the ELBO is estimated at a time.
TOGETHER = 16


@eqx.filter_jit
def _begin(target: Target, key: PRNGKeyArray, init: dict | None, options: tuple) -> State:
    """The state of every restart, axis (restart,)."""
    *_, restarts = options
    target = target.resolved()
    k_points, k_start = jax.random.split(key)
    points = start_points(target, k_points, restarts, init)
    points = jnp.broadcast_to(points, (restarts, points.shape[1]))
    latent = list(target.sites())

    def start(lane: tuple) -> State:
        point, key = lane
        values = target.evaluate(point).values
        return Engine(target, options, values={name: values[name] for name in latent}).start(key)

    return target.each(start, (points, jax.random.split(k_start, restarts)))


@eqx.filter_jit
def _advance(target: Target, state: State, step_size: Array, options: tuple) -> tuple[State, Block]:
    """``BLOCKS`` blocks of ``UPDATES`` updates of every restart; figures have axes (restart, block)."""
    target = target.resolved()

    def lane(state: State) -> tuple[State, Block]:
        engine = Engine(target, options, step_size)
        engine.start(state.key)

        def update(carry: tuple, _: None) -> tuple:
            state, total, loss_total, taken = carry
            state, loss = engine.update(state)
            total = jax.tree_util.tree_map(jnp.add, total, engine.params(state))
            good = jnp.isfinite(loss)
            return (state, total, loss_total + jnp.where(good, loss, 0.0), taken + good), None

        def block(state: State, _: None) -> tuple[State, Block]:
            zeros = jax.tree_util.tree_map(jnp.zeros_like, engine.params(state))
            carry = (state, zeros, jnp.zeros(()), jnp.zeros(()))
            (state, total, loss, taken), _ = jax.lax.scan(update, carry, None, length=UPDATES)
            params = jax.tree_util.tree_map(lambda a: a / UPDATES, total)
            return state, Block(params, *engine.moments(params), jnp.where(taken > 0, loss / taken, jnp.inf))

        return jax.lax.scan(block, state, None, length=BLOCKS)

    return target.each(lane, state)


class Answer(NamedTuple):
    """The guide's draws and what is known of them; ``found`` where the density of all data was evaluated."""

    values: dict[str, Array]
    found: Drawn | None
    elbos: Float[Array, " restart"]
    errors: Float[Array, " restart"]
    best: Int[Array, ""]
    shift: Any
    ratio: Any


@eqx.filter_jit
def _finish(target: Target, params: Any, key: PRNGKeyArray, draws: int, whole: bool, options: tuple) -> Answer:
    """ELBO of every restart on fresh draws, and draws of the best one; params have an axis (restart,)."""
    target = target.resolved()
    k_elbo, k_epochs, k_draw = jax.random.split(key, 3)
    engine = Engine(target, options)
    engine.start(key)
    steps, keys = jnp.arange(draws), jax.random.split(k_elbo, draws)

    def elbo(params: Any) -> tuple[Array, Array]:
        weight = lambda one: engine.weight(params, one[0], k_epochs, one[1])
        return _mean_and_error(jax.lax.map(weight, (keys, steps), batch_size=min(TOGETHER, draws)))

    *_, restarts = options
    alone = restarts == 1 and whole  # then the weights of the draws below tell the ELBO
    elbos, errors = (jnp.zeros(1), jnp.zeros(1)) if alone else jax.lax.map(elbo, params)
    best = jnp.argmax(elbos)
    params = jax.tree_util.tree_map(lambda a: a[best], params)
    keys = jax.random.split(k_draw, draws)
    if not whole:
        values, _ = target.map(lambda key: engine.draw(params, key), keys)
        return Answer(values, None, elbos, errors, best, None, None)
    points, log_q = target.map(lambda key: engine.point(params, key), keys)
    e, lp = evaluated(target, points)
    found = judged(points, e, lp, log_q + e.log_jacobian, draws, False)
    if alone:
        elbos, errors = (x[None] for x in _mean_and_error(found.raw))
    return Answer(e.values, drawn(found, steps, 1), elbos, errors, best, *moved(found.moments, found.moments))


def _mean_and_error(weights: Float[Array, " draw"]) -> tuple[Array, Array]:
    mean = jnp.mean(weights)
    return jnp.where(jnp.isfinite(mean), mean, -jnp.inf), jnp.std(weights) / jnp.sqrt(1.0 * weights.size)


@dataclasses.dataclass(frozen=True)
class SVI(Method):
    """Stochastic variational inference, for minibatches, and for NumPyro's own guides and flows.

    NumPyro's ELBO is climbed by Adam in phases of falling step size; the iterates of the last phase are averaged, and
    the run stops by itself once the average is known to ``tolerance``. Rows of a ``numpyro.plate`` with a
    ``subsample_size`` are drawn epoch by epoch.

    The report says how far to believe it. Where the model takes all data at once, the guide's draws are weighed against
    the posterior as in :class:`probkit.VI`. With minibatches they are not: ``converged`` then says that the best guide
    of its kind was found, not that it is the posterior; and deterministic sites are left out.

    Args:
        guide: a NumPyro autoguide by its class (``AutoNormal``, ``AutoMultivariateNormal``, ``AutoIAFNormal`` ...), or
            a function of the model that gives a guide. It is static: a new function object compiles again.
        draws: number of draws returned.
        tolerance: largest error of the guide's means and log sds from optimisation, in sds of the guide.
        max_steps: the most updates, in calls of 400.
        step_size: Adam's in the first phase.
        decay: factor of the step size from phase to phase.
        particles: draws of the guide in each update: 1, or an even number, in pairs of z and -z.
        restarts: number of starts, run as lanes of one program; the one of highest ELBO answers.

    References:
        Kucukelbir et al. (2017), Automatic differentiation variational inference, JMLR 18. Polyak and Juditsky (1992),
        Acceleration of stochastic approximation by averaging, SIAM J. Control Optim. 30. See also
        :class:`probkit.infer.phases.Phases`.
    """

    guide: Any = AutoNormal
    draws: int = 4000
    tolerance: float = 0.05
    max_steps: int = 20_000
    step_size: float = 0.02
    decay: float = 0.25
    particles: int = 2
    restarts: int = 1

    def __post_init__(self) -> None:
        if not callable(self.guide) or isinstance(self.guide, AutoGuide):
            raise TypeError(
                f"guide is {self.guide!r}; an autoguide's class or a function of the model is wanted: "
                "guide=AutoNormal, or guide=lambda model: ... held in a name."
            )
        for refused, instead in ((AutoDelta, "pk.MAP()"), (AutoLaplaceApproximation, "pk.Laplace()")):
            if isinstance(self.guide, type) and issubclass(self.guide, refused):
                raise ValueError(f"guide is {self.guide.__name__}, a point and no distribution: use {instead}.")
        for name in ("draws", "max_steps", "particles", "restarts"):
            check_whole(name, getattr(self, name), 1)
        if self.particles > 1 and self.particles % 2:
            raise ValueError(f"particles is {self.particles}; 1 or an even number is wanted, as draws go in pairs.")
        for name in ("tolerance", "step_size"):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and 0 < value < np.inf):
                raise ValueError(f"{name} is {value!r}; a positive number is wanted.")
        if not (isinstance(self.decay, int | float) and 0 < self.decay < 1):
            raise ValueError(f"decay is {self.decay!r}; a number between 0 and 1 is wanted.")

    def __repr__(self) -> str:
        shown = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        shown["guide"] = getattr(self.guide, "__name__", self.guide)
        return f"SVI({', '.join(f'{name}={value}' for name, value in shown.items())})"

    @property
    def targets_posterior(self) -> bool:
        """The draws are the guide's, not the posterior's."""
        return False

    def run(self, target: Target, key: Any, init: dict | None = None, progress: bool = False) -> Outcome:
        """Fit the guide and draw from it."""
        if not target.sites():
            return nothing_unknown(target, repr(self))
        plates = self._plates(target)
        options = (self.guide, self.particles, self.restarts)
        k_start, k_end = jax.random.split(key)
        first, seconds = timed(_begin, target, k_start, init, options)
        state, steps, phases = first, 0, Phases(self.step_size, self.decay, self.tolerance)
        with bar(self.max_steps, progress, "SVI") as shown:
            while steps < self.max_steps and not phases.done:
                step_size = np.asarray(phases.step_size, target.dtype)
                (state, chunk), more = timed(_advance, target, state, step_size, options)
                phases.add(jax.device_get(chunk))
                state = first if phases.lost else state
                seconds, steps = seconds + more, steps + UPDATES * BLOCKS
                shown.update(UPDATES * BLOCKS)
                shown.set_postfix_str(f"step size {phases.step_size:.1g}, error {phases.error:.2g} sd")
        found, more = timed(_finish, target, phases.averaged(), k_end, self.draws, not plates.batches, options)
        found = jax.device_get(found)
        if found.found is None:
            values, stats = {n: np.asarray(v)[None] for n, v in found.values.items()}, dict[str, np.ndarray]()
        else:
            values, stats = one_chain(found.found.evaluation, found.found.lp)
        return Outcome(values, stats, self._report(found, phases, steps, plates, seconds + more))

    def _plates(self, target: Target) -> Plates:
        """What the model does beside sampling, checked."""
        if isinstance(target.model, Model):
            return Plates({}, [], [])
        plates = plates_of(target.model, target.args, target.kwargs)
        if plates.local:
            raise ValueError(
                f"The sites {plates.local} lie inside a plate that subsamples: each row has unknowns of its own. "
                "Integrate them out, or leave subsample_size away."
            )
        if plates.params:
            raise ValueError(f"The model has numpyro.param sites {plates.params}; give them priors, or fix them.")
        return plates

    def _report(self, a: Answer, phases: Phases, steps: int, plates: Plates, seconds: Seconds) -> Report:
        converged, reason, advice = self._judge(a, phases, steps, plates)
        f, best = a.found, int(a.best)
        close = a.elbos >= a.elbos[best] - AGREE - 2 * np.hypot(a.errors, a.errors[best])
        common: dict[str, Any] = {
            "steps": steps,
            "starts_agreeing": float(np.mean(close)) if self.restarts > 1 else None,
            "ess": float(self.draws),
            "guide_error": phases.error,
            "elbo": float(a.elbos[best]),
            "elbo_error": float(a.errors[best]),
        }
        if f is not None:
            common |= {
                "k_hat": float(f.k_hat),
                "k_threshold": float(khat_threshold(self.draws)),
                "mcse": {n: np.asarray(x) for n, x in f.mcse.items()},
                "worst_mcse": float(f.worst_mcse),
                "guide_shift": float(np.max(np.abs(a.shift))),
                "guide_ratio": worst_ratio(a.ratio),
            }
        notes = tuple(
            f"{name}: {steps * batch / size:.3g} passes over {size:,} rows, {batch:,} at a time"
            for name, (size, batch) in plates.batches.items()
        )
        return Report(repr(self), "svi", converged, reason, advice, seconds, notes=notes, **common)

    def _judge(self, a: Answer, phases: Phases, steps: int, plates: Plates) -> tuple[bool, str, str]:
        """Believe the answer or not, in words."""
        if not np.isfinite(a.elbos[a.best]):
            return False, "Not converged: the ELBO is not finite.", "Give init=, tighter priors or a smaller step_size."
        if not phases.done:
            told = f"{steps:,} steps, the last of size {phases.step_size:.2g}, "
            if not phases.stationary:
                told += "did not become stationary"
            elif phases.bias > self.tolerance:
                told += f"left an error of {phases.error:.2g} sd and a bias that is not known to be small"
            else:
                told += f"left an error of {phases.error:.2g} sd"
            return False, f"Not converged: {told}.", "Raise max_steps or tolerance, or start nearer with init=."
        reason = f"Averages to {phases.error:.2g} sd in {steps:,} steps"
        if a.found is None:
            return True, f"{reason}; k-hat was not computed, as it takes all rows at once.", ""
        limit, k = float(khat_threshold(self.draws)), float(a.found.k_hat)
        failed = [f"k-hat {k:.2f} above {limit:.2f}"] * (not k <= limit) + how_far_off(a.shift, a.ratio)
        if failed:
            told = f"The guide is not the posterior: {', '.join(failed)}."
            return False, told, "Use a richer guide (AutoMultivariateNormal, a flow), Auto() or NUTS()."
        return True, f"{reason}; k-hat {k:.2f}.", ""
