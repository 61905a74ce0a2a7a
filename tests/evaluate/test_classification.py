"""Scores of class probabilities against scikit-learn, closed forms and simulation."""

import jax
import numpy as np
import pytest
from scipy.special import softmax

from probkit import evaluate as ev

sklearn = pytest.importorskip("sklearn")
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(400, 3)) * 1.5
P = softmax(LOGITS, axis=1)
Y = np.array([RNG.choice(3, p=p) for p in P])
ONE, HIT = P[:, 1], (Y == 1).astype(float)


def test_log_loss_brier_and_skill_agree_with_scikit_learn():
    from sklearn import metrics

    assert np.isclose(ev.log_loss(P, Y), metrics.log_loss(Y, P), atol=1e-10)
    assert np.isclose(ev.brier(ONE, HIT).score, metrics.brier_score_loss(HIT, ONE), atol=1e-10)
    decided = P.argmax(1)
    found = ev.skill(P, Y)
    wanted = metrics.precision_recall_fscore_support(Y, decided)
    for a, b in zip(found[:3], wanted[:3], strict=True):
        assert np.allclose(a, b, atol=1e-12)
    assert np.array_equal(found.support, wanted[3])
    balanced = metrics.balanced_accuracy_score(HIT, decided == 1, adjusted=True)
    assert np.isclose(found.true_skill[1], balanced, atol=1e-12)


@pytest.mark.parametrize("bins", [None, 10])
def test_parts_of_brier_add_up(bins):
    for p, y in ((np.round(ONE, 1), HIT), (P, Y)):
        found = ev.brier(p, y, bins)
        assert np.isclose(found.score, found.reliability - found.resolution + found.uncertainty, atol=1e-12)
    # Two forecast values, by hand.
    p, y = np.array([0.2] * 5 + [0.8] * 5), np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 0])
    found = ev.brier(p, y)
    assert np.allclose(found, (0.16, 0.0, 0.09, 0.25))


def test_calibration_error_by_hand():
    p, y = np.array([0.1, 0.1, 0.9, 0.9]), np.array([0, 1, 1, 1])
    # The top class has probability 0.9 throughout; three of four came.
    assert np.isclose(ev.calibration_error(p, y), 0.15)
    assert np.isclose(ev.calibration_error(p, y, class_wise=True), (0.5 * 0.4 + 0.5 * 0.1))
    assert np.isclose(ev.calibration_error(p, y, class_wise=True, maximum=True), 0.4)
    gap = np.abs(np.sort(P.max(1)).reshape(8, 50).mean(1))
    hit = (P.argmax(1) == Y)[np.argsort(P.max(1), kind="stable")].reshape(8, 50).mean(1)
    assert np.isclose(ev.calibration_error(P, Y, 8, adaptive=True), np.mean(np.abs(hit - gap)))


def test_the_bias_of_few_cases_is_taken_off():
    rng = np.random.default_rng(1)
    plain, less = [], []
    for _ in range(300):
        p = rng.uniform(0.5, 1, 200)
        y = (rng.random(200) < p).astype(int)
        plain.append(ev.calibration_error(p, y))
        less.append(ev.calibration_error(p, y, debiased=True))
    assert np.mean(plain) > 0.06  # of a forecast whose true error is 0
    assert abs(np.mean(less)) < 0.3 * np.mean(plain)
    # And it takes nothing off a gap that is plain to see.
    p, y = np.full(5000, 0.9), (rng.random(5000) < 0.5).astype(int)
    assert np.isclose(ev.calibration_error(p, y, debiased=True), ev.calibration_error(p, y), atol=1e-3)


def test_bootstrap_covers_the_mean_log_loss():
    value, low, high = ev.bootstrap(ev.log_loss, P, Y, key=jax.random.key(0), draws=400)
    error = np.std(np.log(P[np.arange(400), Y])) / 20
    assert low < value < high
    assert np.isclose(high - low, 2 * 1.96 * error, rtol=0.15)
    assert ev.bootstrap(ev.log_loss, P, Y, key=jax.random.key(0), draws=50)[0] == value


def test_reliability_bands_hold_a_calibrated_forecast():
    found = ev.reliability(ONE, HIT, key=jax.random.key(1), level=99)
    assert np.all((found.bins.frequency >= found.low) & (found.bins.frequency <= found.high))
    off = ev.reliability(np.clip(ONE * 1.6, 0, 1), HIT, key=jax.random.key(1), level=99)
    assert np.any((off.bins.frequency < off.low) | (off.bins.frequency > off.high))
    assert found.plot() is not None


def test_prior_shift():
    # The same likelihoods with other shares: known in closed form, and found by EM.
    rng = np.random.default_rng(2)
    old, new = np.array([0.5, 0.5]), np.array([0.9, 0.1])
    y = (rng.random(20_000) < new[1]).astype(int)
    x = rng.normal(size=20_000) + 2 * y
    like = np.exp(-0.5 * (x[:, None] - np.array([0.0, 2.0])) ** 2)
    p = like * old / (like * old).sum(1, keepdims=True)
    exact = like * new / (like * new).sum(1, keepdims=True)
    assert np.allclose(ev.shift_priors(p, old, new), exact, atol=1e-12)
    assert np.allclose(ev.shift_priors(p, old).mean(0), new, atol=0.01)


def test_costs():
    assert ev.threshold(1.0, 4.0) == 0.2
    costs = np.array([[0.0, 1.0], [4.0, 0.0]])
    assert np.array_equal(ev.decide(np.array([0.19, 0.21]), costs), [0, 1])
    with pytest.raises(ValueError, match="costs are"):
        ev.threshold(0.0, 0.0)


def test_missing_cases_are_left_out():
    y = Y.astype(float)
    y[:50] = np.nan
    assert ev.log_loss(P, y) == ev.log_loss(P[50:], Y[50:])


@pytest.mark.parametrize(
    ("p", "y", "message"),
    [
        (P[:3], Y[:4], r"p has shape \(3, 3\) and y \(4,\)"),
        (P * 2, Y, "no probabilities"),
        (P, Y + 1, "classes outside 0 to 2"),
        (P, np.full(400, np.nan), "no case"),
    ],
)
def test_refusals(p, y, message):
    with pytest.raises(ValueError, match=message):
        ev.log_loss(p, y)
    with pytest.raises(ValueError, match="bins is 0"):
        ev.calibration_error(P, Y, 0)
