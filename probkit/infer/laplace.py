"""Laplace with importance resampling: mode, curvature, Student-t proposal, Pareto smoothing, in one program."""

import dataclasses
import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.scipy.special import gammaln, logsumexp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from probkit.infer.batches import in_batches
from probkit.infer.method import Method, Outcome, check_whole, nothing_unknown, together
from probkit.infer.point import _explain, find_mode, find_modes
from probkit.infer.target import Evaluation, Lanes, Target
from probkit.math.optimise import Minimum, curvature
from probkit.math.psis import effective_sample_size, khat_threshold, pareto_smooth
from probkit.report import Report, Seconds, timed

#: Degrees of freedom of the proposal: tails heavy enough to cover a skewed posterior, light enough to stay efficient.
DEGREES = 5
#: The largest Monte Carlo error of a mean that is accepted, in posterior sds.
WORST_MCSE = 0.05
#: The fewest draws that are weighed, so that a certificate can be had however few are asked for.
LEAST_POOL = 2000
#: Once a proposal is adapted, this share of its draws is so many times as wide, for tails that its moments miss.
WIDE_SHARE, WIDER = 0.25, 2.5


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


def standard_draws(key: PRNGKeyArray, shape: tuple[int, int], degrees: float, dtype: Any) -> tuple[Array, Array]:
    """Draws of a standard multivariate Student-t (normal for infinite degrees) and their log densities."""
    draws, dim = shape
    normal, chi2 = jax.random.split(key)
    z = jax.random.normal(normal, shape, dtype)
    if math.isinf(degrees):
        return z, -0.5 * jnp.sum(z**2, -1) - 0.5 * dim * math.log(2 * math.pi)
    z = z / jnp.sqrt(_chi_square(chi2, degrees, draws, dtype)[:, None] / degrees)
    return z, _student(z, degrees)


def _student(z: Float[Array, "S D"], degrees: float) -> Float[Array, " S"]:
    """Log density of a standard multivariate Student-t."""
    dim = z.shape[-1]
    constant = gammaln(0.5 * (degrees + dim)) - gammaln(0.5 * degrees) - 0.5 * dim * math.log(degrees * math.pi)
    return constant - 0.5 * (degrees + dim) * jnp.log1p(jnp.sum(z**2, -1) / degrees)


def _widened(z: Float[Array, "S D"], share: Float[Array, ""], degrees: float) -> tuple[Array, Array]:
    """Student-t draws of which a share is made wider, and their log density under the mixture of the two."""
    draws, dim = z.shape
    z = jnp.where(jnp.arange(draws)[:, None] < share * draws, WIDER, 1.0) * z
    wide = _student(z / WIDER, degrees) - dim * math.log(WIDER)
    return z, jnp.logaddexp(jnp.log1p(-share) + _student(z, degrees), jnp.log(share) + wide)


def _chi_square(key: PRNGKeyArray, degrees: float, draws: int, dtype: Any) -> Array:
    """Chi-square of whole degrees: ``-2 log`` of a product of uniforms, and a squared normal where they are odd.

    Four times as fast as the rejection sampler of `jax.random.chisquare` (Devroye 1986, section IX.3).
    """
    pairs, odd = divmod(int(degrees), 2)
    k_uniform, k_normal = jax.random.split(key)
    uniform = jax.random.uniform(k_uniform, (draws, pairs), dtype, jnp.finfo(dtype).tiny)
    return odd * jax.random.normal(k_normal, (draws,), dtype) ** 2 - 2 * jnp.sum(jnp.log(uniform), axis=-1)


def resample(key: PRNGKeyArray, log_weights: Float[Array, " S"], draws: int) -> Array:
    """Indices by systematic resampling: counts are within 1 of ``draws`` times the weight.

    Points are independent and stay in their order, so a point taken twice stands beside itself, and an ESS made from
    autocorrelation sees the repeats.
    """
    cumulative = jnp.cumsum(jnp.exp(log_weights))
    at = (jnp.arange(draws) + jax.random.uniform(key, dtype=log_weights.dtype)) / draws * cumulative[-1]
    return jnp.clip(jnp.searchsorted(cumulative, at), 0, log_weights.size - 1)


def weighted_error(weights: Float[Array, " S"], x: Float[Array, "S k"]) -> tuple[Array, Array]:
    """Monte Carlo error of the weighted mean of each column, and the weighted sd."""
    deviation = x - weights @ x
    return jnp.sqrt(weights**2 @ deviation**2), jnp.sqrt(weights @ deviation**2)


