"""Auto: which rung answers, that it says so, and that the answer is right on every rung."""

import functools
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from helpers import count_compilations, shared
from numpy.testing import assert_allclose
from numpyro.distributions import constraints
from scipy import stats
from toys import Holder

import probkit as pk
from probkit.infer.auto import LARGER, sound
from probkit.infer.importance import LEAST_POOL, WORST_MCSE, least_ess

KEY = jax.random.key(0)


def test_the_nile_against_quadrature(nile, grid):
    posterior = pk.fit(pk.LocalLevel(), nile, key=KEY)
    report = posterior.report
    assert report.converged
    assert report.rung == "importance"
    assert report.method == repr(pk.Auto())
    assert report.k_hat <= report.k_threshold == 0.7
    assert report.ess > 3000
    assert report.worst_mcse <= 0.05
    for name, draws in posterior.sites.items():
        assert draws.shape == (1, 4000)
        assert_allclose(draws.mean(), grid.mean[name], atol=0.05 * grid.std[name])
        assert_allclose(draws.std(), grid.std[name], rtol=0.05)


def test_another_fit_compiles_nothing(nile):
    pk.fit(pk.LocalLevel(), nile, key=KEY)
    y, key = nile + 100.0, jax.random.key(9)
    with count_compilations() as compiled:
        posterior = pk.fit(pk.LocalLevel(), y, key=key)
    assert compiled.count == 0
    assert posterior.report.seconds.compile == 0


@pytest.mark.once
def test_new_prior_values_compile_nothing(nile):
    def model(scale):
        return pk.LocalLevel(level_scale=dist.HalfNormal(scale), obs_scale=dist.HalfNormal(3.0 * scale))

    pk.fit(model(100.0), nile, key=KEY)
    with count_compilations() as compiled:
        pk.fit(model(70.0), nile, key=KEY)
    assert compiled.count == 0


def skewed_a_little():
    """Twelve independent exponentials: the weights are sound, and a few hundred draws of 2,000 count."""
    numpyro.sample("x", dist.Exponential(1.0).expand([12]).to_event(1))


@pytest.mark.once
def test_more_draws_are_weighed_before_climbing():
    method = pk.Auto(draws=1000)
    alone = pk.fit(skewed_a_little, key=KEY, method=pk.Laplace(draws=1000), progress=False).report
    assert not alone.converged and alone.k_hat <= alone.k_threshold
    posterior = pk.fit(skewed_a_little, key=KEY, method=method, progress=False)
    report = posterior.report
    assert report.converged and report.rung == "importance" and report.method == repr(method)
    assert f"effective draws of {LARGER * LEAST_POOL}" in report.reason
    assert report.notes == ()
    assert report.ess >= least_ess(1000) > alone.ess and report.worst_mcse <= WORST_MCSE < alone.worst_mcse
    x = posterior.sites["x"]
    assert x.shape == (1, 1000, 12)
    assert_allclose(x.mean((0, 1)), 1.0, atol=0.15)
    assert_allclose(x.std((0, 1)), 1.0, rtol=0.25)


def test_what_makes_more_draws_worth_weighing():
    asked = pk.Laplace(draws=4000)

    def answer(k_hat=0.5, ess=200.0, worst_mcse=0.08, usable=True, converged=True):
        mode = SimpleNamespace(converged=np.array(converged))
        return SimpleNamespace(mode=mode, usable=usable, k_hat=k_hat, ess=ess, worst_mcse=worst_mcse)

    assert sound(answer(), asked)
    assert sound(answer(ess=100.0, worst_mcse=WORST_MCSE * 2.0), asked)
    for short in ({"k_hat": 0.71}, {"ess": 99.0}, {"worst_mcse": 0.101}, {"usable": False}, {"converged": False}):
        assert not sound(answer(**short), asked)
    assert not sound(answer(k_hat=np.nan), asked) and not sound(answer(ess=np.nan), asked)


def skewed():
    """Twenty independent gammas: importance sampling fails in so many skewed directions, NUTS does not mind."""
    numpyro.sample("x", dist.Gamma(0.5, 1.0).expand([20]).to_event(1))


@functools.cache
def climbed():
    return pk.fit(skewed, key=KEY, progress=False)


@pytest.mark.once
def test_it_climbs_to_nuts_and_says_why():
    report = climbed().report
    assert report.converged
    assert report.rung == "nuts"
    assert report.method == repr(pk.Auto())
    assert report.k_hat > 0.7
    assert any("climbed from importance resampling" in note and "k-hat" in note for note in report.notes)
    assert "climbed" in str(report)
    x = climbed().sites["x"]
    assert x.shape == (4, 1000, 20)
    assert_allclose(x.mean((0, 1)), 0.5, atol=0.1 * 0.5**0.5)
    assert_allclose(x.std((0, 1)), 0.5**0.5, rtol=0.15)


@pytest.mark.once
def test_climbing_again_compiles_nothing():
    climbed()
    with count_compilations() as compiled:
        pk.fit(skewed, key=jax.random.key(1), progress=False)
    assert compiled.count == 0


