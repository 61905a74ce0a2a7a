"""EM for variances: never downhill, ends where `pk.MLE` does, and its step is the mean of expected squares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tol
from numpy.testing import assert_allclose

import probkit as pk
from probkit.ssm import components, em, smoother, structured
from probkit.ssm.components import Structure

Y = np.array(pk.datasets.nile()) / 100.0
Y[[3, 50, 51]] = np.nan


def local_level(p) -> Structure:
    return components.assemble([components.level(p[0])], p[1], p.dtype)


def test_em_climbs_to_the_optimum_of_the_nile():
    found = em.maximise(local_level, Y, [0.5, 0.5], 400)
    slack = tol(1e-9, 2e-3)
    assert (np.diff(found.log_likelihoods) > -slack).all()
    assert found.log_likelihoods[-1] > found.log_likelihoods[0] + 10
    slope = jax.jit(jax.grad(lambda p: structured.log_likelihood(Y, local_level(p))))(found.variances)
    assert_allclose(slope * found.variances, 0, atol=tol(1e-2, 5e-2))


@pytest.mark.slow
def test_em_ends_where_mle_does():
    found = em.maximise(local_level, Y, [0.5, 0.5], 2000)
    best = pk.fit(pk.LocalLevel(), Y, key=jax.random.key(0), method=pk.MLE())
    assert_allclose(found.log_likelihoods[-1], best.outcome.stats["log_likelihood"].item(), atol=tol(1e-6, 5e-3))
    scales = [best.sites[name].item() for name in ("level_scale", "obs_scale")]
    assert_allclose(np.sqrt(found.variances), scales, rtol=tol(1e-3, 1e-2))


@pytest.mark.once
def test_a_step_is_the_mean_of_expected_squares():
    """From the smoothed states and their covariances: a dense twin, by draws of the states."""
    p = jnp.asarray([0.2, 1.5])
    step = em.maximise(local_level, Y, p, 1).variances
    s = local_level(p)
    draw = jax.vmap(lambda key: smoother.simulate_states(key, jnp.asarray(Y), s.matrices(), s.start()))
    levels = np.asarray(jax.jit(draw)(jax.random.split(jax.random.key(1), 4000)))[..., 0]
    assert_allclose(step[0], np.mean(np.diff(levels, axis=1) ** 2), rtol=0.01)
    assert_allclose(step[1], np.nanmean((Y - levels) ** 2), rtol=0.01)


@pytest.mark.slow
def test_tied_variances_of_a_season():
    y = np.random.default_rng(0).normal(size=60) + np.tile([1.0, -1.0, 2.0, -2.0], 15)
    times = np.arange(60)

    def build(p):
        return components.assemble(
            [components.level(p[0]), components.trigonometric(p[1], 4.0, 2, times)], p[2], p.dtype
        )

    found = em.maximise(build, y, [0.1, 0.1, 0.5], 60)
    assert (np.diff(found.log_likelihoods) > -1e-9).all() and (found.variances > 0).all()


def test_wrong_arguments():
    y = np.arange(9.0)
    with pytest.raises(ValueError, match="not negative"):
        em.maximise(local_level, y, [-1.0, 1.0])
    with pytest.raises(ValueError, match="first state"):
        em.maximise(lambda p: components.assemble([components.cycle(p[0], 5.0, 0.5)], p[1], p.dtype), y, [1.0, 1.0])
    with pytest.raises(ValueError, match=r"start\[2\]"):
        em.maximise(local_level, y, [1.0, 1.0, 1.0])