class _Round(NamedTuple):
    """One round of importance sampling: draws, their weights, and how good they are."""

    points: Float[Array, "S D"]
    evaluation: Evaluation
    lp: Float[Array, " S"]
    log_weights: Float[Array, " S"]
    raw: Float[Array, " S"]
    k_hat: Float[Array, ""]
    ess: Float[Array, ""]
    mcse: Float[Array, " k"]
    worst: Float[Array, ""]


class _Proposal(NamedTuple):
    """Where draws come from: ``centre + factor @ z`` with z standard Student-t; ``log_det`` of the factor.

    A share of z, ``wide``, is ``WIDER`` times as wide (Hesterberg 1995, defensive mixtures).
    """

    centre: Float[Array, " D"]
    factor: Float[Array, "D D"]
    log_det: Float[Array, ""]
    wide: Float[Array, ""]


def _sample(target: Target, key: PRNGKeyArray, proposal: _Proposal, options: tuple) -> _Round:
    """Draw from a proposal, evaluate, weigh and judge."""
    draws, pool, _, _, degrees, weigh = options
    z, log_q = standard_draws(key, (pool, proposal.centre.size), degrees, proposal.centre.dtype)
    if not math.isinf(degrees):
        z, log_q = _widened(z, proposal.wide, degrees)
    points = proposal.centre + z @ proposal.factor.T
    evaluation = target.map(target.evaluate, points)
    lp = evaluation.log_prior + evaluation.log_jacobian + evaluation.log_likelihood
    raw = jnp.where(jnp.isfinite(lp), lp, -jnp.inf) - log_q + proposal.log_det
    smoothed, k_hat = pareto_smooth(raw)
    weights = jnp.exp(smoothed) if weigh else jnp.full(pool, 1.0 / pool, lp.dtype)
    table = jnp.concatenate([v.reshape(pool, -1) for v in jax.tree_util.tree_leaves(evaluation.values)], -1)
    error, sd = weighted_error(weights, table)
    # Resampling adds its own noise to the draws returned, but tells nothing of the proposal.
    worst = jnp.max(error / jnp.where(sd > 0, sd, jnp.inf))
    mcse = jnp.sqrt(error**2 + sd**2 / (4 * draws)) if weigh else error
    return _Round(points, evaluation, lp, smoothed, raw, k_hat, effective_sample_size(smoothed), mcse, worst)


def acceptable(k_hat: Any, ess: Any, worst_mcse: Any, draws: int, pool: int) -> Any:
    """The certificate: k-hat under its threshold, enough effective draws, every mean within 0.05 sd."""
    good = k_hat <= khat_threshold(pool)
    return good & (ess >= least_ess(draws)) & (worst_mcse <= WORST_MCSE)


def least_ess(draws: int) -> float:
    """Effective draws wanted of ``draws``: 400, or half where fewer than 800 are made."""
    return min(400.0, 0.5 * draws)


def _adapt(proposal: _Proposal, found: _Round) -> _Proposal:
    """The proposal with the weighted moments of the draws, leaning on the old one while draws are few."""
    weights = jnp.exp(found.log_weights)
    centre = weights @ found.points
    deviation = found.points - centre
    dim = centre.size
    trust = found.ess / (found.ess + 2.0 * dim)
    moment = (weights[:, None] * deviation).T @ deviation
    c = curvature(trust * moment + (1 - trust) * proposal.factor @ proposal.factor.T)
    values = jnp.maximum(c.values, 100 * jnp.finfo(centre.dtype).eps)
    factor = c.scale[:, None] * ((c.vectors * jnp.sqrt(values)) @ c.vectors.T)
    return _Proposal(
        centre, factor, jnp.sum(jnp.log(c.scale)) + 0.5 * jnp.sum(jnp.log(values)), jnp.array(WIDE_SHARE, centre.dtype)
    )


@eqx.filter_jit
def approximate(target: Target, key: PRNGKeyArray, init: dict | None, rounds: Array, options: tuple) -> Approximation:
    """Mode -> Laplace -> importance resampling, as one compiled program."""
    _, _, starts, steps, _, _ = options
    target = target.resolved()
    k_mode, k_draw = jax.random.split(key)
    mode, agreeing = find_mode(target, k_mode, starts, init, steps=steps)
    return _at_mode(target, k_draw, mode, agreeing, rounds, options)


