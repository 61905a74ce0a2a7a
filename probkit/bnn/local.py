"""A net linearised around weights with a normal law: what Laplace's approximation predicts."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float

from probkit.model import Param, param

#: Draws of the latent value, in pairs, by which the expected entropy of classes is known.
ENTROPY_DRAWS = 32


def unknown_arrays(net: Any) -> list[Array]:
    """The inexact arrays of a net, in order."""
    return jax.tree_util.tree_leaves(eqx.filter(net, eqx.is_inexact_array))


class Local(eqx.Module):
    """Normal laws around the weights of each member: covariance ``F F'`` of the arrays in ``where``.

    Attributes:
        factors: (member, d, r) roots of the covariance, or (member, d) standard deviations.
        where: positions of the arrays of the net that vary, in order; static.
        member: which member the weights in hand are.
    """

    factors: Array
    member: Param = param()
    where: tuple[int, ...] = eqx.field(static=True, default=())
    kind: ClassVar[str] = "linearised"

    def jacobian(self, model: Any, X: Float[Array, "n ..."]) -> tuple[Array, Float[Array, "n outputs d"]]:
        """Latent values and their derivatives by the weights that vary."""
        return jacobian(model, X, self.where)

    def law(self, model: Any, X: Float[Array, "n ..."]) -> dist.Distribution:
        """The law of y with the weights integrated out, f being linear in them."""
        f, J = self.jacobian(model, X)
        factor = jax.lax.dynamic_index_in_dim(self.factors, jnp.round(self.member).astype(int), keepdims=False)
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
