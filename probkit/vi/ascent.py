"""Guides beyond mean-field on fixed draws: the ELBO maximised by a quasi-Newton method."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray

from probkit.math.optimise import tolerance as least_decrease
from probkit.math.quasi_newton import lbfgs, with_gradient
from probkit.vi.guides import Guide, affine
from probkit.vi.meanfield import GuideFit
from probkit.vi.noise import fixed_noise, over_blocks, pairs_in_block


def fit_guide(
    log_density: Callable,
    key: PRNGKeyArray,
    guide: Guide,
    centre: Float[Array, " D"],
    factor: Float[Array, "..."],
    *,
    tolerance: float = 0.05,
    max_draws: int = 2048,
    max_steps: int = 500,
    each: Callable | None = None,
) -> GuideFit:
    """Maximise the ELBO of any guide on fixed draws by L-BFGS; double the draws until the means stand still.

    The error of a mean is how far it moved at the last doubling, in the guide's sds.

    Args:
        log_density: u -> log p(u), up to a constant.
        key: fixes the draws.
        guide: the start, over w with ``u = centre + factor w``.
        centre: origin of the coordinates.
        factor: units of the coordinates, (D,), or a lower triangular matrix that whitens them, (D, D).
        tolerance: the largest move of a mean accepted at a doubling.
        max_draws: the most fixed draws.
        max_steps: the most quasi-Newton steps at one number of draws.
        each: runs a function over a leading axis; `jax.vmap` by default.
    """
    dtype = centre.dtype
    run = each or (lambda fn, z: jax.vmap(fn)(z))
    pairs = pairs_in_block(guide.noise_dim)
    most = max(2, max_draws // (2 * pairs))
    noise = fixed_noise(key, most, guide.noise_dim, dtype)
    place = (lambda w: centre + factor * w) if factor.ndim == 1 else (lambda w: centre + factor @ w)
    phi, unravel = ravel_pytree(guide)

    def of_draw(phi: Array, z: Array) -> Array:
        return -log_density(place(unravel(phi).transform(z)))

    def both(phi: Array, blocks: Any) -> tuple[Array, Array]:
        value, gradient = over_blocks(lambda z: jax.value_and_grad(of_draw)(phi, z), noise, blocks, run)
        entropy, slope = jax.value_and_grad(lambda p: unravel(p).entropy())(phi)
        return value - entropy, gradient - slope

    def level(carry: tuple) -> tuple:
        blocks, phi, *_ = carry
        objective = with_gradient(lambda p: both(p, blocks))
        new, steps, done = lbfgs(objective, phi, max_steps, math.sqrt(least_decrease(dtype)) * 1e-2)
        moved = jnp.abs(unravel(new).loc - unravel(phi).loc) / unravel(new).scale()
        return blocks * 2, new, steps, done, jnp.where(blocks == 1, jnp.inf, moved)

    def unfinished(carry: tuple) -> Array:
        blocks, phi, _, _, moved = carry
        return (blocks <= most) & jnp.all(jnp.isfinite(phi)) & ~(jnp.max(moved) <= tolerance)

    start = (jnp.array(1), phi, jnp.array(0), jnp.array(False), jnp.full(guide.loc.size, jnp.inf, dtype))
    blocks, phi, steps, done, moved = jax.lax.while_loop(unfinished, level, start)
    value, gradient = both(phi, blocks // 2)
    fitted = affine(unravel(phi), centre, factor)
    return GuideFit(
        guide=fitted,
        response=None,
        elbo=-value + _log_det(factor),
        gradient_norm=jnp.max(jnp.abs(gradient)),
        decrement=jnp.zeros((), dtype),
        steps=steps,
        error=moved,
        draws=blocks * pairs,
        converged=done & jnp.isfinite(value),
        definite=jnp.array(True),
    )


def _log_det(factor: Array) -> Array:
    return jnp.sum(jnp.log(jnp.abs(factor if factor.ndim == 1 else jnp.diagonal(factor))))
