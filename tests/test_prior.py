"""Draws before the data."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pandas as pd
import pytest
from helpers import count_compilations
from numpy.testing import assert_allclose, assert_array_equal
from numpyro.distributions import constraints
from toys import Holder, Line

import probkit as pk

KEY = jax.random.key(0)
Y = np.random.default_rng(5).normal(50.0, 3.0, 30)
LINE = Line(intercept=dist.Normal(2.0, 1.0), slope=dist.Normal(0.0, 0.5), obs_scale=0.3)


def test_moments_of_the_prior_predictive():
    found = pk.prior_predictive(LINE, length=4, draws=20_000, key=KEY)
    assert found.draws.shape == found.means.shape == (1, 20_000, 4)
    t = np.arange(4)
    variance = 1 + 0.25 * np.multiply.outer(t, t) + 0.09 * np.eye(4)
    error = np.sqrt((variance**2 + np.outer(np.diag(variance), np.diag(variance))) / 20_000)
    assert np.all(np.abs(found.mean - 2.0) < 5 * np.sqrt(np.diag(variance) / 20_000))
    assert np.all(np.abs(np.cov(found.draws[0].astype(float).T) - variance) < 5 * error)


def test_hierarchies_are_drawn_from_the_top():
    model = Holder({"mean": dist.Normal(10.0, 0.1), "all": pk.given(lambda m: dist.Normal(m.theta["mean"], 0.1))})

    class Only(Holder):
        def distribution(self, X, length):
            return dist.Normal(jnp.full(length, self.theta["all"]), 1.0).to_event(1)

    found = pk.prior_predictive(Only(model.theta), length=2, draws=500, key=KEY)
    assert_allclose(found.means.mean(), 10.0, atol=0.05)
    assert_allclose(found.means[..., 0].std(), np.sqrt(0.02), rtol=0.2)


def test_y_scales_the_default_priors_and_gives_length_and_labels():
    y = pd.Series(Y, pd.date_range("2001-01-01", periods=30, freq="MS", name="month"))
    one, ten = (pk.prior_predictive(pk.LocalLevel(), c * y, draws=300, key=KEY) for c in (1.0, 10.0))
    assert one.draws.shape == (1, 300, 30)
    assert one.label_name == "month"
    assert_array_equal(one.labels, y.index.to_numpy())
    assert_allclose(ten.draws, 10 * one.draws, rtol=1e-3, atol=1e-2)
    # Under a diffuse start paths begin at level 0, not at the mean of y.
    assert abs(one.draws[..., 0].mean()) < 2


def test_inputs_give_the_length():
    found = pk.prior_predictive(Line(intercept=1.0, slope=2.0, obs_scale=1e-6), X=[0.0, 1.0, 5.0], draws=2, key=KEY)
    assert_allclose(found.draws, np.broadcast_to([1.0, 3.0, 11.0], (1, 2, 3)), rtol=1e-4)


def test_the_key_decides():
    first, again = (pk.prior_predictive(LINE, length=3, draws=5, key=KEY).draws for _ in range(2))
    assert_array_equal(first, again)
    model, key = Line(intercept=dist.Normal(3, 2), slope=dist.Normal(0, 1), obs_scale=1), jax.random.key(1)
    with count_compilations() as compiled:
        other = pk.prior_predictive(model, length=3, draws=5, key=key)
    assert compiled.count == 0
    assert np.all(other.draws != first)


def test_refusals():
    with pytest.raises(ValueError, match="prior_predictive needs y, X or length"):
        pk.prior_predictive(LINE, key=KEY)
    with pytest.raises(TypeError, match="prior_predictive needs key="):
        pk.prior_predictive(LINE, length=3)
    with pytest.raises(TypeError, match="model is function; a probkit model is wanted"):
        pk.prior_predictive(lambda: None, length=3, key=KEY)
    with pytest.raises(ValueError, match="level_scale was left at its default"):
        pk.prior_predictive(pk.LocalLevel(), length=3, key=KEY)
    with pytest.raises(ValueError, match="a prior is improper"):
        pk.prior_predictive(Holder(dist.ImproperUniform(constraints.real, (), ())), length=3, key=KEY)
    with pytest.raises(ValueError, match="obs_scale is -1"):
        pk.prior_predictive(Line(intercept=1.0, obs_scale=-1.0), length=3, key=KEY)
    with pytest.raises(ValueError, match="y is empty"):
        pk.prior_predictive(pk.LocalLevel(), [], key=KEY)
