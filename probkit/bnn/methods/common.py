"""What the methods for nets share: the target they train on, its layout, and how an answer is put together."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from numpyro.distributions import biject_to

from probkit.bnn.local import Dropout, Local
from probkit.bnn.model import BNN
from probkit.bnn.weights import WeightLaw
from probkit.infer.method import one_chain
from probkit.infer.target import Evaluation, Target
from probkit.model import Given, is_place


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


def weight_priors(target: Target) -> tuple[Float[Array, " D"], Float[Array, " D"]]:
    """Mean and scale (standard deviation times the root of the fan-in) of every weight; 0 and 1 for everything else."""

    def draw(name: str, law: Any, scale: Any = None) -> Array:
        zero = jnp.zeros(sites[name][1], target.dtype)
        inside = name.startswith("net.")
        means.append(jnp.ravel(law.mean if inside else zero))
        sds.append(jnp.ravel(jnp.sqrt(law.variance) if inside else zero + 1))
        return law.mean if inside else biject_to(law.support)(zero)

    sites, means, sds = target.sites(), list[Array](), list[Array]()
    target.execute(draw)
    places = jax.tree_util.tree_leaves(target.model.net, is_leaf=is_place)
    laws = [place.fn for place in places if isinstance(place, Given) and isinstance(place.fn, WeightLaw)]
    held = is_weight(target)
    root = np.ones(held.size)
    root[held] = np.concatenate([np.full(int(np.prod(law.shape)), law.fan**0.5) for law in laws])
    return jnp.concatenate(means), jnp.concatenate(sds) * jnp.asarray(root, target.dtype)


def start_point(target: Target, key: Array, init: dict | None) -> Float[Array, " D"]:
    """Weights drawn from their prior, everything else at the median of 15 draws; ``init`` where given.

    Weights of a prior of more than unit scale are drawn at unit scale: larger ones saturate a net before it learns.
    """
    draws = jax.vmap(target.prior_draw)(jax.random.split(key, 15))
    mean, scale = weight_priors(target)
    weights = mean + (draws[0] - mean) / jnp.maximum(scale, 1.0)
    u = jnp.where(jnp.asarray(is_weight(target)), weights, jnp.median(draws, axis=0))
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
