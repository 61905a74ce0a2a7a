"""The program behind VI: mode, guide on fixed draws, linear response, draws, and a check on the answer."""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from probkit.infer.importance import (
    DEGREES,
    LEAST_POOL,
    Drawn,
    Proposal,
    draw,
    drawn,
    evaluated,
    judged,
    moved,
    standard_draws,
)
from probkit.infer.point import find_mode, start_points
from probkit.infer.target import Target
from probkit.math.optimise import Minimum, curvature
from probkit.math.trust_region import minimise_products
from probkit.vi.ascent import fit_guide
from probkit.vi.guides import FullRank, Guide, MeanField, affine, start_guide
from probkit.vi.meanfield import DENSE_MAX_DIM, RESPONSE_MAX_DIM, GuideFit, fit_meanfield


class Variational(NamedTuple):
    """Everything the program finds: the guide's fit, and draws of the guide, or of the posterior through it.

    ``spread`` is the largest ratio of a posterior sd to that of a mean-field guide. ``elbo`` is that of the
    distribution the draws came from, on fresh draws. ``shift`` and ``ratio`` are the errors of the guide's means, in
    sds, and its sds, by weighted draws whose k-hat is ``k_check``. ``gap`` is by how much the highest density seen on
    the way exceeds that of any draw, in nats.
    """

    fit: GuideFit
    found: Drawn
    elbo: Float[Array, ""]
    elbo_error: Float[Array, ""]
    spread: Float[Array, ""]
    gap: Float[Array, ""]
    k_check: Float[Array, ""]
    shift: Float[Array, " k"]
    ratio: Float[Array, " k"]
    usable: Bool[Array, ""]


@eqx.filter_jit
def approximate(
    target: Target, key: PRNGKeyArray, init: dict | None, mode: Minimum | None, limits: tuple, options: tuple
) -> Variational:
    """Mode (where none is given) -> guide on fixed draws -> linear response -> draws, as one compiled program."""
    kind, rank, draws, pool, starts, max_draws, response, weigh = options
    tolerance, rounds, steps = limits
    target = target.resolved()
    k_mode, k_noise, k_guide, k_draw = jax.random.split(key, 4)
    centre, scale, peak = _start(target, k_mode, starts, init, mode, steps)
    same = {"tolerance": tolerance, "max_draws": max_draws, "each": target.each}
    wanted = response or kind == "full-rank"
    first = fit_meanfield(target.log_density, k_noise, centre, scale, max_steps=steps, response=wanted, **same)
    own = first.guide.scale()
    if kind == "mean-field":
        last, law = first, _spread_by(first)
    else:
        factor = own
        if kind == "full-rank" and first.response is not None:
            factor = jnp.linalg.cholesky(first.response)
            factor = jnp.where(jnp.all(jnp.isfinite(factor)), factor, jnp.diag(own))
        guide = start_guide(kind, centre.size, rank, k_guide, centre.dtype)
        last = fit_guide(target.log_density, k_noise, guide, first.guide.loc, factor, max_steps=5 * steps, **same)
        law = last.guide
    usable = first.definite & last.converged
    options = (draws, pool, DEGREES, weigh)
    if weigh:
        _, found = draw(target, k_draw, _proposal(law), rounds, options)
        k_check, shift, ratio = found.k_hat, *moved(found.moments, found.moments)
    else:
        found, k_check, shift, ratio = _plain(target, k_draw, law, options)
    elbo = jnp.where(jnp.all(jnp.isfinite(found.raw)), jnp.mean(found.raw), -jnp.inf)
    error = jnp.std(found.raw) / jnp.sqrt(1.0 * found.raw.size)
    gap = peak - jnp.max(jnp.where(jnp.isnan(found.lp), -jnp.inf, found.lp))
    return Variational(last, found, elbo, error, jnp.max(law.scale() / own), gap, k_check, shift, ratio, usable)


