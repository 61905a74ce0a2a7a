"""Laplace with importance resampling: mode, curvature, Student-t proposal, Pareto smoothing, in one program."""

import dataclasses
import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from probkit.infer.batches import in_batches
from probkit.infer.importance import DEGREES, LEAST_POOL, WORST_MCSE, Proposal, draw, least_ess
from probkit.infer.method import Method, Outcome, check_whole, nothing_unknown, one_chain, together
from probkit.infer.point import _explain, find_mode, find_modes
from probkit.infer.target import Evaluation, Lanes, Target
from probkit.math.optimise import Minimum, curvature
from probkit.math.psis import khat_threshold
from probkit.report import Report, Seconds, timed


class Approximation(NamedTuple):
    """Everything the program finds, so that other methods can start from it.

    ``centre`` and ``factor @ factor.T`` are the mean and covariance in unconstrained space: of the Laplace fit, or of
    the last proposal adapted from it. ``draws``, ``evaluation`` and ``lp`` have axis (draw,) in front.
    """

    mode: Minimum
    agreeing: Float[Array, ""]
    usable: Bool[Array, ""]
    factor: Float[Array, "D D"]
    centre: Float[Array, " D"]
    draws: Float[Array, "draw D"]
    evaluation: Evaluation
    lp: Float[Array, " draw"]
    k_hat: Float[Array, ""]
    ess: Float[Array, ""]
    mcse: dict[str, Array]
    worst_mcse: Float[Array, ""]
    log_evidence: Float[Array, ""]
    rounds: Int[Array, ""]


@eqx.filter_jit
def approximate(target: Target, key: PRNGKeyArray, init: dict | None, rounds: Array, options: tuple) -> Approximation:
    """Mode -> Laplace -> importance resampling, as one compiled program."""
    starts, steps, drawing = options
    target = target.resolved()
    k_mode, k_draw = jax.random.split(key)
    mode, agreeing = find_mode(target, k_mode, starts, init, steps=steps)
    return _at_mode(target, k_draw, mode, agreeing, rounds, drawing)


@eqx.filter_jit
def approximate_lanes(lanes: Lanes, keys: Array, init: dict | None, rounds: Array, options: tuple) -> Approximation:
    """The same for every lane, as one compiled program; the axis (lane,) stands in front."""
    starts, steps, drawing = options
    targets = lanes.targets()
    keys = jax.vmap(jax.random.split)(keys)
    modes, agreeing = find_modes(targets, keys[:, 0], starts, init, steps=steps)
    each = (targets, keys[:, 1], modes, agreeing)
    return lanes.each(lambda one: _at_mode(one[0], one[1], one[2], one[3], rounds, drawing), each, drawing[1])


def _at_mode(
    target: Target, key: PRNGKeyArray, mode: Minimum, agreeing: Array, rounds: Array, options: tuple
) -> Approximation:
    """Draws around a mode, by importance resampling."""
    c = curvature(mode.hessian)
    eps = 100 * jnp.finfo(mode.x.dtype).eps
    usable = jnp.isfinite(mode.value) & jnp.all(c.values > eps)
    size = jnp.maximum(jnp.abs(c.values), eps)
    # The symmetric root: eigenvectors alone have free signs, and draws would depend on rounding.
    factor = (c.vectors / jnp.sqrt(size)) @ c.vectors.T / c.scale[:, None]
    log_det = -jnp.sum(jnp.log(c.scale)) - 0.5 * jnp.sum(jnp.log(size))
    last, found = draw(target, key, Proposal(mode.x, factor, log_det, jnp.array(False)), rounds, options)
    return Approximation(
        mode=mode,
        agreeing=agreeing,
        usable=usable,
        factor=last.factor,
        centre=last.centre,
        draws=found.points,
        evaluation=found.evaluation,
        lp=found.lp,
        k_hat=found.k_hat,
        ess=found.ess,
        mcse=found.mcse,
        worst_mcse=found.worst_mcse,
        log_evidence=found.log_evidence,
        rounds=found.rounds,
    )


