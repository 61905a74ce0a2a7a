"""Minimisation of one smooth function, written for one start and batched by ``vmap``: no line search to wait for."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

#: Below this dimension every step takes the exact Hessian; above it, optax's L-BFGS.
NEWTON_MAX_DIM = 64
#: The smallest batch that unfinished lanes are gathered into.
LEAST_LANES = 64


class Minimum(NamedTuple):
    """The outcome of a minimisation, as data.

    Attributes:
        x: the best point.
        value: the function there.
        gradient: the gradient there.
        hessian: the Hessian there.
        decrement: half the squared Newton decrement, ``g' |H|^-1 g / 2``: the decrease still to be had, in the
            function's own units, whatever the scale of x.
        converged: the Hessian is positive definite, and the decrement is below the tolerance, or below the rounding
            error of the function where no step lowers it further.
        steps: evaluations used.
    """

    x: Float[Array, " D"]
    value: Float[Array, ""]
    gradient: Float[Array, " D"]
    hessian: Float[Array, "D D"]
    decrement: Float[Array, ""]
    converged: Bool[Array, ""]
    steps: Int[Array, ""]


class Curvature(NamedTuple):
    """Eigendecomposition of a Hessian scaled to unit diagonal: ``H = S V diag(e) V' S`` with ``S = diag(scale)``."""

    scale: Float[Array, " D"]
    values: Float[Array, " D"]
    vectors: Float[Array, "D D"]


def curvature(H: Float[Array, "D D"], least: Float[Array, " D"] | float = 0.0) -> Curvature:
    """Decompose a symmetric matrix after scaling each axis by the root of its diagonal (safe for zero rows).

    Args:
        H: the matrix.
        least: the least diagonal to scale by.
    """
    diagonal = jnp.maximum(jnp.abs(jnp.diagonal(H)), least)
    tiny = jnp.finfo(H.dtype).tiny
    scale = jnp.sqrt(jnp.where(diagonal > tiny, diagonal, 1.0))
    values, vectors = jnp.linalg.eigh(H / scale[:, None] / scale[None, :], symmetrize_input=True)
    return Curvature(scale, values, vectors)


def tolerance(dtype: Any) -> float:
    """The Newton decrement at which a minimum counts as reached: 1e-12 in float64, 1e-5 in float32."""
    return 1e-12 if jnp.finfo(dtype).eps < 1e-12 else 1e-5


def rounding(value: Float[Array, ""]) -> Float[Array, ""]:
    """The decrease that a function of this value cannot show: 16 roundings of it."""
    return 16 * jnp.finfo(value.dtype).eps * (1 + jnp.abs(value))


def value_gradient_hessian(fun: Callable, x: Float[Array, " D"]) -> tuple[Array, Array, Array]:
    """Value, gradient and Hessian: the gradient made linear once, then a product for every direction."""
    # Pushing directions through the gradient itself drags them through its nonlinear part, and XLA:CPU no longer makes
    # a native loop of a scan: 15 times as long for a GARCH of 200 steps.
    (value, gradient), along = jax.linearize(jax.value_and_grad(fun), x)
    hessian = jax.vmap(lambda direction: along(direction)[1])(jnp.eye(x.size, dtype=x.dtype))
    return value, gradient, 0.5 * (hessian + hessian.T)


def minimise(fun: Callable, x0: Float[Array, " D"], max_steps: int = 100) -> Minimum:
    """Minimise a smooth function: damped Newton with the absolute value of the curvature.

    One loop body evaluates a trial point, keeps it if the function fell, and makes the next trial; the damping is
    raised or lowered by the ratio of actual to predicted decrease (Levenberg 1944, Marquardt 1963). Negative curvature
    is reflected (Dauphin et al. 2014). No line search, so under ``vmap`` no lane waits inside a step.

    Args:
        fun: a function of a flat vector, shape (D,); may return inf or NaN outside its region.
        x0: the start.
        max_steps: the most evaluations.

    Returns:
        A :class:`Minimum`; ``value`` is inf where no finite value was found.
    """
    dtype, dim = x0.dtype, x0.size
    if dim == 0:
        zero = jnp.zeros((), dtype)
        return Minimum(x0, fun(x0), x0, jnp.zeros((0, 0), dtype), zero, jnp.array(True), jnp.array(0))
    if dim > NEWTON_MAX_DIM:
        return _minimise_lbfgs(fun, x0, max_steps)
    return descend(lambda x: value_gradient_hessian(fun, x), x0, max_steps)


def descend(derivatives: Callable, x0: Float[Array, " D"], max_steps: int = 100) -> Minimum:
    """As :func:`minimise`, for a function that brings its own derivatives.

    Args:
        derivatives: x -> (value, gradient, Hessian).
        x0: the start.
        max_steps: the most evaluations.
    """
    return jax.lax.while_loop(lambda c: _unfinished(c, max_steps), lambda c: _step(derivatives, c), _begin(x0)).best


