"""Programs that train a variational Gaussian process: natural gradients, Adam on minibatches, L-BFGS on all rows."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, PRNGKeyArray

from probkit.gp import svgp_bound as bound
from probkit.gp.svgp import SVGP, at_rows, curvature, is_quadratic, terms
from probkit.infer.phases import UPDATES, Block
from probkit.infer.point import start_points
from probkit.infer.stochastic import CLIP, clip_to_usual
from probkit.infer.subsample import shuffled
from probkit.infer.target import Target
from probkit.model import Model, bind

#: Steps of L-BFGS in one call, where all rows fit in a batch.
DESCENT = 40
#: Blocks of updates in one call of the compiled program.
BLOCKS = 4
#: Natural gradient steps before the hyperparameters begin to move.
WARM = 20
#: Draws of the prior from which the unit of each hyperparameter is taken.
DRAWS = 31
#: Passes over all rows, at most, for the law of the inducing values at the end; and when it is found, in nats.
PASSES, NATS = 40, 1e-4
#: Nats to which the bound of a likelihood of more than two columns is optimised.
ROUGH = 0.01
#: Nats that a search may still promise where it can go no further, beside the rounding of the bound.
STALL = 0.1


class _Priors(Model):
    """The priors of a model without its likelihood, so that drawing from them compiles nothing else."""

    _model: SVGP

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._model, name)  # what ``given`` places look at

    def distribution(self, X: Any, length: int) -> Any:
        """The model's."""
        return self._model.distribution(X, length)

    def log_likelihood(self, y: Array, X: Any = None) -> Array:
        """Nothing."""
        return jnp.zeros((), y.dtype)


