"""Places for the weights of a net: which arrays are unknown, how each is scaled, and the scales of their priors."""

import dataclasses
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array
from numpyro.distributions import constraints

from probkit.bnn.nets import Unset
from probkit.model import Default, Given, Param, param


class Weights(eqx.Module):
    """The prior of weights: normal with standard deviation ``scale / sqrt(fan-in)``.

    Args:
        scale: one number, or one for each array of weights in order (pass ``scale=[...]``), or a prior for either:
            ``dist.HalfNormal(1.0).expand([4]).to_event(1)`` is a hierarchy with a scale for each of four arrays.
        fan_in: whether arrays of two axes and more are divided by the root of what they sum over, so that the prior of
            the function does not grow with the width. Vectors (biases) have the scale as it is.
        unknown: ``"all"``; or ``"last"``, the last layer alone, the rest fixed at the numbers the net came with.
    """

    scale: Param = param(support=constraints.positive, default=1.0)
    fan_in: bool = eqx.field(static=True, default=True)
    unknown: str = eqx.field(static=True, default="all")

    def __check_init__(self) -> None:
        if self.unknown not in ("all", "last"):
            raise ValueError(f"unknown is {self.unknown!r}; 'all' or 'last' is wanted.")


@dataclasses.dataclass(frozen=True)
class WeightLaw:
    """The prior of one array, made from the scales of the model that holds it; a function for ``given``."""

    shape: tuple[int, ...]
    fan: int
    group: int
    centre: float

    def __call__(self, model: Any) -> dist.Distribution:
        """Normal around the centre."""
        scale = jnp.asarray(model.prior.scale)
        sd = (scale[self.group] if scale.ndim else scale) / self.fan**0.5
        return dist.Normal(jnp.asarray(self.centre, sd.dtype), sd).expand(self.shape).to_event(len(self.shape))


@dataclasses.dataclass(frozen=True)
class Waiting:
    """The place of an array whose shape waits for the width of the input; a function for a default."""

    shape: tuple[int | str, ...]
    fan_in: bool
    group: int

    def __call__(self, module: Any, y: Any, X: Any) -> Given:
        """The place, now that X is known."""
        if X is None:
            raise TypeError("BNN needs X: pk.fit(pk.BNN(...), y, X, key=key).")
        width = math.prod(X.shape[1:])
        shape = tuple(width if size == "inputs" else int(size) for size in self.shape)
        return Given(WeightLaw(shape, _fan(shape, "weight") if self.fan_in else 1, self.group, 0.0))


def _name(path: tuple) -> str:
    last = path[-1]
    return str(getattr(last, "name", getattr(last, "key", getattr(last, "idx", ""))))


def _fan(shape: tuple[int, ...], name: str) -> int:
    """What an array sums over: all but the outputs, which stand first, or last in a ``kernel`` (Flax's name)."""
    if len(shape) < 2 or name == "bias":
        return 1
    return math.prod(shape[:-1] if name in ("kernel", "embedding") else shape[1:])


def with_places(net: Any, outputs: int, fan_in: bool, unknown: str) -> Any:
    """The net with a place for a prior where an unknown array was."""
    flat, treedef = jax.tree_util.tree_flatten_with_path(net)
    held = [i for i, (_, leaf) in enumerate(flat) if isinstance(leaf, Unset) or eqx.is_inexact_array(leaf)]
    if not held:
        raise ValueError(f"net is {type(net).__name__}, which holds no arrays of weights.")
    chosen = held if unknown == "all" else [i for i in held if flat[i][0][:-1] == flat[held[-1]][0][:-1]]
    leaves = [leaf for _, leaf in flat]
    for group, i in enumerate(chosen):
        leaves[i] = _place(flat[i][0], leaves[i], group, outputs, fan_in)
    if any(isinstance(leaf, Unset) for leaf in leaves):
        raise ValueError("unknown='last' fixes the other layers at the numbers of the net, and pk.mlp() has none yet.")
    return jax.tree_util.tree_unflatten(treedef, leaves)


def _place(path: tuple, leaf: Any, group: int, outputs: int, fan_in: bool) -> Any:
    name = _name(path)
    if isinstance(leaf, Unset):
        shape = tuple(outputs if size == "outputs" else size for size in leaf.shape)
        if "inputs" in shape:
            return Default(Waiting(shape, fan_in, group))
        whole = tuple(int(size) for size in shape)
        return Given(WeightLaw(whole, _fan(whole, name) if fan_in else 1, group, 0.0))
    # The gains of a normalisation layer start at 1, and their prior stands around it.
    gain = leaf.ndim < 2 and name != "bias" and bool(jnp.all(leaf == 1))
    return Given(WeightLaw(leaf.shape, _fan(leaf.shape, name) if fan_in else 1, group, float(gain)))


def flat_weights(net: Any) -> Array:
    """All inexact arrays of a net in one vector."""
    return jnp.concatenate([jnp.ravel(a) for a in jax.tree_util.tree_leaves(eqx.filter(net, eqx.is_inexact_array))])
