"""Many outputs at once in long form: the linear model of coregionalisation as a sum of products."""

import jax
import jax.numpy as jnp
import numpy as np
from helpers import tol
from numpy.testing import assert_allclose

import probkit as pk

RNG = np.random.default_rng(0)
# Three outputs, each seen at places of its own; the last column tells which.
OUTPUT = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2])
X = jnp.asarray(np.c_[RNG.uniform(0, 4, (12, 2)), OUTPUT])
Y = jnp.asarray(RNG.normal(size=12)).at[5].set(jnp.nan)


def model(W, v, slow, fast):
    smooth = pk.gp.Coregion(3, 2, 1, W[0], v[0]) * pk.RBF(slow, 1.0, columns=(0, 1))
    rough = pk.gp.Coregion(3, 2, 2, W[1], v[1]) * pk.Matern32(fast, 1.0, columns=(0, 1))
    return pk.GP(smooth + rough, 0.3, 0.1)


def test_the_linear_model_of_coregionalisation_against_dense_algebra():
    """``cov(f_i(x), f_j(x')) = sum_q B_q[i, j] k_q(x, x')``: value, and predictions of one output from the others."""
    W = RNG.normal(size=(3, 1)), RNG.normal(size=(3, 2))
    v = np.array([0.1, 0.2, 0.3]), np.array([0.3, 0.1, 0.2])
    gp = model(W, v, 1.5, 0.6)
    new = jnp.asarray([[1.0, 1.0, 2.0], [1.0, 1.0, 0.0]])
    value, law = jax.jit(lambda y: (gp.log_likelihood(y, X), gp.predict(y, X, new)))(Y)

    def dense(A, B):
        T = np.linalg.norm(A[:, None, :2] - B[None, :, :2], axis=-1)
        i, j = A[:, 2].astype(int), B[:, 2].astype(int)
        B1, B2 = (w @ w.T + np.diag(d) for w, d in zip(W, v, strict=True))
        t = np.sqrt(3) * T / 0.6
        return B1[i][:, j] * np.exp(-0.5 * (T / 1.5) ** 2) + B2[i][:, j] * (1 + t) * np.exp(-t)

    seen = ~np.isnan(np.asarray(Y))
    A, r = np.asarray(X, float)[seen], np.asarray(Y, float)[seen] - 0.1
    K = dense(A, A) + 0.09 * np.eye(11)
    want = -0.5 * (r @ np.linalg.solve(K, r) + np.linalg.slogdet(2 * np.pi * K)[1])
    assert_allclose(value, want, rtol=tol(1e-8, 1e-4))
    cross = dense(A, np.asarray(new, float))
    assert_allclose(law.mean, 0.1 + cross.T @ np.linalg.solve(K, r), rtol=tol(1e-8, 1e-3))
    own = dense(np.asarray(new, float), np.asarray(new, float)) + 0.09 * np.eye(2)
    assert_allclose(law.covariance_matrix, own - cross.T @ np.linalg.solve(K, cross), atol=tol(1e-8, 1e-4))


def test_default_priors_of_many_outputs():
    """B is free of units, the other factor carries the scale of y; lengthscales are scaled to their own columns."""
    gp = pk.GP(
        pk.gp.Coregion(3, 2) * pk.RBF(columns=(0, 1)) + pk.gp.Coregion(3, 2) * pk.Matern32(columns=(0, 1)), 0.3, 0.0
    )
    sites = pk.model.with_defaults(gp, Y, X)
    parts = sites.kernel.parts
    assert parts["product"].parts["rbf"].lengthscale.shape() == (2,)
    assert_allclose(parts["product"].parts["rbf"].scale.scale, 2 * np.nanstd(Y), rtol=tol(1e-6, 1e-4))
    assert parts["product"].parts["coregion"].weights.shape() == (3, 1)
    assert set(parts) == {"product", "product_2"}
