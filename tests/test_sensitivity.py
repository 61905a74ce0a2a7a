"""Prior sensitivity: power-scaling against its closed form on conjugate models, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from helpers import tol
from numpy.testing import assert_allclose
from scipy.stats import norm
from toys import Line, posterior_of

import probkit as pk

KEY = jax.random.key(0)
Y = np.random.default_rng(1).normal(5.0, 1.0, 20)
RNG = np.random.default_rng(2)


@functools.cache
def mean_only(centre, scale, method=None):
    """mean ~ N(centre, scale), y ~ N(mean, 1): under powers of prior and likelihood still conjugate."""
    draws = posterior_law(centre, scale).rvs((2, 2000), random_state=RNG)
    model = Line(intercept=dist.Normal(centre, scale), obs_scale=1.0)
    return posterior_of(model, Y, {"intercept": draws}, method=method)


def posterior_law(centre, scale, prior=1.0, likelihood=1.0):
    precision = prior / scale**2 + likelihood * len(Y)
    return norm((prior * centre / scale**2 + likelihood * Y.sum()) / precision, precision**-0.5)


def divergence(p, q, x):
    """Cumulative Jensen-Shannon divergence of two cumulative distribution functions on a grid, both ways."""
    m = 0.5 * (p + q)

    def one_way(a, b):
        log_ratio = np.log2(np.where(a > 0, a / m, 1.0))
        return np.trapezoid(a * log_ratio, x) + np.trapezoid(b - a, x) / (2 * np.log(2))

    return (one_way(p, q) + one_way(q, p)) / np.trapezoid(p + q, x)


def exact(centre, scale, which):
    """The sensitivity of Kallioinen et al. by quadrature: distance over |log2 alpha|, mean of both sides."""
    base = posterior_law(centre, scale)
    # ArviZ takes the integrals from the least draw to the largest.
    x = np.linspace(*base.ppf([1 / 4000, 1 - 1 / 4000]), 20_001)
    sides = []
    for alpha in (0.99, 1.01):
        moved = posterior_law(centre, scale, **{which: alpha})
        both = [divergence(base.cdf(x), moved.cdf(x), x), divergence(base.sf(x), moved.sf(x), x)]
        sides.append(np.sqrt(max(both)) / abs(np.log2(alpha)))
    return np.mean(sides)


CASES = {"weak": (0.0, 10.0), "conflict": (0.0, 0.7), "strong and agreeing": (Y.mean(), 0.02)}


@pytest.mark.parametrize(("centre", "scale"), CASES.values(), ids=CASES)
def test_the_conjugate_mean_against_its_closed_form(centre, scale):
    row = mean_only(centre, scale).sensitivity(round_to=6).loc["intercept"]
    for which in ("prior", "likelihood"):
        assert_allclose(row[which], exact(centre, scale, which), rtol=0.15, atol=0.002)


def test_diagnoses():
    found = {case: mean_only(*CASES[case]).sensitivity()["diagnosis"].item() for case in CASES}
    assert found == {
        "weak": "✓",
        "conflict": "potential prior-data conflict",
        "strong and agreeing": "potential strong prior / weak likelihood",
    }


def test_constants_count_nothing():
    """The log-likelihood is around -100,000 in every draw, the log prior varies by less than float32 resolves."""
    y = 1000.0 * Y
    model = Line(intercept=dist.Normal(0.0, 1e5), obs_scale=10.0)
    draws = RNG.normal(y.mean(), 10.0 / np.sqrt(20), (1, 2000))
    row = posterior_of(model, y, {"intercept": draws}).sensitivity().iloc[0]
    assert_allclose(row["likelihood"], exact(*CASES["weak"], "likelihood"), atol=0.02)
    assert row["prior"] < 0.01


def test_the_nile(nile_level):
    table = nile_level.sensitivity()
    assert list(table.index) == ["level_scale", "obs_scale"]
    assert list(table.columns) == ["prior", "likelihood", "diagnosis"]
    assert (table["diagnosis"] == "✓").all() and (table["likelihood"] > 0.05).all() and (table["prior"] < 0.05).all()
    # The same as by way of the whole export.
    import arviz_stats

    wanted = arviz_stats.psense_summary(nile_level.to_arviz(log_likelihood="joint"))
    assert_allclose(table["prior"], wanted["prior"], atol=0.002)
    assert_allclose(table["likelihood"], wanted["likelihood"], atol=tol(0.002, 0.01))


@pytest.mark.once
def test_vector_parameters_and_flat_priors():
    """The coefficients have a uniform prior: no power changes it."""
    y = 5.0 + np.cumsum(RNG.normal(size=20))
    draws = {"ma": RNG.uniform(-0.9, -0.2, (2, 500, 1)), "scale": RNG.uniform(0.5, 1.5, (2, 500))}
    posterior = posterior_of(pk.ARIMA(0, 1, 1), y, draws)
    assert list(posterior.sensitivity().index) == ["ma[1]", "scale"]
    flat = posterior.sensitivity(prior_var_names="ma")
    assert_allclose(flat["prior"], 0.0)
    assert (flat["likelihood"] > 0).all()


def test_options_are_passed_on():
    posterior = mean_only(*CASES["conflict"])
    assert posterior.sensitivity(threshold=10.0)["diagnosis"].item() == "✓"
    with pytest.raises(KeyError):
        posterior.sensitivity(var_names=["nothing"])


@pytest.mark.parametrize("names", [["nothing"], "slope", []])
def test_priors_that_are_not_there(names):
    with pytest.raises(ValueError, match=r"prior_var_names is \[.*\]; some of the sites \['intercept'\] are wanted"):
        mean_only(*CASES["weak"]).sensitivity(prior_var_names=names)


def groups(y):
    centre = numpyro.sample("centre", dist.Normal(0.0, 1.0))
    with numpyro.plate("groups", 4):
        theta = numpyro.sample("theta", dist.Normal(centre, 1.0))
    numpyro.deterministic("first", theta[0])
    with numpyro.plate("all", 20):
        numpyro.sample("y", dist.Normal(jnp.repeat(theta, 5), 1.0), obs=y)


def test_a_hierarchy_in_a_plain_function():
    """By default the prior of the top level alone is scaled; that of the groups is another question."""
    # Conjugate: the precision of (centre, theta), and exact draws.
    precision = np.diag([5.0, 6.0, 6.0, 6.0, 6.0])
    precision[0, 1:] = precision[1:, 0] = -1.0
    mean = np.linalg.solve(precision, np.append(0.0, Y.reshape(4, 5).sum(1)))
    draws = RNG.multivariate_normal(mean, np.linalg.inv(precision), (1, 4000))
    sites = {"centre": draws[..., 0], "theta": draws[..., 1:], "first": draws[..., 1]}
    posterior = posterior_of(groups, Y, sites)
    table = posterior.sensitivity(round_to=6)
    assert set(table.index) == {"centre", "first", *(f"theta[{i}]" for i in range(4))}
    assert table["diagnosis"]["centre"] == "potential prior-data conflict"
    assert_allclose(table["prior"]["theta[0]"], table["prior"]["first"])
    top = posterior.sensitivity(prior_var_names=["centre"], round_to=6)
    assert_allclose(top["prior"], table["prior"])
    lower = posterior.sensitivity(prior_var_names=["theta"], round_to=6)
    assert abs(lower["prior"]["theta[0]"] - table["prior"]["theta[0]"]) > 0.01


@pytest.mark.parametrize("method", [pk.MLE(), pk.MAP(), pk.Laplace(importance=False)], ids=lambda m: type(m).__name__)
def test_draws_that_do_not_target_the_posterior(method):
    posterior = mean_only(*CASES["weak"], method=method)
    with pytest.raises(TypeError, match=f"sensitivity weighs draws of the posterior, and {type(method).__name__} does"):
        posterior.sensitivity()


def test_a_model_without_priors():
    with pytest.raises(TypeError, match="The model holds no prior"):
        pk.fit(pk.LocalLevel(1.0, 1.0), Y, key=KEY).sensitivity()
