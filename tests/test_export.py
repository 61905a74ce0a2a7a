"""Export to ArviZ: the groups, their labels, and that ArviZ's own tools take them."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
from helpers import tol
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats
from toys import posterior_of

import probkit as pk

KEY = jax.random.key(0)
RNG = np.random.default_rng(9)
YEARS = pd.Index(np.arange(1871, 1891), name="year")
GAPS = np.where(np.isin(np.arange(20), [0, 5]), np.nan, RNG.normal(5.0, 1.0, 20))
DRAWS = {"ma": RNG.uniform(-0.9, -0.2, (2, 50, 1)), "scale": RNG.uniform(0.5, 1.5, (2, 50))}


def arima():
    return posterior_of(pk.ARIMA(0, 1, 1), pd.Series(GAPS, YEARS), DRAWS)


def test_groups_dims_and_coordinates():
    tree = arima().to_arviz()
    assert set(tree.children) == {
        "posterior",
        "sample_stats",
        "log_prior",
        "log_likelihood",
        "posterior_predictive",
        "loo_predictive",
        "observed_data",
    }
    assert tree.posterior["ma"].dims == ("chain", "draw", "ma_lag")
    assert_array_equal(tree.posterior["ma_lag"], [1])
    assert tree.posterior["scale"].dims == ("chain", "draw")
    assert {"lp", "log_likelihood"} <= set(tree.sample_stats.data_vars)
    assert tree.log_prior["log_prior"].dims == ("chain", "draw")
    # Entries without a term are left out, and the coordinates say which are there.
    seen = ~np.isnan(GAPS)
    for group in ("log_likelihood", "posterior_predictive", "loo_predictive"):
        assert tree[group]["y"].dims == ("chain", "draw", "year") and tree[group]["y"].shape == (2, 50, 18)
        assert_array_equal(tree[group]["year"], YEARS[seen])
    assert tree.observed_data["y"].dims == ("year",)
    assert_allclose(tree.observed_data["y"], GAPS[seen], rtol=1e-6)


def test_log_likelihoods_are_float64_leave_one_out_terms():
    posterior = arima()
    terms = posterior.to_arviz().log_likelihood["y"]
    assert terms.dtype == np.float64
    assert_allclose(terms, posterior.loo_terms[..., ~np.isnan(GAPS)])


def test_attributes_say_what_was_done():
    attrs = arima().to_arviz().attrs
    assert attrs["inference_library"] == "probkit" and attrs["inference_library_version"] == pk.__version__
    assert attrs["method"].startswith("Laplace(") and attrs["rung"] == "importance" and attrs["converged"] == 1
    assert attrs["log_likelihood_terms"].startswith("log p(y_i | y_-i, parameters)")
    assert attrs["posterior_predictive"] == "smoothed"
    assert attrs["jax_version"] == jax.__version__ and attrs["numpyro_version"] == numpyro.__version__
    attrs = arima().to_arviz(predictive="loo", log_likelihood="joint").attrs
    assert attrs["log_likelihood_terms"].startswith("log p(y | parameters)") and attrs["posterior_predictive"] == "loo"


def test_arrays_are_writable_copies():
    posterior = arima()
    values = posterior.to_arviz().posterior["scale"].to_numpy()
    values[:] = 0.0
    assert np.all(posterior.sites["scale"] > 0)


def test_predictive_draws_of_both_kinds():
    posterior = arima()
    seen = ~np.isnan(GAPS)
    smoothed, left_out = (posterior.to_arviz(predictive=kind).posterior_predictive["y"] for kind in ("smoothed", "loo"))
    assert_array_equal(smoothed, posterior.predict().draws[..., seen])
    assert_array_equal(left_out, posterior.to_arviz().loo_predictive["y"])
    # Left-out draws follow p(y_i | y_-i): standardised by that law they are standard normal.
    y = posterior.target.args[0]
    law = jax.vmap(lambda ma, scale: pk.ARIMA(0, 1, 1, ma=ma, scale=scale).leave_one_out(y))(
        jnp.asarray(DRAWS["ma"].reshape(100, 1), y.dtype), jnp.asarray(DRAWS["scale"].reshape(100), y.dtype)
    )
    z = (left_out.to_numpy().reshape(100, -1) - law.loc[:, seen]) / law.scale[:, seen]
    assert abs(z.mean()) < 5 / np.sqrt(z.size)
    assert_allclose(z.std(), 1.0, atol=5 / np.sqrt(2 * z.size))


def test_the_joint_log_likelihood_and_prior_sensitivity(nile_level):
    import arviz_stats

    tree = nile_level.to_arviz(log_likelihood="joint")
    assert list(tree.log_likelihood.data_vars) == ["joint"]
    joint = tree.log_likelihood["joint"]
    assert joint.dims == ("chain", "draw") and joint.dtype == np.float64
    one = {n: v[0, 17] for n, v in nile_level.sites.items()}
    y = nile_level.target.args[0]
    wanted = pk.LocalLevel(one["level_scale"], one["obs_scale"]).log_likelihood(y)
    assert_allclose(joint[0, 17], wanted, rtol=tol(1e-8, 1e-4))
    # Half-normal priors on both scales, with the spread of y.
    prior = sum(stats.halfnorm(scale=np.std(y)).logpdf(value) for value in one.values())
    assert_allclose(tree.log_prior["log_prior"][0, 17], prior, rtol=tol(1e-8, 1e-4))
    table = arviz_stats.psense_summary(tree)
    assert list(table.index) == ["level_scale", "obs_scale"]
    assert (table["likelihood"] > table["prior"]).all() and (table["prior"] > 0).all()


@pytest.mark.once
def test_inputs_are_constant_data():
    X = RNG.normal(size=(20, 2))
    kernel = pk.Matern32(lengthscale=[1.0, 2.0], scale=dist.HalfNormal(1.0))
    model = pk.GP(kernel=kernel, obs_scale=1.0, mean=5.0)
    tree = posterior_of(model, GAPS, {"kernel.scale": DRAWS["scale"]}, X=X).to_arviz()
    assert tree.constant_data["X"].dims == ("time", "feature")
    assert_array_equal(tree.constant_data["feature"], [1, 2])
    assert_allclose(tree.constant_data["X"], X[~np.isnan(GAPS)], rtol=1e-6)
    assert "kernel.scale" in tree.posterior


@pytest.mark.parametrize(
    "index",
    [pd.date_range("2001-01-01", periods=20, freq="MS"), pd.period_range("2001", periods=20, freq="Q")],
    ids=["months", "quarters"],
)
def test_dates_are_coordinates(index):
    tree = posterior_of(pk.ARIMA(0, 1, 1), pd.Series(GAPS, index), DRAWS).to_arviz()
    assert_array_equal(tree.observed_data["time"].to_numpy(), np.asarray(index)[~np.isnan(GAPS)])


@pytest.mark.once
def test_a_point_estimate_has_one_draw_and_no_predictive_group():
    values = {name: v[:1, :1] for name, v in DRAWS.items()}
    tree = posterior_of(pk.ARIMA(0, 1, 1), GAPS, values, method=pk.MAP()).to_arviz()
    assert tree.posterior["scale"].shape == (1, 1)
    assert "posterior_predictive" not in tree.children and "observed_data" in tree.children


def test_a_plain_function():
    def model(y):
        mean = numpyro.sample("mean", dist.Normal(0.0, 10.0))
        with numpyro.plate("entries", y.shape[0]):
            numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    posterior = pk.fit(model, args=(GAPS[6:],), key=KEY, method=pk.MAP())
    tree = posterior.to_arviz()
    assert tree.log_likelihood["y"].shape == (1, 1, 14)
    assert_allclose(tree.posterior["mean"].item(), GAPS[6:].mean(), rtol=0.01)
    assert posterior.to_arviz(log_likelihood="joint").log_likelihood["joint"].shape == (1, 1)


class Heavy(pk.Model):
    """A joint law of y whose terms given all other entries nobody has written down."""

    centre: pk.model.Param

    def distribution(self, X, length):
        return dist.MultivariateStudentT(5.0, jnp.full(length, self.centre), jnp.eye(length))


@pytest.mark.parametrize("kind", ["loo", "joint"])
def test_a_law_without_leave_one_out_terms(kind):
    y = GAPS[6:]
    tree = posterior_of(Heavy(dist.Normal(0.0, 10.0)), y, {"centre": DRAWS["scale"]}).to_arviz(log_likelihood=kind)
    assert tree.posterior_predictive["y"].shape == (2, 50, 14) and "loo_predictive" not in tree.children
    assert_allclose(tree.observed_data["y"], y, rtol=1e-6)
    if kind == "joint":
        assert tree.log_likelihood["joint"].shape == (2, 50)
        assert tree.attrs["log_likelihood_terms"].startswith("log p(y | parameters)")
    else:
        assert "log_likelihood" not in tree.children
        assert tree.attrs["log_likelihood_terms"].startswith("none")


@pytest.mark.parametrize(("option", "value"), [("predictive", "prior"), ("log_likelihood", "pointwise")])
def test_bad_options(option, value):
    with pytest.raises(ValueError, match=f"{option} is '{value}'"):
        arima().to_arviz(**{option: value})


def test_the_nile_for_loo_pit(nile_level):
    import arviz_stats

    tree = nile_level.to_arviz(predictive="loo")
    assert tree.posterior_predictive["y"].shape == (1, 4000, 100)
    assert_array_equal(tree.observed_data["year"], np.arange(1871, 1971))
    assert_allclose(arviz_stats.loo(tree).elpd, nile_level.loo().elpd, atol=0.05)
