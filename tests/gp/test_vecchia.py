"""Nearest neighbours: exact with all of them, against dense conditionals with few, whatever is missing or doubled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tol
from numpy.testing import assert_allclose

import probkit as pk
from probkit.gp.vecchia_process import nearest

RNG = np.random.default_rng(0)
PLACES = RNG.uniform(-2, 2, (24, 3))
PLACES[7] = PLACES[2]
X = jnp.asarray(PLACES)
Y = jnp.asarray(np.sin(2 * PLACES.sum(1)) + 0.2 * RNG.normal(size=24)).at[jnp.asarray([4, 11])].set(jnp.nan)
X_NEW = jnp.asarray(RNG.uniform(-2, 2, (5, 3)))
U = jnp.asarray([1.0, 1.4, 0.8, 1.2, 0.3, 0.1])


def kernel_of(u, plain=False):
    kernel = pk.Matern52(u[:3], u[3])
    return kernel + pk.Linear(0.3 * u[:3], jnp.zeros(3)) if plain else kernel


def law_of(u, neighbours, plain=False, y=Y):
    solver = pk.gp.Vecchia(neighbours).prepared(y, X)
    return solver.distribution(kernel_of(u, plain), X, u[4], u[5])


@pytest.mark.once
@pytest.mark.parametrize(
    "plain", [pytest.param(False, marks=pytest.mark.slow, id="stationary"), pytest.param(True, id="any")]
)
def test_all_neighbours_are_exact(plain):
    def everything(make):
        value, slope = jax.value_and_grad(lambda u: make(u).log_prob(Y))(U)
        law = make(U)
        loo, here, there = law.leave_one_out(Y), law.predict(Y), law.predict(Y, X_NEW)
        return value, slope, loo.mean, loo.variance, here.mean, here.variance, there.mean, there.variance

    exact = lambda u: pk.gp.GaussianProcess(kernel_of(u, plain), X, u[4], u[5])
    got, want = jax.jit(lambda: (everything(lambda u: law_of(u, 23, plain)), everything(exact)))()
    for one, other in zip(got, want, strict=True):
        assert_allclose(one, other, rtol=tol(1e-8, 5e-3), atol=tol(1e-8, 2e-3))


def dense(u, near):
    """The same sum of conditionals by dense algebra, in double precision."""

    def k(A, B):
        t = np.sqrt(5) * np.linalg.norm((A[:, None] - B[None]) / np.asarray(u[:3], float), axis=-1)
        return float(u[3]) ** 2 * (1 + t + t * t / 3) * np.exp(-t)

    total, r = 0.0, np.asarray(Y, float) - float(u[5])
    for i in np.flatnonzero(~np.isnan(r)):
        c = near[i][near[i] >= 0]
        K = k(PLACES[c], PLACES[c]) + float(u[4]) ** 2 * np.eye(len(c))
        b = np.linalg.solve(K, k(PLACES[c], PLACES[[i]]))[:, 0] if len(c) else np.zeros(0)
        F = (
            k(PLACES[[i]], PLACES[[i]])[0, 0]
            + float(u[4]) ** 2
            - b @ (k(PLACES[c], PLACES[[i]])[:, 0] if len(c) else b)
        )
        total += -0.5 * ((r[i] - b @ r[c]) ** 2 / F + np.log(2 * np.pi * F))
    return total


def test_few_neighbours_against_dense_conditionals():
    law = law_of(U, 5)
    of = jax.jit(lambda u: law_of(u, 5).log_prob(Y))
    assert_allclose(of(U), dense(U, np.asarray(law.near)), rtol=tol(1e-9, 1e-3))


@pytest.mark.slow
def test_derivatives_of_both_orders():
    of = lambda u: law_of(u, 5).log_prob(Y)
    slope, curve = jax.jit(jax.grad(of)), jax.jit(jax.hessian(of))(U)
    h = tol(1e-5, 1e-2)
    for i, e in enumerate(jnp.eye(6)):
        assert_allclose(
            slope(U)[i], (of(U + h * e) - of(U - h * e)) / (2 * h), rtol=tol(1e-5, 0.05), atol=tol(1e-6, 0.1)
        )
        assert_allclose(
            curve[i], (slope(U + h * e) - slope(U - h * e)) / (2 * h), rtol=tol(1e-4, 0.1), atol=tol(1e-4, 0.5)
        )


def test_neighbours():
    """Each has the nearest of those before it; nobody has a missing one, nor one in its own place as itself."""
    Z = RNG.normal(size=(300, 2))
    Z[10] = Z[20]
    seen = np.ones(300, bool)
    seen[[3, 50, 200]] = False
    order, near, around = nearest(Z, seen, 6)
    assert sorted(order) == list(range(300))
    place = np.argsort(order)
    distance = np.linalg.norm((Z / Z.std(0))[:, None] - (Z / Z.std(0))[None], axis=-1)
    for i in range(300):
        before = [j for j in order[: place[i]] if seen[j]]
        others = [j for j in range(300) if seen[j] and j != i]
        for found, allowed in ((near[i], before), (around[i], others)):
            found = found[found >= 0]
            assert len(found) == min(6, len(allowed))
            assert set(found) <= set(allowed)
            assert_allclose(np.sort(distance[i, found]), np.sort(distance[i, allowed])[: len(found)])


def test_no_noise_and_every_point_twice():
    """Duplicates tell nothing new: the density stays finite, with finite derivatives."""
    twice = jnp.concatenate([X[:12], X[:12]])
    y = jnp.concatenate([jnp.sin(X[:12, 0]), jnp.sin(X[:12, 0])])
    solver = pk.gp.Vecchia(8).prepared(y, twice)
    of = lambda u: solver.distribution(kernel_of(u), twice, 1e-6, 0.0).log_prob(y)
    value, slope = jax.jit(jax.value_and_grad(of))(U)
    assert np.isfinite(value)
    assert np.all(np.isfinite(slope))


@pytest.mark.slow
def test_draws_from_the_prior():
    law = law_of(U, 23)
    draws = np.asarray(jax.jit(lambda key: law.sample(key, (6000,)))(jax.random.key(0)), float)
    want = np.asarray(pk.gp.GaussianProcess(kernel_of(U), X, U[4], U[5]).covariance(), float)
    assert_allclose(np.cov(draws.T), want, atol=0.1 * want.max())


@pytest.mark.slow
def test_as_the_solver_of_a_model():
    places = RNG.uniform(0, 6, (200, 2))
    y = 50 + 10 * np.sin(places[:, 0]) * np.cos(places[:, 1]) + RNG.normal(size=200)
    y[5] = np.nan
    found = {}
    for name, solver in {"exact": None, "near": pk.gp.Vecchia(25)}.items():
        model = pk.GP(pk.Matern52(), solver=solver)
        posterior = pk.fit(model, y, places, key=jax.random.key(0), method=pk.MAP(starts=1))
        found[name] = posterior.predict(np.array([[1.5, 1.0], [4.0, 3.0]]))
    assert_allclose(found["near"].mean, found["exact"].mean, atol=1.0)
    assert_allclose(found["near"].std, found["exact"].std, rtol=0.1)
    assert any("25 nearest ones before it" in note for note in posterior.report.notes)


@pytest.mark.once
def test_border():
    with pytest.raises(ValueError, match="neighbours is 0"):
        pk.gp.Vecchia(0)
    with pytest.raises(ValueError, match="are not known"):
        pk.gp.Vecchia().distribution(pk.RBF(1.0, 1.0), X, 0.1, 0.0)
    with pytest.raises(ValueError, match="one for each is wanted"):
        law = law_of(U, 3)
        pk.gp.VecchiaProcess(law.kernel, X[:5], 0.1, 0.0, law.order, law.near, law.around)
    with pytest.raises(TypeError, match=r"no paths into the future; use predict\(X_new\)"):
        law_of(U, 3).forecast(Y, 2)
    with pytest.raises(ValueError, match="missing values in different places"):
        pk.fit(pk.GP(solver=pk.gp.Vecchia(3)), np.array([[1.0, 2], [np.nan, 3], [4, 5]]), key=jax.random.key(0))
    with pytest.raises(TypeError, match="draws no functions"):
        law_of(U, 3).representer(Y)
