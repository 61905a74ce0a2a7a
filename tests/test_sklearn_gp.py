"""The Gaussian-process estimators in scikit-learn's hands; its own checks behind the slow marker."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import make_moons
from sklearn.utils.estimator_checks import parametrize_with_checks

from probkit.infer.point import MAP
from probkit.sklearn import GPClassifier, GPRegressor

#: What stands here does not depend on the precision.
pytestmark = pytest.mark.once


def test_regression():
    rng = np.random.default_rng(0)
    X = rng.uniform(0, 6, (40, 1))
    y = 50 + 10 * np.sin(X[:, 0]) + 0.5 * rng.normal(size=40)
    model = GPRegressor(method=MAP(starts=1), random_state=0).fit(X, y)
    mean, std = model.predict([[1.57], [4.71]], return_std=True)
    np.testing.assert_allclose(mean, [60, 40], atol=1.5)
    assert np.all((std > 0.2) & (std < 2))
    assert model.score(X, y) > 0.98
    assert model.posterior_.report.converged
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict(X), model.predict(X))


def test_classification():
    X, y = make_moons(40, noise=0.1, random_state=0)
    model = GPClassifier(method=MAP(starts=1), random_state=0).fit(X, np.array(["left", "right"])[y])
    assert model.score(X, np.array(["left", "right"])[y]) > 0.95
    assert np.allclose(model.predict_proba(X).sum(1), 1)
    with pytest.raises(ValueError, match="one class"):
        GPClassifier().fit(X, np.zeros(40))


@pytest.mark.slow
@pytest.mark.skipif(jnp.result_type(float) != jnp.float64, reason="scikit-learn compares to 1e-7")
@parametrize_with_checks([GPRegressor(method=MAP(starts=1)), GPClassifier(method=MAP(starts=1))])
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)
    jax.clear_caches()
