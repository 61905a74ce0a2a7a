"""Nets as pytrees: a multilayer perceptron whose input width may wait for the data, and any pure function."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

#: Activations by name.
ACTIVATIONS: dict[str, Callable] = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "softplus": jax.nn.softplus,
}


@dataclasses.dataclass(frozen=True)
class Unset:
    """An array still to be given: its shape, in which "inputs" and "outputs" wait for the data."""

    shape: tuple[int | str, ...]


class Dense(eqx.Module):
    """``x -> W x + b``.

    Attributes:
        weight: (outputs, inputs).
        bias: (outputs,).
    """

    weight: Any
    bias: Any

    def __call__(self, x: Float[Array, " inputs"]) -> Float[Array, " outputs"]:
        """The affine map."""
        return self.weight @ x + self.bias


class MLP(eqx.Module):
    """A multilayer perceptron: dense layers with an activation between them.

    Attributes:
        layers: the dense layers, the first to read the inputs and the last to give the outputs.
        activation: its name in ``ACTIVATIONS``, or a function.
    """

    layers: tuple[Dense, ...]
    activation: str | Callable = eqx.field(static=True, default="tanh")

    def __call__(self, x: Float[Array, "*inputs"]) -> Float[Array, " outputs"]:
        """The outputs of one point; an input with several axes is flattened."""
        act = ACTIVATIONS[self.activation] if isinstance(self.activation, str) else self.activation
        x = self.layers[0](jnp.ravel(x))
        for layer in self.layers[1:]:
            x = layer(act(x))
        return x


def mlp(sizes: int | tuple[int, ...] | list[int], activation: str | Callable = "tanh") -> MLP:
    """A multilayer perceptron to be put in :class:`probkit.BNN`; widths of input and output come from the data.

    Args:
        sizes: widths of the hidden layers, as in ``mlp([50])`` or ``mlp(50)``; ``mlp([])`` is a linear model.
        activation: ``"tanh"``, ``"relu"``, ``"gelu"``, ``"silu"``, ``"softplus"``, or a function of arrays (static).

    Raises:
        ValueError: a width that is no positive whole number, an unknown activation.
    """
    widths = [sizes] if isinstance(sizes, int) else list(sizes)
    if any(isinstance(w, bool) or not isinstance(w, int) or w < 1 for w in widths):
        raise ValueError(f"sizes is {sizes!r}; positive whole numbers are wanted: the widths of the hidden layers.")
    if isinstance(activation, str) and activation not in ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}; one of {sorted(ACTIVATIONS)} or a function is wanted.")
    ends: list[int | str] = ["inputs", *widths, "outputs"]
    layers = tuple(Dense(Unset((b, a)), Unset((b,))) for a, b in itertools.pairwise(ends))
    return MLP(layers, activation)


class Applied(eqx.Module):
    """A pure function with its parameters: ``apply(params, X)`` on a whole batch.

    Attributes:
        params: a pytree of arrays.
        apply: the function; static, so a new one compiles again.
    """

    params: Any
    apply: Callable = eqx.field(static=True)

    def __call__(self, X: Float[Array, "n ..."]) -> Float[Array, "n *outputs"]:
        """The outputs of a batch."""
        return self.apply(self.params, X)


def forward(net: Any, X: Float[Array, "n ..."]) -> Float[Array, "n outputs"]:
    """The outputs of any net for a batch, (n, outputs)."""
    f = net(X) if isinstance(net, Applied) else jax.vmap(net)(X)
    return f[:, None] if f.ndim == 1 else f
