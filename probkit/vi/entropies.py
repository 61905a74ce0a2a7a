"""Entropies in closed form: NumPyro's, and those it lacks or gets wrong at the edge."""

import math
from functools import singledispatch

import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import i0e, i1e
from jaxtyping import Array
from numpyro.distributions import Distribution

from probkit.vi.closed_forms import BERNOULLI, CATEGORICAL, GEOMETRIC, log_table


@singledispatch
def closed_entropy(p: Distribution) -> Array:
    """Entropy in closed form, in nats; of the batch shape or a shape that broadcasts to it.

    Raises:
        NotImplementedError: if there is none.
    """
    return p.entropy()


@closed_entropy.register(dist.Independent)
def _(p):
    inner = jnp.broadcast_to(closed_entropy(p.base_dist), p.base_dist.batch_shape)
    return jnp.sum(inner, range(-p.reinterpreted_batch_ndims, 0))


@closed_entropy.register(dist.ExpandedDistribution)
def _(p):
    return jnp.broadcast_to(closed_entropy(p.base_dist), p.batch_shape)


def _table_entropy(p):
    """NumPyro's is NaN for logits far from 0, or of -inf."""
    probs, logs = log_table(p)
    possible = probs > 0
    return -jnp.sum(jnp.where(possible, probs * jnp.where(possible, logs, 0), 0), -1)


for _family in BERNOULLI + CATEGORICAL:
    closed_entropy.register(_family)(_table_entropy)
for _family in GEOMETRIC:
    closed_entropy.register(_family)(lambda p: _table_entropy(p) / log_table(p)[0][..., 1])
closed_entropy.register(dist.HalfNormal)(lambda p: jnp.log(p.scale) + (1 + math.log(math.pi / 2)) / 2)
closed_entropy.register(dist.HalfCauchy)(lambda p: jnp.log(2 * math.pi * jnp.asarray(p.scale)))
closed_entropy.register(dist.Gumbel)(lambda p: jnp.log(p.scale) + 1 + jnp.euler_gamma)


@closed_entropy.register(dist.VonMises)
def _(p):
    kappa = p.concentration
    return math.log(2 * math.pi) + jnp.log(i0e(kappa)) + kappa * (1 - i1e(kappa) / i0e(kappa))


@closed_entropy.register(dist.GaussianRandomWalk)
def _(p):
    return p.num_steps * (jnp.log(p.scale) + (1 + math.log(2 * math.pi)) / 2)
