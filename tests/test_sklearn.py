"""The estimators pass scikit-learn's own checks, and give spread and probabilities."""

import numpy as np
import pytest

pytest.importorskip("sklearn")

import probkit as pk
from probkit.sklearn import BNNClassifier, BNNRegressor

#: What stands here does not depend on the precision.
pytestmark = pytest.mark.once

QUICK = pk.bnn.Ensemble(members=2, steps=1000, validation=0.0)
RNG = np.random.default_rng(0)
X = RNG.uniform(-2, 2, (60, 2))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [BNNRegressor, BNNClassifier])
@pytest.mark.filterwarnings("ignore")
def test_check_estimator(kind):
    from sklearn.utils.estimator_checks import check_estimator

    check_estimator(kind(method=QUICK))


def test_regressor():
    y = 10 + 5 * np.sin(2 * X[:, 0])
    found = BNNRegressor((10,), method=QUICK, random_state=1).fit(X, y)
    mean, std = found.predict(X, return_std=True)
    assert found.score(X, y) > 0.7
    assert np.all(std > 0)
    assert np.array_equal(mean, BNNRegressor((10,), method=QUICK, random_state=1).fit(X, y).predict(X))


def test_classifier_keeps_its_labels():
    y = np.where(X[:, 0] > 0.5, "high", np.where(X[:, 0] < -0.5, "low", "middle"))
    found = BNNClassifier((10,), method=QUICK, random_state=1).fit(X, y)
    assert list(found.classes_) == ["high", "low", "middle"]
    assert found.score(X, y) > 0.85
    assert np.allclose(found.predict_proba(X).sum(1), 1)
    with pytest.raises(ValueError, match="one class"):
        BNNClassifier(method=QUICK).fit(X, np.zeros(60))
