"""NUTS against quadrature and references, its report, and the wall it meets where a density overflows."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from helpers import count_compilations, shared, tol
from numpy.testing import assert_allclose

import probkit as pk
from probkit.infer.nuts import CHUNK, guarded
from probkit.infer.target import Target

KEY = jax.random.key(0)
#: A warm-up that ends inside a chunk, and a total that does too.
RAGGED = pk.NUTS(draws=1030, warmup=450, chains=3)


@functools.cache
def nile_fit(method):
    return pk.fit(pk.LocalLevel(), pk.datasets.nile(), key=KEY, method=method, progress=False)


@pytest.mark.slow
def test_the_nile_against_quadrature(grid):
    assert RAGGED.warmup % CHUNK and (RAGGED.warmup + RAGGED.draws) % CHUNK
    posterior = nile_fit(RAGGED)
    assert posterior.targets_posterior
    for name, draws in posterior.sites.items():
        assert draws.shape == (3, 1030)
        assert_allclose(draws.mean(), grid.mean[name], atol=4 * float(posterior.report.mcse[name]))
        assert_allclose(draws.std(), grid.std[name], rtol=0.15)


@pytest.mark.once
def test_the_report():
    report = nile_fit(RAGGED).report
    assert report.converged
    assert report.rung == "nuts"
    assert set(report.r_hat) == set(report.mcse) == {"level_scale", "obs_scale"}
    assert all(0.99 < float(r) < 1.02 for r in report.r_hat.values())
    assert report.divergences == 0
    assert 0.3 < report.bfmi < 2.0
    assert 300 < report.ess < 3 * 1030
    assert 0.02 < report.worst_mcse < 0.1
    assert report.seconds.run > 0
    assert "effective draws" in str(report)


def test_the_figures_of_every_draw():
    posterior = nile_fit(RAGGED)
    stats, y = posterior.outcome.stats, posterior.target.args[0]
    names = {"energy", "diverging", "n_steps", "acceptance_rate", "step_size", "lp", "log_prior", "log_likelihood"}
    assert names <= set(stats)
    assert all(figure.shape == (3, 1030) for figure in stats.values())
    assert np.all(np.ptp(stats["step_size"], axis=1) == 0)  # adaptation is over: no draw of the warm-up is kept
    assert len(np.unique(stats["step_size"])) == 3
    one = pk.LocalLevel(**{name: draws[1, 100] for name, draws in posterior.sites.items()})
    assert_allclose(stats["log_likelihood"][1, 100], one.log_likelihood(y), rtol=tol(1e-10, 1e-5))


def test_chains_differ_and_keys_repeat():
    posterior = nile_fit(RAGGED)
    draws = posterior.sites["obs_scale"]
    assert not np.any(np.all(draws[0] == draws[1:], axis=-1))
    again = pk.fit(pk.LocalLevel(), pk.datasets.nile(), key=KEY, method=RAGGED, progress=False)
    assert_allclose(again.sites["obs_scale"], draws, rtol=0)


def test_another_fit_compiles_nothing(nile):
    nile_fit(RAGGED)
    y, key = nile * 3.0 - 1.0, jax.random.key(5)
    with count_compilations() as compiled:
        posterior = pk.fit(pk.LocalLevel(), y, key=key, method=RAGGED, progress=False)
    assert compiled.count == 0
    assert posterior.report.seconds.compile == 0


def gaussian():
    numpyro.sample("x", dist.Normal(jnp.array([1.0, -50.0]), jnp.array([0.1, 20.0])).to_event(1))


BLIND = pk.NUTS(draws=400, warmup=400, start_at_laplace=False)


@pytest.mark.once
def test_without_a_laplace_fit():
    posterior = pk.fit(gaussian, key=KEY, method=BLIND, progress=False)
    assert posterior.report.converged
    assert_allclose((posterior.sites["x"].mean((0, 1)) - [1.0, -50.0]) / [0.1, 20.0], 0.0, atol=0.3)
    assert_allclose(posterior.sites["x"].std((0, 1)), [0.1, 20.0], rtol=0.2)


@pytest.mark.once
def test_the_bar_can_be_silenced(capsys):
    pk.fit(gaussian, key=KEY, method=BLIND, progress=False)
    silent = capsys.readouterr()
    assert silent.err == silent.out == ""
    pk.fit(gaussian, key=KEY, method=BLIND, progress=True)
    assert "NUTS" in capsys.readouterr().err


def test_trouble_is_told():
    report = nile_fit(dataclasses.replace(RAGGED, draws=30)).report
    assert not report.converged
    assert report.reason.startswith("Trouble: ")
    assert "effective draws" in report.reason
    assert report.advice


@pytest.mark.once
@pytest.mark.parametrize("draws", [1, 2, 5])
def test_too_few_draws_to_judge_are_not_called_good(draws):
    report = nile_fit(dataclasses.replace(RAGGED, draws=draws)).report
    assert not report.converged
    assert report.reason.startswith("Trouble: ")


@pytest.mark.parametrize(
    "option", [{"draws": 0}, {"warmup": 0}, {"chains": 2.0}, {"max_tree_depth": 0}, {"target_accept": 1.0}]
)
def test_options_are_checked(option):
    with pytest.raises(ValueError, match=next(iter(option))):
        pk.NUTS(**option)


# -- the wall ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "potential",
    [lambda z: jnp.sum(jnp.exp(z**2)), lambda z: jnp.sqrt(jnp.sum(z)), lambda z: -jnp.log(jnp.abs(jnp.sum(z)) * 0.0)],
    ids=["overflow", "nan", "inf"],
)
def test_outside_the_sane_region_stands_a_wall(potential):
    value, gradient = jax.value_and_grad(guarded(potential))(jnp.array([-40.0, -1.0]))
    assert value == jnp.inf
    assert jnp.all(gradient == 0)


def test_a_finite_value_with_a_gradient_that_overflows_is_outside_too():
    steep = lambda z: 1e-3 * jnp.sum(jnp.exp(z))  # its gradient is too large to be squared
    z = jnp.full(2, 0.9 * np.log(float(jnp.finfo(jnp.result_type(float)).max)))
    assert jnp.isfinite(steep(z))
    value, gradient = jax.value_and_grad(guarded(steep))(z)
    assert value == jnp.inf
    assert jnp.all(gradient == 0)


def test_inside_nothing_changes():
    potential = lambda z: 0.5 * jnp.sum(z**2) + jnp.sin(z[0] * z[1])
    z = jnp.array([0.4, -1.3])
    for ours, plain in zip(jax.value_and_grad(guarded(potential))(z), jax.value_and_grad(potential)(z), strict=True):
        assert_allclose(ours, plain, rtol=tol(1e-12, 1e-6))


def arma(y):
    """Explosive for |theta| > 1, where errors overflow: the case in which NumPyro's kernel alone goes wrong."""
    mu, phi = numpyro.sample("mu", dist.Normal(0, 10)), numpyro.sample("phi", dist.Normal(0, 2))
    theta, sigma = numpyro.sample("theta", dist.Normal(0, 2)), numpyro.sample("sigma", dist.HalfCauchy(2.5))

    def step(e, pair):
        e = pair[1] - (mu + phi * pair[0] + theta * e)
        return e, e

    first = y[0] - (mu + phi * mu)
    _, rest = jax.lax.scan(step, first, (y[:-1], y[1:]))
    numpyro.sample("e", dist.Normal(0, sigma).expand(y.shape).to_event(1), obs=jnp.append(first, rest))