class Problem(eqx.Module):
    """What is trained: a model with its defaults made, observed rows, and the units in which its parameters move.

    Attributes:
        model: its ``inducing`` is an array.
        y: observations without gaps, (n,).
        X: inputs, (n,) or (n, D).
        start: hyperparameters in unconstrained space, (D,).
        unit: a standard deviation of their prior.
        spacing: the unit in which inducing points move, (columns of X,) or a scalar.
        batch: rows in a step; static.
        moves: whether inducing points move; static.
    """

    model: SVGP
    y: Float[Array, " n"]
    X: Array
    start: Float[Array, " D"]
    unit: Float[Array, " D"]
    spacing: Array
    batch: int = eqx.field(static=True)
    moves: bool = eqx.field(static=True)

    def concrete(self, place: "Place") -> tuple[SVGP, dict[str, Array], Array]:
        """The model at a place, the values of its sites, and their log prior density."""
        one = Target(_Priors(self.model), (self.y[:1], None)).evaluate(self.start + self.unit * place.z)
        model = bind(self.model, one.values)
        if self.moves:
            model = eqx.tree_at(lambda m: m.inducing, model, self.model.inducing + self.spacing * place.points)
        return model, one.values, one.log_prior

    def rows(self, key: PRNGKeyArray, step: Array) -> Int[Array, " batch"]:
        """The rows of a step: epochs of shuffled rows, or all of them."""
        n = self.y.shape[0]
        if n <= self.batch:
            return jnp.arange(n)
        epoch, place = jnp.divmod(step, n // self.batch)
        return shuffled(place * self.batch + jnp.arange(self.batch), jax.random.fold_in(key, epoch), n)

    def parts(self) -> Int[Array, "parts size"]:
        """All rows in parts of no more than a batch; in the last one some are n or above, and stand for none."""
        n = self.y.shape[0]
        count = -(-n // self.batch)
        size = -(-n // count)
        return jnp.arange(count * size).reshape(count, size)


class Place(NamedTuple):
    """Where the training stands: hyperparameters and moves of inducing points, both in their units."""

    z: Float[Array, " D"]
    points: Array


class State(NamedTuple):
    """A training under way."""

    place: Place
    memory: Any
    law: bound.InducingLaw
    step: Int[Array, ""]
    key: PRNGKeyArray


@eqx.filter_jit
def set_up(target: Target, key: PRNGKeyArray, init: dict | None, options: tuple) -> Problem:
    """The problem, with the start at the median of draws from the prior."""
    batch, moves = options
    y, X = target.args
    model = target.resolved().model
    Z = jnp.asarray(model.inducing, X.dtype)
    model = eqx.tree_at(lambda m: m.inducing, model, Z)
    one = Target(_Priors(model), (y[:1], None))
    k_start, k_unit = jax.random.split(key)
    start = start_points(one, k_start, 1, init)[0]
    unit = jnp.std(jax.vmap(one.prior_draw)(jax.random.split(k_unit, DRAWS)), axis=0)
    unit = jnp.where(jnp.isfinite(unit) & (unit > 0), unit, 1.0)
    spread = jnp.std(X, axis=0)
    return Problem(model, y, X, start, unit, jnp.where(spread > 0, spread, 1.0), batch, moves)


@eqx.filter_jit
def begin(problem: Problem, key: PRNGKeyArray) -> State:
    """The state before the first step: the law has seen a few batches."""
    model = problem.model
    place = Place(jnp.zeros_like(problem.start), jnp.zeros_like(model.inducing))
    law = bound.prior(model.likelihood.outputs, model.inducing.shape[0], problem.y.dtype)
    memory = _optimiser(jnp.ones(())).init(place)

    def warm(law: bound.InducingLaw, step: Array) -> tuple[bound.InducingLaw, None]:
        _, _, new = evaluate_step(problem, place, law, problem.rows(key, step), jnp.asarray(0.5, problem.y.dtype))
        return new, None

    law, _ = jax.lax.scan(warm, law, jnp.arange(WARM))
    return State(place, memory, law, jnp.array(0), key)


def _optimiser(step_size: Any) -> optax.GradientTransformation:
    return optax.chain(clip_to_usual(CLIP), optax.scale_by_adam(), optax.scale(-step_size))


def evaluate_step(
    problem: Problem, place: Place, law: bound.InducingLaw, index: Array, share: Array, weight: Array | None = None
) -> tuple[Array, Place, bound.InducingLaw]:
    """Minus the objective, in nats a row, its slope in the place, and the law after a natural gradient step.

    NaN, no slope and the law as it was where any of these is not finite.

    The objective is the bound plus the log prior density; one set of features serves both gradients. Rows count as
    often as ``weight`` says, by default all alike, so that they stand for n.
    """
    n = problem.y.shape[0]
    X, y = problem.X[index], problem.y[index]
    weight = jnp.full(y.shape, n / index.shape[0], y.dtype) if weight is None else weight
    q = bound.factors(law)

    def project(place: Place) -> tuple[tuple, tuple]:
        model, _, log_prior = problem.concrete(place)
        process = model.distribution(X, X.shape[0])
        A, variance = process.features(X)
        f, variance = bound.marginals(q, A, variance)
        phi, rest = eqx.partition(at_rows(model.likelihood, index, n), eqx.is_inexact_array)
        return (process.mean_at(X) + f, variance, phi, log_prior), (A, f, rest)

    (f, variance, phi, log_prior), back, (A, relative, rest) = jax.vjp(project, place, has_aux=True)
    kind = curvature(problem.model.likelihood), is_quadratic(problem.model.likelihood)

    def value(phi: Any, f: Array, variance: Array) -> Array:
        return bound.expected_value(terms, *kind, eqx.combine(phi, rest), f, variance, y)

    each, pull = jax.vjp(value, phi, f, variance)
    by_phi, slope, by_variance = pull(weight)
    weighed = bound.Expected(each, slope, -2.0 * by_variance)
    down = jax.tree_util.tree_map(lambda a: -a / n, (slope, by_variance, by_phi))
    (gradient,) = back((*down, jnp.full((), -1.0 / n, log_prior.dtype)))
    sums = bound.optimum(A, relative, weighed, jnp.ones_like(y))
    concave = problem.model.likelihood.log_concave
    new = bound.towards(law, sums, share) if concave else bound.within(law, q, sums, share)
    loss = -(jnp.sum(weight * each) - q.divergence + log_prior) / n
    sound = _finite((gradient, new))
    loss = jnp.where(sound, loss, jnp.nan)  # no move, and no claim that none is needed
    gradient = jax.tree_util.tree_map(lambda g: jnp.where(sound, g, 0.0), gradient)
    return loss, gradient, jax.tree_util.tree_map(lambda a, b: jnp.where(sound, a, b), new, law)


def _finite(tree: Any) -> Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(a)) for a in jax.tree_util.tree_leaves(tree)]))