def minimise_lanes(fun: Callable, lanes: Any, x0: Float[Array, "lane D"], max_steps: int = 100) -> Minimum:
    """Minimise one function a lane, all lanes at once; lanes that are done leave the batch.

    Every lane has its own damping and its own stop. Whenever no more than an eighth of a batch is unfinished, those
    lanes go on in a batch of an eighth of the size, so a few slow lanes do not cost what all of them would.

    Args:
        fun: ``fun(lane, x)``, with x of shape (D,).
        lanes: a pytree whose arrays have an axis (lane,) in front; one slice of it is ``lane``.
        x0: the starts.
        max_steps: the most evaluations of a lane.

    Returns:
        A :class:`Minimum` with the axis (lane,) in front of every entry.
    """
    count, dim = x0.shape
    if dim == 0 or dim > NEWTON_MAX_DIM:
        return jax.vmap(lambda lane, x: minimise(lambda x: fun(lane, x), x, max_steps))(lanes, x0)

    def take(tree: Any, index: Array) -> Any:
        return jax.tree_util.tree_map(lambda a: a[index], tree)

    def descend(lanes: Any, state: _Descent, leave: int) -> _Descent:
        """Steps of all lanes until no more than ``leave`` are unfinished; one that is done stays as it is."""

        def advance(state: _Descent) -> _Descent:
            new = jax.vmap(lambda lane, one: _step(lambda x: value_gradient_hessian(lambda x: fun(lane, x), x), one))(
                lanes, state
            )
            going = _unfinished(state, max_steps)
            pick = lambda a, b: jnp.where(going.reshape(-1, *[1] * (a.ndim - 1)), a, b)
            return jax.tree_util.tree_map(pick, new, state)

        return jax.lax.while_loop(lambda s: jnp.sum(_unfinished(s, max_steps)) > leave, advance, state)

    state, size = jax.vmap(_begin)(x0), count
    while size:
        smaller = size // 8 if size >= 8 * LEAST_LANES else 0
        first = jnp.argsort(~_unfinished(state, max_steps), stable=True)[:size]
        done = descend(take(lanes, first), take(state, first), smaller)
        state = jax.tree_util.tree_map(lambda all_, some, at=first: all_.at[at].set(some), state, done)
        size = smaller
    return state.best


class _Descent(NamedTuple):
    """A descent under way: the best point, the next trial, the decrease expected of it and the damping."""

    best: Minimum
    trial: Float[Array, " D"]
    predicted: Float[Array, ""]
    damping: Float[Array, ""]


def _begin(x0: Float[Array, " D"]) -> _Descent:
    dtype, dim = x0.dtype, x0.size
    far = jnp.array(jnp.inf, dtype)
    best = Minimum(x0, far, jnp.zeros(dim, dtype), jnp.eye(dim, dtype=dtype), far, jnp.array(False), jnp.array(0))
    return _Descent(best, x0, jnp.ones((), dtype), jnp.array(1e-2, dtype))


def _unfinished(state: _Descent, max_steps: int) -> Bool[Array, "..."]:
    return ~state.best.converged & (state.best.steps < max_steps) & (state.damping < 1e12)


def _step(derivatives: Callable, state: _Descent) -> _Descent:
    """Evaluate the trial point, keep it if the function fell, make the next trial."""
    best, trial, predicted, damping = state
    eps = float(jnp.finfo(trial.dtype).eps)
    value, gradient, hessian = derivatives(trial)
    finite = jnp.isfinite(value) & jnp.all(jnp.isfinite(gradient)) & jnp.all(jnp.isfinite(hessian))
    stuck = ~finite | (best.value - value < rounding(value))
    better = finite & (value <= best.value + 8 * eps * jnp.abs(best.value))
    ratio = (best.value - value) / jnp.maximum(predicted, eps * jnp.abs(value))
    first = jnp.isinf(best.value)
    lowered = jnp.where(first | (ratio > 0.7), damping / 8, jnp.where(ratio < 0.2, damping * 4, damping))
    damping = jnp.where(better, lowered, jnp.maximum(damping * 8, 1e-3))
    new = (trial, value, gradient, hessian)
    x, value, gradient, hessian = (jnp.where(better, a, b) for a, b in zip(new, best[:4], strict=True))

    # Where a function is all slope and no curvature the damping could not shorten a step, were it measured by the
    # curvature alone.
    c = curvature(hessian, jnp.abs(gradient) / (10 * (1 + jnp.abs(x))))
    slope = c.vectors.T @ (gradient / c.scale)
    size = jnp.maximum(jnp.abs(c.values), 8 * eps)
    step = -(c.vectors @ (slope / (size + damping))) / c.scale
    predicted = -(gradient @ step + 0.5 * step @ hessian @ step)
    decrement = 0.5 * jnp.sum(slope**2 / size)
    reached = (decrement < tolerance(x.dtype)) | (stuck & (decrement < rounding(value)))
    converged = jnp.isfinite(value) & reached & jnp.all(c.values > 0)
    best = Minimum(x, value, gradient, hessian, decrement, converged, best.steps + 1)
    return _Descent(best, x + step, predicted, damping)


def _minimise_lbfgs(fun: Callable, x0: Float[Array, " D"], max_steps: int) -> Minimum:
    """The same contract by optax's L-BFGS, for dimensions where a Hessian a step costs too much."""
    from probkit.math.quasi_newton import lbfgs

    tol = tolerance(x0.dtype)
    x, steps, _ = lbfgs(fun, x0, 10 * max_steps, tol, memory=10)
    value, gradient, hessian = value_gradient_hessian(fun, x)
    c = curvature(hessian)
    slope = c.vectors.T @ (gradient / c.scale)
    decrement = 0.5 * jnp.sum(slope**2 / jnp.maximum(jnp.abs(c.values), jnp.finfo(x.dtype).eps))
    converged = jnp.isfinite(value) & (decrement < jnp.sqrt(tol)) & jnp.all(c.values > 0)
    return Minimum(x, jnp.where(jnp.isfinite(value), value, jnp.inf), gradient, hessian, decrement, converged, steps)
