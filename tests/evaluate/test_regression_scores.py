"""PIT, coverage, CRPS, recalibration and conformal prediction: closed forms and what they promise."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

import probkit as pk
from probkit import evaluate as ev

RNG = np.random.default_rng(7)


def test_crps_of_normals_is_its_integral():
    for m, s, y in ((0.0, 1.0, 0.3), (2.0, 0.5, -1.0)):
        exact = quad(lambda x, m=m, s=s, y=y: (norm.cdf(x, m, s) - (x >= y)) ** 2, -20, 20, points=[y], limit=200)[0]
        assert np.isclose(ev.crps_normal(m, s, y), exact, atol=1e-7)
    draws = RNG.normal(size=(20_000, 1)) * 2 + 1
    assert np.isclose(ev.crps(draws, np.array([0.5]))[0], ev.crps_normal(1.0, 2.0, 0.5), atol=0.02)
    few = RNG.normal(size=(7, 3))
    y = np.array([0.1, -1.0, 2.0])
    pairs = np.abs(few[:, None] - few).mean((0, 1))
    assert np.allclose(ev.crps(few, y), np.abs(few - y).mean(0) - 0.5 * pairs, atol=1e-12)


def test_pit_is_uniform_and_coverage_holds():
    mean = RNG.normal(size=4000)
    y = mean + RNG.normal(size=4000)
    pits = ev.pit(mean + RNG.normal(size=(500, 4000)), y)
    assert np.allclose(np.quantile(pits, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.03)
    assert ev.coverage(pits).error < 2.5
    assert np.allclose(ev.pit_normal(mean, 1.0, y), norm.cdf(y - mean))
    narrow = ev.coverage(ev.pit_normal(mean, 0.5, y), 90)
    assert np.isclose(narrow.share[0], 100 * (norm.cdf(0.5 * norm.ppf(0.95)) * 2 - 1), atol=3)
    assert np.isnan(ev.pit(np.zeros((3, 1)), np.array([np.nan]))).all()


def test_recalibration_mends_narrow_quantiles():
    y = RNG.normal(size=3000)
    found = ev.recalibrate(ev.pit_normal(0.0, 0.5, y))
    size = (1, 1, 2)
    narrow = pk.Prediction(np.zeros(size), np.zeros(size), np.full(size, 0.5), [0, 1], "row")
    assert np.allclose(found.interval(narrow, 80)[:, 0], norm.ppf([0.1, 0.9]), atol=0.1)


@pytest.mark.parametrize("n", [9, 19, 100])
def test_conformal_coverage_is_exact(n):
    # With continuous scores P(new <= quantile) = ceil((n + 1) level) / (n + 1).
    scores = RNG.random((4000, n))
    q = np.array([ev.conformal.quantile(s, 90) for s in scores])
    exact = np.ceil(np.round((n + 1) * 0.9, 9)) / (n + 1)
    assert np.isclose(q.mean(), exact, atol=0.005)  # the mean of an order statistic of uniforms
    assert ev.conformal.quantile(scores[0][:5], 90) == np.inf


def test_conformal_intervals_cover():
    x = RNG.uniform(-2, 2, 6000)
    y = np.sin(x) + (0.2 + 0.3 * np.abs(x)) * RNG.standard_t(3, 6000)
    held, new = slice(0, 3000), slice(3000, None)
    for std in (1.0, 0.2 + 0.3 * np.abs(x)):
        std = np.broadcast_to(std, x.shape)
        low, high = ev.conformal.interval(np.sin(x[held]), y[held], np.sin(x[new]), 90, std[held], std[new])
        assert abs(np.mean((y[new] >= low) & (y[new] <= high)) - 0.9) < 0.03
    bands = np.stack([np.sin(x) - 0.1, np.sin(x) + 0.1])
    low, high = ev.conformal.quantile_interval(bands[:, held], y[held], bands[:, new])
    assert abs(np.mean((y[new] >= low) & (y[new] <= high)) - 0.9) < 0.03


@pytest.mark.parametrize("adaptive", [False, True])
def test_label_sets_cover(adaptive):
    p = RNG.dirichlet(np.ones(4), 6000)
    y = np.array([RNG.choice(4, p=one) for one in p])
    wrong = p**2 / (p**2).sum(1, keepdims=True)  # too sure of itself
    sets = ev.conformal.label_sets(wrong[:3000], y[:3000], wrong[3000:], 90, adaptive)
    held = sets[np.arange(3000), y[3000:]].mean()
    assert held > 0.88
    assert held < (0.99 if adaptive else 0.92)


def test_entropy_information_and_ranking():
    p = RNG.dirichlet(np.ones(3), (50, 20))
    found = ev.mutual_information(p)
    assert np.allclose(found, ev.entropy(p.mean(0)) - ev.entropy(p).mean(0))
    assert np.allclose(ev.mutual_information(np.broadcast_to(p[:1], p.shape)), 0, atol=1e-12)
    from sklearn.metrics import roc_auc_score

    score = np.round(RNG.normal(size=200), 1)
    positive = RNG.random(200) < 0.3
    assert np.isclose(ev.auroc(score, positive), roc_auc_score(positive, score), atol=1e-12)
    with pytest.raises(ValueError, match="0 True"):
        ev.auroc(score, np.zeros(200, bool))


def test_batch_bald_does_not_take_the_same_case_twice_over():
    # Two groups of draws; cases 0 and 1 tell the same bit, case 2 a bit of its own, case 3 nothing.
    bits = np.array([[0, 0], [0, 1], [1, 0], [1, 1]] * 5)
    q = lambda b: np.stack([1 - b, b], -1) * 0.98 + 0.01
    p = np.stack([q(bits[:, 0]), q(bits[:, 0]), q(bits[:, 1]) * 0.99 + 0.005, np.full((20, 2), 0.5)], axis=1)
    assert set(ev.batch_bald(p, 2)) in ({0, 2}, {1, 2})
    with pytest.raises(ValueError, match="size is 9"):
        ev.batch_bald(p, 9)


def test_no_key_no_interval():
    with pytest.raises(TypeError, match="bootstrap needs key="):
        ev.bootstrap(ev.log_loss, np.array([0.2, 0.8]), np.array([0, 1]), key=None)