@eqx.filter_jit
def advance(problem: Problem, state: State, step_size: Array, share: Array) -> tuple[State, Block]:
    """``BLOCKS`` blocks of ``UPDATES`` steps, and their averages, with an axis (restart,) of one in front."""
    optimiser = _optimiser(step_size)

    def update(carry: tuple, _: None) -> tuple[tuple, Array]:
        state, total = carry
        index = problem.rows(state.key, state.step)
        loss, gradient, law = evaluate_step(problem, state.place, state.law, index, share)
        if not problem.moves:
            gradient = gradient._replace(points=jnp.zeros_like(gradient.points))
        change, memory = optimiser.update(gradient, state.memory)
        place = optax.apply_updates(state.place, change)
        total = jax.tree_util.tree_map(jnp.add, total, place)
        return (State(place, memory, law, state.step + 1, state.key), total), loss

    def block(state: State, _: None) -> tuple[State, Block]:
        start = (state, jax.tree_util.tree_map(jnp.zeros_like, state.place))
        (state, total), losses = jax.lax.scan(update, start, None, length=UPDATES)
        place = jax.tree_util.tree_map(lambda a: a / UPDATES, total)
        judged = place.z if place.z.size else jnp.ravel(place.points)
        good = jnp.isfinite(losses)
        loss = jnp.sum(jnp.where(good, losses, 0.0)) / jnp.sum(good)
        return state, Block(place, judged, jnp.zeros_like(judged), jnp.where(jnp.any(good), loss, jnp.inf))

    state, chunk = jax.lax.scan(block, state, None, length=BLOCKS)
    return state, jax.tree_util.tree_map(lambda a: a[None], chunk)


class Solved(NamedTuple):
    """The law of the inducing values at its best for all rows, given the hyperparameters."""

    values: dict[str, Array]
    inducing: Array
    law: bound.InducingLaw
    elbo: Array
    log_prior: Array
    gain: Array
    passes: Array


def settle(problem: Problem, place: Place, law: bound.InducingLaw, nats: float) -> Solved:
    """Full natural gradient steps over all rows, each kept only if it raises the bound, until one gains ``nats``."""
    model, values, log_prior = problem.concrete(place)
    n = problem.y.shape[0]
    index = problem.parts()
    size = index.shape[1]
    kind = curvature(model.likelihood), is_quadratic(model.likelihood)

    def sweep(law: bound.InducingLaw) -> tuple[Array, bound.InducingLaw]:
        q = bound.factors(law)

        def rows(total: tuple, index: Array) -> tuple[tuple, None]:
            weight = (index < n).astype(problem.y.dtype)
            index = jnp.minimum(index, n - 1)
            process = model.distribution(problem.X[index], size)
            A, variance = process.features(process.X)
            f, variance = bound.marginals(q, A, variance)
            likelihood = at_rows(model.likelihood, index, n)
            latent = process.mean_at(process.X) + f
            found = bound.expected(terms, *kind, likelihood, latent, variance, problem.y[index])
            part = jnp.sum(weight * found.value), bound.optimum(A, f, found, weight)
            return jax.tree_util.tree_map(jnp.add, total, part), None

        zero = jnp.zeros((), problem.y.dtype), jax.tree_util.tree_map(jnp.zeros_like, law)
        (value, sums), _ = jax.lax.scan(rows, zero, index)
        value = value - q.divergence
        return jnp.where(jnp.isnan(value), -jnp.inf, value), sums

    def climb(state: tuple) -> tuple:
        law, (value, sums), share, last, _, count = state
        trial = bound.towards(law, sums, share)
        found = sweep(trial)
        gain = found[0] - value
        better = (gain >= 0) | ~jnp.isfinite(value)
        pick = lambda a, b: jnp.where(better, a, b)
        law, kept = jax.tree_util.tree_map(pick, (trial, found), (law, (value, sums)))
        share = jnp.where(count == 0, 1.0, jnp.where(better, jnp.minimum(2 * share, 1.0), share / 4))
        return law, kept, share, jnp.where(better, gain, last), better, count + 1

    def goes_on(state: tuple) -> Array:
        _, (value, _), share, gain, better, count = state
        # One full step ends at the optimum of a quadratic.
        enough = jnp.inf if kind[1] else nats + 64 * jnp.finfo(value.dtype).eps * jnp.abs(value)
        return (count < 2) | ((count < PASSES) & (~better | (gain > enough)) & (share > 1e-4))

    zero, far = jnp.zeros((), problem.y.dtype), jnp.full((), jnp.inf, problem.y.dtype)
    nothing = (-far, jax.tree_util.tree_map(jnp.zeros_like, law))  # the first pass takes no step
    start = (law, nothing, zero, far, jnp.array(True), jnp.array(0))
    law, (value, _), _, gain, _, count = jax.lax.while_loop(goes_on, climb, start)
    gain = jnp.where(jnp.isinf(gain) & jnp.isfinite(value), 0.0, gain)  # it began at the optimum: no step gained
    return Solved(values, model.inducing, law, value, log_prior, gain, count)


@eqx.filter_jit
def solve(problem: Problem, place: Place, law: bound.InducingLaw) -> Solved:
    """The law at its optimum for all rows."""
    return settle(problem, place, law, NATS)


class Descent(NamedTuple):
    """L-BFGS under way: where it is, the slope there, the next move, and what is known there."""

    x: Float[Array, " D"]
    value: Float[Array, ""]
    slope: Float[Array, " D"]
    move: Float[Array, " D"]
    share: Float[Array, ""]
    promised: Float[Array, ""]
    memory: Any
    solved: Solved
    steps: Int[Array, ""]


