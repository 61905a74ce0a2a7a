"""Minimisation where a Hessian costs many gradients: a Hessian learned from slopes, and looked at once, at the end."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from probkit.math.optimise import Minimum, descend, rounding, tolerance, value_gradient_hessian

#: Halvings that find the length of a step.
HALVINGS = 40
#: The longest step, in the coordinates given.
LONGEST = 4.0


class Descent(NamedTuple):
    """A descent under way: where it is, the slope there, the Hessian as learned so far, and how far it is trusted."""

    x: Float[Array, " D"]
    value: Float[Array, ""]
    gradient: Float[Array, " D"]
    hessian: Float[Array, "D D"]
    radius: Float[Array, ""]
    decrement: Float[Array, ""]
    converged: Bool[Array, ""]
    steps: Int[Array, ""]


def descend_by_slopes(fun: Callable, x0: Float[Array, " D"], max_steps: int = 100) -> Descent:
    """Go downhill by values and gradients alone, one evaluation a step.

    The Hessian is learned by symmetric updates of rank one, which may be indefinite and learn from refused steps too;
    steps stay inside a ball, whose radius follows the ratio of actual to predicted decrease.

    Args:
        fun: a function of a flat vector, shape (D,); may return inf or NaN outside its region.
        x0: the start, in coordinates of about unit scale.
        max_steps: the most evaluations.

    References:
        Byrd, Khalfan and Schnabel (1996), Analysis of a symmetric rank-one trust region method, SIAM J. Optim. 6.
    """
    both, dtype = jax.value_and_grad(fun), x0.dtype

    def advance(at: Descent) -> Descent:
        step, predicted, decrement = _step(at)
        value, gradient = both(at.x + step)
        finite = jnp.isfinite(value) & jnp.all(jnp.isfinite(gradient))
        gain = jnp.where(finite, at.value - value, -jnp.inf)
        better = gain >= -rounding(at.value) / 4
        stuck = gain < rounding(at.value)
        length, ratio = jnp.linalg.norm(step), gain / jnp.maximum(predicted, jnp.finfo(dtype).tiny)
        longer = jnp.where((ratio > 0.7) & (length > 0.9 * at.radius), 2.5 * at.radius, at.radius)
        radius = jnp.where(ratio < 0.1, 0.25 * length, jnp.minimum(longer, LONGEST))
        learned = _rank_one(at.hessian, step, jnp.where(finite, gradient - at.gradient, 0.0), at.steps == 1)
        hessian = jnp.where(finite & jnp.all(jnp.isfinite(learned)), learned, at.hessian)
        converged = (decrement < tolerance(dtype)) | (stuck & (decrement < rounding(at.value)))
        new, old = (at.x + step, value, gradient), (at.x, at.value, at.gradient)
        x, value, gradient = (jnp.where(better, a, b) for a, b in zip(new, old, strict=True))
        return Descent(x, value, gradient, hessian, radius, decrement, converged, at.steps + 1)

    def unfinished(at: Descent) -> Array:
        return ~at.converged & (at.steps < max_steps) & (at.radius > jnp.finfo(dtype).eps) & jnp.isfinite(at.value)

    value, gradient = both(x0)
    sound = jnp.isfinite(value) & jnp.all(jnp.isfinite(gradient))
    value, gradient = jnp.where(sound, value, jnp.inf), jnp.where(sound, gradient, 0.0)
    # Until a difference of slopes is seen, a curvature by which the first step is as long as the radius.
    slope = jnp.maximum(jnp.linalg.norm(gradient), jnp.finfo(dtype).tiny)
    one, not_yet = jnp.ones((), dtype), jnp.array(False)
    first = Descent(x0, value, gradient, slope * jnp.eye(x0.size, dtype=dtype), one, one, not_yet, jnp.array(1))
    return jax.lax.while_loop(unfinished, advance, first)


def _step(at: Descent) -> tuple[Array, Array, Array]:
    """The step inside the ball by the model with the absolute value of the curvature, its decrease, the decrement."""
    values, vectors = jnp.linalg.eigh(at.hessian)
    size = jnp.maximum(jnp.abs(values), jnp.finfo(values.dtype).eps ** 0.5 * jnp.max(jnp.abs(values)))
    slope = vectors.T @ at.gradient

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = 0.5 * (low + high)
        outside = jnp.linalg.norm(slope / (size + middle)) > at.radius
        return jnp.where(outside, middle, low), jnp.where(outside, high, middle)

    # The damping at which the step is as long as the radius; none where it is shorter.
    most = jnp.linalg.norm(slope) / at.radius
    _, damping = jax.lax.fori_loop(0, HALVINGS, halve, (jnp.zeros_like(most), most))
    damping = jnp.where(jnp.linalg.norm(slope / size) > at.radius, damping, 0.0)
    move = -slope / (size + damping)
    return vectors @ move, -(slope @ move + 0.5 * jnp.sum(size * move**2)), 0.5 * jnp.sum(slope**2 / size)


def _rank_one(
    B: Float[Array, "D D"], step: Float[Array, " D"], change: Float[Array, " D"], fresh: Bool[Array, ""]
) -> Float[Array, "D D"]:
    """The symmetric update of rank one after which ``B step = change``; a fresh B takes its size from the change."""
    along = step @ change
    size = change @ change / jnp.where(along > 0, along, 1.0)
    B = jnp.where(fresh & (along > 0), size * jnp.eye(step.size, dtype=step.dtype), B)
    rest = change - B @ step
    weight = step @ rest
    safe = jnp.abs(weight) > 1e-8 * jnp.linalg.norm(step) * jnp.linalg.norm(rest)
    return jnp.where(safe, B + jnp.outer(rest, rest) / jnp.where(safe, weight, 1.0), B)


def minimise_from(
    fun: Callable,
    starts: Float[Array, "start D"],
    unit: Float[Array, " D"],
    each: Callable,
    max_steps: int = 100,
) -> tuple[Minimum, Float[Array, " start"]]:
    """The lowest of the minima from several starts, found by slopes and finished by Newton's method.

    Only the end is judged, by the exact Hessian: a learned one knows nothing of directions in which no start moved.

    Args:
        fun: a function of a flat vector, shape (D,), D from 1 to 64.
        starts: where to begin.
        unit: what one step of each coordinate means, (D,).
        each: maps a function over the starts, ``jax.lax.map`` or ``jax.vmap``.
        max_steps: the most evaluations of each start, and then the most steps of Newton's method.

    Returns:
        The minimum, its ``steps`` those of Newton's method, and the value that each start came to by slopes.
    """
    found = each(lambda x: descend_by_slopes(lambda z: fun(unit * z), x / unit, max_steps), starts)
    value = jnp.where(jnp.isnan(found.value), jnp.inf, found.value)
    lowest = found.x[jnp.argmin(value)] * unit
    return descend(lambda x: value_gradient_hessian(fun, x), lowest, max_steps), value
