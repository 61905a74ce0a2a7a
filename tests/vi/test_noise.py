"""Fixed noise: the moments of every block, and means over blocks."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tol
from numpy.testing import assert_allclose

from probkit.vi.noise import fixed_noise, over_blocks, pairs_in_block

DIMS = (1, 3, 30, 64, 65)


@cache
def noises():
    """Three blocks of one key and of another, by dimension.

    A program each, not one for all: see `conftest.py`, on decompositions side by side.
    """
    dtype, found = jnp.result_type(float), [{}, {}]
    for dim in DIMS:
        make = jax.jit(lambda key, dim=dim: fixed_noise(key, 3, dim, dtype))
        for i in (0, 1):
            found[i][dim] = np.asarray(make(jax.random.key(i)))
    return found


def test_pairs_in_a_block():
    assert [pairs_in_block(dim) for dim in (1, 8, 9, 16, 17, 64, 65, 5000)] == [16, 16, 32, 32, 64, 128, 16, 16]


@pytest.mark.parametrize("dim", DIMS)
def test_moments_of_every_block(dim):
    """The mean is 0 by the signs; the covariance I to rounding up to 64 dimensions, its diagonal above."""
    z = noises()[0][dim]
    assert z.shape == (3, pairs_in_block(dim), dim) and z.dtype == jnp.result_type(float)
    assert np.isfinite(z).all()
    for block in np.asarray(z, float):
        second = block.T @ block / len(block)
        if dim > 64:
            assert_allclose(np.diagonal(second), 1, rtol=tol(1e-12, 1e-5))
        else:
            assert_allclose(second, np.eye(dim), atol=tol(1e-10, 1e-4))


@pytest.mark.parametrize("dim", DIMS)
def test_keys_and_blocks_differ(dim):
    one, other = (found[dim] for found in noises())
    assert np.max(np.abs(one - other)) > 0.1 and np.max(np.abs(one[0] - one[1])) > 0.1


def test_it_is_normal_noise():
    """Fourth moments of a standard normal are 3, and its quantiles those of the points in one dimension."""
    z = np.asarray(noises()[0][3], float).reshape(-1, 3)
    assert_allclose(np.mean(z**4, axis=0), 3, atol=1.0)
    both = np.sort(np.abs(np.asarray(noises()[0][1], float).ravel()))
    assert_allclose(np.quantile(both, [0.25, 0.5, 0.75]), [0.319, 0.674, 1.150], atol=0.15)


def test_mean_over_blocks():
    """For any number of blocks, traced or not, in a batch or one after the other: the plain mean over both signs."""
    z = jnp.asarray(noises()[0][3])
    term = lambda z: {"exp": jnp.exp(0.3 * jnp.sum(z)), "point": z**3 + z**2}
    each = lambda fn, stack: jax.vmap(fn)(stack)
    one_by_one = lambda fn, stack: jax.lax.map(fn, stack)
    traced = jax.jit(lambda blocks: [over_blocks(term, z, blocks, run) for run in (each, one_by_one)])
    for blocks in (1, 2, 3):
        points = np.asarray(z[:blocks], float).reshape(-1, 3)
        points = np.concatenate([points, -points])
        for found in traced(blocks):
            assert_allclose(found["exp"], np.exp(0.3 * points.sum(1)).mean(), rtol=tol(1e-12, 1e-5))
            assert_allclose(found["point"], (points**2).mean(0), rtol=tol(1e-10, 1e-4))
    static = jax.jit(lambda: over_blocks(term, z, 2, each))()
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=tol(1e-12, 1e-5)), static, traced(2)[0])
