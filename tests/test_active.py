"""Active learning: it asks where it knows least, keeps count, and refuses what does not fit."""

import jax
import numpy as np
import pytest

import probkit as pk
from probkit import likelihoods as lk

#: What stands here does not depend on the precision.
pytestmark = pytest.mark.once

RNG = np.random.default_rng(0)
X = np.linspace(-2, -1, 25)
POOL = np.linspace(-2, 2, 41)
TRUE = lambda x: np.sin(2 * x)
METHOD = pk.bnn.LaplaceGGN(members=2, steps=40)


def learn(**options):
    known = {"rounds": 2, "size": 3, "method": METHOD, "progress": False, "key": jax.random.key(0)}
    return pk.active_learning(pk.BNN(pk.mlp(5)), TRUE(X), X, POOL, lambda i: TRUE(POOL[i]), **known | options)


@pytest.mark.slow
def test_it_asks_far_from_what_it_knows():
    found = learn(evaluate=lambda p: p.predict(POOL).score(TRUE(POOL))["rmse"])
    assert len(found.asked) == len(set(found.asked.tolist())) == 6
    assert POOL[found.asked[:3]].mean() > 0.5
    assert np.allclose(found.labels, TRUE(POOL[found.asked]))
    assert found.history[-1] < found.history[0]


@pytest.mark.parametrize("acquisition", ["batch_bald", "entropy", "random", lambda p: p.epistemic])
def test_classes(acquisition):
    y = np.digitize(X, [-1.5]).astype(float)
    found = pk.active_learning(
        pk.BNN(pk.mlp(3), lk.Bernoulli()),
        y,
        X,
        POOL,
        lambda i: (POOL[i] > -1.5).astype(float),
        key=jax.random.key(1),
        rounds=1,
        size=2,
        acquisition=acquisition,
        method=pk.bnn.Ensemble(members=3, steps=100),
        progress=False,
    )
    assert found.asked.shape == (2,)
    assert np.array_equal(found.labels, POOL[found.asked] > -1.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"acquisition": "luck"}, "acquisition is 'luck'"),
        ({"rounds": 30}, "pool has shape"),
        ({"size": 0}, "size is 0"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        learn(**options)
