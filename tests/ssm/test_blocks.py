"""Blocks of times against single steps: values, gradients, curvature, and what may not change."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tol
from jax import lax
from numpy.testing import assert_allclose

from probkit.ssm import blocks, components, structured

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(tol(0, 1) == 1, reason="blocks are for float64"),
]
N = 103  # no multiple of a block
TIMES = np.arange(N)
X = np.random.default_rng(1).normal(size=(N, 2))
X[:, 1] = TIMES >= 70  # first seen late


def trend_and_harmonics(p):
    return [components.trend(p[0], p[1]), components.trigonometric(p[2], 12, 3, TIMES)]


def damped_trend_cycle_and_regression(p):
    return [
        components.regression(X, p[0], 1e3),
        components.trend(p[1], p[2], 0.9 * p[3]),
        components.regression(X[:, ::-1], p[4]),
        components.cycle(p[5], 9 * p[6], 0.7 * p[7]),
        components.intercept(p[8] * np.cos(TIMES)),
    ]


def dummy_seasons_and_autoregression(p):
    return [
        components.level(p[0]),
        components.seasonal(p[1], 5, TIMES),
        components.autoregression(p[2], 0.3 * p[3:7]),
        components.seasonal(p[7], 3, TIMES),
    ]


def long_season(p):
    """Told apart by gains of 1e9: the start is vague."""
    return [components.level(p[0]), components.trigonometric(p[1], 80.0, 8, TIMES)]


CASES = {
    f.__name__: f
    for f in (trend_and_harmonics, damped_trend_cycle_and_regression, dummy_seasons_and_autoregression, long_season)
}


def series(gaps):
    y = np.random.default_rng(0).normal(size=N).cumsum()
    if gaps:
        y[[0, 1, 2, 9, 33, 34, 90, -1]] = np.nan
        y[40:60] = np.nan
    return jnp.asarray(y)


def likelihood(build, y, noise=0.5):
    return lambda p: structured.log_likelihood(y, components.assemble(build(p), noise * p[-1], jnp.float64))


POINT = jnp.asarray(np.random.default_rng(2).uniform(0.5, 1.0, size=10))


def by_blocks(monkeypatch, size, run, *args):
    monkeypatch.setattr(structured, "block_size", lambda s, length: size)
    return jax.jit(lambda *args: run(*args))(*args)


@pytest.mark.parametrize("gaps", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_are_those_of_single_steps(monkeypatch, name, gaps):
    run = jax.value_and_grad(likelihood(CASES[name], series(gaps)))
    (one, slope), (value, gradient) = (by_blocks(monkeypatch, k, run, POINT) for k in (1, 16))
    digits = (1e-8, 1e-5) if name == "long_season" else (1e-11, 1e-9)
    assert_allclose(value, one, rtol=digits[0])
    assert_allclose(gradient, slope, rtol=digits[1], atol=digits[1] * np.abs(slope).max())


def test_curvature_is_that_of_single_steps(monkeypatch):
    run = jax.hessian(likelihood(CASES["damped_trend_cycle_and_regression"], series(True)))
    one, found = (by_blocks(monkeypatch, k, run, POINT) for k in (1, 16))
    assert_allclose(found, one, rtol=1e-7, atol=1e-8 * np.abs(one).max())
    assert_allclose(found, found.T, atol=1e-8 * np.abs(one).max())


def test_many_parameters_and_series_at_once(monkeypatch):
    points, ys = jnp.stack([POINT, 1.1 * POINT]), jnp.stack([series(True), series(False)])
    run = jax.vmap(lambda p, y: jax.value_and_grad(likelihood(CASES["dummy_seasons_and_autoregression"], y))(p))
    value, gradient = by_blocks(monkeypatch, 16, run, points, ys)
    single = jax.value_and_grad(lambda p, y: likelihood(CASES["dummy_seasons_and_autoregression"], y)(p))
    one, slope = zip(*(by_blocks(monkeypatch, 1, single, *at) for at in zip(points, ys, strict=True)), strict=True)
    assert_allclose(value, one, rtol=1e-11)
    assert_allclose(gradient, slope, rtol=1e-8, atol=1e-9 * np.abs(slope).max())


def test_noise_of_every_time_and_derivatives_to_data(monkeypatch):
    def run(y, h, P):
        s = components.assemble(CASES["damped_trend_cycle_and_regression"](POINT), h, jnp.float64)
        return structured.log_likelihood(y, dataclasses.replace(s, P=s.P + P))

    args = series(True), jnp.linspace(0.3, 0.9, N), jnp.diag(jnp.zeros(8).at[0].set(0.1))
    both = [by_blocks(monkeypatch, k, jax.grad(run, argnums=(0, 1, 2)), *args) for k in (1, 16)]
    for found, one in zip(*both[::-1], strict=True):
        assert_allclose(found, one, rtol=1e-8, atol=1e-9 * np.nanmax(np.abs(one)))


def test_where_a_variance_fails_the_value_is_that_of_single_steps(monkeypatch):
    """Observations without noise, nearly without, and with a negative variance: minus infinity and no slope."""

    def run(p, noise):
        return jax.value_and_grad(likelihood(CASES["trend_and_harmonics"], series(False), noise))(p)

    noises = jnp.asarray([0.0, 1e-14, -20.0])
    runs = lambda p: lax.map(lambda noise: run(p, noise), noises)
    (one, slope), (value, gradient) = (by_blocks(monkeypatch, k, runs, POINT) for k in (1, 16))
    assert value[2] == -np.inf and not gradient[2].any()
    assert_allclose(value, one, rtol=1e-9)
    assert_allclose(gradient, slope, rtol=1e-6, atol=1e-7 * np.abs(slope).max())


@pytest.mark.parametrize("late", [0, 30])
def test_a_wide_prior_costs_no_digits(monkeypatch, late):
    """Nothing but a wide prior is known of them, nothing is seen at first, and one column is 0 for long."""
    y = series(True).at[:late].set(jnp.nan)
    wide = lambda p: [*trend_and_harmonics(p), components.regression(X, 0.0, 1e8)]
    one, found = (by_blocks(monkeypatch, k, likelihood(wide, y), POINT) for k in (1, 16))
    assert_allclose(found, one, rtol=1e-8)


def test_which_models_are_taken_by_blocks():
    built = lambda parts: components.assemble(parts, 1.0, jnp.float64)
    plenty = built([*trend_and_harmonics(POINT), components.seasonal(1.0, 17, TIMES)])
    few = built(trend_and_harmonics(POINT))
    assert blocks.block_size(plenty, 1000) > 1 and plenty.moves == few.moves == (0, 1)
    assert blocks.block_size(few, 1000) == blocks.block_size(plenty, 100) == 1
    monthly = built([components.trend(1.0, 1.0), components.seasonal(1.0, 12, TIMES)])
    assert blocks.block_size(monthly, 144) == 1 and blocks.block_size(monthly, 500) > 1
    narrow = components.assemble([components.seasonal(1.0, 30, TIMES)], 1.0, jnp.float32)
    assert blocks.block_size(narrow, 1000) == 1
    moving = components.Block(X, components.Transition(np.full(2, 0.5)), np.ones(2), np.eye(2), np.eye(0), (False,) * 2)
    assert built([moving]).moves is None
