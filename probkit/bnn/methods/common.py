"""What the methods for nets share: the target they train on, its layout, and how an answer is put together."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from probkit.bnn.local import Dropout, Local
from probkit.bnn.model import BNN
from probkit.infer.method import one_chain
from probkit.infer.target import Evaluation, Target


def trainable(target: Target, method: str) -> Target:
    """The target with its defaults made from all the data, without what an earlier Laplace put in, observed rows only.

    Raises:
        TypeError: the model is no net.
    """
    model = target.model
    if not isinstance(model, BNN):
        name = type(model).__name__ if not callable(model) or isinstance(model, eqx.Module) else "a function"
        raise TypeError(f"{method} is for pk.BNN; {name} came. Use pk.Auto(), pk.NUTS() or pk.VI().")
    y, X = target.args
    if model.local is not None:
        model = with_local(model, None)
    resolved = _resolved(Target(model, (y, X)))
    seen = np.flatnonzero(~np.isnan(np.asarray(y)))
    if len(seen) == len(y):
        return resolved
    return Target(resolved.model, (y[seen], X[seen]))


def with_local(model: BNN, local: Any) -> BNN:
    """The net with another linearisation, or masks, or neither."""
    return eqx.tree_at(lambda m: m.local, model, local, is_leaf=lambda x: x is None or isinstance(x, Dropout | Local))


@eqx.filter_jit
def _resolved(target: Target) -> Target:
    return target.resolved()


def is_weight(target: Target) -> Bool[np.ndarray, " D"]:
    """Which entries of the unconstrained vector are weights of the net."""
    parts = [np.full(int(np.prod(shape)), name.startswith("net.")) for name, (_, shape) in target.sites().items()]
    return np.concatenate(parts)


def start_point(target: Target, key: Array, init: dict | None) -> Float[Array, " D"]:
    """Weights drawn from their prior, everything else at the median of 15 draws; ``init`` where given."""
    draws = jax.vmap(target.prior_draw)(jax.random.split(key, 15))
    u = jnp.where(jnp.asarray(is_weight(target)), draws[0], jnp.median(draws, axis=0))
    if init is None:
        return u
    values = target.evaluate(u).values
    return target.unconstrain(lambda name, law: init.get(name, values[name]))


def rows(target: Target, index: Any) -> Target:
    """The target on some of its rows."""
    y, X = target.args
    return Target(target.model, (y[index], X[index]))


@eqx.filter_jit
def _evaluated(target: Target, points: Float[Array, "S D"]) -> Evaluation:
    return target.map(target.evaluate, points)


def draws_at(target: Target, points: Float[Array, "S D"]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Values and log densities of points in unconstrained space, as one chain."""
    found = _evaluated(target, points)
    return one_chain(found, found.log_prior + found.log_likelihood)
