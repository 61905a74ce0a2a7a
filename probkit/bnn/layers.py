"""What KFAC needs of a net: the inputs of its dense layers, and the derivatives of f by their outputs."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from probkit.bnn.nets import Dense


def is_dense(node: Any) -> bool:
    """Whether a node of a net is a dense layer of vectors."""
    return isinstance(node, Dense | eqx.nn.Linear)


class Tap:
    """A layer that notes its input, and whose output is shifted."""

    def __init__(self, layer: Any, shift: Array, seen: list[Array]) -> None:
        self.layer, self.shift, self.seen = layer, shift, seen

    def __call__(self, x: Array, *, key: Any = None) -> Array:
        """The layer's output."""
        self.seen.append(x)
        return self.layer(x) + self.shift


def chosen(net: Any, where: tuple[int, ...]) -> list[int]:
    """Which leaves of the net, dense layers being leaves, hold the unknown arrays ``where``, whole and alone.

    Raises:
        ValueError: an unknown array stands elsewhere, or a layer is known in part.
    """
    leaves = jax.tree_util.tree_leaves(net, is_leaf=is_dense)
    found, position, covered = [], 0, []
    for i, leaf in enumerate(leaves):
        size = sum(map(eqx.is_inexact_array, jax.tree_util.tree_leaves(leaf)))
        inside = [p for p in range(position, position + size) if p in where]
        if is_dense(leaf) and leaf.weight.ndim == 2 and len(inside) == size:
            found.append(i)
            covered += inside
        position += size
    if sorted(covered) != sorted(where):
        raise ValueError(
            "structure='kfac' is for unknown weights in dense layers (pk.mlp, equinox.nn.Linear), weight and bias; the "
            "net holds others. Take layers='last' or structure='diagonal'."
        )
    return found


def layer_terms(
    model: Any, X: Float[Array, "n ..."], where: tuple[int, ...]
) -> tuple[Float[Array, "n k"], list[tuple[Float[Array, "n inputs"], Float[Array, "n k outputs"]]]]:
    """Latent values, and of each layer its inputs (a 1 after them for the bias) and the derivatives by its outputs."""
    net = model.net
    leaves, treedef = jax.tree_util.tree_flatten(net, is_leaf=is_dense)
    which = chosen(net, where)

    def one(x: Array) -> tuple:
        z = model.standardised(x[None])[0]

        def latent(shifts: list[Array]) -> tuple:
            seen: list[Array] = []
            tapped = list(leaves)
            for i, shift in zip(which, shifts, strict=True):
                tapped[i] = Tap(leaves[i], shift, seen)
            f = jnp.ravel(jax.tree_util.tree_unflatten(treedef, tapped)(z))
            if len(seen) != len(which):
                raise ValueError("structure='kfac' takes nets that use each dense layer once for a point.")
            f = model.likelihood.scaled(f[None], model.y_centre, model.y_scale)[0]
            return f, (f, seen)

        shifts = [jnp.zeros(leaves[i].weight.shape[0], leaves[i].weight.dtype) for i in which]
        slopes, (f, seen) = jax.jacrev(latent, has_aux=True)(shifts)
        inputs = [
            a if leaves[i].bias is None else jnp.append(a, jnp.ones((), a.dtype))
            for i, a in zip(which, seen, strict=True)
        ]
        return f, inputs, slopes

    f, inputs, slopes = jax.vmap(one)(X)
    return f, list(zip(inputs, slopes, strict=True))


def by_layer(flat: Array, shapes: list[tuple[int, int, bool]]) -> list[Array]:
    """The last axis of an array over all weights, (..., d), cut into layers: (..., outputs, inputs), the bias last.

    Args:
        flat: weights in the order of the net: the matrix of a layer by rows, then its bias.
        shapes: outputs, inputs and whether there is a bias, of each layer.
    """
    parts, start = [], 0
    for outputs, inputs, bias in shapes:
        end = start + outputs * inputs
        part = flat[..., start:end].reshape(*flat.shape[:-1], outputs, inputs)
        if bias:
            part = jnp.concatenate([part, flat[..., end : end + outputs, None]], axis=-1)
        parts.append(part)
        start = end + outputs * bias
    return parts


def by_weight(parts: list[Array], shapes: list[tuple[int, int, bool]]) -> Array:
    """The inverse of :func:`by_layer`."""
    out = []
    for part, (_, inputs, _) in zip(parts, shapes, strict=True):
        out.append(part[..., :inputs].reshape(*part.shape[:-2], -1))
        out.append(part[..., inputs:].reshape(*part.shape[:-2], -1))
    return jnp.concatenate(out, axis=-1)


def shapes_of(net: Any, where: tuple[int, ...]) -> list[tuple[int, int, bool]]:
    """Outputs, inputs and whether there is a bias, of the layers chosen."""
    leaves = jax.tree_util.tree_leaves(net, is_leaf=is_dense)
    return [(*leaves[i].weight.shape, leaves[i].bias is not None) for i in chosen(net, where)]
