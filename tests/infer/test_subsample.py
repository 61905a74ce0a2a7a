"""Minibatches: a shuffle that is one, epochs that leave no row out, and plates taken whole."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from helpers import tol
from numpy.testing import assert_allclose
from numpyro import handlers

from probkit.infer.subsample import FEW, Epochs, plates_of, shuffled
from probkit.infer.target import Target


@pytest.mark.parametrize("size", [1, 2, 7, FEW, FEW + 1, 2047, 2048, 2049, 10_007])
def test_every_row_comes_once(size):
    rows = np.asarray(shuffled(jnp.arange(size), jax.random.key(3), size))
    assert_allclose(np.sort(rows), np.arange(size))


def test_keys_shuffle_differently_and_evenly():
    keys = jax.random.split(jax.random.key(0), 2000)
    rows = np.asarray(jax.jit(jax.vmap(lambda key: shuffled(jnp.arange(2), key, 1500)))(keys))
    spread = 1500 / np.sqrt(12)
    assert_allclose(rows.mean(0), 749.5, atol=4 * spread / np.sqrt(2000))
    assert_allclose(rows.std(0), spread, rtol=0.05)
    assert abs(np.corrcoef(rows.T)[0, 1]) < 4 / np.sqrt(2000)


def line(x, batch):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", x.shape[0], subsample_size=batch) as i:
        numpyro.sample("y", dist.Normal(slope * x[i], 1.0), obs=x[i])


def batch_of(step, size=10, batch=3):
    fn = handlers.seed(Epochs(line, jax.random.key(1), jnp.asarray(step)), jax.random.key(2))
    return np.asarray(handlers.trace(fn).get_trace(jnp.arange(float(size)), batch)["rows"]["value"])


def test_an_epoch_repeats_no_row_and_the_next_is_another():
    first, second = (np.concatenate([batch_of(3 * epoch + k) for k in range(3)]) for epoch in (0, 1))
    assert len(np.unique(first)) == len(np.unique(second)) == 9
    assert np.any(first != second)


def test_a_target_takes_all_rows():
    x = jnp.linspace(-1.0, 2.0, 12)
    u = jnp.array([0.3])
    batched, whole = Target(line, (x, 4)), Target(line, (x, None))
    assert batched.sites() == whole.sites()
    assert_allclose(batched.log_density(u), whole.log_density(u), rtol=tol(1e-12, 1e-6))


def test_what_a_function_does_beside_sampling():
    def local(y):
        numpyro.param("a", 1.0)
        with numpyro.plate("rows", 10, subsample_size=2) as i, numpyro.plate("all", 3, dim=-2):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("y", dist.Normal(z, 1.0), obs=jnp.broadcast_to(y[i], (3, 2)))

    assert plates_of(local, (jnp.zeros(10),), {}) == ({"rows": (10, 2)}, ["z"], ["a"])
