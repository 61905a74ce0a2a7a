"""K-fold: terms against brute-force conditioning, closed forms and quadrature; folds; what is refused."""

import dataclasses
import functools

import arviz_stats
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
from helpers import count_compilations, label, tol
from numpy.testing import assert_allclose, assert_array_equal
from quadrature import local_level_posterior
from scipy.stats import norm
from toys import Line

import probkit as pk
from probkit.evaluate.kfold import assign
from probkit.evaluate.loo import exact_terms

#: What stands here does not depend on the precision.
pytestmark = pytest.mark.once

KEY = jax.random.key(3)
N = 24
GAPS = {"complete": [], "gaps": [0, 5, 6, 15, 23]}
FOLDS = {"random": 5, "blocks": np.arange(N) // 6, "alternate": np.arange(N) % 2, "singletons": np.arange(N)}


def series(gap=()):
    rng = np.random.default_rng(0)
    y = 3.0 + np.cumsum(rng.normal(size=N)) + rng.normal(size=N)
    y[list(gap)] = np.nan
    return y


def steps(n):
    return np.tril(np.ones((n, n)), -1)


def level_covariance(n, level_scale, obs_scale):
    return obs_scale**2 * np.eye(n) + level_scale**2 * steps(n) @ steps(n).T


def process_covariance(n):
    r = np.sqrt(3.0) * np.abs(np.subtract.outer(np.arange(n), np.arange(n))) / 4.0
    return 1.5**2 * (1 + r) * np.exp(-r) + 0.9**2 * np.eye(n)


class Joint(pk.Model):
    """A multivariate normal law, as a user would write it."""

    def distribution(self, X, length):
        return dist.MultivariateNormal(jnp.full(length, 2.5), jnp.asarray(process_covariance(length), float))


def local_level():
    return pk.LocalLevel(level_scale=0.8, obs_scale=1.3), level_covariance(N, 0.8, 1.3), None


def arima():
    shocks = np.eye(N) + (1 - 0.6) * steps(N)
    return pk.ARIMA(0, 1, 1, ma=[-0.6], scale=1.4), 1.4**2 * shocks @ shocks.T, None


def process():
    model = pk.GP(pk.Matern32(lengthscale=4.0, scale=1.5), obs_scale=0.9, mean=2.5)
    return model, process_covariance(N), 2.5


def joint():
    return Joint(), process_covariance(N), 2.5


def log_density(i, others, y, covariance, mean):
    """log p(y_i | y of others); under a flat mean (None), by universal kriging."""
    K, k = covariance[np.ix_(others, others)], covariance[others, i]
    if mean is not None:
        weights = np.linalg.solve(K, k)
        return norm(mean + weights @ (y[others] - mean), np.sqrt(covariance[i, i] - weights @ k)).logpdf(y[i])
    ones = np.ones((len(others), 1))
    right = np.append(k, 1.0)
    solution = np.linalg.solve(np.block([[K, ones], [ones.T, np.zeros((1, 1))]]), right)
    return norm(solution[:-1] @ y[others], np.sqrt(covariance[i, i] - solution @ right)).logpdf(y[i])


def by_hand(y, fold, covariance, mean):
    """The term of every observed entry given the observed entries outside its fold."""
    seen = ~np.isnan(y)
    return [log_density(i, np.flatnonzero(seen & (fold != fold[i])), y, covariance, mean) for i in np.flatnonzero(seen)]


@pytest.mark.parametrize("gap", GAPS.values(), ids=GAPS)
@pytest.mark.parametrize("folds", FOLDS.values(), ids=FOLDS)
@pytest.mark.parametrize("family", [local_level, arima, process, joint], ids=lambda f: f.__name__)
def test_fixed_parameters_by_brute_force(family, folds, gap):
    y = series(gap)
    model, covariance, mean = family()
    found = pk.kfold(pk.fit(model, y, key=KEY), folds, key=KEY)
    place = found.elpd_i["time"].to_numpy()
    assert_array_equal(place, np.flatnonzero(~np.isnan(y)))
    fold = np.full(N, -1)
    fold[place] = found.elpd_i["fold"]
    assert_allclose(found.elpd_i, by_hand(y, fold, covariance, mean), rtol=tol(1e-8, 1e-3), atol=tol(1e-8, 1e-3))
    assert found.n_data_points == found.elpd_i.size and found.elpd_i.attrs["n_folds"] == np.unique(fold[place]).size
    assert_allclose(found.elpd, found.elpd_i.values.sum())
    assert_allclose(found.se, np.sqrt(found.elpd_i.size * np.var(found.elpd_i.values)))
    assert_allclose(found.elpd_i["y"], y[place], rtol=1e-6)
    assert not found.warning and found.elpd_i.attrs["mcse"] == 0.0  # one draw of nothing has no Monte Carlo error
    if isinstance(folds, np.ndarray):
        assert_array_equal(found.elpd_i["fold"], folds[place])


@pytest.mark.once
@pytest.mark.parametrize("solver", [pk.gp.Grid(), pk.gp.Vecchia(7)], ids=["grid", "neighbours"])
def test_solvers_that_look_at_the_data_look_again_without_the_fold(solver):
    """In blocks, where masked entries would be the nearest neighbours."""
    y, fold = series()[:8], np.arange(8) // 4
    y[2] = np.nan
    model = dataclasses.replace(process()[0], solver=solver)
    posterior = pk.fit(model, y, key=KEY)
    found = pk.kfold(posterior, fold, key=KEY, progress=False)
    assert_allclose(found.elpd_i, by_hand(y, fold, process_covariance(8), 2.5), rtol=tol(1e-8, 1e-3))
    assert_allclose(exact_terms(posterior, np.array([5])), posterior.loo_terms[0, :, 5], rtol=tol(1e-8, 1e-3))


# -- unknown parameters ------------------------------------------------------------------------------------------------

LAPLACE = pk.Laplace(draws=2000, starts=2)


@functools.cache
def mean_only(method=LAPLACE):
    """Conjugate: mean ~ N(1, 2), y ~ N(mean, 1.5)."""
    y = np.random.default_rng(4).normal(2.0, 1.5, 12)
    return pk.fit(Line(intercept=dist.Normal(1.0, 2.0), obs_scale=1.5), y, key=KEY, method=method), y


def assert_within_error(found, expected, at=slice(None)):
    """Within four Monte Carlo errors of each term, and those are small."""
    error = found.elpd_i["mcse"].to_numpy()[at]
    assert np.all(error < 0.03)
    assert np.all(np.abs(found.elpd_i.to_numpy()[at] - expected) < 4 * error + tol(1e-3, 5e-3))


def conjugate(y, fold):
    terms = []
    for i, value in enumerate(y):
        others = y[fold != fold[i]]
        variance = 1 / (1 / 4 + len(others) / 2.25)
        mean = variance * (1 / 4 + others.sum() / 2.25)
        terms.append(norm(mean, np.sqrt(variance + 2.25)).logpdf(value))
    return terms


@pytest.mark.once
@pytest.mark.parametrize("folds", [3, 12], ids=["K=3", "K=n"])
def test_the_conjugate_mean(folds):
    posterior, y = mean_only()
    found = pk.kfold(posterior, folds, key=KEY)
    assert_within_error(found, conjugate(y, found.elpd_i["fold"].to_numpy()))
    assert not found.warning and found.elpd_i.attrs["rung"] == "importance" and found.n_samples == 2000
    assert len(found.elpd_i.attrs["reports"]) == folds
    if folds == 12:
        assert_allclose(found.elpd_i, exact_terms(posterior, np.arange(12)), atol=0.05)
        assert_allclose(found.elpd, posterior.loo().elpd, atol=0.1)


@pytest.mark.once
def test_default_priors_stay_those_of_the_whole_data():
    _, y = mean_only()
    folds = np.arange(12) // 4
    priors = [dist.Normal(y.mean(), y.std()), pk.model.Default(lambda self, y, X: dist.Normal(y.mean(), y.std()))]
    posteriors = [pk.fit(Line(intercept=p, obs_scale=1.5), y, key=KEY, method=LAPLACE) for p in priors]
    explicit, default = [pk.kfold(posterior, folds, key=KEY).elpd_i for posterior in posteriors]
    assert_allclose(default, explicit, rtol=tol(1e-8, 1e-3))


def test_the_monte_carlo_error_is_the_spread_over_keys():
    posterior, _ = mean_only()
    folds = np.arange(12) // 4
    runs = [pk.kfold(posterior, folds, key=key) for key in jax.random.split(KEY, 30)]
    spread, spread_i = np.std([run.elpd for run in runs]), np.std([run.elpd_i for run in runs], axis=0)
    assert 0.7 < np.mean([run.elpd_i.attrs["mcse"] for run in runs]) / spread < 1.5
    assert 0.7 < np.mean([run.elpd_i["mcse"] for run in runs]) / spread_i.mean() < 1.5


BLOCKS = np.arange(100) // 25


@functools.cache
def nile_by(method):
    spread = pk.datasets.nile().to_numpy(float).std()
    model = pk.LocalLevel(level_scale=dist.HalfNormal(spread), obs_scale=dist.HalfNormal(spread))
    return pk.fit(model, pk.datasets.nile(), key=KEY, method=method)


@pytest.mark.once
def test_the_nile_against_quadrature():
    """A ratio of evidences, log p(y_-F, y_i) - log p(y_-F)."""
    y = pk.datasets.nile().to_numpy(float)
    posterior = nile_by(LAPLACE)
    found = pk.kfold(posterior, BLOCKS, key=KEY)
    grid = functools.partial(local_level_posterior, spread=y.std(), points=81)
    for i in (3, 30, 62, 99):
        left = np.where(BLOCKS[i] == BLOCKS, np.nan, y)
        with_i = np.where(np.arange(100) == i, y, left)
        assert_within_error(found, grid(with_i).log_evidence - grid(left).log_evidence, i)
    assert found.elpd_i.dims == ("year",) and found.elpd_i["year"][0] == 1871
    # Whole quarters of a century are harder to tell than single years.
    assert found.elpd < posterior.loo_terms.mean((0, 1)).sum() - 3.0


MLE = pk.MLE(starts=2)


@pytest.mark.once
def test_a_point_estimate_scores_what_it_predicts():
    y = pk.datasets.nile().to_numpy(float)
    found = pk.kfold(nile_by(MLE), BLOCKS, key=KEY)
    assert found.n_samples == 1 and found.elpd_i.attrs["rung"] == "mle" and found.elpd_i.attrs["mcse"] == 0.0
    left = np.where(BLOCKS == 2, np.nan, y)
    values = pk.fit(nile_by(MLE).model, left, key=KEY, method=MLE).sites
    covariance = level_covariance(100, *(values[name].item() for name in ("level_scale", "obs_scale")))
    wanted = [log_density(i, np.flatnonzero(BLOCKS != 2), y, covariance, None) for i in (50, 60, 74)]
    assert_allclose(found.elpd_i[[50, 60, 74]], wanted, atol=tol(1e-4, 1e-2))


def test_nothing_compiles_after_the_first_refit():
    posterior = nile_by(MLE)
    pk.kfold(posterior, 2, key=KEY)
    key, labels = jax.random.key(8), np.arange(100) // 10
    with count_compilations() as compiled:
        pk.kfold(posterior, 7, key=key)
        pk.kfold(posterior, labels, key=key)
    assert compiled.count == 0


def test_a_term_that_few_draws_carry_is_told():
    _, y = mean_only()
    y = np.where(np.arange(12) == 5, 60.0, y)
    posterior = pk.fit(Line(intercept=dist.Normal(1.0, 2.0), obs_scale=1.5), y, key=KEY, method=LAPLACE)
    found = pk.kfold(posterior, np.arange(12) // 4, key=KEY)
    assert found.warning and found.elpd_i.attrs["converged"]
    assert found.elpd_i["mcse"][5] > 0.1 > found.elpd_i["mcse"][0]


@pytest.mark.once
def test_a_refit_that_does_not_converge_is_told():
    _, y = mean_only()
    posterior = pk.fit(Line(), y, key=KEY, method=pk.MLE(starts=1, max_steps=1))
    found = pk.kfold(posterior, 2, key=KEY)
    assert found.warning and not found.elpd_i.attrs["converged"]
    assert not any(report.converged for report in found.elpd_i.attrs["reports"])


class Chain(pk.Model):
    """Each entry is predicted by the one before it, or not at all."""

    def distribution(self, X, length):
        return dist.Normal(jnp.zeros(length), 1.0).to_event(1)

    def leave_one_out(self, y, X=None):
        return dist.Normal(jnp.roll(y, 1), 1.0)


def test_entries_without_a_term_are_left_out_and_told():
    y = series()
    posterior = pk.fit(Chain(), y, key=KEY)
    found = pk.kfold(posterior, np.arange(N) // 6, key=KEY)
    assert_array_equal(found.elpd_i["time"], [0, 6, 12, 18])
    assert_allclose(found.elpd_i, norm(np.roll(y, 1), 1.0).logpdf(y)[::6], rtol=tol(1e-8, 1e-4))
    assert found.warning and found.elpd_i.attrs["converged"]
    pairs = np.where(np.arange(4) < 2, 0, 1)
    with pytest.raises(ValueError, match="No entry has a K-fold term"):
        pk.kfold(pk.fit(Chain(), np.array([1.0, np.nan, 2.0, np.nan]), key=KEY), pairs, key=KEY)


def test_inputs_are_kept():
    x = np.linspace(-1.0, 1.0, 12)
    y = 2.0 + 3.0 * x + np.random.default_rng(5).normal(0.0, 0.1, 12)
    posterior = pk.fit(Line(intercept=2.0, slope=3.0, obs_scale=0.1), y, x, key=KEY)
    assert_allclose(pk.kfold(posterior, 4, key=KEY).elpd_i, norm(2 + 3 * x, 0.1).logpdf(y), rtol=tol(1e-8, 1e-3))


def test_single_precision_stays():
    found = pk.kfold(pk.fit(local_level()[0], series().astype(np.float32), key=KEY), 4, key=KEY)
    assert found.elpd_i["y"].dtype == np.float32 and found.elpd_i.dtype == np.float64


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # ArviZ sorts in place, which pandas gives notice of
def test_arviz_takes_the_results():
    fits = {"level": local_level()[0], "process": process()[0]}
    found = {name: pk.kfold(pk.fit(model, series(), key=KEY), 4, key=KEY) for name, model in fits.items()}
    table = arviz_stats.compare(found)
    for name, result in found.items():
        assert isinstance(result, arviz_stats.ELPDData)
        assert f"{result.elpd:.2f}" in str(result)
        assert_allclose(table["elpd"][name], result.elpd, rtol=0.05)  # ArviZ 1 rounds to what the error lets stand


# -- folds -------------------------------------------------------------------------------------------------------------


def test_random_folds_are_balanced_over_observed_entries():
    observed = ~np.isnan(series(GAPS["gaps"]))
    labels = assign(4, observed, KEY)
    assert_array_equal(labels[~observed], -1)
    assert sorted(np.bincount(labels[observed])) == [4, 5, 5, 5]
    assert_array_equal(labels, assign(np.int64(4), observed, KEY))
    assert not np.array_equal(labels, assign(4, observed, jax.random.key(0)))


def test_models_of_the_same_data_share_folds():
    found = [pk.kfold(pk.fit(family()[0], series(), key=KEY), 4, key=KEY) for family in (local_level, process)]
    assert_array_equal(found[0].elpd_i["fold"], found[1].elpd_i["fold"])


@pytest.mark.parametrize("make", [list, pd.Series, jnp.asarray], ids=["list", "pandas", "jax"])
def test_labels_of_any_kind(make):
    labels = make((100 * (np.arange(N) // 8) - 100).tolist())
    found = pk.kfold(pk.fit(local_level()[0], series(), key=KEY), labels, key=KEY)
    assert found.elpd_i.attrs["n_folds"] == 3 and set(found.elpd_i["fold"].values.tolist()) == {-100, 0, 100}


# -- refusals ----------------------------------------------------------------------------------------------------------


@functools.cache
def fixed():
    return pk.fit(local_level()[0], series(GAPS["gaps"]), key=KEY)


@pytest.mark.parametrize("folds", [1, 0, -3, 20])
def test_a_number_of_folds_out_of_range(folds):
    with pytest.raises(ValueError, match=f"folds is {folds}; a number from 2 to 19, the observed entries of y"):
        pk.kfold(fixed(), folds, key=KEY)


@pytest.mark.parametrize("folds", [True, 4.0, None, "blocks", np.linspace(0, 1, N)], ids=label)
def test_folds_that_are_no_whole_numbers(folds):
    with pytest.raises(TypeError, match=r"folds is .*; a whole number of folds, or whole numbers as labels"):
        pk.kfold(fixed(), folds, key=KEY)


def test_labels_of_another_length():
    with pytest.raises(ValueError, match=r"folds has shape \(19,\); one label for each entry of y, \(24,\), is wanted"):
        pk.kfold(fixed(), np.arange(19), key=KEY)


def test_labels_that_leave_no_data():
    missing = np.isnan(series(GAPS["gaps"]))
    with pytest.raises(ValueError, match="folds puts all observed entries in one fold"):
        pk.kfold(fixed(), missing.astype(int), key=KEY)


def test_a_plain_function():
    def model(y):
        mean = numpyro.sample("mean", dist.Normal(0.0, 10.0))
        numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    posterior = pk.fit(model, args=(series(),), key=KEY, method=pk.MAP(starts=1))
    with pytest.raises(TypeError, match="kfold is for probkit models: in a plain NumPyro function no entry can be"):
        pk.kfold(posterior, key=KEY)


def test_something_else_than_a_posterior():
    with pytest.raises(TypeError, match=r"kfold takes one posterior \(what pk.fit returns.*\); LocalLevel came"):
        pk.kfold(pk.LocalLevel(), key=KEY)


def test_no_key():
    with pytest.raises(TypeError, match="kfold needs key="):
        pk.kfold(fixed(), 4)


class Unscored(pk.Model):
    """A law of y whose entries cannot be left out in closed form."""

    def distribution(self, X, length):
        return dist.Dirichlet(jnp.ones(length))


def test_a_law_without_terms_is_refused_before_any_refit(monkeypatch):
    y = np.full(4, 0.25)
    posterior = pk.fit(Unscored(), y, key=KEY)
    monkeypatch.setattr(type(posterior.method), "run", lambda *_: pytest.fail("a refit that cannot be scored"))
    with pytest.raises(TypeError, match="Dirichlet has no leave-one-out terms"):
        pk.kfold(posterior, 2, key=KEY)
