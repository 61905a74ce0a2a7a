"""Predictions: exact mixtures of normals, scores by hand, frames, and forecasts against closed forms."""

import jax
import numpy as np
import numpyro.distributions as dist
import pandas as pd
import pytest
from helpers import tol
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats
from scipy.special import ndtr
from toys import posterior_of

import probkit as pk
from probkit.prediction import Prediction

RNG = np.random.default_rng(1)
MEANS = RNG.normal(0, 3, (2, 50, 3))
STDS = RNG.uniform(0.2, 2.0, (2, 50, 3))
MIXTURE = Prediction(RNG.normal(MEANS, STDS), MEANS, STDS, np.array([10, 11, 12]), "year")
DRAWN = Prediction(MIXTURE.draws, MEANS, None, np.arange(3))


# -- mixtures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [1e-6, 0.025, 0.5, 0.9, 1 - 1e-6])
def test_quantiles_invert_the_mixture(p):
    x = MIXTURE.quantile(p)
    assert x.shape == (3,)
    assert_allclose(ndtr((x - MEANS) / STDS).mean((0, 1)), p, rtol=1e-8)


def test_quantiles_of_well_separated_and_equal_components():
    apart = np.array([-1e6, 1e6]).reshape(1, 2, 1)
    found = Prediction(apart, apart, np.full((1, 2, 1), 1e-3), np.arange(1)).quantile([0.25, 0.75])
    assert_allclose(found[:, 0], [-1e6, 1e6], rtol=1e-12)
    same = np.full((1, 9, 2), 3.0)
    found = Prediction(same, same, np.full((1, 9, 2), 2.0), np.arange(2)).quantile(0.975)
    assert_allclose(found, 3 + 2 * stats.norm.ppf(0.975), rtol=1e-12)


def test_moments_and_quantiles_agree_with_brute_force_draws():
    draws = RNG.normal(MEANS[..., None], STDS[..., None], (*MEANS.shape, 4000))
    flat = np.moveaxis(draws, 2, 0).reshape(3, -1)
    assert_allclose(MIXTURE.mean, flat.mean(1), atol=5 * np.max(MIXTURE.std) / 600)
    assert_allclose(MIXTURE.std, flat.std(1), rtol=0.01)
    assert_allclose(MIXTURE.quantile([0.1, 0.5, 0.8]), np.quantile(flat, [0.1, 0.5, 0.8], axis=1), atol=0.05)


def test_without_normal_laws_everything_comes_from_the_draws():
    flat = DRAWN.draws.reshape(100, 3)
    assert_allclose(DRAWN.mean, flat.mean(0))
    assert_allclose(DRAWN.std, flat.std(0))
    assert_allclose(DRAWN.quantile([0.2, 0.7]), np.quantile(flat, [0.2, 0.7], axis=0))


def test_intervals_are_central_and_nested():
    narrow, wide = MIXTURE.interval(80), MIXTURE.interval(95)
    assert narrow.shape == (2, 3)
    assert np.all((wide[0] < narrow[0]) & (narrow[0] < narrow[1]) & (narrow[1] < wide[1]))
    assert_allclose(wide, MIXTURE.quantile([0.025, 0.975]))


@pytest.mark.parametrize("q", [0.0, 1.0, -0.1, [0.5, 2.0], np.nan])
def test_probabilities_lie_between_0_and_1(q):
    with pytest.raises(ValueError, match=r"q is .*; probabilities between 0 and 1"):
        MIXTURE.quantile(q)


@pytest.mark.parametrize("level", [0, 100, -5, 0.0])
def test_levels_are_percentages(level):
    with pytest.raises(ValueError, match=r"level is .*; a percentage between 0 and 100"):
        MIXTURE.interval(level)


# -- frames and pictures -----------------------------------------------------------------------------------------------


def test_frames():
    frame = MIXTURE.to_frame(level=[80, 99.5])
    assert isinstance(frame, pd.DataFrame)
    assert list(frame.columns) == ["year", "mean", "lo-80", "hi-80", "lo-99.5", "hi-99.5"]
    assert_array_equal(frame["year"], [10, 11, 12])
    assert_allclose(frame["mean"], MIXTURE.mean)
    assert_allclose(frame[["lo-80", "hi-80"]].T, MIXTURE.interval(80))
    assert list(MIXTURE.to_frame(level=90).columns) == ["year", "mean", "lo-90", "hi-90"]


def test_a_fan_with_its_history():
    import matplotlib.pyplot as plt

    history = (np.arange(7, 10), np.array([1.0, np.nan, 2.0]))
    ax = Prediction(MIXTURE.draws, MEANS, STDS, MIXTURE.labels, "year", history).plot(level=(50, 90), label="level")
    assert ax.get_xlabel() == "year"
    assert [line.get_label() for line in ax.lines] == ["data", "level"]
    assert len(ax.collections) == 2
    assert_allclose(ax.lines[1].get_ydata(), MIXTURE.mean)
    assert MIXTURE.plot(ax=ax) is ax
    plt.close(ax.figure)


# -- scores ------------------------------------------------------------------------------------------------------------


