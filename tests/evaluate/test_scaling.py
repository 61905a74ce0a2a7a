"""Recalibration against scikit-learn and stationarity of what is minimised."""

import numpy as np
import pytest
from scipy.special import expit, softmax

from probkit import evaluate as ev
from probkit.evaluate.scaling import pool

sklearn = pytest.importorskip("sklearn")
RNG = np.random.default_rng(4)
LOGITS = RNG.normal(size=(2000, 4)) * 1.2
Y = np.array([RNG.choice(4, p=p) for p in softmax(LOGITS, axis=1)])
SCORE = RNG.normal(size=1500)
HIT = (RNG.random(1500) < expit(1.5 * SCORE - 0.4)).astype(float)


def test_temperature_is_found_and_never_hurts():
    found = ev.temperature(3.0 * LOGITS, Y)
    assert np.isclose(found.temperature, 3.0, rtol=0.1)
    losses = [ev.log_loss(softmax(3 * LOGITS / (found.temperature * f), axis=1), Y) for f in (0.99, 1.0, 1.01)]
    assert losses[1] == min(losses)
    assert np.array_equal(found(3 * LOGITS).argmax(1), LOGITS.argmax(1))
    assert ev.calibration_error(found(3 * LOGITS), Y) < 0.5 * ev.calibration_error(softmax(3 * LOGITS, axis=1), Y)
    p = softmax(3.0 * LOGITS, axis=1)
    assert np.isclose(ev.temperature(ev.as_logits(p), Y).temperature, found.temperature, rtol=1e-5)


def test_vector_scaling_undoes_a_scale_and_a_shift():
    scale, shift = np.array([0.5, 1.0, 2.0, 1.5]), np.array([1.0, 0.0, -1.0, 0.5])
    found = ev.vector((LOGITS - shift) / scale, Y)
    assert np.allclose(found.scale, scale, rtol=0.2)
    assert np.allclose(found.shift - found.shift.mean(), shift - shift.mean(), atol=0.2)
    assert ev.log_loss(found((LOGITS - shift) / scale), Y) <= ev.log_loss(softmax(LOGITS, axis=1), Y)
    with pytest.raises(TypeError, match="no one temperature"):
        found.temperature  # noqa: B018


def test_platt_agrees_with_scikit_learn():
    from sklearn.calibration import _SigmoidCalibration

    wanted = _SigmoidCalibration().fit(SCORE, HIT).predict(SCORE)
    assert np.allclose(ev.platt(SCORE, HIT)(SCORE), wanted, atol=2e-4)  # scikit-learn stops at a looser tolerance


def test_beta_calibration_is_stationary_and_includes_the_identity():
    p = expit(1.5 * SCORE - 0.4)
    found = ev.beta(p, HIT)
    assert np.allclose(found(p), p, atol=0.05)
    features = np.stack([np.log(p), -np.log1p(-p), np.ones_like(p)])
    assert np.allclose(features @ (found(p) - HIT) / len(p), 0, atol=1e-5)
    assert np.all(found.weights >= 0)


def test_isotonic_agrees_with_scikit_learn():
    from sklearn.isotonic import IsotonicRegression

    score = np.round(SCORE, 1)
    wanted = IsotonicRegression(out_of_bounds="clip").fit(score, HIT)
    new = np.linspace(-5, 5, 301)
    assert np.allclose(ev.isotonic(score, HIT)(new), wanted.predict(new), atol=1e-10)


def test_pooling_by_hand():
    assert np.allclose(pool(np.array([1.0, 3.0, 2.0, 2.0, 5.0, 4.0]), np.ones(6)), [1, 7 / 3, 7 / 3, 7 / 3, 4.5, 4.5])
    assert np.allclose(pool(np.array([2.0, 1.0]), np.array([3.0, 1.0])), 1.75)


def test_refusals():
    with pytest.raises(ValueError, match="both of them"):
        ev.platt(SCORE, np.ones(1500))
    with pytest.raises(ValueError, match="shape"):
        ev.isotonic(SCORE, HIT[:3])
    with pytest.raises(ValueError, match=r"\(n, classes\) is wanted"):
        ev.temperature(SCORE, HIT)
