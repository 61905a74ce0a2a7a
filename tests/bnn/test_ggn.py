"""Gauss-Newton maths: factors, matrices, evidence, against dense algebra and a linear model where all is exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tol
from scipy.stats import multivariate_normal

from probkit.bnn import ggn

RNG = np.random.default_rng(0)


inverse = jax.jit(ggn.inverse)


@pytest.fixture(scope="module")
def matrix():
    B = RNG.normal(size=(60, 41)) * np.logspace(-1, 1, 41)
    return jnp.asarray(B.T @ B + 0.1 * np.eye(41))


@pytest.mark.once
def test_inverse(matrix):
    found = inverse(matrix)
    dense = np.linalg.inv(np.asarray(matrix, float))
    assert np.allclose(found.root @ found.root.T, dense, rtol=tol(1e-8, 2e-2), atol=tol(1e-10, 1e-4))
    assert np.allclose(found.diagonal, np.diag(dense), rtol=tol(1e-8, 2e-2))
    assert np.allclose(found.log_det, np.linalg.slogdet(np.asarray(matrix, float))[1], rtol=tol(1e-10, 1e-4))
    X, log_det = ggn.inverse_factor(matrix, block=7)
    assert np.allclose(jnp.triu(X, 1), 0)
    assert np.allclose(log_det, found.log_det, rtol=tol(1e-8, 1e-4))


def test_not_positive_definite_is_nan(matrix):
    assert np.isnan(inverse(matrix.at[20, 20].set(-1.0)).log_det)


@pytest.mark.parametrize("k", [1, 3])
def test_gauss_newton_is_its_sum(k):
    J = RNG.normal(size=(9, k, 5))
    root = RNG.normal(size=(9, k, k))
    L = root @ np.swapaxes(root, 1, 2)
    sum_ = sum(J[i].T @ L[i] @ J[i] for i in range(9))
    assert np.allclose(
        ggn.gauss_newton(jnp.asarray(J), jnp.asarray(L)), sum_, rtol=tol(1e-10, 1e-4), atol=tol(1e-9, 1e-4)
    )


def test_diagonal_inverse_is_that_of_the_diagonal():
    J, L, P = RNG.normal(size=(9, 2, 5)), np.broadcast_to([[2.0, 0.3], [0.3, 1.0]], (9, 2, 2)), np.arange(1.0, 6.0)
    found = ggn.diagonal_inverse(ggn.diagonal(jnp.asarray(J), jnp.asarray(L)) + jnp.asarray(P))
    diagonal = np.diag(ggn.gauss_newton(jnp.asarray(J), jnp.asarray(L))) + P
    assert np.allclose(found.diagonal, 1 / diagonal, rtol=tol(1e-10, 1e-5))
    assert np.allclose(found.root**2, 1 / diagonal, rtol=tol(1e-10, 1e-5))
    assert np.allclose(found.log_det, np.sum(np.log(diagonal)), rtol=tol(1e-10, 1e-5))


def test_kronecker_of_a_layer_with_one_noise_is_the_whole_matrix():
    a, g = np.c_[RNG.normal(size=(9, 3)), np.ones(9)], RNG.normal(size=(2, 3))
    L = np.array([[2.0, 0.3], [0.3, 1.0]])
    J = np.einsum("ko,ni->nkoi", g, a)
    P = np.array([0.5, 0.5, 0.5, 2.0])
    information = jnp.asarray(np.broadcast_to(L, (9, 2, 2)))
    whole = np.asarray(ggn.gauss_newton(jnp.asarray(J.reshape(9, 2, -1)), information)) + np.diag(np.tile(P, 3))
    A, G = ggn.kronecker(jnp.asarray(a), jnp.asarray(np.broadcast_to(g, (9, 2, 3))), information)
    found = jax.jit(ggn.kronecker_inverse)(A, G, jnp.asarray(P))
    near = tol(1e-10, 1e-3)
    assert np.allclose(found.diagonal.ravel(), np.diag(np.linalg.inv(whole)), rtol=near)
    assert np.allclose(found.log_det, np.linalg.slogdet(whole)[1], rtol=near)
    spread = np.asarray(ggn.kronecker_spread(jnp.asarray(J), found.root), float)
    flat = J.reshape(18, -1)
    wanted = flat @ np.linalg.inv(whole) @ flat.T
    assert np.allclose(spread.reshape(18, -1) @ spread.reshape(18, -1).T, wanted, rtol=near, atol=near)


@pytest.fixture(scope="module")
def line():
    """A linear model in float: design, observations, noise, and two groups of weights."""
    A = jnp.asarray(RNG.normal(size=(40, 6)))
    y = A @ jnp.array([2.0, -1.0, 1.5, 0.5, -0.4, 0.3]) + 0.5 * jnp.asarray(RNG.normal(size=40))
    return A, y, 0.5, jnp.array([0, 0, 0, 1, 1, 1])


def evidence(line, alpha):
    """Laplace's evidence of the linear model, and what the update needs."""
    A, y, sd, group = line
    P = alpha[group]
    found = ggn.inverse(A.T @ A / sd**2 + jnp.diag(P))
    w = found.root @ (found.root.T @ (A.T @ y / sd**2))
    likelihood = jnp.sum(-0.5 * ((y - A @ w) / sd) ** 2 - jnp.log(sd) - 0.5 * jnp.log(2 * jnp.pi))
    return ggn.log_evidence(likelihood, w, P, found.log_det), (w, P, found.diagonal)


def test_evidence_of_a_linear_model_is_exact(line):
    A, y, sd, group = (np.asarray(a, float) for a in line)
    alpha = np.array([0.3, 40.0])
    covariance = A @ np.diag(1 / alpha[group.astype(int)]) @ A.T + sd**2 * np.eye(40)
    exact = multivariate_normal(np.zeros(40), covariance).logpdf(y)
    assert np.allclose(evidence(line, jnp.asarray(alpha))[0], exact, rtol=tol(1e-9, 1e-4))


@pytest.mark.once
def test_fixed_point_maximises_the_evidence(line):
    group = line[3]

    def update(_, alpha):
        w, P, variance = evidence(line, alpha)[1]
        return ggn.update_precisions(w, P, variance, jnp.ones(6), group, 2, shape=0.0, rate=0.0).alpha

    alpha = jax.jit(lambda a: jax.lax.fori_loop(0, 200, update, a))(jnp.ones(2))
    slope = jax.grad(lambda t: evidence(line, jnp.exp(t))[0])(jnp.log(alpha))
    assert np.all(np.abs(slope) < tol(1e-6, 1e-2))


def test_one_useless_weight_does_not_run_away():
    found = ggn.update_precisions(jnp.zeros(1), jnp.ones(1), jnp.ones(1), jnp.ones(1), jnp.zeros(1, int), 1)
    assert np.allclose(found.alpha, 1.0)
    assert np.allclose(found.determined, 0.0)
