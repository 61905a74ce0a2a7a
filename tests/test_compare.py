"""One table over families, or a refusal that says why."""

import dataclasses
import functools

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from helpers import label, tol
from numpy.testing import assert_allclose
from scipy import stats
from toys import Line, posterior_of

import probkit as pk

RNG = np.random.default_rng(10)
Y = RNG.normal(5.0, 1.0, 20)
LINE = Line(intercept=dist.Normal(0, 10), obs_scale=dist.HalfNormal(2.0))


def line(y=Y, centre=5.0, **options):
    values = {"intercept": RNG.normal(centre, 0.2, (1, 400)), "obs_scale": RNG.gamma(40.0, 1 / 40, (1, 400))}
    return posterior_of(LINE, y, values, **options)


def level(y=Y):
    model = pk.LocalLevel(level_scale=dist.HalfNormal(1.0), obs_scale=dist.HalfNormal(1.0))
    return posterior_of(model, y, {name: RNG.gamma(40.0, 1 / 40, (1, 400)) for name in ("level_scale", "obs_scale")})


# -- tables ------------------------------------------------------------------------------------------------------------


def test_the_three_families_on_the_nile(nile_level, nile_arima, nile_gp):
    fits = {"process": nile_gp, "level": nile_level, "arima": nile_arima}
    table = pk.compare(fits)
    assert list(table.columns) == [
        *("rank", "elpd", "elpd_diff", "weight", "se", "dse"),
        *("max_k_hat", "bad_k", "method", "converged"),
    ]
    for name in fits:
        assert_allclose(table["elpd"][name], fits[name].loo().elpd, atol=0.05)
    # The local level is the ARIMA with its coefficient in (-1, 0).
    assert_allclose(table["elpd"]["level"], table["elpd"]["arima"], atol=0.5)
    assert list(table["rank"]) == [0, 1, 2] and (np.diff(table["elpd"]) <= 0).all()
    assert table["elpd_diff"].iloc[0] == 0 and table["dse"].iloc[0] == 0
    assert_allclose(table["weight"].sum(), 1.0, atol=0.02)
    for name in fits:
        k = np.asarray(fits[name].loo().pareto_k)
        assert (table["max_k_hat"][name], table["bad_k"][name]) == (k.max(), (k > 0.7).sum())
    assert table["converged"].all() and (table["method"] == "importance").all()


def test_the_better_model_comes_first():
    table = pk.compare({"wrong": line(centre=3.0), "right": line()})
    assert list(table.index) == ["right", "wrong"]
    assert table["weight"]["right"] > 0.9
    assert table["elpd_diff"]["wrong"] > 2 * table["dse"]["wrong"] > 0


@pytest.mark.parametrize("weights", ["stacking", "pseudo-bma", "bb-pseudo-bma"])
def test_weights_sum_to_one(weights):
    table = pk.compare({"one": line(), "two": line(centre=4.7), "three": line(centre=5.5)}, weights=weights)
    assert_allclose(table["weight"].sum(), 1.0, atol=0.02)


def test_p_loo_stands_where_no_states_are_integrated_out():
    assert "p_loo" in pk.compare({"one": line(), "two": line(centre=4.9)}).columns
    table = pk.compare({"line": line(), "level": level()})
    assert not {"p", "p_loo"} & set(table.columns)
    assert np.isnan(level().loo().p) and np.isfinite(line().loo().p)


def test_a_plain_function_meets_a_model_on_the_same_data():
    def model(y):
        mean = numpyro.sample("mean", dist.Normal(0.0, 10.0))
        with numpyro.plate("entries", 20):
            numpyro.sample("obs", dist.StudentT(4.0, mean, 1.0), obs=y)

    centres = RNG.normal(5.0, 0.2, (1, 400))
    function = posterior_of(model, Y, {"mean": centres})
    wanted = stats.t(4.0, centres[..., None]).logpdf(Y)
    assert_allclose(function.loo_terms, wanted, rtol=tol(1e-8, 1e-4))
    table = pk.compare({"function": function, "line": line()})
    assert set(table.index) == {"function", "line"} and np.isfinite(table["elpd"]).all()
    with pytest.raises(ValueError, match="fitted to different data"):
        pk.compare({"function": posterior_of(model, Y + 1.0, {"mean": centres}), "line": line()})


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("posteriors", [{}, {"one": None}, [1, 2], None], ids=label)
def test_fewer_than_two(posteriors):
    with pytest.raises(ValueError, match="compare takes a dictionary of at least two posteriors"):
        pk.compare(posteriors)


