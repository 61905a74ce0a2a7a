"""Deep ensembles: many nets trained together, as lanes of one compiled loop."""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from probkit.bnn.methods.common import draws_at, rows, start_point, trainable
from probkit.infer.batches import bar
from probkit.infer.method import Method, Outcome, check_whole
from probkit.infer.target import Target
from probkit.report import Report, Seconds, timed

#: Validations in one call of the compiled program; between calls the progress bar moves.
CHUNK = 10
#: With fewer rows to hold out than this nothing is held out: chance would choose when to stop.
LEAST_HELD_OUT = 20


class Member(NamedTuple):
    """One net under training; ``order`` is its own shuffle of the rows, those for validation first."""

    u: Float[Array, " D"]
    memory: Any
    key: Array
    order: Int[Array, " n"]
    best: Float[Array, " D"]
    best_loss: Float[Array, ""]
    best_step: Int[Array, ""]
    stopped: Bool[Array, ""]
    step: Int[Array, ""]


class Training(NamedTuple):
    """Static options of a training."""

    steps: int
    batch: int
    rate: float
    held_out: int
    every: int
    patience: int

    def optimiser(self) -> optax.GradientTransformation:
        """Adam with a step size that falls along half a cosine."""
        return optax.chain(
            optax.clip_by_global_norm(10.0), optax.adam(optax.cosine_decay_schedule(self.rate, self.steps))
        )


@eqx.filter_jit
def _begin(target: Target, keys: Array, init: dict | None, options: Training) -> Member:
    def one(key: Array) -> Member:
        k_start, k_order, k_train = jax.random.split(key, 3)
        u = start_point(target, k_start, init)
        order = jax.random.permutation(k_order, target.args[0].shape[0])
        far = jnp.array(jnp.inf, u.dtype)
        zero = jnp.array(0)
        return Member(u, options.optimiser().init(u), k_train, order, u, far, zero, jnp.array(False), zero)

    return jax.vmap(one)(keys)


@eqx.filter_jit
def _advance(target: Target, members: Member, options: Training) -> Member:
    """``CHUNK`` times ``every`` updates of every member, each followed by a look at the rows held out."""
    n = target.args[0].shape[0]
    learnt = n - options.held_out
    size = min(options.batch, learnt)
    optimiser = options.optimiser()

    def loss(u: Array, index: Array) -> Array:
        e = rows(target, index).evaluate(u)
        return -e.log_likelihood / index.shape[0] - e.log_prior / learnt

    def update(state: tuple, i: Array) -> tuple[tuple, None]:
        u, memory, key, order = state
        at = jax.random.randint(jax.random.fold_in(key, i), (size,), options.held_out, n)
        index = order[options.held_out :] if size == learnt else order[at]
        slope = jax.grad(loss)(u, index)
        # A step that is not finite is not taken.
        slope = jnp.where(jnp.all(jnp.isfinite(slope)), slope, 0.0)
        change, memory = optimiser.update(slope, memory, u)
        return (u + change, memory, key, order), None

    def judge(member: Member, u: Array) -> Array:
        if not options.held_out:
            return jnp.array(-jnp.inf, u.dtype)
        index = member.order[: options.held_out]
        value = -rows(target, index).evaluate(u).log_likelihood / options.held_out
        return jnp.where(jnp.isfinite(value), value, jnp.inf)

    def lane(member: Member) -> Member:
        def look(member: Member, _: None) -> tuple[Member, None]:
            begin = (member.u, member.memory, member.key, member.order)
            end, _ = jax.lax.scan(update, begin, member.step + jnp.arange(options.every))
            u, memory = end[:2]
            step, value = member.step + options.every, judge(member, u)
            better = (value < member.best_loss) | jnp.array(not options.held_out)
            best_step = jnp.where(better, step, member.best_step)
            stopped = (step - best_step) >= options.patience * options.every
            new = member._replace(
                u=u,
                memory=memory,
                best=jnp.where(better, u, member.best),
                best_loss=jnp.where(better, value, member.best_loss),
                best_step=best_step,
                stopped=stopped,
                step=step,
            )
            held = member.stopped
            return jax.tree_util.tree_map(
                lambda a, b: a if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else jnp.where(held, a, b), member, new
            ), None

        return jax.lax.scan(look, member, None, length=CHUNK)[0]

    return jax.vmap(lane)(members)


