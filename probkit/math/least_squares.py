"""Batched Levenberg-Marquardt: one small nonlinear least-squares problem a lane, all lanes at once, lanes last.

No line search, so no lane waits inside a step for another: each has its own damping and its own stop. Lanes last means
that every operation runs along contiguous lanes, elimination too, and no batched LAPACK is called.

References:
    Marquardt (1963), An algorithm for least-squares estimation of nonlinear parameters. SIAM J. 11, 431-441.
    Nielsen (1999), Damping parameter in Marquardt's method. IMM-REP-1999-05, Technical University of Denmark.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

#: Lanes that descend side by side: enough for whole vectors, few enough for their Jacobians to stay in a cache.
WIDTH = 64
#: Evaluations between two looks at which lanes are done.
BURST = 4
#: The damping at which a descent gives up.
MOST_DAMPING = 1e10


class LeastSquares(NamedTuple):
    """The outcome of a batch, as data; a lane that failed harms no other.

    Attributes:
        x: the best point found.
        cost: the sum of squared residuals there; inf where the start was not finite.
        gradient: J' r there.
        normal: J' J there; its inverse times the residual variance is the usual covariance of x.
        converged: the decrease still to be had is below ``tolerance`` times the cost.
        steps: evaluations used.
    """

    x: Float[Array, "params lanes"]
    cost: Float[Array, " lanes"]
    gradient: Float[Array, "params lanes"]
    normal: Float[Array, "params params lanes"]
    converged: Bool[Array, " lanes"]
    steps: Int[Array, " lanes"]


class _Descent(NamedTuple):
    """A batch under way: the best points, the next trials, the decrease expected of them and the damping."""

    best: LeastSquares
    trial: Float[Array, "params lanes"]
    predicted: Float[Array, " lanes"]
    damping: Float[Array, " lanes"]


def least_squares(
    fn: Callable[..., tuple[Array, Array]],
    x0: Float[Array, "params lanes"],
    args: Any = (),
    *,
    steps: int = 60,
    tolerance: float | None = None,
    lower: Any = None,
    upper: Any = None,
) -> LeastSquares:
    r"""Minimise $\sum_t r_t(x)^2$ in every lane.

    Each step solves $(J'J + \lambda D)\,\delta = -J'r$ with D the diagonal of J'J. A trial that is not finite, or does
    not lower the cost, is rejected and its lane damped. At most 64 lanes are under way at a time: every few steps those
    that are done leave and the next come in, so that few evaluations are spent on lanes that no longer need them (the
    slowest of a hundred takes five times the mean). A lane's digits depend on itself alone.

    Args:
        fn: ``fn(x, *args) -> (residuals [time, lanes], jacobian [params, time, lanes])``, lane by lane independent;
            may return inf or NaN outside its region. Missing residuals are 0, with derivatives 0.
        x0: the starts.
        args: a pytree of arrays with the lanes on their last axis.
        steps: the most evaluations of a lane.
        tolerance: the relative decrease of the cost at which a lane is done; by default 1e-9 in float64, 1e-5 in
            float32.
        lower: bounds of the parameters, (params,), the same in every lane; a parameter that stands on a bound and is
            pushed against it is held there for that step.
        upper: the same from above.

    Returns:
        A :class:`LeastSquares`.
    """
    tolerance = (1e-9 if jnp.finfo(x0.dtype).eps < 1e-12 else 1e-5) if tolerance is None else tolerance
    bounds = None
    if lower is not None or upper is not None:
        column = lambda bound: jnp.broadcast_to(jnp.asarray(bound, x0.dtype), x0.shape[:1])[:, None]
        bounds = column(-jnp.inf if lower is None else lower), column(jnp.inf if upper is None else upper)
        x0 = jnp.clip(x0, *bounds)

    def descend(args: Any, state: _Descent, evaluations: int) -> _Descent:
        def advance(now: tuple[_Descent, Array]) -> tuple[_Descent, Array]:
            state, used = now
            going, new = _unfinished(state, steps), _step(fn, args, state, tolerance, bounds)
            return jax.tree_util.tree_map(lambda a, b: jnp.where(going, a, b), new, state), used + 1

        more = lambda now: (now[1] < evaluations) & jnp.any(_unfinished(now[0], steps))
        return lax.while_loop(more, advance, (state, jnp.zeros((), int)))[0]

    def burst(state: _Descent) -> _Descent:
        index = jnp.argsort(~_unfinished(state, steps), stable=True)[:WIDTH]
        take = lambda tree: jax.tree_util.tree_map(lambda a: a[..., index], tree)
        done = descend(take(args), take(state), BURST)
        return jax.tree_util.tree_map(lambda whole, part: whole.at[..., index].set(part), state, done)

    state = _begin(x0)
    if x0.shape[1] <= WIDTH:
        return descend(args, state, steps).best
    return lax.while_loop(lambda s: jnp.any(_unfinished(s, steps)), burst, state).best


def _begin(x0: Array) -> _Descent:
    params, lanes = x0.shape
    zero, far = jnp.zeros(lanes, x0.dtype), jnp.full(lanes, jnp.inf, x0.dtype)
    best = LeastSquares(
        x0,
        far,
        jnp.zeros_like(x0),
        jnp.zeros((params, params, lanes), x0.dtype),
        jnp.zeros(lanes, bool),
        jnp.zeros(lanes, int),
    )
    # A lane without a start has nothing to descend from.
    damping = jnp.where(jnp.all(jnp.isfinite(x0), 0), 1e-2, jnp.inf).astype(x0.dtype)
    return _Descent(best, x0, zero, damping)


def _unfinished(state: _Descent, limit: int) -> Bool[Array, " lanes"]:
    """Lanes that go on; one whose start was not finite has nothing to descend from."""
    best = state.best
    lost = (best.steps > 0) & jnp.isinf(best.cost)
    return ~best.converged & ~lost & (best.steps < limit) & (state.damping < MOST_DAMPING)


def _step(fn: Callable, args: Any, state: _Descent, tolerance: float, bounds: Any) -> _Descent:
    """Evaluate the trials, keep those that lowered the cost, make the next."""
    best, trial, predicted, damping = state
    eps = float(jnp.finfo(trial.dtype).eps)
    r, J = fn(trial, *args)
    cost, gradient, normal = jnp.sum(r * r, 0), jnp.sum(J * r, 1), gram(J)
    finite = jnp.isfinite(cost) & jnp.all(jnp.isfinite(gradient), 0) & jnp.all(jnp.isfinite(normal), (0, 1))
    better = finite & (cost <= best.cost)
    first = jnp.isinf(best.cost)
    ratio = jnp.where(first, 1.0, (best.cost - cost) / jnp.where(predicted > 0, predicted, 1.0))
    eased = jnp.where(ratio > 0.75, damping / 8, jnp.where(ratio < 0.25, damping * 3, damping))
    damping = jnp.clip(jnp.where(better, eased, jnp.maximum(damping * 8, 1e-4)), 1e-8)
    x, cost, gradient, normal = (
        jnp.where(better, a, b) for a, b in zip((trial, cost, gradient, normal), best[:4], strict=True)
    )
    delta, predicted = _trial_step(x, normal, gradient, damping, bounds)
    # Undamped, the decrease would be up to 1 + damping times as large. No cost shows less than its rounding.
    left = predicted * (1 + damping)
    done = jnp.isfinite(cost) & (jnp.abs(left) <= jnp.maximum(tolerance, 8 * eps) * cost)
    kept = LeastSquares(x, cost, gradient, normal, done, best.steps + 1)
    return _Descent(kept, x + delta, predicted, damping)


def _trial_step(x: Array, normal: Array, gradient: Array, damping: Array, bounds: Any) -> tuple[Array, Array]:
    """The damped step, inside the bounds, and the decrease of the cost that the linear model expects of it."""
    free = jnp.diagonal(normal).T > 0
    if bounds is None:
        step = _damped_step(normal, gradient, damping, free)
        return step, _decrease(normal, gradient, step)
    lower, upper = bounds
    free = free & ~(((x <= lower) & (gradient > 0)) | ((x >= upper) & (gradient < 0)))
    # No step goes more than half the way to a bound unless it is near: first steps are long, and a bound holds fast.
    span = jnp.where(jnp.isfinite(upper - lower), upper - lower, 1.0)
    near, far = (jnp.where(gap < 0.02 * span, gap, 0.5 * gap) for gap in (x - lower, upper - x))
    whole = _damped_step(normal, gradient, damping, free)
    step = jnp.clip(whole, -near, far)
    # Where a bound cuts it short, the others move as they should given that: cut alone, it may lead uphill.
    cut = step != whole
    given = jnp.where(cut, step, 0.0)
    step = given + _damped_step(normal, gradient + jnp.sum(normal * given, 1), damping, free & ~cut)
    step = jnp.clip(step, -near, far)
    return step, _decrease(normal, gradient, step)


def _decrease(normal: Array, gradient: Array, step: Array) -> Float[Array, " lanes"]:
    """What the linear model expects a step to take off the cost."""
    return -jnp.sum(step * (2 * gradient + jnp.sum(normal * step, 1)), 0)


def _damped_step(normal: Array, gradient: Array, damping: Array, free: Array) -> Float[Array, "params lanes"]:
    """The damped step of the free parameters; the others stay."""
    diagonal = jnp.diagonal(normal).T
    scale = jnp.where(free, lax.rsqrt(jnp.where(free, diagonal, 1.0)), 0.0)
    unit = jnp.eye(gradient.shape[0], dtype=gradient.dtype)[:, :, None]
    return -solve(normal * scale[:, None] * scale[None] + unit * (damping + ~free), gradient * scale) * scale


def gram(J: Float[Array, "params time lanes"]) -> Float[Array, "params params lanes"]:
    """J' J of every lane."""
    return jnp.einsum("ptl,qtl->pql", J, J, precision="highest")


def solve(A: Float[Array, "n n lanes"], b: Float[Array, "n lanes"]) -> Float[Array, "n lanes"]:
    """Solve A x = b of every lane, A symmetric positive definite: elimination along contiguous lanes, unrolled.

    NaN where a pivot is not positive.
    """
    n, rows, rest = b.shape[0], [], jnp.concatenate([A, b[:, None]], 1)
    for _ in range(n):
        pivot = rest[0, 0]
        row = rest[0, 1:] / jnp.where(pivot > 0, pivot, jnp.nan)
        rows.append(row)
        rest = rest[1:, 1:] - rest[1:, :1] * row
    x = rows[-1][-1:]
    for row in reversed(rows[:-1]):
        x = jnp.concatenate([row[-1:] - jnp.sum(row[:-1] * x, 0, keepdims=True), x])
    return x


def inverse(A: Float[Array, "n n lanes"]) -> Float[Array, "n n lanes"]:
    """The inverse of a symmetric positive definite matrix a lane; NaN where it is not."""
    unit = jnp.eye(A.shape[0], dtype=A.dtype)
    return lax.map(lambda e: solve(A, jnp.broadcast_to(e[:, None], A.shape[1:])), unit)
