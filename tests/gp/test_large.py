"""Inducing points and Hilbert-space bases against dense algebra, and against the exact process where they are full."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tol
from numpy.testing import assert_allclose
from scipy.stats import multivariate_normal

import probkit as pk
from probkit.gp import lowrank
from probkit.gp.large import BasisProcess, SparseProcess

RTOL = tol(1e-6, 5e-3)
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.uniform(-2, 2, (30, 2)))
Y = jnp.asarray(np.sin(2 * np.asarray(X).sum(1)) + 0.2 * RNG.normal(size=30)).at[4].set(jnp.nan)
X_NEW = jnp.asarray(RNG.uniform(-2, 2, (5, 2)))
INDUCING = X[jnp.asarray([0, 5, 9, 12, 17, 21, 25])]
KERNEL = pk.RBF([1.0, 1.4], 1.2)
NOISE = jnp.linspace(0.2, 0.4, 30)
SEEN = ~np.isnan(np.asarray(Y))


def sparse(noise=NOISE, inducing=INDUCING):
    return SparseProcess(KERNEL, X, noise, 0.1, inducing)


def test_the_bound_against_dense_algebra():
    k = lambda A, B: np.asarray(KERNEL(jnp.asarray(A), jnp.asarray(B)), float)
    U, A = np.asarray(INDUCING), np.asarray(X)[SEEN]
    Q = k(A, U) @ np.linalg.solve(k(U, U), k(U, A))
    noise = np.asarray(NOISE, float)[SEEN] ** 2
    want = multivariate_normal(np.full(29, 0.1), Q + np.diag(noise)).logpdf(np.asarray(Y)[SEEN])
    want -= 0.5 * np.sum((np.diag(k(A, A)) - np.diag(Q)) / noise)
    assert_allclose(jax.jit(lambda law, y: law.log_prob(y))(sparse(), Y), want, rtol=RTOL)


def test_all_inputs_as_inducing_points_are_exact():
    exact = pk.gp.GaussianProcess(KERNEL, X, 0.3, 0.1)
    full = sparse(0.3, X)

    @jax.jit
    def both(y):
        return [
            (law.log_prob(y), law.predict(y).mean, law.predict(y).variance, law.predict(y, X_NEW).mean,
             law.predict(y, X_NEW).variance, law.leave_one_out(y).mean, law.leave_one_out(y).variance)
            for law in (full, exact)
        ]  # fmt: skip

    for got, want in zip(*both(Y), strict=True):
        assert_allclose(got, want, rtol=tol(1e-5, 2e-2), atol=tol(1e-5, 2e-2))
    assert sparse(0.3).log_prob(Y) < exact.log_prob(Y)


def test_leave_one_out_by_leaving_out():
    terms = sparse().leave_one_out(Y)
    for i in (0, 7):
        without = sparse().predict(Y.at[i].set(jnp.nan))
        assert_allclose(terms.mean[i], without.mean[i], rtol=RTOL)
        assert_allclose(terms.variance[i], without.variance[i], rtol=RTOL)
    assert_allclose(terms.mean[4], sparse().predict(Y).mean[4], rtol=RTOL)


def test_greedy_points_are_the_pivots():
    from probkit.gp.kernels import matern52, squared_distance

    Z = jnp.concatenate([X, X])  # every point twice: none may be chosen twice
    chosen = np.asarray(jax.jit(lambda Z: lowrank.greedy_points(Z, 12))(Z))
    assert len({tuple(z) for z in np.asarray(Z)[chosen]}) == 12
    K = np.asarray(matern52(squared_distance(Z, Z)), float)
    for i in (3, 11):  # the conditional variance there is the largest given those before
        S = chosen[:i]
        left = np.diag(K - K[:, S] @ np.linalg.solve(K[np.ix_(S, S)], K[S]))
        assert_allclose(left[chosen[i]], left.max(), rtol=tol(1e-6, 1e-2))


@pytest.mark.parametrize("kernel", [pk.RBF(0.8, 1.2), pk.Matern52(0.9, 1.2), pk.Matern32(0.9, 1.0) + pk.RBF(0.5, 0.3)])
def test_a_basis_comes_close_to_the_process(kernel):
    x = jnp.sort(X[:, 0])
    basis = BasisProcess(kernel, x, 0.3, 0.1, 0.0, 5.0, (120,))
    exact = pk.gp.GaussianProcess(kernel, x, 0.3, 0.1)

    def everything(law):
        new = law.predict(Y, X_NEW[:, 0])
        return law.log_prob(Y), new.mean, new.variance, law.leave_one_out(Y).mean

    for got, want in zip(jax.jit(everything)(basis), jax.jit(everything)(exact), strict=True):
        assert_allclose(got, want, rtol=0.01, atol=0.01)


def test_a_basis_in_two_columns():
    basis = BasisProcess(pk.RBF([1.0, 1.4], 1.2), X, 0.3, 0.1, jnp.zeros(2), jnp.full(2, 4.0), (22, 20))
    exact = pk.gp.GaussianProcess(KERNEL, X, 0.3, 0.1)
    assert_allclose(jax.jit(lambda law: law.log_prob(Y))(basis), exact.log_prob(Y), rtol=0.01)


def test_draws_from_the_prior():
    for law in (sparse(0.3), BasisProcess(KERNEL, X, 0.3, 0.1, jnp.zeros(2), jnp.full(2, 4.0), (22, 20))):
        draws = jax.jit(lambda key, law=law: law.sample(key, (3000,)))(jax.random.key(0))
        assert_allclose(draws.var(0), 1.2**2 + 0.09, rtol=0.2)


@pytest.mark.parametrize("solver", [pk.gp.Sparse(25), pk.gp.HSGP(25)], ids=["sparse", "basis"])
@pytest.mark.slow
def test_as_solvers_of_the_model(solver):
    x = np.linspace(0, 6, 80)
    y = 50 + 10 * np.sin(x) + np.random.default_rng(0).normal(size=80)
    found = {}
    for name, one in {"exact": None, "approximate": solver}.items():
        model = pk.GP(pk.Matern52(), solver=one)
        posterior = pk.fit(model, y, x, key=jax.random.key(0), method=pk.MAP(starts=1))
        new = posterior.predict(np.array([1.5, 4.7]))
        found[name] = np.r_[new.mean, new.std]
        assert_allclose(new.mean, [60, 40], atol=1.5)
    assert_allclose(found["approximate"], found["exact"], rtol=0.03)
    assert any("Approximate" in note for note in posterior.report.notes)


def test_border():
    with pytest.raises(ValueError, match="count is 0"):
        pk.gp.Sparse(0)
    with pytest.raises(ValueError, match="above 1"):
        pk.gp.HSGP(10, 1.0)
    with pytest.raises(TypeError, match="no spectral density"):
        BasisProcess(pk.Periodic(1.0, 1.0, 1.0), X, 0.3, 0.0, 0.0, 1.0, (5, 5))