@dataclasses.dataclass(frozen=True)
class Ensemble(Method):
    """A deep ensemble: nets started from different draws of the prior, each trained to its posterior mode.

    All members are lanes of one compiled loop: Adam on minibatches, the step size falling along half a cosine; each
    member holds out rows of its own, and gives back the weights that predicted them best. Rows of y that are missing
    are left out. The draws are the members, axis (draw,). They do not follow the posterior: compare by ``pk.kfold``.

    Args:
        members: number of nets.
        steps: the most updates of a member.
        batch_size: rows in an update.
        learning_rate: Adam's, at the start.
        validation: share of rows held out for early stopping; 0, or a share of fewer than 20 rows, trains on all rows
            to the end.
        patience: looks at the rows held out, fifty in a training, without progress before a member stops.

    References:
        Lakshminarayanan, Pritzel and Blundell (2017), Simple and scalable predictive uncertainty estimation using deep
        ensembles.
    """

    members: int = 10
    steps: int = 2000
    batch_size: int = 100
    learning_rate: float = 0.01
    validation: float = 0.1
    patience: int = 15

    def __post_init__(self) -> None:
        for name in ("members", "steps", "batch_size", "patience"):
            check_whole(name, getattr(self, name), 1)
        if not 0 <= self.validation < 1:
            raise ValueError(f"validation is {self.validation!r}; a share in [0, 1) is wanted.")
        if not (isinstance(self.learning_rate, int | float) and 0 < self.learning_rate < np.inf):
            raise ValueError(f"learning_rate is {self.learning_rate!r}; a positive number is wanted.")

    @property
    def targets_posterior(self) -> bool:
        """Modes do not follow the posterior."""
        return False

    def run(self, target: Target, key: Any, init: dict | None = None, progress: bool = False) -> Outcome:
        """Train the members."""
        args = target.args
        target = trainable(target, type(self).__name__)
        members, seconds = self.train(target, key, init, progress)
        values, stats = draws_at(target, members.best)
        return Outcome(values, stats, self.report(members, seconds), target=Target(target.model, args))

    def train(self, target: Target, key: Any, init: dict | None, progress: bool) -> tuple[Member, Seconds]:
        """Train the members on a target that :func:`trainable` gave."""
        options = self.options(target.args[0].shape[0])
        members, seconds = timed(_begin, target, jax.random.split(key, self.members), init, options)
        with bar(self.steps, progress, type(self).__name__) as shown:
            for _ in range(-(-self.steps // (options.every * CHUNK))):
                members, more = timed(_advance, target, members, options)
                seconds = seconds + more
                shown.update(options.every * CHUNK)
                if np.all(members.stopped):
                    break
        return members, seconds

    def options(self, n: int) -> Training:
        """Static options for n rows."""
        held_out = round(self.validation * n)
        held_out = held_out if held_out >= LEAST_HELD_OUT else 0
        every = max(1, self.steps // 50)
        return Training(self.steps, self.batch_size, float(self.learning_rate), held_out, every, self.patience)

    def report(self, members: Member, seconds: Seconds) -> Report:
        """What the training is worth."""
        finite = np.asarray(jnp.all(jnp.isfinite(members.best), axis=1))
        steps = np.asarray(members.best_step)
        reason = f"{self.members} nets; weights of steps {steps.min():,} to {steps.max():,}."
        if not finite.all():
            reason = f"{int((~finite).sum())} of {self.members} nets are not finite."
        return Report(
            method=repr(self),
            rung="ensemble",
            converged=bool(finite.all()),
            reason=reason,
            advice="" if finite.all() else "Lower learning_rate.",
            seconds=seconds,
            steps=int(np.asarray(members.step).max()),
        )