@functools.cache
def arma_data():
    y = json.loads(shared("data/posteriordb/data/arma.json").read_text())["y"]
    return np.array(y, dtype=jnp.result_type(float))


def test_an_explosive_arma_is_behind_the_wall():
    target = Target(arma, (arma_data(),))
    potential = guarded(lambda u: -target.log_density(u))
    explosive = jnp.array([0.0, 0.5, 60.0, 0.0])  # mu, phi, theta, log sigma, in order of the sites
    assert list(target.sites()) == ["mu", "phi", "theta", "sigma"]
    value, gradient = jax.jit(jax.value_and_grad(potential))(explosive)
    assert value == jnp.inf
    assert jnp.all(gradient == 0)
    stationary = jnp.array([0.0, 0.9, 0.1, -1.7])
    value, gradient = jax.jit(jax.value_and_grad(potential))(stationary)
    assert jnp.isfinite(value)
    assert jnp.all(jnp.isfinite(gradient)) and jnp.any(gradient != 0)


@pytest.mark.slow
@pytest.mark.parametrize("start_at_laplace", [True, False])
def test_an_explosive_arma_is_sampled_rightly(start_at_laplace):
    reference = np.load(shared("data/posteriordb/reference/arma-arma11.npz"))
    method = pk.NUTS(draws=1500, warmup=500, start_at_laplace=start_at_laplace)
    posterior = pk.fit(arma, args=(arma_data(),), key=KEY, method=method, progress=False)
    assert posterior.report.converged, posterior.report
    assert np.all(np.isfinite(posterior.outcome.stats["energy"]))
    for name, mean, sd in zip(reference["names"], reference["mean"], reference["sd"], strict=True):
        draws = posterior.sites[str(name)]
        assert_allclose(draws.mean(), mean, atol=0.15 * sd)
        assert_allclose(draws.std(), sd, rtol=0.15)