def test_something_else_than_a_posterior():
    with pytest.raises(TypeError, match="'two' is LocalLevel; a posterior"):
        pk.compare({"one": line(), "two": pk.LocalLevel()})


@pytest.mark.parametrize("method", [pk.MLE(), pk.MAP(), pk.Laplace(importance=False)], ids=lambda m: type(m).__name__)
def test_draws_that_do_not_target_the_posterior(method):
    with pytest.raises(TypeError, match=f"'two' was fitted by {type(method).__name__}, whose draws do not target"):
        pk.compare({"one": line(), "two": line(method=method)})


@pytest.mark.parametrize("y", [Y + 0.01, Y[:-1], np.where(np.arange(20) == 3, np.nan, Y), 10 * Y], ids=label)
def test_different_data(y):
    with pytest.raises(ValueError, match="'two' and 'one' were fitted to different data; compare needs the same y"):
        pk.compare({"one": line(), "two": line(y)})


def test_different_finite_terms():
    y = np.where(np.arange(20) == 7, Y, np.nan)
    with pytest.raises(ValueError, match=r"'level' and 'line' have finite terms for different entries \(1 differ\)"):
        pk.compare({"line": line(y), "level": level(y)})


# -- K-fold ------------------------------------------------------------------------------------------------------------

KEY = jax.random.key(0)


@functools.cache
def fold_of(slope=0.0, folds=4, shift=0.0, method=None):
    """Line with one unknown (or none, without a method), scored on common folds."""
    model = Line(intercept=5.0 if method is None else dist.Normal(5.0, 1.0), slope=slope, obs_scale=1.0)
    labels = folds if isinstance(folds, int) else np.asarray(folds)
    return pk.kfold(pk.fit(model, Y + shift, key=KEY, method=method), labels, key=KEY)


def test_any_method_meets_by_kfold():
    found = {"wrong": fold_of(0.3), "point": fold_of(method=pk.MLE(starts=1)), "fixed": fold_of()}
    table = pk.compare(found)
    assert list(table.columns) == ["rank", "elpd", "elpd_diff", "weight", "se", "dse", "mcse", "method", "converged"]
    assert table.index[-1] == "wrong" and list(table["rank"]) == [0, 1, 2]
    for name, result in found.items():
        assert_allclose(table["elpd"][name], result.elpd)
        assert table["mcse"][name] == result.elpd_i.attrs["mcse"]
    assert table["method"]["point"] == "mle" and table["method"]["fixed"] == "fixed"
    diff = np.asarray(found[table.index[0]].elpd_i) - np.asarray(found["wrong"].elpd_i)
    assert_allclose(table["elpd_diff"]["wrong"], diff.sum())
    assert_allclose(table["dse"]["wrong"], np.sqrt(20 * diff.var()))
    assert_allclose(table["weight"].sum(), 1.0, atol=0.02)


def test_the_names_of_folds_do_not_matter():
    one, other = tuple(np.arange(20) // 5), tuple(7 - np.arange(20) // 5)
    assert set(pk.compare({"one": fold_of(folds=one), "other": fold_of(0.3, folds=other)}).index) == {"one", "other"}


def test_kfold_does_not_mix_with_leave_one_out():
    for pair in ({"one": fold_of(), "two": line()}, {"two": line(), "one": fold_of()}):
        with pytest.raises(TypeError, match="'two' is a posterior among results of kfold: terms of leave-one-out and"):
            pk.compare(pair)
    with pytest.raises(TypeError, match=r"'two' is ELPDData\w* among results of kfold"):
        pk.compare({"one": fold_of(), "two": line().loo()})


def test_kfold_without_its_folds():
    bare = dataclasses.replace(fold_of(), elpd_i=fold_of().elpd_i.drop_vars("fold"))
    with pytest.raises(TypeError, match="'two' does not say what its folds are"):
        pk.compare({"one": fold_of(), "two": bare})


@pytest.mark.parametrize("folds", [5, tuple(np.arange(20) // 5)], ids=["another number", "labels"])
def test_different_folds(folds):
    with pytest.raises(ValueError, match=r"'two' and 'one' have different folds \([45] and 4\); pass the same key"):
        pk.compare({"one": fold_of(), "two": fold_of(folds=folds)})


def test_kfold_on_different_data():
    with pytest.raises(ValueError, match="'two' and 'one' score different data"):
        pk.compare({"one": fold_of(), "two": fold_of(shift=0.5)})


def test_kfold_has_nothing_to_refit():
    with pytest.raises(ValueError, match="refit is for leave-one-out"):
        pk.compare({"one": fold_of(), "two": fold_of(0.3)}, refit=True)