class EightSchools(pk.Model):
    """Rubin (1981), non-centred: theta = mu + tau eta."""

    sigma: jax.Array
    mu: pk.model.Param = pk.param(default=lambda self, y, X: dist.Normal(0.0, 5.0))
    tau: pk.model.Param = pk.param(support=constraints.positive, default=lambda self, y, X: dist.HalfCauchy(5.0))
    eta: pk.model.Param = pk.param(
        dims=("school",), default=lambda self, y, X: dist.Normal(jnp.zeros(8), jnp.ones(8)).to_event(1)
    )

    def distribution(self, X, length):
        return dist.Normal(self.mu + self.tau * self.eta, self.sigma).to_event(1)


def centred(y, sigma):
    """The same posterior, centred: its density has no mode, and no method for densities does well on it."""
    mu, tau = numpyro.sample("mu", dist.Normal(0, 5)), numpyro.sample("tau", dist.HalfCauchy(5))
    theta = numpyro.sample("theta", dist.Normal(mu, tau).expand([8]).to_event(1))
    numpyro.sample("y", dist.Normal(theta, sigma).to_event(1), obs=y)


@functools.cache
def schools():
    data = json.loads(shared("data/posteriordb/data/eight_schools.json").read_text())
    held = np.load(shared("data/posteriordb/reference/eight_schools-eight_schools_noncentered.npz"))
    y, sigma = (np.array(data[name], dtype=jnp.result_type(float)) for name in ("y", "sigma"))
    at = {str(name): i for i, name in enumerate(held["names"])}
    order = [*(at[f"theta[{i + 1}]"] for i in range(8)), at["mu"], at["tau"]]
    return y, sigma, held["mean"][order], held["sd"][order]


def check_schools(theta, mu, tau, atol, rtol):
    _, _, mean, sd = schools()
    flat = np.concatenate([theta.reshape(-1, 8), mu.reshape(-1, 1), tau.reshape(-1, 1)], axis=1)
    assert_allclose((flat.mean(0) - mean) / sd, 0.0, atol=atol)
    assert_allclose(flat.std(0), sd, rtol=rtol)


@pytest.mark.once
def test_eight_schools_takes_a_better_proposal():
    y, sigma, _, _ = schools()
    posterior = pk.fit(EightSchools(sigma), y, key=KEY, progress=False)
    report, sites = posterior.report, posterior.sites
    assert report.converged
    assert report.rung == "importance"
    assert "rounds" in report.reason  # the Laplace proposal alone does not do
    theta = sites["mu"][..., None] + sites["tau"][..., None] * sites["eta"]
    check_schools(theta, sites["mu"], sites["tau"], atol=0.12, rtol=0.12)


@pytest.mark.slow
def test_eight_schools_centred_climbs_and_warns():
    y, sigma, _, _ = schools()
    posterior = pk.fit(centred, args=(y, sigma), key=KEY, progress=False)
    report = posterior.report
    assert report.rung == "nuts"
    assert any("climbed from importance resampling" in note for note in report.notes)
    # The centred form has a funnel: NUTS finds most of it, says that it has trouble and what to do.
    assert not report.converged
    assert "non-centred" in report.advice
    check_schools(*(posterior.sites[name] for name in ("theta", "mu", "tau")), atol=0.4, rtol=0.3)


@pytest.mark.once
def test_few_draws_do_not_climb():
    def normal():
        numpyro.sample("x", dist.Normal(0.0, 1.0).expand([2]).to_event(1))

    report = pk.fit(normal, key=KEY, method=pk.Auto(draws=50), progress=False).report
    assert report.converged
    assert report.rung == "importance"


def test_nothing_unknown(nile):
    posterior = pk.fit(pk.LocalLevel(level_scale=30.0, obs_scale=120.0), nile, key=KEY)
    assert posterior.report.rung == "fixed"
    assert posterior.report.converged


@pytest.mark.parametrize("option", [{"draws": 0}, {"starts": 0}])
def test_options_are_checked(option):
    with pytest.raises(ValueError, match=next(iter(option))):
        pk.Auto(**option)


@pytest.mark.once
@pytest.mark.parametrize("method", [pk.MAP(), pk.Auto(draws=1000)], ids=["MAP", "Auto"])
def test_a_prior_whose_sampler_is_not_here(method):
    """A truncated Student-t samples by TensorFlow Probability alone: the starts do without."""
    prior = dist.TruncatedDistribution(dist.StudentT(3.0, 0.0, 1.0), low=0.0)
    y = np.array([0.3, 1.4, 0.8, 1.1])
    posterior = pk.fit(Holder(prior), y, key=KEY, method=method)
    assert posterior.report.converged
    theta = np.linspace(0.0, 5.0, 20_001)
    density = stats.t(3.0).pdf(theta) * np.exp(-0.5 * np.square(y - theta[:, None]).sum(1))
    draws = posterior.sites["theta"]
    if isinstance(method, pk.MAP):
        assert_allclose(draws.item(), theta[np.argmax(density)], atol=1e-3)
    else:
        mean = np.average(theta, weights=density)
        sd = np.sqrt(np.average((theta - mean) ** 2, weights=density))
        assert_allclose(draws.mean(), mean, atol=0.06 * sd)
        assert_allclose(draws.std(), sd, rtol=0.05)
