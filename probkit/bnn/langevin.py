"""Langevin dynamics with friction: one step of the sampler behind SGHMC, whose limit of full friction is SGLD.

Notation: x position (D,), v velocity (D,), g gradient of minus the log density at x (of all data, or an unbiased guess
of it by a minibatch), s scale of each coordinate (D,), h step size, c share of the velocity kept.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

#: Products with the Hessian by which its rows are judged: norms to a sixth.
PROBES = 20


class Walk(NamedTuple):
    """A walker."""

    x: Float[Array, " D"]
    v: Float[Array, " D"]


def step(
    walk: Walk, g: Float[Array, " D"], s: Float[Array, " D"], h: Float[Array, ""], c: float, noise: Float[Array, " D"]
) -> Walk:
    """Kick, drift by half, friction and noise, drift by half.

    ``v <- v - h s g``, ``x <- x + h s v / 2``, ``v <- c v + sqrt(1 - c²) noise``, ``x <- x + h s v / 2``

    Positions are those of the splitting BAOAB: their law is right to second order in h, and to fourth at c = 0, where
    this is Langevin dynamics without inertia (SGLD). Noise of 0 and c < 1 descend, as SGD with momentum does. The noise
    of minibatches adds ``h² s² Var(g)`` to what v gets in a step: choose h so that it is small beside ``1 - c²``.

    References:
        Leimkuhler and Matthews (2013), Rational construction of stochastic numerical methods for molecular sampling.
        Chen, Fox and Guestrin (2014), Stochastic gradient Hamiltonian Monte Carlo.
    """
    v = walk.v - h * s * g
    x = walk.x + 0.5 * h * s * v
    v = c * v + jnp.sqrt(1 - c**2) * noise
    return Walk(x + 0.5 * h * s * v, v)


def cycle(share: Float[Array, ""], explore: float) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Where a cycle stands: its learning rate, as a share of the largest, and whether it samples.

    The rate falls along half a cosine while the cycle explores, and stays from there on, so that the draws of one cycle
    are those of one chain: in the cycles of Zhang et al. it goes on to fall to nothing.

    Args:
        share: how much of the cycle is done, in [0, 1).
        explore: until where it explores.

    References:
        Zhang, Li, Zhang, Chen and Wilson (2020), Cyclical stochastic gradient MCMC for Bayesian deep learning.
    """
    return 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(share, explore))), share >= explore


def scales(product: Callable[[Array], Array], key: Array, like: Float[Array, " D"]) -> Float[Array, " D"]:
    """Scale of each coordinate from its row of the Hessian, ``(r_i / mean r)^-1/2`` within a factor of 10.

    ``r_i`` is the norm of row i, estimated by products with vectors of random signs: ``E (H v)_i² = r_i²``.

    Args:
        product: v -> H v.
        key: a new-style key.
        like: any point.

    References:
        Dauphin, de Vries and Bengio (2015), Equilibrated adaptive learning rates for non-convex optimization.
    """
    square = lambda k: product(jax.random.rademacher(k, like.shape, like.dtype)) ** 2
    norm = jnp.sqrt(jnp.mean(jax.lax.map(square, jax.random.split(key, PROBES)), axis=0))
    usual = jnp.mean(norm)
    return jnp.clip(jnp.where(usual > 0, norm / jnp.where(usual > 0, usual, 1.0), 1.0), 0.01, 100.0) ** -0.5


def walker(x: Float[Array, " D"]) -> Walk:
    """A walker at rest."""
    return Walk(x, jnp.zeros_like(x))


def chain(
    gradient: Callable[[Array, Array], Array],
    x: Float[Array, " D"],
    key: Array,
    steps: int,
    h: Any,
    c: float,
    thin: int = 1,
    s: Float[Array, " D"] | None = None,
) -> Float[Array, "draw D"]:
    """Positions of a walker at a constant step size, (steps // thin, D).

    Args:
        gradient: ``gradient(x, key)`` of minus the log density, exact or by a minibatch.
        x: where it starts.
        key: a new-style key.
        steps: how many.
        h: step size.
        c: share of the velocity kept; 0 is SGLD.
        thin: steps between two positions kept.
        s: scale of each coordinate; 1 by default.
    """
    scale = jnp.ones_like(x) if s is None else s
    size = jnp.asarray(h, x.dtype)

    def one(walk: Walk, key: Array) -> tuple[Walk, None]:
        k_gradient, k_noise = jax.random.split(key)
        noise = jax.random.normal(k_noise, x.shape, x.dtype)
        return step(walk, gradient(walk.x, k_gradient), scale, size, c, noise), None

    def kept(walk: Walk, key: Array) -> tuple[Walk, Array]:
        walk, _ = jax.lax.scan(one, walk, jax.random.split(key, thin))
        return walk, walk.x

    return jax.lax.scan(kept, walker(x), jax.random.split(key, steps // thin))[1]
