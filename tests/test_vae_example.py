"""examples/vae_digits.py: its data, its baselines, and that a few steps of training are steps upwards."""

import importlib.util
import os
import sys
from unittest import mock

import jax
import numpy as np
import pytest
from helpers import ROOT
from numpy.testing import assert_allclose
from scipy.stats import binom

#: What stands here does not depend on the precision.
pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def example():
    """The example as a module; what it sets in the environment goes again."""
    spec = importlib.util.spec_from_file_location("vae_digits", ROOT / "examples" / "vae_digits.py")
    module = importlib.util.module_from_spec(spec)
    with mock.patch.dict(os.environ):
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def digits(example):
    pytest.importorskip("sklearn")
    return example.read_digits()


def test_digits(digits):
    learnt, held_out, labels = map(np.asarray, digits)
    assert (learnt.shape, held_out.shape, labels.shape) == ((1397, 64), (400, 64), (400,))
    assert set(np.unique(learnt)) == set(range(17))
    assert np.bincount(labels).min() > 25


def test_without_scikit_learn(example):
    with mock.patch.dict(sys.modules, {"sklearn.datasets": None}), pytest.raises(SystemExit, match="scikit-learn"):
        example.read_digits()


def test_baselines(example, digits):
    learnt, held_out, _ = map(np.asarray, digits)
    by_binomial, by_table = (log_prob(digits[1]) for log_prob in example.independent_pixels(digits[0]).values())
    share = (learnt.sum(0, dtype=float) + 1) / (16 * len(learnt) + 2)
    assert_allclose(by_binomial, binom.logpmf(held_out, 16, share).sum(-1), rtol=1e-3)
    seen = (learnt[:, :, None] == np.arange(17)).sum(0) + 0.5
    table = np.log(seen / seen.sum(-1, keepdims=True))
    assert_allclose(by_table, table[np.arange(64), held_out.astype(int)].sum(-1), rtol=1e-3)


@pytest.mark.slow
def test_training_goes_up_and_the_bounds_are_ordered(example, digits):
    learnt, held_out, _ = digits
    vae, curve = example.train(example.VAE(jax.random.key(0), width=150), learnt, held_out[:50], jax.random.key(1), 600)
    assert curve.shape == (12, 2)
    assert np.all(curve[-1] > curve[0] + 50)
    assert np.all(curve[-1] > -200)  # above the binomials
    value, error = example.bounds(vae, held_out[:50], jax.random.key(2))
    assert value[0] + 5 * error[0] < value[1] < 0
    assert abs(value[0] - curve[-1, 1]) < 20
