"""Pareto smoothing, held against ArviZ and against weights of known shape."""

from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tol
from numpy.testing import assert_allclose

from probkit.math.psis import effective_sample_size, fit_generalised_pareto, khat_threshold, pareto_smooth, tail_length

WEIGHTS = {
    "normal": lambda rng, size: rng.normal(size=size),
    "heavy": lambda rng, size: 1.1 * rng.exponential(size=size),
    "very heavy": lambda rng, size: rng.standard_t(3, size=size),
    "light": lambda rng, size: -rng.exponential(size=size),
    "nearly equal": lambda rng, size: 1e-2 * rng.normal(size=size),
}


@pytest.fixture(autouse=True)
def strict():
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


def arviz(log_weights):
    """ArviZ takes negative log weights."""
    from arviz_stats.base import array_stats

    return array_stats.psislw(-np.asarray(log_weights, np.float64))


@pytest.mark.parametrize("size", [25, 100, 226, 1000, 4000])
@pytest.mark.parametrize("kind", WEIGHTS)
def test_arviz(kind, size):
    if size == 25 and int(version("arviz-stats").split(".")[0]) >= 1:
        pytest.skip("ArviZ 1 treats a tail of five draws in another way than ArviZ 0.8")
    log_weights = jnp.asarray(WEIGHTS[kind](np.random.default_rng(size), size))
    smoothed, k = pareto_smooth(log_weights)
    expected, expected_k = arviz(log_weights)
    assert smoothed.dtype == k.dtype == log_weights.dtype
    assert_allclose(smoothed, expected, atol=tol(1e-8, 2e-3))
    assert_allclose(k, expected_k, atol=tol(1e-8, 1e-2))


@pytest.mark.parametrize("shape", [0.2, 0.5, 0.9, 1.2])
def test_the_shape_of_pareto_weights_is_found(shape):
    """w = U^-shape has a Pareto tail of that shape; one fit errs by (1 + k) / sqrt(M), M = 424."""
    log_weights = shape * np.random.default_rng(0).exponential(size=(20, 20_000))
    k = jax.vmap(pareto_smooth)(jnp.asarray(log_weights))[1]
    error = (1 + shape) / np.sqrt(tail_length(20_000))
    assert abs(np.mean(k) - shape) < 4 * error / np.sqrt(20) + 0.02  # the prior draws k towards 0.5 by (k - 0.5) 10 / M
    assert_allclose(np.std(k), error, rtol=0.6)


def test_a_constant_added_changes_nothing():
    log_weights = jnp.asarray(np.random.default_rng(1).normal(size=1000))
    for constant in (-700.0, 500.0):
        for a, b in zip(pareto_smooth(log_weights + constant), pareto_smooth(log_weights), strict=True):
            assert_allclose(a, b, atol=tol(1e-9, 2e-3))


def test_the_result_is_normalised_in_the_old_order_and_capped():
    log_weights = jnp.asarray(2 * np.random.default_rng(2).normal(size=1000))
    smoothed, _ = pareto_smooth(log_weights)
    assert_allclose(np.exp(smoothed).sum(), 1, rtol=tol(1e-12, 1e-5))
    assert (np.argsort(smoothed, stable=True) == np.argsort(log_weights, stable=True)).mean() > 0.99
    body = np.argsort(log_weights)[: 1000 - tail_length(1000)]
    shift = np.asarray(smoothed - log_weights)
    assert_allclose(shift[body], shift[body[0]], atol=tol(1e-12, 1e-5))
    assert np.max(smoothed) <= np.max(log_weights) + shift[body[0]] + tol(1e-12, 1e-5)


@pytest.mark.parametrize("noise", [0.0, tol(1e-12, 1e-7)])
def test_equal_weights_have_no_tail(noise):
    log_weights = jnp.asarray(3.0 + noise * np.random.default_rng(0).normal(size=1000))
    smoothed, k = pareto_smooth(log_weights)
    assert k == -np.inf
    assert_allclose(smoothed, np.full(1000, -np.log(1000)), rtol=tol(1e-9, 1e-5))


def test_weights_of_zero():
    rng = np.random.default_rng(3)
    log_weights = rng.normal(size=1000)
    log_weights[::2] = -np.inf
    expected, k = pareto_smooth(jnp.asarray(log_weights))
    assert np.isfinite(k) and np.isneginf(expected[::2]).all()
    log_weights[::4] = np.nan
    for a, b in zip(pareto_smooth(jnp.asarray(log_weights)), (expected, k), strict=True):
        assert_allclose(a, b)

    few = np.full(1000, -np.inf)  # fewer than the tail holds: what there is, is fitted
    few[:30] = rng.normal(size=30)
    smoothed, k = pareto_smooth(jnp.asarray(few))
    assert np.isfinite(k) and np.isneginf(smoothed[30:]).all()
    assert_allclose(np.exp(smoothed).sum(), 1, rtol=1e-5)


@pytest.mark.parametrize(
    "log_weights",
    [
        np.full(100, -np.inf),
        np.full(100, np.nan),
        np.r_[np.zeros(4), np.full(96, -np.inf)],
        np.r_[9.0, 8.0, np.zeros(98)],
        np.r_[np.inf, np.linspace(0, 1, 99)],
        np.linspace(0, 1, 24),
    ],
    ids=["none", "nan", "four", "two stand out", "infinite", "24 draws"],
)
def test_where_nothing_can_be_said_k_is_infinite(log_weights):
    smoothed, k = pareto_smooth(jnp.asarray(log_weights))
    assert k == np.inf
    assert_allclose(np.exp(smoothed).sum(), 1, rtol=1e-5)


def test_scale_of_a_pareto_sample():
    u = (np.arange(5000) + 0.5) / 5000
    k, sigma = fit_generalised_pareto(jnp.asarray(2.0 * np.expm1(-0.3 * np.log1p(-u)) / 0.3), jnp.ones(5000, bool))
    assert_allclose((k, sigma), (0.3, 2.0), rtol=0.02)


@pytest.mark.once
def test_effective_sample_size():
    assert_allclose(effective_sample_size(jnp.zeros(10)), 10, rtol=1e-6)
    assert_allclose(effective_sample_size(jnp.log(jnp.array([0.5, 0.25, 0.25, 0.0])) + 300), 1 / 0.375, rtol=1e-4)
    assert_allclose(effective_sample_size(jnp.array([0.0, np.nan, -np.inf])), 1, rtol=1e-6)
    assert effective_sample_size(jnp.full(3, -jnp.inf)) == 0


def test_threshold_and_tail():
    assert khat_threshold(4000) == 0.7
    assert_allclose(khat_threshold(100), 0.5)
    assert [tail_length(size) for size in (24, 100, 225, 1000, 4000)] == [4, 20, 45, 94, 189]