def test_scores_by_hand():
    y = np.array([0.5, -2.0, 4.0])
    found = MIXTURE.score(y, level=[50, 90])
    flat = MIXTURE.draws.reshape(100, 3)
    crps = np.abs(flat - y).mean(0) - 0.5 * np.abs(flat[:, None] - flat[None]).mean((0, 1))
    assert_allclose(found["crps"], crps.mean(), rtol=1e-10)
    density = stats.norm(MEANS, STDS).pdf(y).mean((0, 1))
    assert_allclose(found["log_score"], np.log(density).mean(), rtol=1e-10)
    error = y - MEANS.mean((0, 1))
    assert_allclose((found["rmse"], found["mae"]), (np.sqrt((error**2).mean()), np.abs(error).mean()), rtol=1e-10)
    for level in (50, 90):
        low, high = MIXTURE.interval(level)
        assert found[f"coverage-{level}"] == ((low <= y) & (y <= high)).mean()
    assert set(found) == {"log_score", "crps", "rmse", "mae", "coverage-50", "coverage-90"}


def test_scores_of_a_point_mass_and_of_a_normal():
    point = Prediction(np.full((1, 4, 1), 3.0), np.full((1, 4, 1), 3.0), None, np.arange(1))
    found = point.score([5.0])
    assert_allclose((found["crps"], found["mae"]), (2.0, 2.0))
    assert np.isnan(found["log_score"])
    # The CRPS of a standard normal at y is y (2 Phi(y) - 1) + 2 phi(y) - 1 / sqrt(pi).
    draws = stats.norm.ppf((np.arange(20_000) + 0.5) / 20_000).reshape(1, -1, 1)
    wanted = 0.3 * (2 * ndtr(0.3) - 1) + 2 * stats.norm.pdf(0.3) - 1 / np.sqrt(np.pi)
    assert_allclose(Prediction(draws, draws, None, np.arange(1)).score([0.3])["crps"], wanted, atol=1e-4)


def test_missing_values_are_not_scored():
    y = np.array([0.5, np.nan, 4.0])
    where = [0, 2]
    some = Prediction(MIXTURE.draws[..., where], MEANS[..., where], STDS[..., where], np.array(where))
    assert MIXTURE.score(y) == pytest.approx(some.score(y[where]))


def test_as_many_values_as_were_predicted():
    with pytest.raises(ValueError, match=r"y has shape \(2,\); \(3,\) is wanted"):
        MIXTURE.score([1.0, 2.0])


# -- against closed forms ----------------------------------------------------------------------------------------------


def test_the_forecast_of_the_local_level_at_its_maximum_likelihood():
    y = pk.datasets.nile()
    posterior = pk.fit(pk.LocalLevel(), y, key=jax.random.key(0), method=pk.MLE())
    q, h = (float(posterior.sites[name][0, 0]) ** 2 for name in ("level_scale", "obs_scale"))
    a, P = float(y.iloc[0]), h + q
    for value in y.iloc[1:]:
        K = P / (P + h)
        a, P = a + K * (value - a), P * (1 - K) + q
    # P is the variance of the next level.
    std = np.sqrt(P + np.arange(5) * q + h)
    found = posterior.forecast(5)
    rtol = tol(1e-9, 1e-4)
    assert_allclose(found.mean, np.full(5, a), rtol=rtol)
    assert_allclose(found.std, std, rtol=rtol)
    for p in (0.025, 0.4, 0.9):
        assert_allclose(found.quantile(p), a + std * stats.norm.ppf(p), rtol=tol(1e-6, 1e-4))
    # Draws are joint paths: the level moves on, so that later steps share it.
    paths = found.draws[0].astype(float)
    assert paths.shape == (1000, 5)
    covariance = P + np.minimum.outer(np.arange(5), np.arange(5)) * q + h * np.eye(5)
    error = np.sqrt((covariance**2 + np.outer(std**2, std**2)) / 1000)
    assert np.all(np.abs(np.cov(paths.T) - covariance) < 5 * error)


def test_the_prediction_of_a_process_at_new_inputs():
    X, X_new = np.array([0.0, 0.7, 1.5, 2.0]), np.array([-0.3, 0.7, 1.1])
    y = np.array([0.3, 1.2, np.nan, -0.4])
    scale, length, noise, mean = 1.3, 0.9, 0.4, 0.2
    prior = dist.HalfNormal(1.0)
    model = pk.GP(kernel=pk.Matern32(lengthscale=prior, scale=prior), obs_scale=prior, mean=dist.Normal(0, 1))
    sites = {"kernel.lengthscale": length, "kernel.scale": scale, "obs_scale": noise, "mean": mean}
    posterior = posterior_of(model, y, {name: np.full((1, 1), v) for name, v in sites.items()}, X=X)
    found = posterior.predict(X_new)

    def kernel(a, b):
        r = np.sqrt(3) * np.abs(a[:, None] - b[None]) / length
        return scale**2 * (1 + r) * np.exp(-r)

    seen = ~np.isnan(y)
    K = kernel(X[seen], X[seen]) + noise**2 * np.eye(3)
    cross = kernel(X[seen], X_new)
    wanted = mean + cross.T @ np.linalg.solve(K, y[seen] - mean)
    variance = scale**2 + noise**2 - np.einsum("ij,ij->j", cross, np.linalg.solve(K, cross))
    assert_allclose(found.mean, wanted, rtol=tol(1e-8, 1e-4))
    assert_allclose(found.std, np.sqrt(variance), rtol=tol(1e-8, 1e-4))
    assert_array_equal(found.labels, np.arange(3))
    assert found.label_name == "row" and found.draws.shape == (1, 1000, 3)
