"""Trust-region Newton by conjugate gradients: minimisation by Hessian-vector products, never a Hessian."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from probkit.math.optimise import rounding, tolerance


class Found(NamedTuple):
    """The outcome of a minimisation in many dimensions, as data.

    Attributes:
        x: the best point.
        value: the function there.
        gradient: the gradient there.
        decrement: the decrease that the last Newton model still promised.
        converged: that promise is below the tolerance, or below what rounding of the function lets show.
        steps: evaluations used.
    """

    x: Float[Array, " D"]
    value: Float[Array, ""]
    gradient: Float[Array, " D"]
    decrement: Float[Array, ""]
    converged: Bool[Array, ""]
    steps: Int[Array, ""]


def conjugate_gradients(
    product: Callable,
    b: Float[Array, " D"],
    radius: Float[Array, ""],
    relative: Float[Array, ""] | float,
    max_products: int,
) -> tuple[Float[Array, " D"], Float[Array, ""]]:
    """Solve ``H x = b`` inside the ball of a radius (Steihaug 1983).

    Stops where the residual is below ``relative`` times b, at the edge of the ball, or along a direction of negative
    curvature, which is followed to the edge.

    Args:
        product: v -> H v.
        b: right-hand side.
        radius: radius of the ball; inf for none.
        relative: relative residual wanted.
        max_products: the most products with H.

    Returns:
        x, and the decrease ``b'x - x'Hx/2`` of the quadratic model.
    """

    def to_edge(x: Array, p: Array) -> Array:
        pp, xp, xx = p @ p, x @ p, x @ x
        step = (-xp + jnp.sqrt(jnp.maximum(xp**2 + pp * (radius**2 - xx), 0.0))) / jnp.where(pp > 0, pp, 1.0)
        return x + jnp.where(jnp.isfinite(step), step, 0.0) * p

    def advance(carry: tuple) -> tuple:
        x, r, p, rr, i, _ = carry
        hp = product(p)
        php = p @ hp
        down = php > 0
        step = rr / jnp.where(down, php, 1.0)
        new = x + step * p
        outside = ~down | (new @ new >= radius**2)
        edge = jnp.where(jnp.isfinite(radius), to_edge(x, p), x)
        r_new = r - step * hp
        rr_new = r_new @ r_new
        done = outside | (jnp.sqrt(rr_new) <= relative * jnp.linalg.norm(b))
        return jnp.where(outside, edge, new), r_new, r_new + rr_new / rr * p, rr_new, i + 1, done

    zero = jnp.zeros_like(b)
    start = (zero, b, b, b @ b, jnp.array(0), b @ b <= 0)
    x, *_ = jax.lax.while_loop(lambda c: ~c[5] & (c[4] < max_products), advance, start)
    return x, b @ x - 0.5 * x @ product(x)


def minimise_products(
    evaluate: Callable, product: Callable, x0: Float[Array, " D"], max_steps: int = 100, max_products: int = 200
) -> Found:
    """Minimise a smooth function by Newton's method in a trust region, steps by conjugate gradients.

    Args:
        evaluate: x -> (value, gradient).
        product: (x, v) -> Hessian at x times v.
        x0: the start, in coordinates of about unit scale; the first radius is the root of the dimension.
        max_steps: the most evaluations.
        max_products: the most Hessian-vector products in one step.

    References:
        Steihaug (1983), SIAM J. Numer. Anal. 20. Nocedal and Wright (2006), chapters 4 and 7.
    """
    dtype = x0.dtype

    def advance(carry: tuple) -> tuple:
        best, radius = carry
        size = jnp.linalg.norm(best.gradient)
        # Looser far out, tighter near the end: convergence stays faster than linear.
        relative = jnp.minimum(0.3, jnp.sqrt(size / jnp.sqrt(1.0 * x0.size)))
        step, predicted = conjugate_gradients(
            lambda v: product(best.x, v), -best.gradient, radius, relative, max_products
        )
        value, gradient = evaluate(best.x + step)
        finite = jnp.isfinite(value) & jnp.all(jnp.isfinite(gradient))
        gain = jnp.where(finite, best.value - value, -jnp.inf)
        ratio = gain / jnp.maximum(predicted, jnp.finfo(dtype).tiny)
        stuck = gain < rounding(best.value)
        better = finite & (gain >= -rounding(best.value) / 2)
        far = jnp.linalg.norm(step) > 0.9 * radius
        shorter, longer = 0.25 * jnp.linalg.norm(step), 2.5 * radius
        radius = jnp.where(~better | (ratio < 0.1), shorter, jnp.where(far & (ratio > 0.5), longer, radius))
        reached = ~far & ((predicted < tolerance(dtype)) | (stuck & (predicted < rounding(best.value))))
        x, value, gradient = (
            jnp.where(better, a, b)
            for a, b in ((best.x + step, best.x), (value, best.value), (gradient, best.gradient))
        )
        return Found(x, value, gradient, predicted, reached & jnp.isfinite(value), best.steps + 1), radius

    def unfinished(carry: tuple) -> Array:
        best, radius = carry
        return ~best.converged & (best.steps < max_steps) & (radius > jnp.finfo(dtype).eps)

    value, gradient = evaluate(x0)
    value = jnp.where(jnp.isnan(value), jnp.inf, value)  # anything finite is better, and nothing is better than NaN
    start = Found(x0, value, gradient, jnp.array(jnp.inf, dtype), jnp.array(False), jnp.array(1))
    return jax.lax.while_loop(unfinished, advance, (start, jnp.sqrt(jnp.array(x0.size, dtype))))[0]
