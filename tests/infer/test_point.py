"""MLE and MAP: published figures, curvature by finite differences, honest flags, and where the search starts."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from helpers import count_compilations, tol
from numpy.testing import assert_allclose

import probkit as pk
from probkit.infer.point import covariance, start_points
from probkit.infer.target import Target

KEY = jax.random.key(0)
METHODS = pytest.mark.parametrize("method", [pk.MLE(), pk.MAP()], ids=["mle", "map"])


@functools.cache
def nile_fit(method):
    return pk.fit(pk.LocalLevel(), pk.datasets.nile(), key=KEY, method=method)


def estimate(posterior):
    return {name: float(draws[0, 0]) for name, draws in posterior.sites.items()}


def test_the_nile_by_maximum_likelihood():
    """Durbin and Koopman (2012), section 2.10.3; statsmodels with use_exact_diffuse=True."""
    posterior = nile_fit(pk.MLE())
    found = estimate(posterior)
    assert_allclose(found["obs_scale"] ** 2, 15098.5, rtol=tol(1e-4, 1e-3))
    assert_allclose(found["level_scale"] ** 2, 1469.2, rtol=tol(1e-3, 1e-2))
    assert_allclose(posterior.report.log_density, -633.4646, atol=1e-3)
    assert_allclose(posterior.outcome.stats["log_likelihood"], -633.4646, atol=1e-3)
    assert posterior.report.converged
    assert posterior.report.rung == "mle"
    assert posterior.report.starts_agreeing > 0.5


@pytest.mark.once
@METHODS
def test_a_point_is_one_draw_and_targets_no_posterior(method):
    posterior = nile_fit(method)
    assert all(draws.shape == (1, 1) for draws in posterior.sites.values())
    assert not posterior.targets_posterior


@pytest.mark.skipif(not tol(1, 0), reason="finite differences need float64")
@METHODS
def test_standard_errors_are_the_inverse_hessian(method):
    """By central differences of the density itself, in constrained space: no Jacobian enters at a mode of it."""
    posterior = nile_fit(method)
    mode, (y, _) = estimate(posterior), posterior.target.args
    names, at = list(mode), np.array(list(mode.values()))
    spread = float(np.std(np.asarray(y)))

    def density(x):
        value = float(pk.LocalLevel(**dict(zip(names, x, strict=True))).log_likelihood(y))
        return value - (0.5 * np.sum((x / spread) ** 2) if method == pk.MAP() else 0.0)

    h = 1e-3 * at
    step = np.diag(h)
    H = np.array(
        [
            [
                (density(at + a + b) - density(at + a - b) - density(at - a + b) + density(at - a - b)) / (4 * sa * sb)
                for b, sb in zip(step, h, strict=True)
            ]
            for a, sa in zip(step, h, strict=True)
        ]
    )
    expected = np.sqrt(np.diag(np.linalg.inv(-H)))
    errors = posterior.outcome.standard_errors
    # The delta method from the log scale and the Hessian in the scale itself agree where the gradient is 0.
    assert_allclose([errors[name] for name in names], expected, rtol=1e-3)


def conjugate(y):
    mu = numpyro.sample("mu", dist.Normal(1.0, 2.0))
    numpyro.sample("y", dist.Normal(mu, 3.0).expand(y.shape).to_event(1), obs=y)


@pytest.mark.once
def test_mle_sees_no_prior_and_map_does():
    y = np.array([4.0, 5.0, 9.0], dtype=jnp.result_type(float))
    mle = pk.fit(conjugate, args=(y,), key=KEY, method=pk.MLE())
    assert_allclose(estimate(mle)["mu"], 6.0, rtol=tol(1e-6, 2e-3))
    assert_allclose(mle.outcome.standard_errors["mu"], 3 / np.sqrt(3), rtol=1e-4)
    top = pk.fit(conjugate, args=(y,), key=KEY, method=pk.MAP())
    assert_allclose(estimate(top)["mu"], (1 / 4 + 6 * 3 / 9) / (1 / 4 + 3 / 9), rtol=tol(1e-6, 2e-3))
    assert_allclose(top.outcome.standard_errors["mu"], (1 / 4 + 3 / 9) ** -0.5, rtol=1e-4)


def positive():
    numpyro.sample("s", dist.Gamma(3.0, 2.0))


def test_map_is_the_mode_in_constrained_space():
    posterior = pk.fit(positive, key=KEY, method=pk.MAP())
    assert_allclose(estimate(posterior)["s"], 1.0, rtol=1e-3)  # (3 - 1) / 2; with a Jacobian it would be 1.5


class Hierarchy(pk.Model):
    tau: pk.model.Param
    theta: pk.model.Param

    def distribution(self, X, length):
        return dist.Normal(self.theta, 1.0).to_event(1)


def hierarchy(y):
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    theta = numpyro.sample("theta", dist.Normal(jnp.zeros(3), tau).to_event(1))
    numpyro.sample("y", dist.Normal(theta, 1.0).to_event(1), obs=y)


def test_mle_refuses_hierarchies():
    y = np.array([1.0, -2.0, 0.5])
    model = Hierarchy(tau=dist.HalfNormal(1.0), theta=pk.given(lambda m: dist.Normal(jnp.zeros(3), m.tau).to_event(1)))
    with pytest.raises(TypeError, match="prior of theta depends on other parameters"):
        pk.fit(model, y, key=KEY, method=pk.MLE())
    with pytest.raises(TypeError, match="prior of theta depends on other parameters"):
        pk.fit(hierarchy, args=(y,), key=KEY, method=pk.MLE())


def two_modes():
    x = numpyro.sample("x", dist.Uniform(-10.0, 10.0))
    numpyro.factor("f", jnp.logaddexp(-0.5 * (x + 4) ** 2 / 0.25, 2.0 - 0.5 * (x - 3) ** 2 / 0.25))


def test_many_starts_find_the_better_mode():
    posterior = pk.fit(two_modes, key=KEY, method=pk.MLE(starts=12))
    assert_allclose(estimate(posterior)["x"], 3.0, atol=0.01)
    assert 0 < posterior.report.starts_agreeing < 1


def test_init_starts_there_alone():
    posterior = pk.fit(two_modes, key=KEY, method=pk.MLE(starts=12), init={"x": -4.5})
    assert_allclose(estimate(posterior)["x"], -4.0, atol=0.01)
    assert posterior.report.starts_agreeing == 1.0


def test_starts_hold_the_median_the_origin_and_prior_draws():
    target = Target(pk.LocalLevel(), (jnp.asarray(pk.datasets.nile().to_numpy(), float), None))
    starts = eqx.filter_jit(lambda init: start_points(target.resolved(), KEY, 8, init))
    points = starts(None)
    assert points.shape == (8, 2)
    assert jnp.all(jnp.isfinite(points))
    assert jnp.all(points[1] == 0)
    here = starts({"level_scale": jnp.asarray(50.0)})
    assert here.shape == (1, 2)
    assert_allclose(jnp.exp(here[0, 0]), 50.0, rtol=1e-5)
    assert_allclose(here[0, 1], points[0, 1], rtol=1e-5)


def unbounded():
    s = numpyro.sample("s", dist.ImproperUniform(dist.constraints.real, (), ()))
    numpyro.factor("f", 2.0 * s)


def test_a_maximum_at_infinity_is_not_converged():
    report = pk.fit(unbounded, key=KEY, method=pk.MLE(max_steps=20)).report
    assert not report.converged
    assert report.advice


def test_a_flat_likelihood_is_not_converged():
    report = pk.fit(positive, key=KEY, method=pk.MLE(max_steps=20)).report
    assert not report.converged
    assert report.advice


@METHODS
def test_another_fit_compiles_nothing(method, nile):
    nile_fit(method)
    y = nile * 2.0
    with count_compilations() as compiled:
        posterior = pk.fit(pk.LocalLevel(), y, key=KEY, method=method)
    assert compiled.count == 0
    assert posterior.report.seconds.compile == 0
    # Twice the data, with priors that grow along: twice the scales.
    for name, value in estimate(nile_fit(method)).items():
        assert_allclose(estimate(posterior)[name], 2 * value, rtol=tol(1e-5, 1e-2))


def test_nothing_unknown():
    posterior = pk.fit(pk.LocalLevel(level_scale=30.0, obs_scale=120.0), pk.datasets.nile(), key=KEY, method=pk.MLE())
    assert posterior.report.rung == "fixed"
    assert posterior.sites == {}


def test_covariance_is_the_inverse_or_nan():
    H = jnp.array([[4e6, 1e2], [1e2, 1e-2]])
    assert_allclose(covariance(H) @ H, np.eye(2), atol=tol(1e-8, 1e-2))
    assert jnp.any(jnp.isnan(covariance(jnp.array([[1.0, 2.0], [2.0, 1.0]]))))


@pytest.mark.parametrize("option", [{"starts": 0}, {"max_steps": 1.0}])
@pytest.mark.parametrize("kind", [pk.MLE, pk.MAP])
def test_options_are_checked(kind, option):
    with pytest.raises(ValueError, match=next(iter(option))):
        kind(**option)


@pytest.mark.parametrize(("rows", "dear"), [(99, False), (100, True)])
def test_a_factor_of_a_hundred_rows_is_dear(rows, dear):
    x = jnp.linspace(0, 1, rows)
    assert Target(pk.GP(pk.RBF(), solver=pk.gp.Exact()), (jnp.sin(9 * x), x)).dear() == dear