@eqx.filter_jit
def approximate_lanes(lanes: Lanes, keys: Array, init: dict | None, rounds: Array, options: tuple) -> Approximation:
    """The same for every lane, as one compiled program; the axis (lane,) stands in front."""
    _, pool, starts, steps, _, _ = options
    targets = lanes.targets()
    keys = jax.vmap(jax.random.split)(keys)
    modes, agreeing = find_modes(targets, keys[:, 0], starts, init, steps=steps)
    each = (targets, keys[:, 1], modes, agreeing)
    return lanes.each(lambda one: _at_mode(one[0], one[1], one[2], one[3], rounds, options), each, pool)


def _at_mode(
    target: Target, key: PRNGKeyArray, mode: Minimum, agreeing: Array, rounds: Array, options: tuple
) -> Approximation:
    """Draws around a mode.

    Where they fail their certificate the proposal takes their weighted moments and draws again, up to ``rounds``
    times; the best round is kept.
    """
    draws, pool, _, _, _, weigh = options
    k_draw, k_pick = jax.random.split(key)
    c = curvature(mode.hessian)
    eps = 100 * jnp.finfo(mode.x.dtype).eps
    usable = jnp.isfinite(mode.value) & jnp.all(c.values > eps)
    size = jnp.maximum(jnp.abs(c.values), eps)
    # The symmetric root: eigenvectors alone have free signs, and draws would depend on rounding.
    factor = (c.vectors / jnp.sqrt(size)) @ c.vectors.T / c.scale[:, None]
    laplace = _Proposal(
        mode.x, factor, -jnp.sum(jnp.log(c.scale)) - 0.5 * jnp.sum(jnp.log(size)), jnp.zeros((), mode.x.dtype)
    )

    def one_round(carry: tuple) -> tuple:
        i, _, proposal, best = carry
        found = _sample(target, jax.random.fold_in(k_draw, i), proposal, options)
        done = acceptable(found.k_hat, found.ess, found.worst, draws, pool)
        better = (found.ess > best.ess) & jnp.isfinite(found.worst) | (i == 0) | done
        best = jax.tree_util.tree_map(lambda a, b: jnp.where(better, a, b), found, best)
        return i + 1, done, _adapt(proposal, found), best

    shapes = jax.eval_shape(lambda: _sample(target, k_draw, laplace, options))
    nothing = jax.tree_util.tree_map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    carry = (jnp.array(0), jnp.array(False), laplace, nothing)
    used, _, proposal, best = jax.lax.while_loop(lambda c: (c[0] < rounds) & ~c[1], one_round, carry)

    picked = resample(k_pick, best.log_weights, draws) if weigh else jnp.arange(draws)
    evaluation, points, lp = jax.tree_util.tree_map(lambda a: a[picked], (best.evaluation, best.points, best.lp))
    _, unravel = ravel_pytree({n: v[0] for n, v in best.evaluation.values.items()})
    return Approximation(
        mode=mode,
        agreeing=agreeing,
        usable=usable,
        factor=jnp.where(used > 1, proposal.factor, factor),
        centre=jnp.where(used > 1, proposal.centre, mode.x),
        draws=points,
        evaluation=evaluation,
        lp=lp,
        k_hat=best.k_hat,
        ess=best.ess,
        mcse=unravel(best.mcse),
        worst_mcse=best.worst,
        log_evidence=logsumexp(best.raw) - math.log(pool),
        rounds=used,
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
        rounds: how often to draw: where the draws fail their certificate, the proposal takes their weighted moments and
            draws again (adaptive importance sampling, Cappé et al. 2008).
        max_steps: the most evaluations of one start.
        pool: number of draws weighed, from which ``draws`` are resampled; by default ``draws``, and 2,000 at least.
    """

    draws: int = 4000
    starts: int = 8
    importance: bool = True
    rounds: int = 1
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
        options = (self.draws, self.weighed, self.starts, self.max_steps, degrees, self.importance)
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
        stats = {
            "lp": np.asarray(found.lp)[None],
            "log_prior": np.asarray(found.evaluation.log_prior)[None],
            "log_likelihood": np.asarray(found.evaluation.log_likelihood)[None],
        }
        values = {n: np.asarray(v)[None] for n, v in found.evaluation.values.items()}
        return Outcome(values, stats, self.report(found, seconds))

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
