"""Starting states given everything else: whitened they are standard normal, and the density stays the density."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from helpers import tol
from numpy.testing import assert_allclose

import probkit as pk
from probkit.infer.target import Target

Y = 20 + 0.1 * np.arange(23.0) + np.tile([1.0, -2.0, 3.0, -2.0], 6)[:23] + np.random.default_rng(3).normal(size=23)
GAPS = Y.copy()
GAPS[[0, 6, 7, 15]] = np.nan


def quarters(**fields):
    return pk.ETS("AAdA", period=4, **fields)


@pytest.mark.once
@pytest.mark.parametrize(
    ("model", "sites"),
    [
        (quarters(), 3),
        pytest.param(quarters(level=20.0, slope=dist.StudentT(4.0, 0.0, 0.1)), 1, marks=pytest.mark.slow),
        pytest.param(pk.Transformed(quarters(), "log"), 3, marks=pytest.mark.slow),
    ],
    ids=["defaults", "some", "log"],
)
def test_the_states_are_standard_normal_given_the_rest(model, sites):
    target = Target(model, (jnp.asarray(Y, float), None)).resolved()
    assert len(target.model.normal_sites()) == sites
    count = sum(int(np.prod(shape)) for _, shape in target.sites().values())
    u = 0.5 * jax.random.normal(jax.random.key(0), (count,))
    index = target._conditional(u)[0]
    others = np.setdiff1d(np.arange(count), index)

    @jax.jit
    def look(u):
        values = target.evaluate(u).values
        back = target.unconstrain(lambda name, law: values[name])
        # Both derivatives at 0, where in float32 nothing cancels but the second alone.
        curvature = jax.hessian(lambda z: target.log_density(u.at[index].set(z)))(jnp.zeros(len(index)))
        moved = jax.jacfwd(lambda u: jax.grad(target.log_density)(u)[index])(u)
        return back, curvature, moved[:, others], jax.jacfwd(lambda u: target._placed(u)[0])(u), target._placed(u)[1]

    back, curvature, apart, jacobian, log_det = look(u)
    assert_allclose(back, u, atol=tol(1e-10, 2e-3))
    assert_allclose(curvature, -np.eye(len(index)), atol=tol(1e-9, 2e-2))
    assert_allclose(apart, 0, atol=tol(1e-8, 0.1))
    assert_allclose(np.linalg.slogdet(np.asarray(jacobian, float))[1], log_det, atol=tol(1e-9, 1e-3))


@pytest.mark.once
def test_gaps_and_user_s_priors_leave_one_to_one():
    """Where the law is only near, the map and its Jacobian are exact all the same."""
    target = Target(quarters(), (jnp.asarray(GAPS, float), None)).resolved()
    u = 0.5 * jax.random.normal(jax.random.key(1), (10,))
    values = target.evaluate(u).values
    assert_allclose(target.unconstrain(lambda name, law: values[name]), u, atol=tol(1e-10, 2e-3))
    jacobian = np.asarray(jax.jacfwd(lambda u: target._placed(u)[0])(u), float)
    assert_allclose(np.linalg.slogdet(jacobian)[1], target._placed(u)[1], atol=tol(1e-9, 1e-3))


def test_forms_that_are_not_normal_given_the_rest_are_left_alone():
    for model in (pk.ETS("MAM", period=4), pk.ETS("AAdN"), quarters(df=4.0), pk.LocalLevel()):
        assert model.normal_sites() == ()


@pytest.mark.slow
def test_a_seasonal_fit_needs_no_sampler():
    posterior = pk.fit(pk.ETS("AAA", period=12), pk.datasets.nottem(), key=jax.random.key(0))
    assert posterior.report.converged
    assert posterior.report.rung != "nuts"
