"""The method of variational Gaussian processes: what is asked of the training, and what is said of it."""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from probkit.gp import svgp_bound as bound
from probkit.gp.svgp import SVGP, at_rows, is_quadratic
from probkit.gp.svgp_training import BLOCKS, DESCENT, Place, Problem, Solved, advance, begin, descend, set_up, solve
from probkit.infer.batches import bar
from probkit.infer.method import Method, Outcome, check_whole
from probkit.infer.phases import UPDATES, Phases
from probkit.infer.target import Lanes, Target
from probkit.likelihoods import Binomial
from probkit.model import is_place
from probkit.report import Report, Seconds, timed

#: Up to so many batches of rows, L-BFGS on all of them goes on after so many steps on batches.
FINISHED, FIRST = 64, 1200


@dataclasses.dataclass(frozen=True)
class StochasticVI(Method):
    """The method of :class:`probkit.gp.SVGP`: minibatches, natural gradients and Adam, in phases of falling step size.

    In every step the law of the inducing values goes a share of the way to where the batch would have it (a natural
    gradient step in its natural parameters), and Adam moves the hyperparameters uphill on the bound plus their log
    prior density, in units of the prior's standard deviation. Up to 64 batches of rows, this goes on for 1,200 steps;
    then L-BFGS on all rows, batch by batch, goes to the mode, the law at its optimum at every step. Beyond that number
    the iterates are averaged over the last phase. At the end the law is brought to its optimum for all rows, which for
    a normal likelihood is one pass and exact. Data of no more than ``batch_size`` rows are not drawn from.

    The answer is a law of the function and one value of each hyperparameter, their mode under the bound: one draw, as
    from ``pk.MAP``. It does not target the posterior of the hyperparameters, so it is compared by ``pk.kfold``.

    Args:
        batch_size: rows in a step; fewer are taken whole.
        max_steps: the most steps, in calls of 200 on batches, and of 40 on all rows, each of which counts as so many as
            there are batches: the last call ends after it.
        tolerance: largest error of the hyperparameters from optimisation, in prior sds (mostly of their logs).
        step_size: Adam's in the first phase.
        decay: factor of the step size from phase to phase.
        natural_step: share of the way that the law goes in a step of the first phase; never less than the share of the
            rows that the batch is.
        learn_inducing: whether the inducing points move as well.

    References:
        Salimbeni, Eleftheriadis and Hensman (2018), Natural gradients in practice: non-conjugate variational inference
        in Gaussian process models. See also :class:`probkit.infer.phases.Phases`.
    """

    batch_size: int = 1024
    max_steps: int = 6000
    tolerance: float = 0.05
    step_size: float = 0.03
    decay: float = 0.25
    natural_step: float = 0.1
    learn_inducing: bool = False

    def __post_init__(self) -> None:
        check_whole("batch_size", self.batch_size, 1)
        check_whole("max_steps", self.max_steps, 1)
        for name in ("tolerance", "step_size"):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and 0 < value < np.inf):
                raise ValueError(f"{name} is {value!r}; a positive number is wanted.")
        for name in ("decay", "natural_step"):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and 0 < value < 1):
                raise ValueError(f"{name} is {value!r}; a number between 0 and 1 is wanted.")

    @property
    def targets_posterior(self) -> bool:
        """Hyperparameters are at a point."""
        return False

    def run_lanes(self, lanes: Lanes, keys: Any, init: dict | None = None, progress: bool = False) -> Any:
        """Not for many series at once.

        Raises:
            TypeError: always.
        """
        raise TypeError("gp.SVGP takes one series, (n,); fit several one by one.")

    def run(self, target: Target, key: Any, init: dict | None = None, progress: bool = False) -> Outcome:
        """Train, and give back the model with the law of its inducing values."""
        if not isinstance(target.model, SVGP):
            raise TypeError(f"gp.StochasticVI is for gp.SVGP; {type(target.model).__name__} came.")
        given, args = target.model, target.args
        target = _observed(target)
        k_problem, k_rows = jax.random.split(key)
        options = (self.batch_size, self.learn_inducing)
        problem, seconds = timed(set_up, target, k_problem, init, options)
        trained = self._train(problem, k_rows, progress)
        seconds = seconds + trained.seconds
        solved = jax.device_get(trained.solved)
        values = {name: np.asarray(v)[None, None] for name, v in solved.values.items()}
        figures = {"lp": solved.elbo + solved.log_prior, "log_prior": solved.log_prior, "log_likelihood": solved.elbo}
        stats = {name: np.reshape(np.asarray(v), (1, 1)) for name, v in figures.items()}
        model = _with_trials(problem.model, given)
        model = eqx.tree_at(lambda m: m.inducing, model, jnp.asarray(solved.inducing))
        law = jax.tree_util.tree_map(jnp.asarray, solved.law)
        model = eqx.tree_at(lambda m: m.law, model, law, is_leaf=lambda x: x is None)
        report = self._report(problem, solved, trained, seconds)
        # A point: its standard errors are not known, and its likelihood is a bound.
        return Outcome(values, stats, report, standard_errors={}, target=Target(model, args))

    def _train(self, problem: Problem, key: PRNGKeyArray, progress: bool) -> "_Trained":
        """The hyperparameters, as far as the steps go."""
        place = Place(jnp.zeros_like(problem.start), jnp.zeros_like(problem.model.inducing))
        law = bound.prior(problem.model.likelihood.outputs, problem.model.inducing.shape[0], problem.y.dtype)
        if not (place.z.size or problem.moves):
            solved, seconds = timed(solve, problem, place, law)
            return _Trained(solved, True, "No hyperparameter to fit", 0, seconds)
        if problem.y.shape[0] <= problem.batch:
            return self._by_descent(problem, place, law, progress)
        return self._by_phases(problem, key, progress)

    def _by_descent(
        self,
        problem: Problem,
        place: Place,
        law: bound.InducingLaw,
        progress: bool,
        before: int = 0,
        seconds: Seconds = Seconds(),
    ) -> "_Trained":
        """All rows: L-BFGS until the next step promises nothing, after so many steps and seconds on batches."""
        steps, done, stalled, solved = 0, False, 0, None
        parts = problem.parts().shape[0]
        with bar(self.max_steps - before, progress, "StochasticVI") as shown:
            while before + parts * steps < self.max_steps and not done and stalled < 2:
                (place, solved, count, stopped), more = timed(descend, problem, place, law)
                law, seconds, steps, done = solved.law, seconds + more, steps + int(count), bool(stopped)
                # A stalled search begins once more without its memory; where nothing is finite it would stay so.
                stalled += 0 if done or int(count) == DESCENT else 1 if np.isfinite(solved.elbo) else 2
                shown.update(parts * int(count))
        used = f"{before:,} steps on batches and {steps:,} of L-BFGS" if before else f"{steps:,} steps of L-BFGS"
        told = f"Hyperparameters at their mode in {used}"
        told = told if done else f"{used} did not reach the mode of the hyperparameters"
        return _Trained(solved, done, told, before + parts * steps, seconds)

    def _by_phases(self, problem: Problem, key: PRNGKeyArray, progress: bool) -> "_Trained":
        """Minibatches, until the averages of the hyperparameters are known to the tolerance."""
        phases, steps = Phases(self.step_size, self.decay, self.tolerance), 0
        first, seconds = timed(begin, problem, key)
        state, least = first, problem.batch / problem.y.shape[0]
        finish = problem.parts().shape[0] <= FINISHED
        with bar(self.max_steps, progress, "StochasticVI") as shown:
            while steps < self.max_steps and not phases.done and not (finish and steps >= FIRST):
                share = max(least, self.natural_step * phases.step_size / self.step_size)
                options = (np.asarray(one, problem.y.dtype) for one in (phases.step_size, share))
                (state, chunk), more = timed(advance, problem, state, *options)
                phases.add(jax.device_get(chunk))
                state = first if phases.lost else state
                seconds, steps = seconds + more, steps + UPDATES * BLOCKS
                shown.update(UPDATES * BLOCKS)
                shown.set_postfix_str(f"step size {phases.step_size:.1g}, bound {-float(chunk.loss[0, -1]):.4g} a row")
        if finish and FIRST <= steps < self.max_steps and np.isfinite(chunk.loss).any():
            return self._by_descent(problem, state.place, state.law, progress, steps, seconds)
        place = jax.tree_util.tree_map(lambda a: jnp.asarray(a[0]), phases.averaged())
        solved, more = timed(solve, problem, place, state.law)
        told = f"Hyperparameters to {phases.error:.2g} prior sds in {steps:,} steps"
        if not phases.done:
            left = f"an error of {phases.error:.2g} prior sds" if phases.stationary else "drift"
            told = f"{steps:,} steps left {left} in the hyperparameters"
        return _Trained(solved, phases.done, told, steps, seconds + more)

    def _report(self, problem: Problem, solved: Solved, trained: "_Trained", seconds: Seconds) -> Report:
        converged, reason, advice = self._judge(problem, solved, trained)
        n, batch = problem.y.shape[0], problem.batch
        passes = f"{trained.steps * batch / n:.3g} passes over {n:,} rows, {batch:,} at a time."
        return Report(
            method=repr(self),
            rung="svi",
            converged=converged,
            reason=reason,
            advice=advice,
            seconds=seconds,
            log_density=float(solved.elbo + solved.log_prior),
            elbo=float(solved.elbo),
            steps=trained.steps,
            notes=(passes,) if n > batch and trained.steps else (),
        )

    def _judge(self, problem: Problem, solved: Solved, trained: "_Trained") -> tuple[bool, str, str]:
        """Believe the answer or not, in words."""
        if not np.isfinite(solved.elbo):
            return (
                False,
                "Not converged: no finite bound with a finite slope was found.",
                "Look at the units of y and at means and covariances given; give init= or tighter priors.",
            )
        if not is_quadratic(problem.model.likelihood) and not solved.gain < 1.0:
            told = f"the law of the inducing values still gained {solved.gain:.2g} nats in pass {solved.passes}"
            return False, f"Not converged: {told}.", "Give tighter priors, or other inducing points."
        if not trained.done:
            advice = "Raise max_steps or tolerance. The law of the inducing values is at its optimum given them."
            return False, f"Not converged: {trained.told}.", advice
        return True, f"{trained.told}; the law of the inducing values is at its optimum given them.", ""


