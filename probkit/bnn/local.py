"""A net linearised around weights with a normal law: what Laplace's approximation predicts."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float

from probkit.bnn.ggn import kronecker_spread
from probkit.bnn.layers import by_layer, shapes_of
from probkit.model import Param, param

#: Draws of the latent value, in pairs, by which the expected entropy of classes is known.
ENTROPY_DRAWS = 32


def unknown_arrays(net: Any) -> list[Array]:
    """The inexact arrays of a net, in order."""
    return jax.tree_util.tree_leaves(eqx.filter(net, eqx.is_inexact_array))


class Local(eqx.Module):
    """Normal laws around the weights of each member: covariance ``F F'`` of the arrays in ``where``.

    Attributes:
        factors: (member, d, r) roots of the covariance, (member, d) standard deviations, or the roots of each layer as
            :func:`probkit.bnn.ggn.kronecker_inverse` gives them.
        where: positions of the arrays of the net that vary, in order; static.
        member: which member the weights in hand are.
    """

    factors: Any
    member: Param = param()
    where: tuple[int, ...] = eqx.field(static=True, default=())
    kind: ClassVar[str] = "linearised"

    def jacobian(self, model: Any, X: Float[Array, "n ..."]) -> tuple[Array, Float[Array, "n outputs d"]]:
        """Latent values and their derivatives by the weights that vary."""
        return jacobian(model, X, self.where)

    def law(self, model: Any, X: Float[Array, "n ..."]) -> dist.Distribution:
        """The law of y with the weights integrated out, f being linear in them."""
        f, J = self.jacobian(model, X)
        at = jnp.round(self.member).astype(int)
        take = lambda a: jax.lax.dynamic_index_in_dim(a, at, keepdims=False)
        factor = jax.tree_util.tree_map(take, self.factors)
        if isinstance(factor, tuple):
            pairs = zip(by_layer(J, shapes_of(model.net, self.where)), factor, strict=True)
            spread = jnp.concatenate([kronecker_spread(part, root) for part, root in pairs], axis=-1)
        else:
            spread = J * factor if factor.ndim == 1 else J @ factor
        covariance = spread @ jnp.swapaxes(spread, 1, 2)
        law = model.likelihood.marginal(f, covariance).to_event(1)
        # Read by predictions, to tell the noise from what more data would teach.
        if model.likelihood.discrete == "classes":
            law.expected_entropy = _expected_entropy(model.likelihood, f, spread)
        else:
            law.noise_variance = model.likelihood.law(f).variance
        return law


def jacobian(model: Any, X: Float[Array, "n ..."], where: tuple[int, ...]) -> tuple[Array, Array]:
    """Latent values (n, outputs) and their derivatives (n, outputs, d) by the chosen arrays of the net."""
    arrays, treedef = jax.tree_util.tree_flatten(eqx.filter(model.net, eqx.is_inexact_array))
    rest = eqx.filter(model.net, eqx.is_inexact_array, inverse=True)

    def one(x: Array) -> tuple[Array, Array]:
        def latent(chosen: list[Array]) -> tuple[Array, Array]:
            all_ = list(arrays)
            for i, a in zip(where, chosen, strict=True):
                all_[i] = a
            net = eqx.combine(jax.tree_util.tree_unflatten(treedef, all_), rest)
            f = eqx.tree_at(lambda m: m.net, model, net).latent(x[None])[0]
            return f, f

        slopes, f = jax.jacrev(latent, has_aux=True)([arrays[i] for i in where])
        return f, jnp.concatenate([s.reshape(f.shape[0], -1) for s in slopes], axis=1)

    return jax.vmap(one)(X)


def _expected_entropy(likelihood: Any, f: Float[Array, "n k"], spread: Float[Array, "n k r"]) -> Float[Array, " n"]:
    """Entropy of the class given f, on average over f, by fixed antithetic draws."""
    e = jax.random.normal(jax.random.key(0), (ENTROPY_DRAWS // 2, spread.shape[-1]), f.dtype)
    moved = jnp.einsum("nkr,sr->snk", spread, jnp.concatenate([e, -e]))
    each = lambda g: likelihood.law(g).entropy() if likelihood.outputs > 1 else binary_entropy(jax.nn.sigmoid(g[:, 0]))
    return jnp.mean(jax.vmap(each)(f + moved), axis=0)


def binary_entropy(p: Array) -> Array:
    """Entropy of a Bernoulli, in nats."""
    return -(jax.scipy.special.xlogy(p, p) + jax.scipy.special.xlogy(1 - p, 1 - p))


#: Seeds of dropout masks are below this, which float32 counts without gaps.
SEEDS = 2**24


class Dropout(eqx.Module):
    """A net some of whose hidden units are left out: the columns of its weights times a mask, ``W diag(z)``.

    One mask holds for all points, so that a draw is a function.

    Attributes:
        rate: share of the units left out; static.
        seed: which mask.

    References:
        Gal and Ghahramani (2016), Dropout as a Bayesian approximation, equation 3.
    """

    rate: float = eqx.field(static=True)
    seed: Param = param()

    def law(self, model: Any, X: Float[Array, "n ..."]) -> dist.Distribution:
        """The law of y given the weights and the mask."""
        key = jax.random.key(jax.lax.stop_gradient(jnp.round(self.seed)).astype(jnp.uint32))
        net = masked(model.net, key, self.rate)
        return model.likelihood.law(eqx.tree_at(lambda m: m.net, model, net).latent(X)).to_event(1)


def masked(net: Any, key: Array, rate: float) -> Any:
    """The net without a random share of the inputs of each array of weights but the first, the rest scaled up.

    Raises:
        ValueError: the net has one array of weights alone, and so no hidden units.
    """
    flat, treedef = jax.tree_util.tree_flatten_with_path(net)
    name = lambda path: getattr(path[-1], "key", getattr(path[-1], "name", ""))
    weight = lambda path, leaf: eqx.is_inexact_array(leaf) and leaf.ndim >= 2 and name(path) != "bias"
    held = [i for i, (path, leaf) in enumerate(flat) if weight(path, leaf)]
    if len(held) < 2:
        raise ValueError("The net has no hidden units to leave out; dropout takes a net of two layers or more.")
    leaves = [leaf for _, leaf in flat]
    for i, k in zip(held[1:], jax.random.split(key, len(held) - 1), strict=True):
        # Inputs stand second, or last but one in a ``kernel`` (Flax's name).
        axis = leaves[i].ndim - 2 if name(flat[i][0]) == "kernel" else 1
        shape = [size if a == axis else 1 for a, size in enumerate(leaves[i].shape)]
        kept = jax.random.bernoulli(k, 1 - rate, shape)
        leaves[i] = jnp.where(kept, leaves[i] / (1 - rate), 0.0)
    return jax.tree_util.tree_unflatten(treedef, leaves)
