"""Nets as pytrees: a multilayer perceptron whose input width may wait for the data, and any pure function."""

import dataclasses
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
    """A multilayer perceptron: dense layers with an activation, and perhaps dropout, between them.

    Attributes:
        layers: the dense layers, the first to read the inputs and the last to give the outputs.
        activation: its name in ``ACTIVATIONS``, or a function.
        dropout: share of hidden units dropped where a key is given.
    """

    layers: tuple[Dense, ...]
    activation: str | Callable = eqx.field(static=True, default="tanh")
    dropout: float = eqx.field(static=True, default=0.0)

    def __call__(self, x: Float[Array, "*inputs"], key: Any = None) -> Float[Array, " outputs"]:
        """The outputs of one point; an input with several axes is flattened."""
        return self.trace(x, key)[0]

    def trace(self, x: Float[Array, "*inputs"], key: Any = None) -> tuple[Array, list[Array]]:
        """The outputs of one point, and what each layer reads."""
        act = ACTIVATIONS[self.activation] if isinstance(self.activation, str) else self.activation
        x, read = jnp.ravel(x), []
        for i, layer in enumerate(self.layers):
            if i:
                x = act(x)
                if key is not None and self.dropout > 0:
                    kept = jax.random.bernoulli(jax.random.fold_in(key, i), 1 - self.dropout, x.shape)
                    x = jnp.where(kept, x / (1 - self.dropout), 0.0)
            read.append(x)
            x = layer(x)
        return x, read


def mlp(sizes: int | tuple[int, ...] | list[int], activation: str | Callable = "tanh", dropout: float = 0.0) -> MLP:
    """A multilayer perceptron to be put in :class:`probkit.BNN`; widths of input and output come from the data.

    Args:
        sizes: widths of the hidden layers, as in ``mlp([50])`` or ``mlp(50)``; ``mlp([])`` is a linear model.
        activation: ``"tanh"``, ``"relu"``, ``"gelu"``, ``"silu"``, ``"softplus"``, or a function of arrays (static).
        dropout: share of hidden units that :class:`probkit.bnn.MCDropout` drops.

    Raises:
        ValueError: a width that is no positive whole number, an unknown activation, a share outside [0, 1).
    """
    widths = [sizes] if isinstance(sizes, int) else list(sizes)
    if any(isinstance(w, bool) or not isinstance(w, int) or w < 1 for w in widths):
        raise ValueError(f"sizes is {sizes!r}; positive whole numbers are wanted: the widths of the hidden layers.")
    if isinstance(activation, str) and activation not in ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}; one of {sorted(ACTIVATIONS)} or a function is wanted.")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout!r}; a share in [0, 1) is wanted.")
    ends: list[int | str] = ["inputs", *widths, "outputs"]
    layers = tuple(Dense(Unset((b, a)), Unset((b,))) for a, b in zip(ends[:-1], ends[1:], strict=True))
    return MLP(layers, activation, dropout)


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
