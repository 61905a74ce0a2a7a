"""Modes: multi-start quasi-Newton under ``vmap``, and the point estimates MLE and MAP with standard errors."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from probkit.infer.batches import in_batches
from probkit.infer.method import Method, Outcome, check_whole, nothing_unknown, together
from probkit.infer.target import Evaluation, Lanes, Target
from probkit.math.optimise import NEWTON_MAX_DIM, Minimum, curvature, minimise, minimise_lanes, rounding
from probkit.math.secant import minimise_from
from probkit.model import Model
from probkit.report import Report, Seconds, timed


def start_points(target: Target, key: Array, count: int, init: dict | None) -> Float[Array, "starts D"]:
    """Starts in unconstrained space: the median of 15 prior draws, the origin, prior draws; ``init`` alone if given.

    Between the origin and the draws stand those that the model knows of (:meth:`probkit.Model.starts`).
    Prior draws carry the units of the data where default priors do, so the starts are free of units.
    """
    draws = jax.vmap(target.prior_draw)(jax.random.split(key, 15 + max(count - 2, 0)))
    median = jnp.median(draws[:15], axis=0)
    known = target.model.starts(*target.args) if isinstance(target.model, Model) else ()
    if init is not None or known:
        values = target.evaluate(median).values
        place = lambda held: target.unconstrain(lambda name, law: held.get(name, values[name]))[None]
        if init is not None:
            return place(init)
    further = [place(held) for held in known]
    return jnp.concatenate([median[None], jnp.zeros_like(median)[None], *further, draws[15:]])[:count]


def find_mode(
    target: Target,
    key: Array,
    count: int,
    init: dict | None,
    prior: bool = True,
    jacobian: bool = True,
    steps: int = 100,
) -> tuple[Minimum, Float[Array, ""]]:
    """The best of several descents on minus the log density, and the share of starts that reached it."""

    def negative(u: Array) -> Array:
        return -target.log_density(u, prior, jacobian)

    points = start_points(target, key, count, init)
    # On a CPU one start after the other: each stops when it is done, and a lane costs what it would cost in a batch.
    each = jax.lax.map if jax.default_backend() == "cpu" else lambda f, x: jax.vmap(f)(x)
    if target.dear() and 0 < points.shape[1] <= NEWTON_MAX_DIM:
        mode, values = minimise_from(negative, points, _units(target, key), each, steps)
        return mode, jnp.mean(values < mode.value + 0.01)
    return _best(each(lambda u: minimise(negative, u, steps), points))


def _units(target: Target, key: Array) -> Float[Array, " D"]:
    """The power of ten next to a prior sd of each unconstrained coordinate; 1 where there is none to be had."""
    spread = jnp.std(jax.vmap(target.prior_draw)(jax.random.split(key, 15)), axis=0)
    return 10.0 ** jnp.round(jnp.log10(jnp.where(jnp.isfinite(spread) & (spread > 0), spread, 1.0)))


def find_modes(
    targets: Target,
    keys: Array,
    count: int,
    init: dict | None,
    prior: bool = True,
    jacobian: bool = True,
    steps: int = 100,
) -> tuple[Minimum, Float[Array, " lane"]]:
    """As :func:`find_mode` for many targets: ``targets`` and ``keys`` have an axis (lane,) in front.

    On a CPU one lane after the other (1,000 local levels of length 120: 0.96 s, together 1.27 s, and a fifth of the
    compilation); elsewhere together, in a batch that unfinished lanes keep to themselves.
    """
    if jax.default_backend() == "cpu":
        return jax.lax.map(lambda one: find_mode(one[0], one[1], count, init, prior, jacobian, steps), (targets, keys))
    points = jax.vmap(lambda target, key: start_points(target, key, count, init))(targets, keys)
    lanes, starts, dim = points.shape
    each = jax.tree_util.tree_map(lambda a: jnp.repeat(a, starts, axis=0), targets)

    def negative(target: Target, u: Array) -> Array:
        return -target.log_density(u, prior, jacobian)

    found = minimise_lanes(negative, each, points.reshape(-1, dim), steps)
    return jax.vmap(_best)(jax.tree_util.tree_map(lambda a: a.reshape(lanes, starts, *a.shape[1:]), found))


def _best(found: Minimum) -> tuple[Minimum, Float[Array, ""]]:
    """Of several descents, axis (start,) in front, the lowest, and the share within 0.01 of it."""
    value = jnp.where(jnp.isfinite(found.value), found.value, jnp.inf)
    # Of starts that differ by rounding, one that says it converged.
    tied = found.converged & (value <= jnp.min(value) + rounding(jnp.min(value)))
    best = jnp.argmin(jnp.where(tied | ~jnp.any(tied), value, jnp.inf))
    return jax.tree_util.tree_map(lambda a: a[best], found), jnp.mean(value < value[best] + 0.01)


def covariance(hessian: Float[Array, "D D"]) -> Float[Array, "D D"]:
    """Inverse Hessian, by the eigendecomposition of the Hessian scaled to unit diagonal; NaN where not positive."""
    c = curvature(hessian)
    root = c.vectors / jnp.sqrt(c.values) / c.scale[:, None]
    return root @ root.T


@eqx.filter_jit
def _program(target: Target, key: Array, init: dict | None, options: tuple) -> tuple:
    """Mode, values, standard errors by the delta method: one program."""
    target = target.resolved()
    mode, agreeing = find_mode(target, key, *_arguments(init, options))
    return mode, agreeing, *_at_mode(target, mode)


@eqx.filter_jit
def _lanes_program(lanes: Lanes, keys: Array, init: dict | None, options: tuple) -> tuple:
    """The same for every lane."""
    targets = lanes.targets()
    modes, agreeing = find_modes(targets, keys, *_arguments(init, options))
    return modes, agreeing, *lanes.each(lambda one: _at_mode(*one), (targets, modes))


def _arguments(init: dict | None, options: tuple) -> tuple:
    count, prior, jacobian, steps = options
    return count, init, prior, jacobian, steps


def _at_mode(target: Target, mode: Minimum) -> tuple[Evaluation, dict[str, Array]]:
    """Values and standard errors at a mode."""
    evaluation = target.evaluate(mode.x)
    _, unravel = ravel_pytree(evaluation.values)
    slope = jax.jacfwd(lambda u: ravel_pytree(target.evaluate(u).values)[0])(mode.x)
    variance = jnp.einsum("id,de,ie->i", slope, covariance(mode.hessian), slope)
    return evaluation, unravel(jnp.sqrt(variance))


@dataclasses.dataclass(frozen=True)
class _Point(Method):
    starts: int = 8
    max_steps: int = 100

    def __post_init__(self) -> None:
        check_whole("starts", self.starts, 1)
        check_whole("max_steps", self.max_steps, 1)

    @property
    def targets_posterior(self) -> bool:
        """A single point does not target the posterior."""
        return False

    def _run(self, target: Target, key: Any, init: dict | None, prior: bool, rung: str) -> Outcome:
        if not target.sites():
            return nothing_unknown(target, repr(self))
        (mode, agreeing, evaluation, errors), seconds = timed(_program, target, key, init, self._options(prior))
        mode, evaluation, errors = jax.device_get((mode, evaluation, errors))
        report = self._report(mode, agreeing, rung, seconds)
        return Outcome(*_draws_of(evaluation, mode.value), report, errors)

    def _run_lanes(
        self, lanes: Lanes, keys: Any, init: dict | None, progress: bool, prior: bool, rung: str
    ) -> tuple[Outcome, list[Report]]:
        if not lanes.lane(0).sites():
            return super().run_lanes(lanes, keys, init)
        found, seconds = in_batches(_lanes_program, lanes, keys, (init, self._options(prior)), progress)
        modes, agreeing, evaluations, errors = found
        each = Seconds(seconds.compile / len(agreeing), seconds.run / len(agreeing))
        reports = [
            self._report(jax.tree_util.tree_map(lambda a, i=i: a[i], modes), share, rung, each)
            for i, share in enumerate(agreeing)
        ]
        return Outcome(*_draws_of(evaluations, modes.value), together(reports, repr(self), seconds), errors), reports

    def _options(self, prior: bool) -> tuple:
        return self.starts, prior, False, self.max_steps

    def _report(self, mode: Minimum, agreeing: Any, rung: str, seconds: Seconds) -> Report:
        reason, advice = _explain(mode, self.max_steps)
        return Report(
            method=repr(self),
            rung=rung,
            converged=bool(mode.converged),
            reason=reason,
            advice=advice,
            seconds=seconds,
            log_density=-float(mode.value),
            decrement=float(mode.decrement),
            steps=int(mode.steps),
            starts_agreeing=float(agreeing),
        )


def _draws_of(evaluation: Evaluation, value: Any) -> tuple[dict, dict]:
    """Values and figures of a point as one draw of one chain."""
    stats = {"lp": -value, "log_prior": evaluation.log_prior, "log_likelihood": evaluation.log_likelihood}
    values, stats = ({n: np.asarray(v)[None, None] for n, v in group.items()} for group in (evaluation.values, stats))
    return values, stats


def _explain(mode: Minimum, max_steps: int) -> tuple[str, str]:
    """The outcome of a descent in words, and what to do next."""
    if mode.converged:
        return f"Newton decrement {float(mode.decrement):.1e} nats after {int(mode.steps)} steps.", ""
    if not np.isfinite(mode.value):
        return (
            "No start has a finite density.",
            "Check y and the priors, or pass init= with sites in constrained space.",
        )
    if mode.steps >= max_steps:
        return (
            f"{int(mode.steps)} steps and the decrement is still {float(mode.decrement):.1e} nats: a ridge, or a "
            "maximum at the edge of the support.",
            "Give the parameters that run away priors or numbers, or raise max_steps.",
        )
    if np.all(np.linalg.eigvalsh(np.asarray(mode.hessian, float)) > 0):
        return (
            f"The descent stopped at a decrement of {float(mode.decrement):.1e} nats: no step gains more than the "
            "rounding error of the density.",
            "Use float64 (JAX_ENABLE_X64=1), or units in which y is near 1.",
        )
    return (
        "The Hessian is not positive definite where the descent stopped: some direction is flat or the maximum lies at "
        "infinity.",
        "Fix or tie a parameter, give tighter priors, or use NUTS.",
    )


@dataclasses.dataclass(frozen=True)
class MLE(_Point):
    """Maximum likelihood: priors give the supports and the starts, nothing else. Hierarchies are refused.

    Standard errors are the inverse observed information, carried to constrained space by the delta method.

    Args:
        starts: number of starts, run at once.
        max_steps: the most evaluations of one start, and of the end that is judged where they go by slopes.
    """

    def run(self, target: Target, key: Any, init: dict | None = None, progress: bool = False) -> Outcome:
        """Maximise the likelihood.

        Raises:
            TypeError: a prior depends on another site, so there is no plain likelihood to maximise.
        """
        self._check(target)
        return self._run(target, key, init, prior=False, rung="mle")

    def run_lanes(
        self, lanes: Lanes, keys: Any, init: dict | None = None, progress: bool = False
    ) -> tuple[Outcome, list[Report]]:
        """Maximise the likelihood of every lane."""
        self._check(lanes.lane(0))
        return self._run_lanes(lanes, keys, init, progress, prior=False, rung="mle")

    def _check(self, target: Target) -> None:
        names = target.hierarchical()
        if names:
            raise TypeError(
                f"MLE: the prior of {', '.join(names)} depends on other parameters (a hierarchy); its likelihood alone "
                "does not identify them. Use MAP, Laplace or NUTS."
            )


@dataclasses.dataclass(frozen=True)
class MAP(_Point):
    """Posterior mode in the constrained space, as Stan and PyMC define it (no Jacobian).

    Args:
        starts: number of starts, run at once.
        max_steps: the most evaluations of one start, and of the end that is judged where they go by slopes.
    """

    def run(self, target: Target, key: Any, init: dict | None = None, progress: bool = False) -> Outcome:
        """Maximise the posterior density in the constrained space."""
        return self._run(target, key, init, prior=True, rung="map")

    def run_lanes(
        self, lanes: Lanes, keys: Any, init: dict | None = None, progress: bool = False
    ) -> tuple[Outcome, list[Report]]:
        """Maximise the posterior density of every lane."""
        return self._run_lanes(lanes, keys, init, progress, prior=True, rung="map")