def _whole_step(problem: Problem, place: Place, law: bound.InducingLaw) -> tuple[Array, Place]:
    """The loss and its slope on all rows, part by part."""
    n, parts, still = problem.y.shape[0], problem.parts(), jnp.zeros((), problem.y.dtype)
    if len(parts) == 1:
        return evaluate_step(problem, place, law, parts[0], still)[:2]

    def add(total: tuple, index: Array) -> tuple[tuple, None]:
        weight = jnp.where(index < n, len(parts), 0).astype(problem.y.dtype)
        part = evaluate_step(problem, place, law, jnp.minimum(index, n - 1), still, weight)[:2]
        return jax.tree_util.tree_map(jnp.add, total, part), None

    start = jax.tree_util.tree_map(jnp.zeros_like, (still, place))
    total, _ = jax.lax.scan(add, start, parts)
    return jax.tree_util.tree_map(lambda a: a / len(parts), total)


@eqx.filter_jit
def descend(problem: Problem, place: Place, law: bound.InducingLaw) -> tuple[Place, Solved, Array, Array]:
    """Steps of L-BFGS on all rows, the law at its optimum at each; the place, the law, steps, and whether it is a mode.

    Where nothing was finite the bound is -inf and values are NaN. At the optimum of the law the slope of the bound is
    its slope with the law held fixed. One loop body makes one evaluation: a move that does not lower the value enough
    is shortened.
    """
    x0, unravel = ravel_pytree(place if problem.moves else place.z)
    at = lambda x: unravel(x) if problem.moves else Place(unravel(x), place.points)
    n, dtype = problem.y.shape[0], x0.dtype
    solver = optax.scale_by_lbfgs(20)
    least = float(jnp.finfo(dtype).eps) ** 0.5 * NATS + 32 * float(jnp.finfo(dtype).eps)
    # Means over more than two columns are by nodes too few for slope and value to agree beyond this.
    rough = ROUGH if problem.model.likelihood.outputs > 2 else 0.0

    def evaluate(x: Array, law: bound.InducingLaw) -> tuple[Array, Array, Solved]:
        solved = jax.lax.stop_gradient(settle(problem, at(x), law, max(1e-3 * NATS, rough)))
        loss, gradient = _whole_step(problem, at(x), solved.law)
        slope = n * ravel_pytree(gradient if problem.moves else gradient.z)[0]
        return jnp.where(jnp.isnan(loss), jnp.inf, n * loss), slope, solved

    def advance(d: Descent) -> Descent:
        trial = d.x + d.share * d.move
        value, slope, solved = evaluate(trial, d.solved.law)
        better = value <= d.value + 1e-4 * d.share * (d.slope @ d.move) + 4 * jnp.finfo(dtype).eps * jnp.abs(value)
        better = better & jnp.isfinite(value)
        direction, memory = solver.update(slope, d.memory, trial)
        # No hyperparameter moves by more than two of its units at a time.
        direction = -direction / jnp.maximum(1.0, jnp.max(jnp.abs(direction)) / 2)
        new = Descent(
            trial, value, slope, direction, jnp.ones((), dtype), -0.5 * (slope @ direction), memory, solved, d.steps
        )
        old = d._replace(share=d.share / 4)
        kept = jax.tree_util.tree_map(lambda a, b: jnp.where(better, a, b), new, old)
        return kept._replace(steps=d.steps + 1)

    def goes_on(d: Descent) -> Array:
        more = jnp.isinf(d.value) | (d.promised > rough + least * (1 + jnp.abs(d.value)))
        return (d.steps < DESCENT) & more & (d.share > 1e-6)

    far, zero = jnp.full((), jnp.inf, dtype), jnp.zeros_like(x0)
    nothing = lambda a: jnp.full(a.shape, jnp.nan if jnp.issubdtype(a.dtype, jnp.inexact) else 0, a.dtype)
    blank = jax.tree_util.tree_map(nothing, eqx.filter_eval_shape(evaluate, x0, law)[2])._replace(law=law, elbo=-far)
    start = Descent(x0, far, zero, zero, jnp.ones((), dtype), far, solver.init(x0), blank, jnp.array(0))
    end = jax.lax.while_loop(goes_on, advance, start)
    # Rounding may hide the last fraction of a nat; a search that stalls with more to gain has not found a mode.
    near = end.promised <= STALL + float(jnp.finfo(dtype).eps) ** 0.5 * jnp.abs(end.value)
    return at(end.x), end.solved, end.steps, (end.steps < DESCENT) & jnp.isfinite(end.value) & near
