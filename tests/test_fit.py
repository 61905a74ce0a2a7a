"""One verb: what `fit` takes, what it refuses, and what it says of difficult data."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
from helpers import label, tol
from numpy.testing import assert_allclose, assert_array_equal
from toys import Holder, Line

import probkit as pk

KEY = jax.random.key(0)
RNG = np.random.default_rng(3)
SERIES = RNG.normal(0, 0.5, 40).cumsum() + RNG.normal(5, 1, 40)
ORDERED = dist.TransformedDistribution(dist.Normal(0, 1).expand([3]).to_event(1), dist.transforms.OrderedTransform())


def fit(y, model=None, **options):
    """The cheapest fit; all series of one length share its compilation."""
    return pk.fit(model or pk.LocalLevel(), y, **{"key": KEY, "method": pk.MAP(), "progress": False} | options)


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("y", "error", "match"),
    [
        (SERIES.reshape(10, 2, 2), ValueError, r"y has shape \(10, 2, 2\); LocalLevel takes"),
        (3.0, ValueError, r"y has shape \(\)"),
        ([], ValueError, "y is empty"),
        ([np.nan, np.nan], ValueError, "y has 2 entries and all are NaN"),
        ([1.0, np.inf], ValueError, r"y is infinite at positions \[1\]"),
        (["a", "b"], TypeError, "y has dtype <U1; numbers are wanted"),
        (np.array([object()]), TypeError, "y has dtype object"),
        (pd.DataFrame({"y": SERIES}), TypeError, r"y is a data frame with columns \['y'\]; pass one column"),
        (None, TypeError, "fit needs y to fit LocalLevel"),
    ],
    ids=["cube", "scalar", "empty", "nan", "infinite", "strings", "objects", "frame", "none"],
)
def test_bad_data(y, error, match):
    with pytest.raises(error, match=match):
        fit(y)


@pytest.mark.parametrize(
    ("X", "error", "match"),
    [
        (np.ones(39), ValueError, r"X has shape \(39,\); \(40,\) or \(40, features\) is wanted"),
        (np.full(40, np.nan), ValueError, "X has 40 entries that are not finite"),
        (["a"] * 40, TypeError, "X has dtype <U1"),
        (np.ones((40, 1, 1)), ValueError, r"X has shape \(40, 1, 1\)"),
    ],
)
def test_bad_inputs(X, error, match):
    with pytest.raises(error, match=match):
        fit(SERIES, pk.GP(), X=X)


@pytest.mark.parametrize("model", [pk.LocalLevel(), pk.SES()], ids=["LocalLevel", "SES"])
def test_models_without_inputs_refuse_them(model):
    with pytest.raises(TypeError, match=f"{type(model).__name__} takes no X"):
        fit(SERIES, model, X=np.arange(40.0))


@pytest.mark.parametrize("key", [None, 0, jax.random.PRNGKey(0), jax.random.split(jax.random.key(0), 2)])
def test_bad_keys(key):
    with pytest.raises(TypeError, match=r"jax\.random\.key\("):
        fit(SERIES, key=key)


def test_there_is_no_default_seed():
    with pytest.raises(TypeError, match="fit needs key="):
        pk.fit(pk.LocalLevel(), SERIES)


@pytest.mark.parametrize("method", [pk.MAP, "map", 3])
def test_a_method_is_a_value(method):
    with pytest.raises(TypeError, match=r"method is .*; a method value is wanted, such as pk.Auto\(\)"):
        fit(SERIES, method=method)


@pytest.mark.parametrize("options", [{"draws": 0}, {"draws": 2.5}, {"starts": True}, {"chains": 0}, {"warmup": -1}])
def test_bad_options_of_a_method(options):
    (name,) = options
    method = pk.NUTS if name in ("chains", "warmup") else pk.Auto
    with pytest.raises(ValueError, match=f"{name} is .*; a whole number of at least 1"):
        method(**options)


# -- init --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("init", "error", "match"),
    [
        ({"level": 1.0}, ValueError, r"init has the site 'level'; the sites of this model are \['level_scale', 'obs_s"),
        ({"level_scale": [1.0, 2.0]}, ValueError, r"init\['level_scale'\] has shape \(2,\); \(\) is wanted"),
        ({"level_scale": "a"}, TypeError, r"init\['level_scale'\] is 'a'; numbers are wanted"),
        ({"level_scale": -1.0}, ValueError, "lies outside the support"),
        ({"level_scale": 0.0}, ValueError, "lies outside the support"),
        ({"level_scale": np.nan}, ValueError, "lies outside the support"),
        ([1.0, 2.0], TypeError, "init is list; a dictionary of sites is wanted"),
    ],
    ids=label,
)
def test_bad_init(init, error, match):
    with pytest.raises(error, match=match):
        fit(SERIES, init=init)


@pytest.mark.parametrize(
    ("prior", "value"),
    [
        (dist.Dirichlet(np.ones(3)), [0.2, 0.2, 0.2]),
        (dist.Dirichlet(np.ones(3)), [-0.2, 0.6, 0.6]),
        (ORDERED, [1.0, 0.0, 2.0]),
        (dist.LKJCholesky(2), [[1.0, 0.0], [3.0, 2.0]]),
        (dist.Uniform(1.0, 2.0), 2.5),
    ],
    ids=["sum", "negative", "order", "correlation", "interval"],
)
def test_init_outside_a_support_of_its_own_kind(prior, value):
    with pytest.raises(ValueError, match="lies outside the support of a prior"):
        fit(SERIES, Holder(prior), init={"theta": value})


class Square(Holder):
    """Two modes, at theta and -theta."""

    def distribution(self, X, length):
        return dist.Normal(jnp.full(length, self.theta**2), 1.0).to_event(1)


def test_the_search_starts_at_init_alone():
    for sign in (-1.0, 1.0):
        found = fit(SERIES, Square(dist.Normal(0.0, 10.0)), init={"theta": sign})
        assert np.sign(found.sites["theta"]) == sign and found.report.starts_agreeing == 1.0


def test_init_for_a_plain_function():
    def model(y):
        theta = numpyro.sample("theta", dist.Normal(0.0, 10.0))
        numpyro.sample("y", dist.Normal(theta**2, 1.0).expand([40]).to_event(1), obs=y)

    options = {"key": KEY, "method": pk.MAP(), "args": (SERIES,)}
    assert pk.fit(model, init={"theta": -1.0}, **options).sites["theta"] < 0
    with pytest.raises(ValueError, match=r"the sites of this model are \['theta'\]"):
        pk.fit(model, init={"y": 1.0}, **options)


# -- data in every form ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain():
    return fit(SERIES)


def test_the_form_of_the_data_changes_nothing(plain):
    index = pd.date_range("2001-01-01", periods=40, freq="MS")
    for y in (list(SERIES), pd.Series(SERIES, index), jnp.asarray(SERIES), np.ma.array(SERIES), SERIES.astype(object)):
        assert fit(y).sites["obs_scale"] == plain.sites["obs_scale"]


def test_missing_values_of_every_form_are_the_same():
    gaps = SERIES.copy()
    gaps[:3] = gaps[7] = np.nan
    first = fit(gaps)
    assert first.report.notes[0] == "4 of 40 values are missing."
    objects = [None if np.isnan(v) else v for v in gaps]
    for y in (objects, np.ma.masked_invalid(gaps), pd.Series(gaps)):
        assert fit(y).sites["obs_scale"] == first.sites["obs_scale"]
    # A ragged start is leading NaN: only what was seen counts.
    whole, seen = (pk.LocalLevel(1.0, 2.0).log_likelihood(jnp.asarray(y)) for y in (gaps, gaps[3:]))
    assert_allclose(whole, seen, rtol=1e-5)


def test_integers_and_booleans_are_numbers():
    counts = np.round(10 * SERIES).astype(int)
    assert fit(counts).sites["obs_scale"] == fit(counts.astype(float)).sites["obs_scale"]
    assert np.isfinite(fit(SERIES > 5).sites["obs_scale"])


def test_labels_are_carried_to_forecast_frame_and_arviz():
    y = pd.Series(SERIES, pd.date_range("2001-01-01", periods=40, freq="MS", name="month"), name="sales")
    posterior = fit(y)
    frame = posterior.forecast(3).to_frame()
    assert list(frame.columns) == ["month", "mean", "lo-80", "hi-80", "lo-95", "hi-95"]
    assert list(frame["month"].dt.strftime("%Y-%m-%d")) == ["2004-05-01", "2004-06-01", "2004-07-01"]
    tree = posterior.to_arviz()
    assert tree.observed_data["y"].dims == ("month",)
    assert_array_equal(tree.observed_data["month"].to_numpy(), y.index.to_numpy())
    assert_array_equal(posterior.predict().labels, y.index.to_numpy())


def test_float32_data_stay_float32():
    posterior = fit(SERIES.astype(np.float32))
    assert all(v.dtype == np.float32 for v in posterior.sites.values())
    assert posterior.forecast(3).means.dtype == np.float32
    assert posterior.report.converged


@pytest.mark.parametrize("unit", [1e8, 1e-8])
def test_units_far_from_one(plain, unit):
    posterior = fit(unit * SERIES)
    assert posterior.report.converged
    for name, value in plain.sites.items():
        assert_allclose(posterior.sites[name], unit * value, rtol=tol(1e-6, 5e-3))


# -- little or no information: documented answers ----------------------------------------------------------------------


@pytest.mark.once
def test_one_observation():
    posterior = pk.fit(pk.LocalLevel(), [3.0], key=KEY, progress=False)
    assert posterior.report.notes[0].startswith("One observation: scales of default priors fall back to |y|")
    assert all(np.isfinite(v).all() for v in posterior.sites.values())
    found = posterior.forecast(2)
    assert np.isfinite(found.interval(95)).all()
    assert_allclose(found.mean, [3.0, 3.0], atol=tol(1e-6, 1e-4))
    # With nothing else to go by, the left-out entry has no proper law.
    assert np.isnan(posterior.loo_terms).all() and not posterior.scored.any()


@pytest.mark.parametrize("value", [5.0, 0.0, -1e6])
def test_a_constant_series(value):
    posterior = pk.fit(pk.LocalLevel(), np.full(100, value), key=KEY, method=pk.Laplace())
    assert posterior.report.converged
    assert posterior.report.notes[0].startswith("The series is constant: scales of default priors fall back to |mean|")
    assert all(np.isfinite(v).all() and (v > 0).all() for v in posterior.sites.values())
    found = posterior.forecast(3)
    # The noise of a constant is cut off below at half its digits, and the data push it there.
    floor = jnp.finfo(jnp.result_type(float)).eps ** 0.5 * max(abs(value), 1.0)
    assert_allclose(found.mean, np.full(3, value), atol=0.1 * floor)
    width = np.diff(found.interval(95), axis=0)
    assert np.all((2 * 1.96 * floor < width) & (width < 2 * 1.96 * 1.1 * floor))


# -- what comes back ---------------------------------------------------------------------------------------------------


def test_the_same_key_gives_the_same_answer(plain):
    again = fit(SERIES)
    assert again.sites["level_scale"] == plain.sites["level_scale"]
    assert_array_equal(again.forecast(3).draws, plain.forecast(3).draws)


def test_defaults_are_the_method_and_the_report(plain):
    assert plain.method == pk.MAP()
    assert dataclasses.replace(plain.method, starts=3) == pk.MAP(starts=3)
    assert plain.report.method == "MAP(starts=8, max_steps=100)"
    assert "converged (map)" in repr(plain) and "LocalLevel, 1 x 1 draws of ['level_scale', 'obs_scale']" in repr(plain)


def test_failure_is_a_report():
    # The likelihood has no maximum: the scale of a perfect fit runs to 0.
    posterior = fit(
        np.full(20, 2.0), Line(intercept=dist.Normal(0, 1), obs_scale=dist.HalfNormal(1.0)), method=pk.MLE()
    )
    assert not posterior.report.converged
    assert posterior.report.reason and posterior.report.advice
