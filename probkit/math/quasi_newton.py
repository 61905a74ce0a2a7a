"""L-BFGS by optax, run to a stop, on a function that brings its own gradient."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int


def with_gradient(both: Callable) -> Callable:
    """A scalar function from ``x -> (value, gradient)``, whose reverse derivative is that gradient."""

    @jax.custom_vjp
    def fun(x: Array) -> Array:
        return both(x)[0]

    fun.defvjp(both, lambda gradient, weight: (weight * gradient,))
    return fun


def lbfgs(
    fun: Callable, x0: Float[Array, " D"], max_steps: int, gain: float, memory: int = 20
) -> tuple[Float[Array, " D"], Int[Array, ""], Bool[Array, ""]]:
    """Minimise by L-BFGS until the next step promises a decrease below ``gain``.

    Args:
        fun: a scalar function.
        x0: the start.
        max_steps: the most steps (each a few evaluations of a line search).
        gain: where half of gradient times step falls below this, it stops.
        memory: steps remembered.

    Returns:
        The last point, the steps used, and whether it stopped by itself.
    """
    solver = optax.lbfgs(memory_size=memory)
    both = optax.value_and_grad_from_state(fun)

    def advance(carry: tuple) -> tuple:
        x, state, steps, _ = carry
        value, gradient = both(x, state=state)
        updates, state = solver.update(gradient, state, x, value=value, grad=gradient, value_fn=fun)
        return optax.apply_updates(x, updates), state, steps + 1, jnp.abs(0.5 * (gradient @ updates))

    def unfinished(carry: tuple) -> Array:
        return (carry[2] < max_steps) & (carry[3] > gain)

    start = (x0, solver.init(x0), jnp.array(0), jnp.array(jnp.inf, x0.dtype))
    x, _, steps, last = jax.lax.while_loop(unfinished, advance, start)
    return x, steps, last <= gain
