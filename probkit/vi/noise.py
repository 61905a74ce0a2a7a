"""Fixed standard normal noise for deterministic variational inference: antithetic, moment-matched, quasi-random."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri
from jaxtyping import Array, Float, Int, PRNGKeyArray

#: The fewest antithetic pairs in a block of noise.
LEAST_PAIRS = 16
#: The largest dimension whose blocks have enough pairs (twice the dimension) to match all second moments.
MATCHED_MAX_DIM = 64


def pairs_in_block(dim: int) -> int:
    """Antithetic pairs in one block: a power of two, at least twice the dimension where that is at most 64."""
    if dim > MATCHED_MAX_DIM:
        return LEAST_PAIRS
    return max(LEAST_PAIRS, 1 << (2 * dim - 1).bit_length())


def fixed_noise(key: PRNGKeyArray, blocks: int, dim: int, dtype: Any) -> Float[Array, "block pair D"]:
    """Halves z of antithetic pairs (z, -z), in blocks that each have mean 0 and covariance I over their pairs.

    The points are Sobol's, shifted at random (Cranley and Patterson 1976), brought to normal by the inverse
    distribution function and whitened block by block, so that any number of blocks integrates every quadratic exactly:
    the answer for a Gaussian target is free of Monte Carlo error. Above 64 dimensions a block has 16 independent pairs,
    each coordinate scaled to variance 1, and only means are exact.

    Args:
        key: fixes the shift.
        blocks: number of blocks.
        dim: dimension D.
        dtype: float dtype.

    References:
        Giordano, Ingram and Broderick (2024), Black box variational inference with a deterministic objective, JMLR 25.
        Buchholz, Wenzel and Mandt (2018), Quasi-Monte Carlo variational inference, ICML.
    """
    pairs = pairs_in_block(dim)
    if dim > MATCHED_MAX_DIM:
        z = jax.random.normal(key, (blocks, pairs, dim), dtype)
        return z / jnp.sqrt(jnp.mean(z**2, axis=1, keepdims=True))
    shifted = (jnp.asarray(_sobol(blocks * pairs, dim), dtype) + jax.random.uniform(key, (dim,), dtype)) % 1.0
    half_step = 0.5 / (blocks * pairs)
    z = ndtri(jnp.clip(shifted, half_step, 1 - half_step)).reshape(blocks, pairs, dim)
    # One after the other: XLA:CPU hangs at times on batched factorisations.
    return jax.lax.map(_whitened, z)


def _sobol(count: int, dim: int) -> np.ndarray:
    """Sobol's points, the same for every key: a constant of the program."""
    from scipy.stats import qmc

    # SciPy warns about counts that are no power of two, which blocks matched one by one do not mind.
    return qmc.Sobol(dim, scramble=False).random_base2((count - 1).bit_length())[:count]


def _whitened(z: Float[Array, "pair D"]) -> Float[Array, "pair D"]:
    """Points with second moments I, by the symmetric root, which moves them least."""
    values, vectors = jnp.linalg.eigh(z.T @ z / z.shape[0], symmetrize_input=True)
    return z @ (vectors / jnp.sqrt(values)) @ vectors.T


def over_blocks(
    term: Callable, noise: Float[Array, "block pair D"], blocks: Int[Array, ""] | int, each: Callable
) -> Any:
    """The mean of ``term(z)`` over the draws z and -z of the first so many blocks.

    Args:
        term: z -> a pytree of arrays.
        noise: halves of antithetic pairs.
        blocks: how many blocks count; may be traced, so that one program serves every number.
        each: ``each(fn, stack)`` runs a function over a leading axis: `jax.vmap`, or one after the other.
    """

    def add(i: Array, total: Any) -> Any:
        z = noise[i]
        found = each(term, jnp.concatenate([z, -z]))
        return jax.tree_util.tree_map(lambda t, f: t + jnp.mean(f, axis=0), total, found)

    shapes = jax.eval_shape(term, noise[0, 0])
    zero = jax.tree_util.tree_map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    total = jax.lax.fori_loop(0, blocks, add, zero)
    return jax.tree_util.tree_map(lambda t: t / blocks, total)