@dataclasses.dataclass(frozen=True)
class Laplace(Method):
    """Mode, curvature and importance resampling: draws that are asymptotically exact, with a certificate.

    The mode is taken in unconstrained space with the Jacobian; draws come from a multivariate Student-t with 5 degrees
    of freedom on the curvature there, weighted by the density, the weights Pareto-smoothed (Vehtari et al. 2024) and
    resampled systematically. The report says k-hat, effective draws and Monte Carlo error.

    Args:
        draws: number of draws returned.
        starts: number of starts for the mode, run at once.
        importance: False gives the plain Gaussian approximation, without weights; k-hat still tells how good it is.
        rounds: how often to draw at most: where the draws fail their certificate, the proposal takes their weighted
            moments and draws again (adaptive importance sampling, Cappé et al. 2008).
        max_steps: the most evaluations of one start, and of the end that is judged where they go by slopes.
        pool: number of draws weighed, from which ``draws`` are resampled; by default ``draws``, and 2,000 at least.
    """

    draws: int = 4000
    starts: int = 8
    importance: bool = True
    rounds: int = 5
    max_steps: int = 100
    pool: int | None = None

    def __post_init__(self) -> None:
        check_whole("draws", self.draws, 1)
        check_whole("starts", self.starts, 1)
        check_whole("rounds", self.rounds, 1)
        check_whole("max_steps", self.max_steps, 1)
        if self.pool is not None:
            check_whole("pool", self.pool, self.draws)

    @property
    def weighed(self) -> int:
        """How many draws are weighed."""
        if not self.importance:
            return self.draws
        return max(self.draws, LEAST_POOL) if self.pool is None else self.pool

    @property
    def targets_posterior(self) -> bool:
        """The plain Gaussian is an approximation; weighted draws target the posterior."""
        return self.importance

    def approximate(self, target: Target, key: Any, init: dict | None) -> tuple[Approximation, Seconds]:
        """Run the program and bring its answer to the host."""
        options, rounds = self._options()
        found, seconds = timed(approximate, target, key, init, rounds, options)
        return jax.device_get(found), seconds

    def _options(self) -> tuple[tuple, np.ndarray]:
        degrees = DEGREES if self.importance else math.inf
        options = (self.starts, self.max_steps, (self.draws, self.weighed, degrees, self.importance))
        return options, np.asarray(self.rounds if self.importance else 1)

    def run(self, target: Target, key: Any, init: dict | None = None, progress: bool = False) -> Outcome:
        """Approximate the posterior."""
        if not target.sites():
            return nothing_unknown(target, repr(self))
        return self.outcome(*self.approximate(target, key, init))

    def run_lanes(
        self, lanes: Lanes, keys: Any, init: dict | None = None, progress: bool = False
    ) -> tuple[Outcome, list[Report]]:
        """Approximate the posterior of every lane by one compiled program."""
        if not lanes.lane(0).sites():
            return super().run_lanes(lanes, keys, init)
        options, rounds = self._options()
        found, seconds = in_batches(approximate_lanes, lanes, keys, (init, rounds, options), progress)
        each = Seconds(seconds.compile / lanes.count, seconds.run / lanes.count)
        reports = [self.report(jax.tree_util.tree_map(lambda a, i=i: a[i], found), each) for i in range(lanes.count)]
        axes = lambda a: np.swapaxes(a, 0, 1)[None]
        e = found.evaluation
        stats = {"lp": found.lp, "log_prior": e.log_prior, "log_likelihood": e.log_likelihood}
        values, stats = ({n: axes(v) for n, v in group.items()} for group in (e.values, stats))
        return Outcome(values, stats, together(reports, repr(self), seconds)), reports

    def outcome(self, found: Approximation, seconds: Any) -> Outcome:
        """Read the program's answer."""
        return Outcome(*one_chain(found.evaluation, found.lp), self.report(found, seconds))

    def report(self, found: Approximation, seconds: Seconds) -> Report:
        """What the program's answer is worth."""
        converged, reason, advice = self._judge(found)
        return Report(
            method=repr(self),
            rung="importance" if self.importance else "laplace",
            converged=converged,
            reason=reason,
            advice=advice,
            seconds=seconds,
            log_density=-float(found.mode.value),
            decrement=float(found.mode.decrement),
            steps=int(found.mode.steps),
            starts_agreeing=float(found.agreeing),
            k_hat=float(found.k_hat),
            k_threshold=float(khat_threshold(self.weighed)),
            ess=float(found.ess) if self.importance else float(self.draws),
            mcse={n: np.asarray(v) for n, v in found.mcse.items()},
            worst_mcse=float(found.worst_mcse),
            log_evidence=float(found.log_evidence) if self.importance else None,
        )

    def _judge(self, found: Approximation) -> tuple[bool, str, str]:
        """Accept or not, in words: k-hat, effective draws and Monte Carlo error against their limits."""
        if not found.mode.converged or not found.usable:
            reason, advice = _explain(found.mode, self.max_steps)
            return False, reason, advice or "Use NUTS."
        limit = float(khat_threshold(self.weighed))
        if not self.importance:
            good = float(found.k_hat) <= limit
            return (
                good,
                f"Gaussian at the mode; k-hat {found.k_hat:.2f} (limit {limit:.2f}).",
                "" if good else "Use NUTS.",
            )
        failed = []
        if not found.k_hat <= limit:
            failed.append(f"k-hat {found.k_hat:.2f} above {limit:.2f}")
        if not found.ess >= least_ess(self.draws):
            failed.append(f"{found.ess:.0f} effective draws")
        if not found.worst_mcse <= WORST_MCSE:
            failed.append(f"Monte Carlo error {found.worst_mcse:.2f} sd")
        if failed:
            return False, "The proposal does not cover the posterior: " + ", ".join(failed) + ".", "Use NUTS."
        rounds = f" after {int(found.rounds)} rounds" if found.rounds > 1 else ""
        return True, f"{found.ess:.0f} effective draws of {self.weighed}{rounds}.", ""
