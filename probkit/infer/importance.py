"""Adaptive importance sampling in unconstrained space: proposals, their draws, weights, and the certificate."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.scipy.special import gammaln, logsumexp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from probkit.infer.target import Evaluation, Target
from probkit.math.optimise import curvature
from probkit.math.psis import effective_sample_size, khat_threshold, pareto_smooth

#: Degrees of freedom of the proposal: tails heavy enough to cover a skewed posterior, light enough to stay efficient.
DEGREES = 5
#: The largest Monte Carlo error of a mean that is accepted, in posterior sds.
WORST_MCSE = 0.05
#: The fewest draws that are weighed, so that a certificate can be had however few are asked for.
LEAST_POOL = 2000
#: Once a proposal is adapted, every so-many-th draw is so many times as wide, for tails that its moments miss.
WIDE_EVERY, WIDER = 4, 2.5


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


def _widened(z: Float[Array, "S D"], widen: Bool[Array, ""], degrees: float) -> tuple[Array, Array]:
    """Student-t draws, every ``WIDE_EVERY``-th wider on request, and their log density under the mixture of both."""
    draws, dim = z.shape
    chosen = jnp.arange(draws) % WIDE_EVERY == 0
    z = jnp.where(widen & chosen[:, None], WIDER, 1.0) * z
    share = jnp.where(widen, jnp.mean(chosen, dtype=z.dtype), 0.0)
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


class Moments(NamedTuple):
    """Mean and sd of every component in constrained space: of draws as they are, and weighted."""

    mean: Float[Array, " k"]
    sd: Float[Array, " k"]
    weighted_mean: Float[Array, " k"]
    weighted_sd: Float[Array, " k"]


class Round(NamedTuple):
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
    moments: Moments


class Proposal(NamedTuple):
    """Where draws come from: ``centre + factor @ z`` with z standard Student-t; ``log_det`` of the factor.

    Where ``widen``, some of z is ``WIDER`` times as wide (Hesterberg 1995, defensive mixtures).
    """

    centre: Float[Array, " D"]
    factor: Float[Array, "D D"]
    log_det: Float[Array, ""]
    widen: Bool[Array, ""]


def sample(target: Target, key: PRNGKeyArray, proposal: Proposal, options: tuple) -> Round:
    """Draw from a proposal, evaluate, weigh and judge."""
    draws, pool, degrees, weigh = options
    z, log_q = standard_draws(key, (pool, proposal.centre.size), degrees, proposal.centre.dtype)
    if not math.isinf(degrees):
        z, log_q = _widened(z, proposal.widen, degrees)
    points = proposal.centre + z @ proposal.factor.T
    return judged(points, *evaluated(target, points), log_q - proposal.log_det, draws, weigh)


def evaluated(target: Target, points: Float[Array, "S D"]) -> tuple[Evaluation, Float[Array, " S"]]:
    """A target at many points, and the log density there."""
    e = target.map(target.evaluate, points)
    return e, e.log_prior + e.log_jacobian + e.log_likelihood


def judged(
    points: Float[Array, "S D"],
    evaluation: Evaluation,
    lp: Float[Array, " S"],
    log_q: Float[Array, " S"],
    draws: int,
    weigh: bool,
) -> Round:
    """Judge draws of a known density ``log_q`` by their weights; ``weigh`` if ``draws`` are to be resampled by them."""
    pool = points.shape[0]
    raw = jnp.where(jnp.isfinite(lp), lp, -jnp.inf) - log_q
    smoothed, k_hat = pareto_smooth(raw)
    weights, even = jnp.exp(smoothed), jnp.full(pool, 1.0 / pool, lp.dtype)
    table = jnp.concatenate([v.reshape(pool, -1) for v in jax.tree_util.tree_leaves(evaluation.values)], -1)
    error, sd = weighted_error(weights if weigh else even, table)
    # Resampling adds its own noise to the draws returned, but tells nothing of the proposal.
    worst = jnp.max(error / jnp.where(sd > 0, sd, jnp.inf))
    mcse = jnp.sqrt(error**2 + sd**2 / (4 * draws)) if weigh else error
    moments = Moments(*_moments(even, table), *_moments(weights, table))
    return Round(points, evaluation, lp, smoothed, raw, k_hat, effective_sample_size(smoothed), mcse, worst, moments)


def _moments(weights: Float[Array, " S"], x: Float[Array, "S k"]) -> tuple[Array, Array]:
    mean = weights @ x
    return mean, jnp.sqrt(weights @ (x - mean) ** 2)


def moved(plain: Moments, weighted: Moments) -> tuple[Array, Array]:
    """How far draws are off: their means from weighted ones, in weighted sds, and the ratio of the sds."""
    mean, sd = weighted.weighted_mean, weighted.weighted_sd
    safe = jnp.where(sd > 0, sd, 1.0)
    return jnp.where(sd > 0, (plain.mean - mean) / safe, 0.0), jnp.where(sd > 0, plain.sd / safe, 1.0)


class Drawn(NamedTuple):
    """Draws of the posterior by importance resampling, and the certificate of the round that gave them.

    ``points``, ``evaluation`` and ``lp`` have the axis (draw,) in front.
    """

    points: Float[Array, "draw D"]
    evaluation: Evaluation
    lp: Float[Array, " draw"]
    k_hat: Float[Array, ""]
    ess: Float[Array, ""]
    mcse: dict[str, Array]
    worst_mcse: Float[Array, ""]
    log_evidence: Float[Array, ""]
    rounds: Int[Array, ""]
    raw: Float[Array, " pool"]
    moments: Moments


def draw(
    target: Target, key: PRNGKeyArray, proposal: Proposal, rounds: Array, options: tuple
) -> tuple[Proposal, Drawn]:
    """Draw from a proposal, weigh and resample; and the proposal adapted last.

    Where the draws fail their certificate the proposal takes their weighted moments and draws again, up to ``rounds``
    times; the first round that passes is kept, or else the one with the most effective draws.
    """
    draws, pool, _, weigh = options
    k_draw, k_pick = jax.random.split(key)

    def one_round(carry: tuple) -> tuple:
        i, _, proposal, best = carry
        found = sample(target, jax.random.fold_in(k_draw, i), proposal, options)
        done = acceptable(found.k_hat, found.ess, found.worst, draws, pool)
        better = (found.ess > best.ess) & jnp.isfinite(found.worst) | (i == 0) | done
        best = jax.tree_util.tree_map(lambda a, b: jnp.where(better, a, b), found, best)
        return i + 1, done, adapt(proposal, found), best

    shapes = jax.eval_shape(lambda: sample(target, k_draw, proposal, options))
    nothing = jax.tree_util.tree_map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    carry = (jnp.array(0), jnp.array(False), proposal, nothing)
    used, _, adapted, best = jax.lax.while_loop(lambda c: (c[0] < rounds) & ~c[1], one_round, carry)

    picked = resample(k_pick, best.log_weights, draws) if weigh else jnp.arange(draws)
    last = jax.tree_util.tree_map(lambda a, b: jnp.where(used > 1, a, b), adapted, proposal)
    return last, drawn(best, picked, used)


def drawn(found: Round, picked: Int[Array, " draw"], rounds: Any) -> Drawn:
    """The answer of a round: the draws picked, and its figures."""
    evaluation, points, lp = jax.tree_util.tree_map(lambda a: a[picked], (found.evaluation, found.points, found.lp))
    _, unravel = ravel_pytree({n: v[0] for n, v in found.evaluation.values.items()})
    return Drawn(
        points=points,
        evaluation=evaluation,
        lp=lp,
        k_hat=found.k_hat,
        ess=found.ess,
        mcse=unravel(found.mcse),
        worst_mcse=found.worst,
        log_evidence=logsumexp(found.raw) - math.log(found.raw.size),
        rounds=jnp.asarray(rounds),
        raw=found.raw,
        moments=found.moments,
    )


def acceptable(k_hat: Any, ess: Any, worst_mcse: Any, draws: int, pool: int) -> Any:
    """The certificate: k-hat under its threshold, enough effective draws, every mean within 0.05 sd."""
    good = k_hat <= khat_threshold(pool)
    return good & (ess >= least_ess(draws)) & (worst_mcse <= WORST_MCSE)


def least_ess(draws: int) -> float:
    """Effective draws wanted of ``draws``: 400, or half where fewer than 800 are made."""
    return min(400.0, 0.5 * draws)


def adapt(proposal: Proposal, found: Round) -> Proposal:
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
    log_det = jnp.sum(jnp.log(c.scale)) + 0.5 * jnp.sum(jnp.log(values))
    return Proposal(centre, factor, log_det, jnp.array(True))