class _Trained(NamedTuple):
    """The end of the search for hyperparameters: what was found, whether it is the mode, and in words."""

    solved: Any
    done: bool
    told: str
    steps: int
    seconds: Seconds


def _with_trials(model: SVGP, given: SVGP) -> SVGP:
    """The model with the trials of all rows, also of those without an observation."""
    if not isinstance(given.likelihood, Binomial) or is_place(given.likelihood.trials):
        return model
    whole = given.likelihood.trials
    return eqx.tree_at(lambda m: m.likelihood.trials, model, whole)  # type: ignore[attr-defined]


def _observed(target: Target) -> Target:
    """The target on observed rows alone, with inputs, and without the law of an earlier fit."""
    y, X = target.args
    model = eqx.tree_at(
        lambda m: m.law, target.model, None, is_leaf=lambda x: x is None or isinstance(x, bound.InducingLaw)
    )
    X = jnp.arange(y.shape[0], dtype=y.dtype) if X is None else X
    seen = np.flatnonzero(~np.isnan(np.asarray(y)))
    if len(seen) < len(y):
        model = eqx.tree_at(lambda m: m.likelihood, model, at_rows(model.likelihood, jnp.asarray(seen), len(y)))
        y, X = y[seen], X[seen]
    return Target(model, (y, X))
