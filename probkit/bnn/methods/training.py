"""Training of several nets at once, as lanes of one compiled program: what ensembles, dropout and SWAG share."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from probkit.bnn.local import SEEDS, Dropout
from probkit.bnn.methods.common import is_weight, rows, start_point, weight_priors, with_local
from probkit.infer.target import Target

#: Gradients longer than this, in nats an observation, are cut to it.
CLIP = 10.0


class Member(NamedTuple):
    """One net under training: where it started, and its own shuffle of the rows, those for validation first."""

    start: Float[Array, " D"]
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
    """Static options of a training.

    Attributes:
        steps: updates in all.
        batch: rows in an update.
        rate: Adam's, at the start.
        held_out: rows that a member holds out.
        every: updates between two looks at them.
        patience: looks without progress before a member stops.
        dropout: share of hidden units left out of each update.
        constant: whether the rate stays, rather than fall along half a cosine.
        anchored: whether the prior of the weights stands around where the member started.
        jacobian: whether the density is that of the unconstrained vector, as sampling wants it.
    """

    steps: int
    batch: int
    rate: float
    held_out: int
    every: int
    patience: int
    dropout: float = 0.0
    constant: bool = False
    anchored: bool = False
    jacobian: bool = False

    def optimiser(self) -> optax.GradientTransformation:
        """Adam with its schedule."""
        rate = self.rate if self.constant else optax.cosine_decay_schedule(self.rate, self.steps)
        return optax.chain(optax.clip_by_global_norm(CLIP), optax.adam(rate))


@eqx.filter_jit
def begin(target: Target, keys: Array, init: dict | None, options: Training) -> Member:
    """Every member at its own draw of the prior, axis (member,)."""

    def one(key: Array) -> Member:
        k_start, k_order, k_train = jax.random.split(key, 3)
        u = start_point(target, k_start, init)
        order = jax.random.permutation(k_order, target.args[0].shape[0])
        far, zero = jnp.array(jnp.inf, u.dtype), jnp.array(0)
        return Member(u, u, options.optimiser().init(u), k_train, order, u, far, zero, jnp.array(False), zero)

    return jax.vmap(one)(keys)


def gradient(target: Target, member: Member, u: Array, step: Array, options: Training) -> Float[Array, " D"]:
    """Slope of minus the log density, in nats an observation, on the rows of one update; 0 where it is not finite."""
    n = target.args[0].shape[0]
    learnt = n - options.held_out
    size = min(options.batch, learnt)
    k_rows, k_masks = jax.random.split(jax.random.fold_in(member.key, step))
    known = member.order[options.held_out :]
    index = known if size == learnt else known[jax.random.randint(k_rows, (size,), 0, learnt)]
    seen = target if options.held_out == 0 and size == n else rows(target, index)
    if options.dropout:
        seed = jax.random.randint(k_masks, (), 0, SEEDS).astype(u.dtype)
        seen = Target(with_local(seen.model, Dropout(options.dropout, seed)), seen.args)

    moved = jnp.where(jnp.asarray(is_weight(target)), member.start - weight_priors(target)[0], 0.0)

    def loss(u: Array) -> Array:
        e = seen.evaluate(u)
        prior = target.evaluate(u - moved).log_prior if options.anchored else e.log_prior
        return -e.log_likelihood / size - (prior + (e.log_jacobian if options.jacobian else 0.0)) / learnt

    slope = jax.grad(loss)(u)
    return jnp.where(jnp.all(jnp.isfinite(slope)), slope, 0.0)


@eqx.filter_jit
def advance(target: Target, members: Member, options: Training) -> Member:
    """``every`` updates of every member, then a look at the rows held out."""
    optimiser = options.optimiser()

    def judge(member: Member, u: Array) -> Array:
        if not options.held_out:
            return jnp.array(-jnp.inf, u.dtype)
        index = member.order[: options.held_out]
        value = -rows(target, index).evaluate(u).log_likelihood / options.held_out
        return jnp.where(jnp.isfinite(value), value, jnp.inf)

    def lane(member: Member) -> Member:
        def update(state: tuple, step: Array) -> tuple[tuple, None]:
            u, memory = state
            change, memory = optimiser.update(gradient(target, member, u, step, options), memory, u)
            return (u + change, memory), None

        steps = member.step + jnp.arange(options.every)
        (u, memory), _ = jax.lax.scan(update, (member.u, member.memory), steps)
        step, value = member.step + options.every, judge(member, u)
        better = (value < member.best_loss) | jnp.array(not options.held_out)
        best_step = jnp.where(better, step, member.best_step)
        new = member._replace(
            u=u,
            memory=memory,
            best=jnp.where(better, u, member.best),
            best_loss=jnp.where(better, value, member.best_loss),
            best_step=best_step,
            stopped=(step - best_step) >= options.patience * options.every,
            step=step,
        )
        frozen = lambda a, b: a if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else jnp.where(member.stopped, a, b)
        return jax.tree_util.tree_map(frozen, member, new)

    return jax.vmap(lane)(members)