def _plain(target: Target, key: PRNGKeyArray, law: Guide, options: tuple) -> tuple[Drawn, Array, Array, Array]:
    """Draws of the guide itself, and a check on its moments: k-hat of the check, how far means and sds are off.

    A normal guide of the right moments may have tails too light to be weighed, so draws of a Student-t around it are
    weighed as well, and the sounder of the two tells the posterior's moments.
    """
    draws, _, degrees, _ = options
    k_guide, k_check = jax.random.split(key)
    z, _ = standard_draws(k_guide, (-(-draws // 2), law.noise_dim), math.inf, law.loc.dtype)
    # Pairs z, -z beside each other: the guide's means without noise.
    z = jnp.stack([z, -z], axis=1).reshape(-1, law.noise_dim)[:draws]
    points = jax.vmap(law.transform)(z)
    log_q = law.distribution().log_prob(points)
    every = jnp.arange(draws)
    if law.loc.size > RESPONSE_MAX_DIM:
        own = judged(points, *evaluated(target, points), log_q, draws, False)
        return drawn(own, every, 1), own.k_hat, *moved(own.moments, own.moments)
    proposal = _proposal(law)
    pool = LEAST_POOL
    z, log_t = standard_draws(k_check, (pool, law.loc.size), degrees, law.loc.dtype)
    # Evaluated together: one loop to compile.
    points = jnp.concatenate([points, proposal.centre + z @ proposal.factor.T])
    evaluation, lp = evaluated(target, points)
    first = jax.tree_util.tree_map(lambda a: a[:draws], evaluation)
    second = jax.tree_util.tree_map(lambda a: a[draws:], evaluation)
    own = judged(points[:draws], first, lp[:draws], log_q, draws, False)
    check = judged(points[draws:], second, lp[draws:], log_t - proposal.log_det, pool, True)
    sounder = jax.tree_util.tree_map(lambda a, b: jnp.where(check.k_hat < own.k_hat, a, b), check.moments, own.moments)
    return drawn(own, every, 1), jnp.minimum(check.k_hat, own.k_hat), *moved(own.moments, sounder)


def _start(
    target: Target, key: PRNGKeyArray, starts: int, init: dict | None, mode: Minimum | None, steps: Any
) -> tuple[Float[Array, " D"], Float[Array, " D"], Float[Array, ""]]:
    """Centre and scales to start from, the mode and its curvature; and the highest log density found.

    A density without a mode, as a centred hierarchy has, may have a guide all the same: it starts among prior draws.
    """
    first = start_points(target, key, 1, init)[0]
    if mode is not None or first.size <= DENSE_MAX_DIM:
        mode = find_mode(target, key, starts, init, steps=steps)[0] if mode is None else mode
        good, peak = mode.converged & jnp.isfinite(mode.value), -mode.value
        centre, diagonal = mode.x, curvature(mode.hessian).scale ** 2
    else:
        both = jax.value_and_grad(lambda u: -target.log_density(u))
        product = lambda u, v: jax.jvp(lambda u: both(u)[1], (u,), (v,))[1]
        found = minimise_products(both, product, first, steps)
        signs = jax.random.rademacher(key, (32, first.size), first.dtype)
        diagonal = jnp.mean(signs * jax.lax.map(lambda v: product(found.x, v), signs), axis=0)
        diagonal = jnp.maximum(jnp.abs(diagonal), 1e-6 * jnp.max(jnp.abs(diagonal)))
        good, centre, peak = found.converged & jnp.all(diagonal > 0), found.x, -found.value
    return jnp.where(good, centre, first), jnp.where(good, 1.0 / jnp.sqrt(diagonal), 1.0), peak


def _spread_by(fit: GuideFit) -> Guide:
    """The mean-field guide's means with the linear-response covariance, where there is one."""
    if fit.response is None:
        return fit.guide
    zero = jnp.zeros_like(fit.guide.loc)
    standard = FullRank(zero, zero, jnp.zeros_like(fit.response))
    return affine(standard, fit.guide.loc, jnp.linalg.cholesky(fit.response))


def _proposal(law: Guide) -> Proposal:
    """A guide's moments as a proposal."""
    if isinstance(law, FullRank):
        factor = law.factor()
    elif isinstance(law, MeanField):
        factor = jnp.diag(law.scale())
    else:
        factor = jnp.linalg.cholesky(law.distribution().covariance_matrix)
    return Proposal(law.loc, factor, jnp.sum(jnp.log(jnp.diagonal(factor))), jnp.array(False))
