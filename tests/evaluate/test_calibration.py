"""Simulation-based calibration: ranks are uniform where a fit is right, and what is wrong is caught."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from helpers import shared
from numpy.testing import assert_allclose, assert_array_equal
from numpyro.distributions import constraints
from scipy import stats
from toys import Line

import probkit as pk
from probkit.evaluate.calibration import _below, _envelope, _p_value

pytestmark = pytest.mark.once

KEY = jax.random.key(11)
LEVEL = pk.LocalLevel(level_scale=dist.HalfNormal(1.0), obs_scale=dist.HalfNormal(1.0))


class Loud(pk.LocalLevel):
    """A mistake: noise half as large again as it says."""

    def distribution(self, X, length):
        return pk.LocalLevel(self.level_scale, 1.5 * self.obs_scale).distribution(X, length)


LOUD = Loud(level_scale=dist.HalfNormal(1.0), obs_scale=dist.HalfNormal(1.0))


class EightSchools(pk.Model):
    """Rubin (1981), non-centred; Gelman et al., Bayesian Data Analysis, section 5.5."""

    sigma: jax.Array
    mu: pk.Param = pk.param(default=dist.Normal(0.0, 5.0))
    tau: pk.Param = pk.param(support=constraints.positive, default=dist.HalfCauchy(5.0))
    eta: pk.Param = pk.param(dims=("school",), default=dist.Normal(jnp.zeros(8), jnp.ones(8)).to_event(1))

    def distribution(self, X, length):
        return dist.Normal(self.mu + self.tau * self.eta, self.sigma).to_event(1)


# -- the test of uniformity --------------------------------------------------------------------------------------------


def test_p_values_of_uniform_ranks_are_uniform():
    rng = np.random.default_rng(1)
    p = [_p_value(rng.integers(0, 100, 80), 99) for _ in range(300)]
    assert stats.kstest(p, "uniform").pvalue > 0.001
    assert min(p) > 0.0


def test_ranks_that_are_not_uniform_have_small_p_values():
    rng = np.random.default_rng(2)
    narrow = np.where(rng.random(200) < 0.3, rng.choice([0, 99], 200), rng.integers(0, 100, 200))
    shifted = np.minimum(rng.integers(0, 100, 200) + 20, 99)
    for ranks in (narrow, shifted, np.full(200, 50)):
        assert _p_value(ranks, 99) < 1e-3


def test_the_envelope_holds_its_share_of_uniform_curves():
    x, low, high = _envelope(100, 49, 0.9)
    rng = np.random.default_rng(3)
    inside = 0
    for _ in range(500):
        curve = _below(rng.integers(0, 50, 100), 49) / 100
        inside += bool(np.all((curve >= low) & (curve <= high)))
    assert x.shape == (49,)
    assert_allclose(inside / 500, 0.9, atol=0.05)


# -- models ------------------------------------------------------------------------------------------------------------


@functools.cache
def calibrated(method, count, model=LEVEL):
    return pk.calibrate(model, 30, key=KEY, method=method, replications=count, simulator=LEVEL, progress=False)


@pytest.mark.once
def test_the_local_level_is_calibrated():
    found = calibrated(pk.Auto(draws=500, starts=2), 200)
    assert found.replications == 200 and found.converged.mean() > 0.98
    assert {name: r.shape for name, r in found.ranks.items()} == {
        "level_scale": (200,),
        "obs_scale": (200,),
        "log_likelihood": (200,),
    }
    assert all(r.min() >= 0 and r.max() <= 99 for r in found.ranks.values())
    assert found.uniform(), found.table()
    assert "ranks uniform" in repr(found)
    assert_allclose(found.table()["mean"], 0.5, atol=4 / np.sqrt(12 * 200))


@pytest.mark.once
def test_a_broken_model_is_caught():
    found = calibrated(pk.Auto(draws=500, starts=2), 200, LOUD)
    assert not found.uniform() and "NOT uniform" in repr(found)
    # Noise that is said to be smaller than it is makes its scale too small: the truth ranks high.
    assert found.table()["p_value"]["obs_scale"] < 1e-3 and found.table()["mean"]["obs_scale"] > 0.6


def test_the_envelope_plot(tmp_path):
    axes = calibrated(pk.Auto(draws=500, starts=2), 200).plot()
    assert [ax.get_title() for ax in axes[:3]] == ["level_scale", "obs_scale", "log_likelihood"]
    curve = axes[1].lines[0].get_ydata()
    found = calibrated(pk.Auto(draws=500, starts=2), 200)
    share = np.mean(found.ranks["obs_scale"][:, None] <= np.arange(99), axis=0)
    assert_allclose(curve, share - np.arange(1, 100) / 100, atol=1e-12)


@pytest.mark.once
def test_inputs_and_components():
    X = np.linspace(-1.0, 1.0, 12)
    model = Line(intercept=dist.Normal(0.0, 3.0), obs_scale=dist.LogNormal(0.0, 0.3))
    found = pk.calibrate(model, X=X, key=KEY, method=pk.Auto(draws=300, starts=1), replications=60, progress=False)
    assert found.uniform(1e-3), found.table()
    again = pk.calibrate(model, X=X, key=KEY, method=pk.Auto(draws=300, starts=1), replications=60, progress=False)
    for name, ranks in found.ranks.items():
        assert_array_equal(ranks, again.ranks[name])


@pytest.mark.once
@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        (pk.LocalLevel(), {"length": 20}, ValueError, "level_scale was left at its default"),
        (LEVEL, {}, ValueError, "needs length"),
        (lambda: None, {"length": 20}, TypeError, "probkit model is wanted"),
        (LEVEL, {"length": 20, "method": pk.MAP(starts=1), "replications": 2}, TypeError, "1 draws"),
        (LEVEL, {"length": 20, "replications": 0}, ValueError, "replications"),
    ],
)
def test_what_cannot_be_calibrated(model, options, error, message):
    with pytest.raises(error, match=message):
        pk.calibrate(model, key=KEY, progress=False, **options)


# -- the long checks ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "count"),
    [
        (pk.Auto(draws=500), 2000),
        (pk.Laplace(draws=500), 2000),
        (pk.NUTS(draws=500, warmup=500, chains=2), 400),
        (pk.VI(draws=500, importance=True), 1000),
    ],
    ids=["auto", "laplace", "nuts", "vi"],
)
def test_the_local_level_at_length(method, count):
    found = calibrated(method, count)
    assert found.uniform(), found.table()


@pytest.mark.slow
def test_a_broken_model_is_caught_by_every_method():
    for method in (pk.Laplace(draws=500), pk.NUTS(draws=200, warmup=200, chains=2)):
        assert not calibrated(method, 200, LOUD).uniform()


@pytest.mark.slow
def test_a_guide_that_is_off_is_caught_and_says_so():
    """Variational calibration (Yao et al. 2018): the ranks of a plain guide are not uniform, and it says so."""
    found = calibrated(pk.VI(draws=500), 1000)
    assert not found.uniform() and found.converged.mean() < 0.5, found.table()


@pytest.mark.slow
def test_eight_schools_at_length():
    sigma = json.loads(shared("data/posteriordb/data/eight_schools.json").read_text())["sigma"]
    model = EightSchools(np.array(sigma, float))
    found = pk.calibrate(model, 8, key=KEY, method=pk.Auto(draws=1000), replications=500, progress=False)
    assert found.uniform(), found.table()
